//! Network namespaces, each with a device whose packets come to this process; and what is left of them at the end: nothing.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tun_rs::{AsyncDevice, DeviceBuilder};

/// The devices' greatest packet, as on Ethernet.
pub const MTU: u16 = 1500;
/// The driver's own place is the last address of the subnet.
pub const DRIVER_HOST: u8 = 254;
/// Ended processes leave their namespace at once; those that don't end in this time hang in the kernel.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A place in the network: a namespace of its own, or for the driver the one that this process runs in.
pub struct Place {
    /// The namespace; none for the driver.
    pub namespace: Option<Namespace>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its packets.
    pub device: Arc<AsyncDevice>,
}

/// A network namespace that this process has made. It is removed with all that runs in it when this is dropped.
pub struct Namespace {
    /// Its name, for `ip netns`.
    pub name: String,
}

/// Picks a subnet that this machine doesn't use: the third number of 10.77.X.0/24.
///
/// # Errors
/// When all are taken.
pub fn free_subnet() -> anyhow::Result<u8> {
    let routes = ip(&["-4", "route", "show", "table", "all"])?;
    let first = std::process::id() % 200;
    // Networks that are made at the same moment don't see one another's routes yet, but have different first choices.
    (0..200)
        .map(|n| ((first + n) % 200) as u8)
        .find(|x| !routes.contains(&format!("10.77.{x}.")))
        .context("all subnets 10.77.0.0 to 10.77.199.0 are in use")
}

/// Makes the place with this number (from 1) in a namespace of its own.
///
/// # Errors
/// When the kernel or the privileges don't allow it.
pub fn make(number: u8, subnet: u8) -> anyhow::Result<Place> {
    let name = format!("adea-t{}-{number}", std::process::id());
    ip(&["netns", "add", &name]).context("can't make a network namespace (root is needed)")?;
    let namespace = Namespace { name };
    let name = namespace.name.as_str();
    let device = device(name)?;
    let address = Ipv4Addr::new(10, 77, subnet, number);
    ip(&["link", "set", name, "netns", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", name])?;
    ip(&["-n", name, "link", "set", name, "up"])?;
    Ok(Place { namespace: Some(namespace), address, device })
}

/// Makes the driver's place.
///
/// # Errors
/// When the kernel or the privileges don't allow it.
pub fn make_for_driver(subnet: u8) -> anyhow::Result<Place> {
    let name = format!("adea-t{}", std::process::id());
    let device = device(&name)?;
    let address = Ipv4Addr::new(10, 77, subnet, DRIVER_HOST);
    ip(&["addr", "add", &format!("{address}/24"), "dev", &name])?;
    ip(&["link", "set", &name, "up"])?;
    Ok(Place { namespace: None, address, device })
}

/// It goes with this process.
fn device(name: &str) -> anyhow::Result<Arc<AsyncDevice>> {
    let device = DeviceBuilder::new()
        .name(name)
        .mtu(MTU)
        .enable(false)
        .build_async()
        .with_context(|| format!("can't make the device {name} (root and /dev/net/tun are needed)"))?;
    Ok(Arc::new(device))
}

impl Namespace {
    /// The processes in it.
    fn pids(&self) -> Vec<String> {
        ip(&["netns", "pids", &self.name])
            .map(|pids| pids.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// A process that is still there would hold the namespace, and nobody would end it any more.
    fn end_all(&self) {
        let deadline = Instant::now() + END_DEADLINE;
        loop {
            let pids = self.pids();
            if pids.is_empty() || Instant::now() > deadline {
                return;
            }
            // An error means that they have ended since.
            let _ = Command::new("kill").arg("-KILL").args(&pids).stderr(Stdio::null()).status();
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end_all();
        if let Err(err) = ip(&["netns", "del", &self.name]) {
            // Whoever would read it may be gone, and that is no reason to leave the other namespaces.
            let _ = writeln!(io::stderr(), "can't remove the network namespace {}: {err:#}", self.name);
        }
    }
}

/// Runs `ip`, which knows more of netlink than is worth having here.
fn ip(args: &[&str]) -> anyhow::Result<String> {
    let out =
        Command::new("ip").args(args).stdin(Stdio::null()).output().context("can't run `ip` (package iproute2)")?;
    if !out.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
