//! A network with faults, for tests: network namespaces whose packets a hub in user space carries, delays and loses.
//!
//! The kernel has this too (`netem`), but not every kernel that tests run on. Each place is a namespace `adea-tPID-N` with the
//! address 10.77.X.N; the driver, in the namespace that this is started in, is 10.77.X.254, and its links are perfect unless
//! it says otherwise (it is the last place's number). The first line on standard output says what there is:
//! `{"ready":[{"place":1,"namespace":"adea-t42-1","address":"10.77.42.1"},..]}`. Then lines are obeyed, see [`command`].
//! When standard input ends, all is removed again, with the processes that run in the namespaces.

mod command;
mod hub;
mod rule;
mod space;

use std::io::{self, Write};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::Command;
use crate::hub::Hub;

/// A network of network namespaces with faults
#[derive(Parser)]
struct Args {
    /// How many places there are besides the driver's: one digit, as a device's name has at most 15 characters
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=9))]
    places: u8,
    /// From which the losses and delays are chosen
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(&args));
    // Standard input is read by a thread that nothing interrupts.
    runtime.shutdown_background();
    result
}

async fn run(args: &Args) -> anyhow::Result<()> {
    // Before anything is made, so that nothing is left when it is told to stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let subnet = space::free_subnet()?;
    let mut places = Vec::new();
    for number in 1..=args.places {
        places.push(space::make(number, subnet)?);
    }
    places.push(space::make_for_driver(subnet)?);
    let ready: Vec<Value> = places
        .iter()
        .enumerate()
        .map(|(n, place)| {
            let namespace = place.namespace.as_ref().map(|namespace| &namespace.name);
            json!({"place": n + 1, "namespace": namespace, "address": place.address})
        })
        .collect();
    // The namespaces live as long as `places` does.
    let hub = Hub::start(&places, args.seed);
    say(&json!({ "ready": ready }))?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        let Some(line) = line else { return Ok(()) };
        say(&obey(&hub, &line, ready.len()))?;
    }
}

/// A driver that doesn't listen any more is gone.
fn say(answer: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}")?;
    out.flush()
}

fn obey(hub: &Hub, line: &str, places: usize) -> Value {
    match Command::parse(line, places) {
        Ok(Command::Link { ends: (from, to), rule, one_way }) => {
            hub.set(from, to, rule);
            if !one_way {
                hub.set(to, from, rule);
            }
        }
        Ok(Command::Heal) => hub.heal(),
        Ok(Command::Stats) => return json!({ "stats": hub.stats() }),
        Err(error) => return json!({ "error": error }),
    }
    json!({ "ok": true })
}
