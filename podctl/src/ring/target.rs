//! Which pod to ask, and as whom.
//!
//! In this order: the pod that `--url` names; that of the running `podctl dev` in `--data`; the pod of this machine that
//! `--config` names; the ring of the last `podctl login`; a `podctl dev` in `./adea-data`; the pod of this machine at the
//! usual place, for who can read its ring file.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adea::ring_file::RingFile;
use adea_ring::operator::{MAX_LIFE_MS, OperatorKey};
use adea_ring::trust::Trust;
use adea_ring::{PodId, RingSecret};
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use tokio::time::timeout;

use crate::contexts::{Contexts, Ring};
use crate::exit;
use crate::http::{Conn, Peer};
use crate::moment::now_ms;
use crate::password;
use crate::ring::listener;
use crate::running::Running;

/// A pod that accepts nothing for so long is passed over for the next.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// The data folder of `podctl dev` when none is named.
const DEV_DATA: &str = "./adea-data";
/// The configuration of this machine's pod.
pub const CONFIG: &str = "/etc/adea/adea.json";
/// How much shorter a pass is made than it may be, in milliseconds: the clock may be set back a little meanwhile.
const PASS_MARGIN_MS: u64 = 60_000;

/// Which pod to ask, and as whom.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// A pod's public URL; without it the ring of `podctl login`, a running `podctl dev`, or the pod of this machine
    #[arg(long)]
    pub url: Option<String>,
    /// The account, with --url; the password comes from the variable ADEA_PASSWORD or from --password-file
    #[arg(long, default_value = "admin")]
    pub user: String,
    /// A file with the password; white space at its end doesn't count
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// The certificate of the authority that signs the pods' own (PEM), with --url: that one counts, and no other
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// The data folder of a running `podctl dev` [default: ./adea-data]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The configuration of the pod on this machine, which is asked without a password by who can read its ring file
    #[arg(long, default_value = CONFIG, env = "ADEA_CONFIG")]
    pub config: PathBuf,
}

/// Pods that may be asked, the best first, and what to do when none answers.
struct Candidates {
    peers: Vec<Peer>,
    advice: String,
    /// Where the log-in came from, if it may have ended meanwhile.
    kept: Option<String>,
}

impl TargetArgs {
    /// The pod of this machine, or that of a `podctl dev` if its data folder is given.
    pub fn of_machine(data: Option<PathBuf>, config: PathBuf) -> Self {
        Self { url: None, user: "admin".to_owned(), password_file: None, ca: None, data, config }
    }

    /// A connection to the first of the pods that answers.
    pub async fn connect(&self) -> anyhow::Result<Conn> {
        let candidates = self.candidates()?;
        let mut last = None;
        for peer in &candidates.peers {
            match timeout(CONNECT_DEADLINE, peer.connect()).await {
                Ok(Ok(conn)) => return candidates.checked(conn).await,
                Ok(Err(err)) => last = Some(err),
                Err(_) => {}
            }
        }
        let none = exit::no_pod(candidates.advice);
        Err(match last {
            Some(err) => exit::no_pod(format!("{none}: {err:#}")),
            None => none,
        })
    }

    /// The data folder of `podctl dev`.
    pub fn data(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(DEV_DATA))
    }

    /// A connection, and the ring file of the ring that it leads to.
    pub async fn ring(&self, ring_file: Option<&Path>) -> anyhow::Result<(Conn, RingFile, RingSecret)> {
        let path = self.ring_file(ring_file)?;
        let file = RingFile::load(&path)?.with_context(|| {
            format!(
                "there is no {}: this needs the ring's secret; give --ring-file FILE, on a pod's machine",
                path.display()
            )
        })?;
        let secret = file.secret()?;
        let mut conn = self.connect().await?;
        let root = conn.expect(Method::GET, "/", "").await?;
        if root["uuid"] != ring_id(&secret).as_str() {
            bail!("{} is not the ring file of the ring that was asked: give --ring-file FILE", path.display());
        }
        Ok((conn, file, secret))
    }

    /// Where the ring file is.
    pub fn ring_file(&self, given: Option<&Path>) -> anyhow::Result<PathBuf> {
        ring_file_of(given, self.data.as_deref(), &self.config)
    }

    fn candidates(&self) -> anyhow::Result<Candidates> {
        let contexts = || Contexts::load();
        if let Some(url) = &self.url {
            return self.of_url(url, contexts);
        }
        if self.data.is_some() {
            return of_dev(self.data()).context("start it, or name a pod with --url");
        }
        if self.config != Path::new(CONFIG) {
            return of_machine(&self.config);
        }
        let contexts = contexts()?;
        let mut over = None;
        if let Some(ring) = contexts.current() {
            if !ring.is_over(now_ms()) {
                return of_context(ring);
            }
            over = ring.urls.first().map(|url| format!("the log-in has ended: podctl login {url}"));
        }
        if let Ok(found) = of_dev(self.data()) {
            return Ok(found);
        }
        if self.config.exists() {
            return of_machine(&self.config);
        }
        Err(match over {
            Some(over) => exit::not_allowed(over),
            None => exit::no_pod(format!(
                "which pod? `podctl login URL` logs in to one; else name it with --url, start `podctl dev` in {DEV_DATA}, or do this on a pod's machine"
            )),
        })
    }

    fn of_url(&self, url: &str, contexts: impl FnOnce() -> anyhow::Result<Contexts>) -> anyhow::Result<Candidates> {
        let mut peer = Peer::parse(url)?;
        if let Some(ca) = &self.ca {
            peer = peer.with_trust(&Trust::nobody().with_file(ca)?);
        }
        let advice = format!("{} does not answer: is that pod up? Any other of the ring will do", plain(url));
        let candidates = |peer| Candidates { peers: vec![peer], advice, kept: None };
        if peer.has_login() {
            return Ok(candidates(peer));
        }
        if let Some(password) = password::given(self.password_file.as_deref())? {
            return Ok(candidates(peer.with_login(&self.user, &password)?));
        }
        match contexts()?.of_url(url) {
            Some(ring) if !ring.is_over(now_ms()) => {
                let mut found = of_context(ring)?;
                // Exactly the one that was named.
                found.peers = vec![logged_in(ring, url)?];
                Ok(found)
            }
            Some(_) => Err(exit::not_allowed(format!("the log-in has ended: podctl login {url}"))),
            None => Err(exit::not_allowed(format!(
                "no password: `podctl login {url}`, or set {}, or give --password-file FILE",
                password::PASSWORD_ENV
            ))),
        }
    }
}

