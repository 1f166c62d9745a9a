//! From the configuration, and the software that is to run, to what is desired.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use adea_ring::public_tls::PublicTls;

use crate::config::{Config, ConfigError, RingSection};
use crate::doing::Wanted;
use crate::folder::Folder;
use crate::plan::{Desired, Launch, Mount, Port, Program, Shares};
use crate::software::Software;

/// Where programs listen in their containers. rean's first is for the proxy and the agent, and never published.
const REAN_INSIDE: u16 = 5986;
const RING_INSIDE: u16 = 5985;
const PROXY_INSIDE: u16 = 5984;
const REDIRECT_INSIDE: u16 = 5983;
/// Where containers have what they share with the machine.
const RING_FILE_INSIDE: &str = "/ring.json";
const STORE_INSIDE: &str = "/data";
const LOGS_INSIDE: &str = "/logs";
const PROXY_DATA_INSIDE: &str = "/proxy";
const TLS_INSIDE: &str = "/tls";
/// The name by which the proxy finds rean on the pod's own network; what it means is asked at each connection.
pub const REAN_NAME: &str = "rean";

/// All that is needed to say what should run.
#[derive(Debug, Clone)]
pub struct Blueprint {
    config: Config,
    folder: Folder,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Processes {
        program: PathBuf,
        rean: SocketAddr,
    },
    Containers {
        image: String,
        /// A hash of the ring file: who runs by another has to be replaced.
        ring_file_hash: String,
    },
}

impl Blueprint {
    /// For child processes. Takes a free port for rean if none is named.
    ///
    /// # Errors
    /// When there is no free port, or the running program's file can't be found.
    pub fn of_processes(config: &Config, folder: &Folder) -> Result<Self, ConfigError> {
        let program = match &config.program {
            Some(program) => program.clone(),
            None => crate::process::this_program().map_err(|source| ConfigError::Value {
                key: "program",
                reason: format!("not given, and the running one is not to be found: {source}"),
            })?,
        };
        let mut rean = config.rean.listen;
        if rean.port() == 0 {
            rean.set_port(free_port(rean, config.proxy.listen.port())?);
        }
        Ok(Self { config: config.clone(), folder: folder.clone(), kind: Kind::Processes { program, rean } })
    }

    /// For containers of `image`, unless the software says another.
    pub fn of_containers(config: &Config, folder: &Folder, image: String, ring_file_hash: String) -> Self {
        Self { config: config.clone(), folder: folder.clone(), kind: Kind::Containers { image, ring_file_hash } }
    }

    /// The image that runs where the software says no other; none where there are no containers.
    pub fn image(&self) -> Option<&str> {
        match &self.kind {
            Kind::Processes { .. } => None,
            Kind::Containers { image, .. } => Some(image),
        }
    }

    /// What should run under this software.
    pub fn wanted(&self, software: &Software) -> Wanted {
        let desired = match &self.kind {
            Kind::Processes { program, rean } => self.processes(software.program.as_ref().unwrap_or(program), *rean),
            Kind::Containers { image, ring_file_hash } => {
                self.containers(software.image.as_ref().unwrap_or(image), ring_file_hash)
            }
        };
        Wanted { software: software.clone(), desired }
    }

    fn processes(&self, program: &Path, rean_addr: SocketAddr) -> Desired {
        let (folder, config) = (&self.folder, &self.config);
        let common =
            |program| vec![program, "--exit-with-parent".into(), "--ring-file".into(), show(&config.ring_file)];
        let mut rean: Vec<String> = common("rean".to_owned());
        rean.extend(["--data".into(), show(&folder.store())]);
        rean.extend(["--listen".into(), rean_addr.to_string()]);
        rean.extend(["--engine".into(), config.rean.engine.clone()]);
        rean.extend(["--logs".into(), show(&folder.run())]);
        if let Some(ring) = &config.ring {
            rean.extend(["--ring-listen".into(), ring.listen.to_string()]);
        }
        let listen = config.proxy.listen;
        let mut proxy = common("proxy".to_owned());
        proxy.extend(["--listen".into(), listen.to_string()]);
        proxy.extend(["--upstream".into(), rean_addr.to_string()]);
        self.proxy_settings(&mut proxy);
        if let Some(tls) = &config.proxy.tls {
            proxy.extend(self.tls(tls, &folder.proxy_data(), |_, path| path.to_path_buf()));
        }
        if let Some(redirect) = config.proxy.redirect {
            proxy.extend(["--redirect".into(), redirect.to_string()]);
        }
        let launch = |args, up| Launch { software: show(program), args, up, shares: Shares::default() };
        Desired::from([(Program::Rean, launch(rean, rean_addr)), (Program::Proxy, launch(proxy, listen))])
    }

