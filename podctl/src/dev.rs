//! A ring on this machine: one pod for now, as real processes.
//!
//! `dev` starts the agent, and the agent starts the rest; each ends when the one above it does.

mod agent;
mod example;
mod port;
mod ring;
mod text;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use adea::config::{LogTo, ProxyConfig, ReanConfig};
use adea::folder::Folder;
use adea::logging::FILTER_ENV;
use adea::logs;
use adea::plan::Program;
use adea::state::State;
use anyhow::Context;
use http::{Method, StatusCode};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::command::dev::Args;
use crate::http::Peer;

/// A store that was not closed may have to read its whole journal first.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A program that has ended this often and was never up does not start. The pauses between its starts are 3 s together
/// then, so what only had to wait for another process has had its time.
const HOPELESS_RESTARTS: u32 = 5;
/// Whoever waits longer than this wants to know for what.
const READY_SILENCE: Duration = Duration::from_secs(2);
const READY_POLL: Duration = Duration::from_millis(20);

/// Runs until it is told to stop.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let stop = adea::stop::requested(false)?;
    let folder = Folder::new(&args.data)?;
    let _lock = folder.try_lock("dev")?;
    let mut ring = ring::prepare(&folder, args)?;
    let mut stop = Box::pin(stop);
    tokio::select! {
        free = port::wait_until_free(args.port, &folder) => free?,
        _ = &mut stop => return Ok(()),
    }
    // What an earlier run has left there is no account of this one.
    forget_state(&folder)?;
    let config_file = write_config(&folder, &ring.file.pod_id, args)?;
    let (stop_agent, agent_stop) = oneshot::channel();
    let agent = tokio::spawn(agent::keep(folder.clone(), config_file, agent_stop));
    let served = tokio::select! {
        _ = &mut stop => Ok(()),
        served = serve(&folder, &mut ring, args) => served,
    };
    // An error means that the keeper is gone already.
    let _ = stop_agent.send(());
    agent.await.context("the agent's keeper failed")?;
    served
}

/// Waits until the ring is ready, says so, and then waits for ever.
async fn serve(folder: &Folder, ring: &mut ring::Ring, args: &Args) -> anyhow::Result<()> {
    let base = format!("http://127.0.0.1:{}", args.port);
    let peer = Peer::parse(&base)?;
    match timeout(READY_DEADLINE, until_up(&peer, folder)).await {
        Ok(Start::Up) => {}
        Ok(Start::Hopeless(program)) => {
            anyhow::bail!("{program} does not start\n{}", log_lines(folder, &[program.name()]));
        }
        Err(_) => {
            let lines = log_lines(folder, &["adea", "rean", "proxy"]);
            anyhow::bail!("not ready after {} s\n{lines}", READY_DEADLINE.as_secs());
        }
    }
    let admin = peer.with_login(&ring.file.admin.name, &ring.admin_password)?;
    example::make_if_pending(folder, ring, &admin)
        .await
        .context("can't make the example app (start with --no-example in a new folder to do without)")?;
    text::print(&base, folder, ring, args.json);
    std::future::pending().await
}

/// How a start has come out.
enum Start {
    Up,
    /// This program ends again and again.
    Hopeless(Program),
}

/// Resolves when the proxy says that all below it is up, or when that won't be.
async fn until_up(peer: &Peer, folder: &Folder) -> Start {
    let began = Instant::now();
    let mut told = false;
    loop {
        if let Ok(mut conn) = peer.connect().await
            && let Ok((StatusCode::OK, _)) = conn.send(Method::GET, "/_up", "").await
        {
            return Start::Up;
        }
        if let Some(program) = hopeless(folder) {
            return Start::Hopeless(program);
        }
        if !told && began.elapsed() > READY_SILENCE {
            eprintln!("starting ... (logs: {})", folder.run().display());
            for trouble in troubles(folder) {
                eprintln!("{trouble}");
            }
            told = true;
        }
        sleep(READY_POLL).await;
    }
}

fn hopeless(folder: &Folder) -> Option<Program> {
    let programs = State::load(&folder.state_file())?.programs;
    let failed = programs.into_iter().find(|(_, program)| program.restarts >= HOPELESS_RESTARTS && !program.healthy);
    failed.map(|(program, _)| program)
}

fn forget_state(folder: &Folder) -> anyhow::Result<()> {
    let path = folder.state_file();
    match std::fs::remove_file(&path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The programs that don't stay up, each with the last thing that it said.
fn troubles(folder: &Folder) -> Vec<String> {
    let programs = State::load(&folder.state_file()).map(|state| state.programs);
    programs
        .into_iter()
        .flatten()
        .filter(|(_, program)| program.restarts > 0)
        .map(|(name, _)| {
            let last = logs::tail(&folder.log_file(name.name()), 1);
            format!("{name} keeps ending, and is tried again; it says: {}", last.join(""))
        })
        .collect()
}

fn log_lines(folder: &Folder, programs: &[&str]) -> String {
    const LINES: usize = 8;
    let mut text = String::new();
    for program in programs {
        let path = folder.log_file(program);
        text.push_str(&format!("the end of {}:\n", path.display()));
        for line in logs::tail(&path, LINES) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

fn write_config(folder: &Folder, pod_id: &str, args: &Args) -> anyhow::Result<std::path::PathBuf> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let config = adea::Config {
        pod_id: pod_id.to_owned(),
        ring_file: folder.ring_file(),
        data_dir: folder.root().to_path_buf(),
        program: None,
        rean: ReanConfig { listen: loopback(0), engine: args.engine.clone() },
        proxy: ProxyConfig { listen: loopback(args.port), access_log: args.access_log },
        log: std::env::var(FILTER_ENV).unwrap_or_else(|_| "info".to_owned()),
        log_to: LogTo::Files,
    };
    let path = folder.run().join("adea.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}
