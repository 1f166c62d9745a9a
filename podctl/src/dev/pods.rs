//! The pods of a data folder: the first is in the folder itself, the others in `pod-2`, `pod-3` and so on.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use adea::config::{LogTo, ProxyConfig, ReanConfig, RingSection, RuntimeConfig};
use adea::folder::Folder;
use adea::logging::FILTER_ENV;
use adea::ring::kept::Kept;
use adea::ring_file::RingFile;
use anyhow::{Context, bail};

use crate::command::dev::Args;

/// How far apart the public ports are: between them there is room for the ring's.
const PORT_STEP: u16 = 10;

/// One pod of the folder, to be started.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name in the ring.
    pub id: String,
    /// Where it keeps everything.
    pub folder: Folder,
    /// The public port.
    pub port: u16,
    /// The port above it, for the other pods; none for a pod that is alone.
    pub ring_port: Option<u16>,
}

/// How many pods the folder has; none if it is new.
pub fn count_in(root: &Path) -> u16 {
    if !root.join("ring.json").exists() {
        return 0;
    }
    (1..super::MAX_PODS).find(|place| !place_of(root, *place).join("ring.json").exists()).unwrap_or(super::MAX_PODS)
}

/// Where the pods of a folder are.
pub fn places(root: &Path) -> Vec<PathBuf> {
    (0..count_in(root)).map(|place| place_of(root, place)).collect()
}

/// Where the pod of a place, counted from 0, is.
fn place_of(root: &Path, place: u16) -> PathBuf {
    if place == 0 { root.to_path_buf() } else { root.join(format!("pod-{}", place + 1)) }
}

/// The first `wanted` pods; those that the folder doesn't have yet are made.
pub fn prepare(folder: &Folder, first: &RingFile, wanted: u16, args: &Args) -> anyhow::Result<Vec<Pod>> {
    // Pods that are there and not wanted now are away, and still pods of the ring.
    let is_ring = wanted.max(count_in(folder.root())) > 1;
    let mut pods = Vec::new();
    for place in 0..wanted {
        let port = args.port.checked_add(place * PORT_STEP).filter(|port| *port < u16::MAX);
        let port =
            port.with_context(|| format!("--port {}: there is no room for {wanted} pods above it", args.port))?;
        let ring_port = is_ring.then_some(port + 1);
        if place == 0 {
            pods.push(Pod { id: first.pod_id.clone(), folder: folder.clone(), port, ring_port });
            continue;
        }
        let folder = Folder::new(&place_of(folder.root(), place))?;
        let id = prepare_ring_file(&folder.ring_file(), first, place)?;
        pods.push(Pod { id, folder, port, ring_port });
    }
    Ok(pods)
}

/// The ring file of a pod that isn't the first: the same ring and administrator, a name of its own, which it gives.
fn prepare_ring_file(path: &Path, first: &RingFile, place: u16) -> anyhow::Result<String> {
    let known = RingFile::load(path)?;
    let secret = |file: &RingFile| file.secret().map(|secret| secret.to_hex());
    if let Some(known) = &known
        && secret(known) != secret(first)
    {
        bail!("{} is of another ring: move that folder away", path.display());
    }
    let file = first.for_pod(known.map_or_else(|| format!("pod-{}", place + 1), |known| known.pod_id));
    file.save(path)?;
    Ok(file.pod_id)
}

