//! A machine that becomes a pod's: where its files go, which ports it takes, how it is started. What `podctl init` and
//! `podctl join` have in common.

mod ports;
pub mod start;

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use adea::order_key;
use adea::ring_file::RingFile;
use adea_ring::PodId;
use adea_ring::upgrade::OrderKey;
use adea_ring::web_tls::WebAuthority;
use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::exit;

/// Where Docker listens for commands, unless `DOCKER_HOST` names another socket.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// The public ports, with and without TLS.
const TLS_PORT: u16 = 443;
const PLAIN_PORT: u16 = 5984;
/// Where plain HTTP is sent on to HTTPS.
const REDIRECT_PORT: u16 = 80;

/// Where the pod's files go, and where it is reached.
#[derive(Debug, Clone, clap::Args)]
pub struct MachineArgs {
    /// The pod's name in the ring: 1 to 64 of a-z, 0-9 and - [default: this machine's name]
    #[arg(long)]
    pub pod: Option<PodId>,
    /// The folder for all that the pod keeps
    #[arg(long, default_value = "/var/lib/adea")]
    pub data: PathBuf,
    /// The agent's configuration, which is written
    #[arg(long, default_value = crate::ring::target::CONFIG, env = "ADEA_CONFIG")]
    pub config: PathBuf,
    /// Where clients are listened for [default: port 443 of all addresses, or 5984 without TLS]
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Where clients reach this pod, as they are told [default: made from the other options]
    #[arg(long)]
    pub url: Option<String>,
    /// Where the other pods are listened for, by TCP and UDP
    #[arg(long, default_value = "0.0.0.0:5985")]
    pub ring_listen: SocketAddr,
    /// Where the other pods reach this one, HOST:PORT [default: this machine's address and the port of --ring-listen]
    #[arg(long)]
    pub ring_address: Option<String>,
    /// Who runs the programs [default: docker, where there is one]
    #[arg(long)]
    pub runtime: Option<RuntimeName>,
    /// The public port's certificate: none, ring (the ring's own authority), files:CERTIFICATE,KEY or acme:DOMAIN[,DOMAIN]
    #[arg(long, default_value = "none", value_parser = parse_tls)]
    pub tls: Tls,
    /// Whom an ACME authority may write to, such as ann@example.org
    #[arg(long)]
    pub acme_contact: Option<String>,
    /// Start the pod with systemd, also at each boot
    #[arg(long)]
    pub start: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Who runs the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeName {
    /// Containers.
    Docker,
    /// Child processes of the agent.
    Process,
}

/// Where the public port's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// There is none.
    None,
    /// The ring's own authority.
    Ring,
    /// Files.
    Files { certificate: PathBuf, key: PathBuf },
    /// An ACME authority.
    Acme(Vec<String>),
}

/// A machine on which nothing stands in the way.
pub struct Machine {
    pub pod: PodId,
    /// Absolute.
    pub data: PathBuf,
    /// Absolute.
    pub config: PathBuf,
    listen: SocketAddr,
    url: Option<String>,
    ring_listen: SocketAddr,
    ring_address: Option<String>,
    runtime: RuntimeName,
    tls: Tls,
    acme_contact: Option<String>,
}

/// What was written, for people.
pub struct Written {
    pub pod: PodId,
    pub config: PathBuf,
    pub ring_file: PathBuf,
    /// Where the key for orders of upgrades lies, if it is on this machine.
    pub order_key: Option<PathBuf>,
    pub url: String,
    pub ring_address: String,
    pub runtime: RuntimeName,
    /// The certificate of the ring's own authority, where the public port's is by that.
    pub ca: Option<PathBuf>,
}

impl Machine {
    /// Looks whether a pod can be made here. Nothing is written.
    pub fn check(args: &MachineArgs) -> anyhow::Result<Self> {
        let pod = match &args.pod {
            Some(pod) => pod.clone(),
            None => pod_of_host(&host_name()).context("this machine's name makes no name of a pod: give --pod NAME")?,
        };
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{}", path.display()));
        let (data, config) = (absolute(&args.data)?, absolute(&args.config)?);
        for path in [&config, &data.join("ring.json"), &data.join("order.key"), &data.join("rean")] {
            if fs::symlink_metadata(path).is_ok() {
                bail!(
                    "{} is there already: this machine has a pod, which is not overwritten. `podctl status` shows it; for \
                     another one give --data and --config",
                    path.display()
                );
            }
        }
        let listen = args.listen.unwrap_or_else(|| {
            let port = if args.tls == Tls::None { PLAIN_PORT } else { TLS_PORT };
            SocketAddr::from(([0, 0, 0, 0], port))
        });
        if let Tls::Files { certificate, key } = &args.tls {
            for file in [certificate, key] {
                fs::File::open(file).with_context(|| format!("--tls: can't read {}", file.display()))?;
            }
        }
        let machine = Self {
            pod,
            data,
            config,
            listen,
            url: args.url.clone(),
            ring_listen: args.ring_listen,
            ring_address: args.ring_address.clone(),
            runtime: runtime(args.runtime)?,
            tls: args.tls.clone(),
            acme_contact: args.acme_contact.clone(),
        };
        ports::check_free(machine.listen, machine.ring_listen, machine.redirect())?;
        if args.start {
            start::check(&machine.config)?;
        }
        can_write(&machine.data)?;
        can_write(machine.config.parent().unwrap_or(Path::new("/")))?;
        Ok(machine)
    }

