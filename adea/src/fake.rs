//! A runtime for tests, in which programs do as they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::plan::{Launch, Program};
use crate::runtime::{Runtime, RuntimeError, Sighting, Signal};

/// What has happened to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Started(Program),
    Failed(Program),
    Terminated(Program),
    Killed(Program),
    Ended(Program),
}

/// Programs that exist only in a list; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeRuntime {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct World {
    events: Vec<Event>,
    programs: BTreeMap<Program, Sighting>,
    healthy: BTreeSet<Program>,
    stubborn: BTreeSet<Program>,
    broken: bool,
    last_pid: u32,
}

impl FakeRuntime {
    pub fn events(&self) -> Vec<Event> {
        self.world.lock().unwrap().events.clone()
    }

    pub fn set_healthy(&self, program: Program, healthy: bool) {
        let mut world = self.world.lock().unwrap();
        if healthy {
            world.healthy.insert(program);
        } else {
            world.healthy.remove(&program);
        }
    }

    /// Makes a program ignore the signal to terminate.
    pub fn set_stubborn(&self, program: Program) {
        self.world.lock().unwrap().stubborn.insert(program);
    }

    /// Makes every start fail.
    pub fn set_broken(&self, broken: bool) {
        self.world.lock().unwrap().broken = broken;
    }

    /// Ends a program as if it had crashed.
    pub fn end(&self, program: Program) {
        self.world.lock().unwrap().end(program);
        self.changed.notify_one();
    }
}

impl World {
    fn end(&mut self, program: Program) {
        if let Some(sighting) = self.programs.get_mut(&program)
            && sighting.ended.is_none()
        {
            sighting.ended = Some("in a test".to_owned());
            self.events.push(Event::Ended(program));
        }
    }
}

impl Runtime for FakeRuntime {
    async fn start(&mut self, program: Program, _launch: &Launch) -> Result<u32, RuntimeError> {
        let mut world = self.world.lock().unwrap();
        if world.broken {
            world.events.push(Event::Failed(program));
            return Err(RuntimeError { step: "start", program, source: io::Error::other("broken") });
        }
        world.last_pid += 1;
        let pid = world.last_pid;
        world.events.push(Event::Started(program));
        world.programs.insert(program, Sighting { program, pid, ended: None });
        Ok(pid)
    }

    async fn signal(&mut self, program: Program, signal: Signal) -> Result<(), RuntimeError> {
        let mut world = self.world.lock().unwrap();
        match signal {
            Signal::Terminate => world.events.push(Event::Terminated(program)),
            Signal::Kill => world.events.push(Event::Killed(program)),
        }
        if signal == Signal::Kill || !world.stubborn.contains(&program) {
            world.end(program);
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn look(&mut self) -> Vec<Sighting> {
        self.world.lock().unwrap().programs.values().cloned().collect()
    }

    async fn healthy(&mut self, program: Program, _launch: &Launch) -> bool {
        self.world.lock().unwrap().healthy.contains(&program)
    }

    async fn changed(&mut self) {
        self.changed.notified().await;
    }
}