    fn containers(&self, image: &str, ring_file_hash: &str) -> Desired {
        let ring_file = Mount {
            from: self.folder.container_ring_file(),
            to: RING_FILE_INSIDE,
            writable: false,
            content: Some(ring_file_hash.to_owned()),
        };
        let (rean, proxy) = (self.rean_container(image, ring_file.clone()), self.proxy_container(image, ring_file));
        Desired::from([(Program::Rean, rean), (Program::Proxy, proxy)])
    }

    fn rean_container(&self, image: &str, ring_file: Mount) -> Launch {
        let mut args = vec!["rean".to_owned(), "--ring-file".into(), RING_FILE_INSIDE.into()];
        args.extend(["--data".into(), STORE_INSIDE.into(), "--logs".into(), LOGS_INSIDE.into()]);
        args.extend(["--listen".into(), anywhere(REAN_INSIDE).to_string(), "--private-network".into()]);
        args.extend(["--engine".into(), self.config.rean.engine.clone()]);
        let mut ports = Vec::new();
        if let Some(ring) = &self.config.ring {
            args.extend(["--ring-listen".into(), anywhere(RING_INSIDE).to_string()]);
            ports.push(Port { outside: ring.listen, inside: RING_INSIDE });
        }
        let mounts = vec![
            ring_file,
            mount(self.folder.store(), STORE_INSIDE, true),
            mount(self.folder.container_logs(), LOGS_INSIDE, false),
        ];
        Launch { software: image.to_owned(), args, up: anywhere(REAN_INSIDE), shares: Shares { mounts, ports } }
    }

    fn proxy_container(&self, image: &str, ring_file: Mount) -> Launch {
        let proxy = &self.config.proxy;
        let mut args = vec!["proxy".to_owned(), "--ring-file".into(), RING_FILE_INSIDE.into()];
        args.extend(["--listen".into(), anywhere(PROXY_INSIDE).to_string()]);
        args.extend(["--upstream".into(), format!("{REAN_NAME}:{REAN_INSIDE}")]);
        self.proxy_settings(&mut args);
        let mut ports = vec![Port { outside: proxy.listen, inside: PROXY_INSIDE }];
        let mut mounts = vec![ring_file, mount(self.folder.proxy_data(), PROXY_DATA_INSIDE, true)];
        if let Some(tls) = &proxy.tls {
            let place = |name: &str, _: &Path| Path::new(TLS_INSIDE).join(name);
            args.extend(self.tls(tls, Path::new(PROXY_DATA_INSIDE), place));
            args.extend(["--public-port".into(), proxy.listen.port().to_string()]);
            if !tls_copies(Some(tls)).is_empty() {
                mounts.push(mount(self.folder.container_tls(), TLS_INSIDE, false));
            }
        }
        if let Some(redirect) = proxy.redirect {
            args.extend(["--redirect".into(), anywhere(REDIRECT_INSIDE).to_string()]);
            ports.push(Port { outside: redirect, inside: REDIRECT_INSIDE });
        }
        Launch { software: image.to_owned(), args, up: anywhere(PROXY_INSIDE), shares: Shares { mounts, ports } }
    }

    fn proxy_settings(&self, args: &mut Vec<String>) {
        if self.config.proxy.access_log {
            args.push("--access-log".to_owned());
        }
        if self.config.proxy.couch_cookie {
            args.push("--couch-cookie".to_owned());
        }
    }

