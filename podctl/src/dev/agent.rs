//! Keeps the agent running: it is a process like the others, and may be killed like them.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use adea::backoff::Backoff;
use adea::folder::Folder;
use adea::logs;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::dev::pods::Pod;

/// The agent has 10 s to leave the ring, and gives its two programs 15 s each.
const STOP_DEADLINE: Duration = Duration::from_secs(45);

/// Runs the agent, again and again, until `stop` resolves; then stops it and returns when it is gone. An agent that ends well
/// by itself is not run again: its pod was removed from the ring, or somebody has told it to stop. `gone` hears of that.
pub async fn keep(pod: Pod, config_file: PathBuf, mut stop: oneshot::Receiver<()>, gone: watch::Sender<bool>) {
    let folder = &pod.folder;
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        match spawn(folder, &config_file) {
            Ok(mut child) => {
                // Held until the child is gone: its end tells the child that we are.
                let pipe = child.stdin.take();
                tokio::select! {
                    end = child.wait() => {
                        if end.as_ref().is_ok_and(ExitStatus::success) {
                            eprintln!("{}", farewell(&pod));
                            gone.send_replace(true);
                            return;
                        }
                        let end = end.map_or_else(|err| err.to_string(), |status| status.to_string());
                        tracing::warn!("the agent ended by itself ({end}): starting it again");
                    }
                    _ = &mut stop => {
                        end(&mut child).await;
                        drop(pipe);
                        return;
                    }
                }
            }
            Err(err) => tracing::error!("can't start the agent: {err}"),
        }
        let ran_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let pause = Duration::from_millis(backoff.after_end(ran_ms));
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut stop => return,
        }
    }
}

/// What is said of a pod whose agent has ended well, which nobody here has asked it for.
fn farewell(pod: &Pod) -> String {
    format!(
        "{} has stopped and is not started again: it was removed from its ring, or its agent was told to stop; {} says which. \
         Its data is still in {}",
        pod.id,
        pod.folder.log_file("adea").display(),
        pod.folder.root().display(),
    )
}

fn spawn(folder: &Folder, config_file: &Path) -> std::io::Result<Child> {
    let log = logs::open(&folder.log_file("adea"))?;
    Command::new(adea::process::this_program()?)
        .args(["adea", "--exit-with-parent", "--config"])
        .arg(config_file)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C at the terminal is for `dev`, which then stops the others in order.
        .process_group(0)
        .spawn()
}

async fn end(child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(err) = kill_process(pid, Signal::TERM)
    {
        tracing::warn!("can't signal the agent: {err}");
    }
    if timeout(STOP_DEADLINE, child.wait()).await.is_err() {
        tracing::error!("the agent did not stop in time: killing it");
        if let Err(err) = child.kill().await {
            tracing::error!("can't kill the agent: {err}");
        }
    }
}