impl Candidates {
    /// A log-in that was kept may have been ended by somebody; who only gets 401 later would not know what to do.
    async fn checked(&self, mut conn: Conn) -> anyhow::Result<Conn> {
        let Some(url) = &self.kept else { return Ok(conn) };
        let (status, _) = conn.send(Method::GET, "/_session", "").await?;
        if status == StatusCode::UNAUTHORIZED {
            let why = "the log-in counts no more: it was ended, or the password was changed";
            return Err(exit::not_allowed(format!("{why}: podctl login {url}")));
        }
        Ok(conn)
    }
}

fn of_context(ring: &Ring) -> anyhow::Result<Candidates> {
    let peers: anyhow::Result<Vec<Peer>> = ring.urls.iter().map(|url| logged_in(ring, url)).collect();
    let urls = ring.urls.join(", ");
    let advice = format!("no pod of the ring that you are logged in to answers ({urls}): name another one with --url");
    Ok(Candidates { peers: peers?, advice, kept: ring.urls.first().cloned() })
}

fn logged_in(ring: &Ring, url: &str) -> anyhow::Result<Peer> {
    let peer = Peer::parse(url)?.with_login(&ring.session.name, &ring.session.password)?;
    match &ring.ca {
        Some(ca) => Ok(peer.with_trust(&Trust::nobody().with_pem(ca.as_bytes())?)),
        None => Ok(peer),
    }
}

fn of_dev(data: &Path) -> anyhow::Result<Candidates> {
    let running = Running::load(data)?;
    let peers: anyhow::Result<Vec<Peer>> =
        running.pods.iter().map(|pod| Peer::parse(&pod.url)?.with_login(&running.name, &running.password)).collect();
    let advice = format!("no pod of {} answers: start `podctl dev` there, or give --url", data.display());
    Ok(Candidates { peers: peers?, advice, kept: None })
}

/// Where a ring file is: as given, else that of `podctl dev`, else that of this machine's pod.
pub fn ring_file_of(given: Option<&Path>, data: Option<&Path>, config: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if data.is_none() && config.exists() {
        return Ok(adea::Config::load(config)?.ring_file);
    }
    Ok(data.unwrap_or(Path::new(DEV_DATA)).join("ring.json"))
}

/// The pod of this machine, by a pass that its ring's secret makes.
fn of_machine(config: &Path) -> anyhow::Result<Candidates> {
    let config_file = config.display();
    let config = adea::Config::load(config)?;
    let file = RingFile::load(&config.ring_file)
        .with_context(|| format!("the pod of {config_file} can be asked by root only, or by `podctl login`"))?
        .with_context(|| format!("there is no {}", config.ring_file.display()))?;
    let advice = format!("the pod of {config_file} does not answer: is it started? (systemctl status adea)");
    Ok(Candidates { peers: vec![local_peer(&config, &file)?], advice, kept: None })
}

/// The pod of a configuration on this machine, as its administrator.
pub fn local_peer(config: &adea::Config, file: &RingFile) -> anyhow::Result<Peer> {
    let pod: PodId = file.pod_id.parse().context("the ring file's `pod_id`")?;
    let (name, password) = OperatorKey::new(&file.secret()?).pass(&pod, now_ms() + MAX_LIFE_MS - PASS_MARGIN_MS);
    let scheme = if config.proxy.tls.is_some() { "https" } else { "http" };
    let address = reachable(config.proxy.listen);
    listener::check(address, &config.data_dir)?;
    let peer = Peer::parse(&format!("{scheme}://{address}"))?;
    // Its certificate is for another name than this address. So it was looked who listens here; and the pass counts at
    // this pod only.
    peer.unverified().with_login(&name, &password)
}

/// Where a listener on `addr` is reached from this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// The public id of a ring, which each of its pods shows.
pub fn ring_id(secret: &RingSecret) -> String {
    hex::encode(&secret.key("uuid")[..16])
}

/// A URL without a log-in, which it may hold.
pub fn plain(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{plain, reachable, ring_id};
    use adea_ring::RingSecret;

    #[test]
    fn no_password_is_repeated() {
        assert_eq!(plain("http://ann:p@ss@a.example:1"), "http://a.example:1");
        assert_eq!(plain("http://a.example:1"), "http://a.example:1");
    }

    #[test]
    fn listeners_are_reached_on_this_machine() {
        for (listen, at) in
            [("0.0.0.0:443", "127.0.0.1:443"), ("[::]:443", "[::1]:443"), ("10.0.0.1:5984", "10.0.0.1:5984")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), at);
        }
    }

    #[test]
    fn rings_are_told_apart() {
        let secret = RingSecret::random();
        assert_eq!(ring_id(&secret).len(), 32);
        assert_ne!(ring_id(&secret), ring_id(&RingSecret::random()));
    }
}