    /// The proxy's arguments for its certificate. `data` is its folder as it sees it; `place` says where it sees a file
    /// of the machine, given a name for a copy.
    fn tls(&self, tls: &PublicTls, data: &Path, place: impl Fn(&str, &Path) -> PathBuf) -> [String; 2] {
        let mut tls = tls.clone();
        match &mut tls {
            PublicTls::Files { certificate, key } => {
                (*certificate, *key) = (place(CERTIFICATE_COPY, certificate), place(KEY_COPY, key));
            }
            PublicTls::Ring { names } => {
                if names.is_empty() {
                    names.extend(self.config.ring.as_ref().and_then(url_host));
                }
            }
            PublicTls::Acme(acme) => {
                acme.ca = acme.ca.take().map(|ca| place(CA_COPY, &ca));
                acme.cache.get_or_insert_with(|| data.join("acme"));
            }
        }
        ["--tls".to_owned(), serde_json::to_string(&tls).unwrap_or_default()]
    }
}

/// Every address of a container.
fn anywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn mount(from: PathBuf, to: &'static str, writable: bool) -> Mount {
    Mount { from, to, writable, content: None }
}

/// The names of the copies that containers get of the machine's TLS files.
const CERTIFICATE_COPY: &str = "certificate.pem";
const KEY_COPY: &str = "key.pem";
const CA_COPY: &str = "ca.pem";

/// Which files of the machine are to be copied for a container, each with the name of its copy.
pub fn tls_copies(tls: Option<&PublicTls>) -> Vec<(PathBuf, &'static str)> {
    match tls {
        Some(PublicTls::Files { certificate, key }) => {
            vec![(certificate.clone(), CERTIFICATE_COPY), (key.clone(), KEY_COPY)]
        }
        Some(PublicTls::Acme(acme)) => acme.ca.iter().map(|ca| (ca.clone(), CA_COPY)).collect(),
        _ => Vec::new(),
    }
}

/// The host of the address that clients are told.
fn url_host(ring: &RingSection) -> Option<String> {
    let (_, rest) = ring.url.as_ref()?.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then(|| host.to_owned())
}