impl Pod {
    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Writes the agent's configuration for it, given all pods that are started; the file.
    pub fn write_config(&self, all: &[Self], args: &Args) -> anyhow::Result<PathBuf> {
        let config = adea::Config {
            pod_id: self.id.clone(),
            ring_file: self.folder.ring_file(),
            data_dir: self.folder.root().to_path_buf(),
            program: None,
            rean: ReanConfig { listen: loopback(0), engine: args.engine.clone() },
            proxy: ProxyConfig {
                listen: loopback(self.port),
                access_log: args.access_log,
                couch_cookie: args.couch_cookie,
                tls: None,
                redirect: None,
            },
            ring: self.ring_section(all)?,
            log: std::env::var(FILTER_ENV).unwrap_or_else(|_| "info".to_owned()),
            log_to: LogTo::Files,
            runtime: RuntimeConfig::Process,
        };
        let path = self.folder.run().join("adea.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    fn ring_section(&self, all: &[Self]) -> anyhow::Result<Option<RingSection>> {
        let Some(ring_port) = self.ring_port else { return Ok(None) };
        let founder = match all.first() {
            Some(first) if first.is_founder()? => Some(&first.id),
            _ => None,
        };
        // New pods that met one another first would begin a ring of their own.
        let is_seed = |other: &&Self| founder.is_none_or(|founder| other.id == *founder);
        let seeds = if founder == Some(&self.id) {
            Vec::new()
        } else {
            let others = all.iter().filter(|other| other.id != self.id).filter(is_seed);
            others.filter_map(|other| other.ring_port).map(|port| loopback(port).to_string()).collect()
        };
        Ok(Some(RingSection { listen: loopback(ring_port), advertise: None, seeds, url: Some(self.url()) }))
    }

    /// Whether the first pod was alone until now: then its store is what the others are to get, and it waits for nobody.
    fn is_founder(&self) -> anyhow::Result<bool> {
        Ok(self.folder.store().exists() && !Kept::load(&self.folder.ring_state_file())?.joined)
    }
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::{count_in, prepare};
    use crate::command::dev::Args;
    use crate::dev::ring;
    use adea::folder::Folder;
    use adea::ring_file::RingFile;

    fn args() -> Args {
        Args {
            pods: None,
            port: 5984,
            data: "x".into(),
            admin: None,
            no_tls: false,
            engine: "fjall".into(),
            json: false,
            access_log: false,
            couch_cookie: false,
            no_example: true,
        }
    }

    #[test]
    fn one_pod_is_alone_and_more_are_a_ring() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        assert_eq!(count_in(dir.path()), 0);
        let first = ring::prepare(&folder, &args(), None).unwrap().file;
        let alone = prepare(&folder, &first, 1, &args()).unwrap();
        assert!(alone[0].ring_port.is_none() && alone[0].ring_section(&alone).unwrap().is_none());
        assert_eq!(count_in(dir.path()), 1);

        // It has a store by now: the others are to get that.
        std::fs::create_dir(folder.store()).unwrap();
        let three = prepare(&folder, &first, 3, &args()).unwrap();
        assert_eq!(count_in(dir.path()), 3);
        let ids: Vec<_> = three.iter().map(|pod| pod.id.as_str()).collect();
        assert_eq!(ids, [first.pod_id.as_str(), "pod-2", "pod-3"]);
        assert_eq!(three.iter().map(|pod| pod.port).collect::<Vec<_>>(), [5984, 5994, 6004]);
        assert!(three[0].ring_section(&three).unwrap().unwrap().seeds.is_empty());
        let second = three[1].ring_section(&three).unwrap().unwrap();
        assert_eq!(second.seeds, ["127.0.0.1:5985"]);
        assert_eq!(second.listen.to_string(), "127.0.0.1:5995");
        let file = RingFile::load(&three[2].folder.ring_file()).unwrap().unwrap();
        assert_eq!(file.secret().unwrap().to_hex(), first.secret().unwrap().to_hex());
        assert!(file.dev.is_none() && file.admin.password_hash == first.admin.password_hash);

        // The others are away now, and the pod is not alone for that.
        let one = prepare(&folder, &first, 1, &args()).unwrap();
        assert!(one[0].ring_port.is_some());
    }

    #[test]
    fn a_new_ring_begins_when_its_pods_have_met() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let first = ring::prepare(&folder, &args(), Some("pod-1".into())).unwrap().file;
        assert_eq!(first.pod_id, "pod-1");
        let pods = prepare(&folder, &first, 2, &args()).unwrap();
        assert_eq!(pods[0].ring_section(&pods).unwrap().unwrap().seeds, ["127.0.0.1:5995"]);
        assert_eq!(pods[1].ring_section(&pods).unwrap().unwrap().seeds, ["127.0.0.1:5985"]);
        let high = Args { port: 65_530, ..args() };
        assert!(prepare(&folder, &first, 2, &high).unwrap_err().to_string().contains("--port"));
        // Another ring's folder is not taken over.
        ring::prepare(&Folder::new(&dir.path().join("x")).unwrap(), &args(), None).unwrap();
        std::fs::rename(dir.path().join("x/ring.json"), dir.path().join("pod-2/ring.json")).unwrap();
        assert!(prepare(&folder, &first, 2, &args()).unwrap_err().to_string().contains("another ring"));
    }
}