    /// Where the pod says that other pods reach it, from an address of this machine by which it reaches others.
    fn ring_address(&self, here: Option<IpAddr>) -> anyhow::Result<String> {
        if let Some(address) = &self.ring_address {
            return Ok(address.clone());
        }
        let port = self.ring_listen.port();
        if !self.ring_listen.ip().is_unspecified() {
            return Ok(self.ring_listen.to_string());
        }
        let here = here.context("this machine has no way to other machines: give --ring-address HOST:PORT")?;
        Ok(SocketAddr::from((here, port)).to_string())
    }

    fn url(&self, ring_address: &str) -> String {
        if let Some(url) = &self.url {
            return url.clone();
        }
        let (scheme, usual) = if self.tls == Tls::None { ("http", 80) } else { ("https", 443) };
        let host = match &self.tls {
            Tls::Acme(domains) => domains.first().cloned().unwrap_or_default(),
            _ if !self.listen.ip().is_unspecified() => {
                let ip = self.listen.ip();
                if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
            }
            _ => ring_address.rsplit_once(':').map_or(ring_address, |(host, _)| host).to_owned(),
        };
        let port = self.listen.port();
        if port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    }

    /// Where plain HTTP is answered by the way to HTTPS: only beside the usual port.
    fn redirect(&self) -> Option<SocketAddr> {
        let is_usual = self.tls != Tls::None && self.listen.port() == TLS_PORT;
        is_usual.then(|| SocketAddr::from((self.listen.ip(), REDIRECT_PORT)))
    }

    /// Writes the ring file, the key for orders if this machine is to have it, and the agent's configuration: all or none.
    pub fn write(
        &self,
        file: &RingFile,
        order_key: Option<&OrderKey>,
        seeds: &[String],
        towards: Option<SocketAddr>,
    ) -> anyhow::Result<Written> {
        let ring_address = self.ring_address(ports::source_address(towards))?;
        let url = self.url(&ring_address);
        let ring_file = self.data.join("ring.json");
        let key_file = order_key::beside(&ring_file);
        let config = self.config_text(&ring_file, &ring_address, &url, seeds)?;
        make_folder(&self.data, 0o700)?;
        if let Some(folder) = self.config.parent() {
            make_folder(folder, 0o755)?;
        }
        // Beside its place first: the agent's own check is the last word on it.
        let new = self.config.with_extension("json.new");
        let written = (|| {
            write_new(&new, config.as_bytes(), 0o644)?;
            adea::Config::load(&new).context("the configuration that these options make can't be used")?;
            for path in [&ring_file, &key_file] {
                if fs::symlink_metadata(path).is_ok() {
                    bail!("{} has come into being meanwhile: nothing was changed", path.display());
                }
            }
            file.save(&ring_file)?;
            if let Some(key) = order_key {
                order_key::save(&key_file, key)?;
            }
            let ca = self.write_ca(file)?;
            // Not a rename: another one that came meanwhile stays.
            fs::hard_link(&new, &self.config).with_context(|| format!("can't write {}", self.config.display()))?;
            Ok(ca)
        })();
        let _ = fs::remove_file(&new);
        let ca = written?;
        Ok(Written {
            pod: self.pod.clone(),
            config: self.config.clone(),
            ring_file,
            order_key: order_key.map(|_| key_file),
            url,
            ring_address,
            runtime: self.runtime,
            ca,
        })
    }

    fn config_text(&self, ring_file: &Path, address: &str, url: &str, seeds: &[String]) -> anyhow::Result<String> {
        let mut proxy = json!({"listen": self.listen});
        if let Some(tls) = self.tls_value() {
            proxy["tls"] = tls;
        }
        if let Some(redirect) = self.redirect() {
            proxy["redirect"] = json!(redirect);
        }
        let runtime = match self.runtime {
            RuntimeName::Docker => match docker_socket() {
                usual if usual == Path::new(DOCKER_SOCKET) => json!({"docker": {}}),
                socket => json!({"docker": {"socket": socket}}),
            },
            RuntimeName::Process => json!("process"),
        };
        let config = json!({
            "pod_id": self.pod,
            "ring_file": ring_file,
            "data_dir": self.data,
            "proxy": proxy,
            "ring": {"listen": self.ring_listen, "advertise": address, "seeds": seeds, "url": url},
            "runtime": runtime,
        });
        Ok(serde_json::to_string_pretty(&config)? + "\n")
    }

    fn tls_value(&self) -> Option<Value> {
        match &self.tls {
            Tls::None => None,
            Tls::Ring => Some(json!("ring")),
            Tls::Files { certificate, key } => Some(json!({"files": {"certificate": certificate, "key": key}})),
            Tls::Acme(domains) => {
                let contact: Vec<String> = self.acme_contact.iter().map(|to| format!("mailto:{to}")).collect();
                Some(json!({"acme": {"domains": domains, "contact": contact}}))
            }
        }
    }