/// The first free port of a range that belongs to the public port, so that pods on one machine
/// rarely meet, and that lies below the ports which Linux lends to outgoing connections (32768 on),
/// so that none of these takes it while rean is being started again.
fn free_port(addr: SocketAddr, public_port: u16) -> Result<u16, ConfigError> {
    /// Enough for as many pods on one machine as anyone has tried.
    const TRIES: u16 = 200;
    let first = 20_000 + public_port % 10_000;
    let is_free = |port: u16| TcpListener::bind((addr.ip(), port)).is_ok();
    (first..first + TRIES).find(|port| *port != public_port && is_free(*port)).ok_or_else(|| ConfigError::Value {
        key: "rean.listen",
        reason: format!("no free port in {first}..{}", first + TRIES),
    })
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::{Blueprint, tls_copies};
    use crate::config::Config;
    use crate::folder::Folder;
    use crate::plan::{Desired, Program};
    use crate::software::Software;
    use serde_json::json;

    fn config(dir: &std::path::Path, proxy: serde_json::Value) -> Config {
        let config = json!({
            "pod_id": "pod-1", "ring_file": "/r", "data_dir": dir, "program": "/p", "proxy": proxy,
            "ring": {"listen": "10.0.0.1:5985", "url": "https://pod-1.example.org:8443/x"},
        });
        serde_json::from_value(config).unwrap()
    }

    fn has(desired: &Desired, program: Program, args: &[&str]) -> bool {
        desired[&program].args.windows(args.len()).any(|window| window == args)
    }

    #[test]
    fn the_proxy_is_told_where_rean_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let config = config(dir.path(), json!({"listen": "0.0.0.0:5984", "access_log": true, "couch_cookie": true}));
        let blueprint = Blueprint::of_processes(&config, &folder).unwrap();
        let desired = blueprint.wanted(&Software::default()).desired;
        let rean = desired[&Program::Rean].up;
        assert!((1..32768).contains(&rean.port()));
        assert!(has(&desired, Program::Proxy, &["--upstream", &rean.to_string(), "--access-log", "--couch-cookie"]));
        assert!(has(&desired, Program::Rean, &["--ring-listen", "10.0.0.1:5985"]));
        assert_eq!(desired[&Program::Proxy].up.to_string(), "0.0.0.0:5984");
        let other = Software { program: Some("/q".into()), image: None };
        assert_eq!(blueprint.wanted(&other).desired[&Program::Rean].software, "/q");
    }

    #[test]
    fn containers_publish_no_more_than_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let config = config(dir.path(), json!({"listen": "0.0.0.0:443", "tls": "ring", "redirect": "0.0.0.0:80"}));
        let blueprint = Blueprint::of_containers(&config, &folder, "adea:1".into(), "hash".into());
        let desired = blueprint.wanted(&Software::default()).desired;
        let ports = |program| -> Vec<(String, u16)> {
            let ports = desired[&program].shares.ports.iter();
            ports.map(|port| (port.outside.to_string(), port.inside)).collect()
        };
        assert_eq!(ports(Program::Rean), [("10.0.0.1:5985".to_owned(), 5985)]);
        assert_eq!(ports(Program::Proxy), [("0.0.0.0:443".to_owned(), 5984), ("0.0.0.0:80".to_owned(), 5983)]);
        assert!(has(&desired, Program::Rean, &["--listen", "0.0.0.0:5986", "--private-network"]));
        assert!(has(&desired, Program::Proxy, &["--upstream", "rean:5986"]));
        assert!(has(&desired, Program::Proxy, &["--tls", r#"{"ring":{"names":["pod-1.example.org"]}}"#]));
        assert!(has(&desired, Program::Proxy, &["--public-port", "443"]));
        let text = serde_json::to_string(&desired).unwrap();
        assert!(!text.contains("exit-with-parent") && !text.contains("docker.sock"), "{text}");
        let other = Blueprint::of_containers(&config, &folder, "adea:1".into(), "other".into());
        assert_ne!(other.wanted(&Software::default()).desired, desired, "another secret is another launch");
        let newer = Software { image: Some("adea:2".into()), program: None };
        assert_eq!(blueprint.wanted(&newer).desired[&Program::Proxy].software, "adea:2");
    }

    #[test]
    fn no_container_sees_the_key_for_orders() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let key = crate::order_key::beside(&folder.ring_file());
        let files = json!({"files": {"certificate": "/etc/c.pem", "key": "/etc/k.pem"}});
        for tls in [json!(null), json!("ring"), files, json!({"acme": {"domains": ["a.example"]}})] {
            let config = config(dir.path(), json!({"listen": "0.0.0.0:443", "tls": tls}));
            let blueprint = Blueprint::of_containers(&config, &folder, "adea:1".into(), "hash".into());
            let desired = blueprint.wanted(&Software::default()).desired;
            let mounts: Vec<_> = desired.values().flat_map(|launch| &launch.shares.mounts).collect();
            assert!(mounts.iter().any(|mount| mount.from == folder.container_ring_file()), "the ring file's copy is");
            for mount in mounts {
                // Neither the file, nor a folder that it is in.
                assert!(!key.starts_with(&mount.from), "{} is in {}", key.display(), mount.from.display());
            }
            assert!(!serde_json::to_string(&desired).unwrap().contains("order.key"));
        }
    }

    #[test]
    fn containers_get_copies_of_tls_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let files = json!({"files": {"certificate": "/etc/c.pem", "key": "/etc/k.pem"}});
        let files = config(dir.path(), json!({"listen": "0.0.0.0:443", "tls": files}));
        let blueprint = Blueprint::of_containers(&files, &folder, "adea:1".into(), "hash".into());
        let inside = r#"{"files":{"certificate":"/tls/certificate.pem","key":"/tls/key.pem"}}"#;
        assert!(has(&blueprint.wanted(&Software::default()).desired, Program::Proxy, &["--tls", inside]));
        let outside = r#"{"files":{"certificate":"/etc/c.pem","key":"/etc/k.pem"}}"#;
        let processes = Blueprint::of_processes(&files, &folder).unwrap();
        assert!(has(&processes.wanted(&Software::default()).desired, Program::Proxy, &["--tls", outside]));
        let copies = tls_copies(files.proxy.tls.as_ref());
        assert_eq!(copies, [("/etc/c.pem".into(), "certificate.pem"), ("/etc/k.pem".into(), "key.pem")]);
    }
}
