//! A runtime for tests, in which programs do as they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::plan::{Desired, Launch, Program};
use crate::runtime::{Found, Instance, Runtime, RuntimeError, Sighting, Signal};

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
    down: bool,
    left: Vec<(Program, Launch)>,
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

    /// Makes the runtime unable to tell or do anything.
    pub fn set_down(&self, down: bool) {
        self.world.lock().unwrap().down = down;
    }

    /// Makes a program run that an earlier agent has started.
    pub fn set_left(&self, program: Program, launch: Launch) {
        self.world.lock().unwrap().left.push((program, launch));
    }

    /// Ends a program as if it had crashed.
    pub fn end(&self, program: Program) {
        self.world.lock().unwrap().end(program);
        self.changed.notify_one();
    }
}

fn instance(pid: u32, launch: &Launch) -> Instance {
    Instance { pid, addr: launch.up, container: None, version: None }
}

impl World {
    fn check_down(&self) -> Result<(), RuntimeError> {
        if self.down { Err(RuntimeError::new("look", "nobody is there")) } else { Ok(()) }
    }

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
    const OUTLIVES_AGENT: bool = true;

    async fn find(&mut self, desired: &Desired) -> Result<Vec<Found>, RuntimeError> {
        let mut world = self.world.lock().unwrap();
        world.check_down()?;
        let mut found = Vec::new();
        for (program, launch) in std::mem::take(&mut world.left) {
            world.last_pid += 1;
            let pid = world.last_pid;
            world.programs.insert(program, Sighting { program, pid, ended: None });
            let fits = desired.get(&program) == Some(&launch);
            found.push(Found { program, instance: instance(pid, &launch), launch: fits.then_some(launch) });
        }
        Ok(found)
    }

    async fn start(&mut self, program: Program, launch: &Launch) -> Result<Instance, RuntimeError> {
        let mut world = self.world.lock().unwrap();
        if world.broken {
            world.events.push(Event::Failed(program));
            return Err(RuntimeError::new("start", "broken"));
        }
        world.last_pid += 1;
        let pid = world.last_pid;
        world.events.push(Event::Started(program));
        world.programs.insert(program, Sighting { program, pid, ended: None });
        Ok(instance(pid, launch))
    }

    async fn signal(&mut self, program: Program, signal: Signal) -> Result<(), RuntimeError> {
        let mut world = self.world.lock().unwrap();
        world.check_down()?;
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

    async fn look(&mut self) -> Result<Vec<Sighting>, RuntimeError> {
        let world = self.world.lock().unwrap();
        world.check_down()?;
        Ok(world.programs.values().cloned().collect())
    }

    async fn healthy(&mut self, program: Program, _addr: SocketAddr) -> bool {
        self.world.lock().unwrap().healthy.contains(&program)
    }

    async fn changed(&mut self) {
        self.changed.notified().await;
    }
}