    /// What clients are to trust, where the ring is its own authority.
    fn write_ca(&self, file: &RingFile) -> anyhow::Result<Option<PathBuf>> {
        if self.tls != Tls::Ring {
            return Ok(None);
        }
        let path = self.data.join("ca.pem");
        let pem = WebAuthority::new(&file.secret()?)?.pem().to_owned();
        let _ = fs::remove_file(&path);
        write_new(&path, pem.as_bytes(), 0o644)?;
        Ok(Some(path))
    }
}

impl Written {
    /// For a program.
    pub fn json(&self) -> Value {
        json!({
            "pod": self.pod,
            "config": self.config,
            "ring_file": self.ring_file,
            "order_key": self.order_key,
            "url": self.url,
            "ring_address": self.ring_address,
            "runtime": match self.runtime {
                RuntimeName::Docker => "docker",
                RuntimeName::Process => "process",
            },
            "ca": self.ca,
        })
    }

    /// For a person: what is where.
    pub fn lines(&self) -> String {
        let port = self.ring_address.rsplit_once(':').map_or("", |(_, port)| port);
        let mut text = format!(
            "  configuration  {}\n  ring's secret  {} (for root only; whoever has it has the ring)\n  for clients    {}\n  \
             for the pods   {} (TCP and UDP port {port} must be open between the machines)\n",
            self.config.display(),
            self.ring_file.display(),
            self.url,
            self.ring_address,
        );
        if let Some(path) = &self.order_key {
            text += &format!(
                "  upgrades' key  {} (orders of upgrades are signed with it; it is on this machine only)\n",
                path.display()
            );
        }
        if let Some(ca) = &self.ca {
            text += &format!("  authority      {} (for clients: podctl login {} --ca FILE)\n", ca.display(), self.url);
        }
        text
    }
}

/// Reads `--tls`.
fn parse_tls(text: &str) -> Result<Tls, String> {
    let names = |list: &str| -> Vec<String> { list.split(',').map(str::to_owned).collect() };
    match text.split_once(':') {
        None if text == "none" => Ok(Tls::None),
        None if text == "ring" => Ok(Tls::Ring),
        Some(("files", files)) => match names(files).as_slice() {
            [certificate, key] if !certificate.is_empty() && !key.is_empty() => {
                let absolute = |path: &str| std::path::absolute(path).map_err(|err| err.to_string());
                Ok(Tls::Files { certificate: absolute(certificate)?, key: absolute(key)? })
            }
            _ => Err("two files are needed: files:CERTIFICATE,KEY".to_owned()),
        },
        Some(("acme", domains)) if !domains.is_empty() => Ok(Tls::Acme(names(domains))),
        _ => Err("one of none, ring, files:CERTIFICATE,KEY and acme:DOMAIN".to_owned()),
    }
}

fn runtime(wanted: Option<RuntimeName>) -> anyhow::Result<RuntimeName> {
    let socket = docker_socket();
    let reached = UnixStream::connect(&socket);
    match (wanted, reached) {
        (Some(RuntimeName::Process), _) => Ok(RuntimeName::Process),
        (_, Ok(_)) => Ok(RuntimeName::Docker),
        // The agent waits for it.
        (Some(RuntimeName::Docker), Err(_)) => Ok(RuntimeName::Docker),
        (None, Err(err)) if err.kind() == io::ErrorKind::PermissionDenied => {
            bail!("{} may not be used: do this as root, or give --runtime process", socket.display())
        }
        (None, Err(_)) => Ok(RuntimeName::Process),
    }
}

/// As Docker's own tools have it, but for hosts elsewhere: the agent looks after the machine that it is on.
fn docker_socket() -> PathBuf {
    let named = std::env::var("DOCKER_HOST").ok();
    let socket = named.as_deref().and_then(|host| host.strip_prefix("unix://")).filter(|path| !path.is_empty());
    socket.unwrap_or(DOCKER_SOCKET).into()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A machine's name as that of a pod: its first part, in small letters, with hyphens for all else.
fn pod_of_host(name: &str) -> anyhow::Result<PodId> {
    let first = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let cleaned: String = first.chars().map(|c| if fits(c) { c } else { '-' }).take(64).collect();
    let cleaned = cleaned.trim_matches('-');
    if cleaned == "localhost" {
        bail!("`localhost` is the name of every machine");
    }
    Ok(cleaned.parse()?)
}

/// Whether files can be made in a folder, or it itself.
fn can_write(folder: &Path) -> anyhow::Result<()> {
    let mut there = folder;
    while !there.exists() {
        there = there.parent().context("no such folder")?;
    }
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            Err(exit::not_allowed(format!("{} can't be written to: do this as root", there.display())))
        }
        Err(err) => Err(err).with_context(|| format!("{} can't be written to", there.display())),
    }
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("can't make {}", path.display()))
}

fn write_new(path: &Path, text: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text)?;
        file.sync_all()
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests;
