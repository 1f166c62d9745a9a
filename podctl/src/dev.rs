//! A ring on this machine: one pod or more, as real processes.
//!
//! `dev` starts an agent for each pod, and the agents start the rest; each ends when the one above it does.

mod agent;
mod example;
mod master;
pub mod pods;
mod port;
mod ring;
mod text;

use std::time::Duration;

use adea::folder::Folder;
use adea::logs;
use adea::plan::Program;
use adea::state::State;
use anyhow::Context;
use http::{Method, StatusCode};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::command::dev::Args;
use crate::dev::master::Agreement;
use crate::dev::pods::Pod;
use crate::http::Peer;

/// The most pods of one data folder.
pub const MAX_PODS: u16 = 9;

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
    let wanted = args.pods.unwrap_or_else(|| pods::count_in(folder.root()).max(1));
    let mut ring = ring::prepare(&folder, args, (wanted > 1).then(|| "pod-1".to_owned()))?;
    let pods = pods::prepare(&folder, &ring.file, wanted, args)?;
    let mut stop = Box::pin(stop);
    tokio::select! {
        free = port::wait_until_free(&pods) => free?,
        _ = &mut stop => return Ok(()),
    }
    let mut agents = JoinSet::new();
    let mut stops = Vec::new();
    let mut starts = Vec::new();
    for pod in &pods {
        // What an earlier run has left there is no account of this one.
        forget_state(&pod.folder)?;
        let config_file = pod.write_config(&pods, args)?;
        let (stop_agent, agent_stop) = oneshot::channel();
        stops.push(stop_agent);
        let (gone, seen_gone) = watch::channel(false);
        starts.push((pod.clone(), seen_gone));
        agents.spawn(agent::keep(pod.clone(), config_file, agent_stop, gone));
    }
    let served = tokio::select! {
        _ = &mut stop => Ok(()),
        served = serve(&folder, starts, &mut ring, args) => served,
    };
    for stop_agent in stops {
        // An error means that the keeper is gone already.
        let _ = stop_agent.send(());
    }
    while let Some(ended) = agents.join_next().await {
        ended.context("an agent's keeper failed")?;
    }
    served
}

/// Waits until the ring is ready, says so, and then waits for ever.
async fn serve(
    folder: &Folder,
    starting: Vec<(Pod, watch::Receiver<bool>)>,
    ring: &mut ring::Ring,
    args: &Args,
) -> anyhow::Result<()> {
    let mut starts = JoinSet::new();
    for (pod, mut gone) in starting.clone() {
        starts.spawn(async move {
            tokio::select! {
                biased;
                // An error means that its keeper has failed, which is told of where it is awaited.
                _ = gone.wait_for(|gone| *gone) => Ok(()),
                ready = until_ready(&pod) => ready,
            }
        });
    }
    while let Some(started) = starts.join_next().await {
        started??;
    }
    let pods: Vec<Pod> = starting.into_iter().filter(|(_, gone)| !*gone.borrow()).map(|(pod, _)| pod).collect();
    let pods = pods.as_slice();
    let agreement = if pods.iter().any(|pod| pod.ring_port.is_some()) {
        Some(master::until_agreed(pods, &ring.file.admin.name, &ring.admin_password).await?)
    } else {
        None
    };
    let [first, ..] = pods else {
        anyhow::bail!(
            "all pods of {} have been removed from their ring: start with another folder",
            folder.root().display()
        )
    };
    let admin = Peer::parse(&first.url())?.with_login(&ring.file.admin.name, &ring.admin_password)?;
    if let Some(Agreement { master: None, trouble }) = &agreement {
        eprintln!("no pod takes writes yet: {trouble}\n{}", log_lines(folder, &["adea"]));
    }
    example::make_if_pending(folder, ring, &admin)
        .await
        .context("can't make the example app (start with --no-example in a new folder to do without)")?;
    text::print(folder, pods, agreement.as_ref(), ring, args.json);
    std::future::pending().await
}

/// Waits until one pod is up.
async fn until_ready(pod: &Pod) -> anyhow::Result<()> {
    let folder = &pod.folder;
    match timeout(READY_DEADLINE, until_up(&Peer::parse(&pod.url())?, folder)).await {
        Ok(Start::Up) => Ok(()),
        Ok(Start::Hopeless(program)) => {
            anyhow::bail!("{program} does not start\n{}", log_lines(folder, &[program.name()]));
        }
        Err(_) => {
            let lines = log_lines(folder, &["adea", "rean", "proxy"]);
            anyhow::bail!("not ready after {} s\n{lines}", READY_DEADLINE.as_secs());
        }
    }
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
