//! What one thread has: its clock, and the machines of the design documents that it served last.

use std::{rc::Rc, sync::Arc};

use crate::{
    Design, FunctionName, ScriptError, ScriptLimits,
    clock::{Clock, Pulse},
    machine::Machine,
};

/// Machines that a thread keeps, one a design document in use. Most hold 200 KiB, and one takes a millisecond to make.
const MOST_MACHINES: usize = 64;
/// Bytes that they may hold together.
const MOST_HELD_BYTES: usize = 64 << 20;

/// What one thread has.
pub(crate) struct Worker {
    limits: ScriptLimits,
    pub(crate) clock: Rc<Clock>,
    /// The one used last comes last.
    machines: Vec<Machine>,
}

impl Worker {
    pub(crate) fn new(limits: ScriptLimits, pulse: Arc<Pulse>) -> Self {
        Self { limits, clock: Rc::new(Clock::new(pulse)), machines: Vec::new() }
    }

    /// A call with so many documents begins.
    pub(crate) fn begin(&mut self, documents: usize) {
        self.clock.begin(documents, self.limits.time_ms);
    }

    /// The machine of a design document with functions compiled. One that was spoiled is made anew.
    pub(crate) fn machine(&mut self, design: &Design, functions: &[FunctionName]) -> Result<&mut Machine, ScriptError> {
        let mut at = self.machines.iter().rposition(|machine| machine.hash() == design.hash());
        if let Some(found) = at
            && self.machines[found].spoiled()
        {
            self.machines.remove(found);
            at = None;
        }
        match at {
            Some(found) if found + 1 < self.machines.len() => {
                let machine = self.machines.remove(found);
                self.machines.push(machine);
            }
            Some(_) => {}
            None => {
                if self.machines.len() >= MOST_MACHINES {
                    self.machines.remove(0);
                }
                // In place of a spoiled one it begins with a fresh time: the last one's is used up.
                self.clock.step();
                let made = Machine::new(design, &self.limits, &self.clock);
                let machine = made.map_err(|thrown| match functions.first() {
                    Some(function) if thrown.is_limit() => thrown.error(function),
                    _ => ScriptError::BadInput(thrown.text()),
                })?;
                self.machines.push(machine);
            }
        }
        let Some(machine) = self.machines.last_mut() else { return Err(ScriptError::Closed) };
        for function in functions {
            machine.compile(function)?;
        }
        Ok(machine)
    }

    /// Whether the call has time left.
    pub(crate) fn in_time(&self, name: &FunctionName) -> Result<(), ScriptError> {
        if self.clock.all_over() { Err(ScriptError::TooLong { function: name.to_string() }) } else { Ok(()) }
    }

    /// Whether anybody still waits for the call.
    pub(crate) fn is_wanted(&self, name: &FunctionName) -> Result<(), ScriptError> {
        if self.clock.unwanted() { Err(ScriptError::TooLong { function: name.to_string() }) } else { Ok(()) }
    }

    /// The call ended.
    pub(crate) fn end(&mut self) {
        if let Some(machine) = self.machines.last_mut() {
            machine.end();
        }
        self.machines.retain(|machine| !machine.spoiled());
        while self.machines.iter().map(Machine::held_bytes).sum::<usize>() > MOST_HELD_BYTES {
            self.machines.remove(0);
        }
    }

    /// Something went wrong that should never: nothing is kept.
    pub(crate) fn forget_all(&mut self) {
        self.machines.clear();
    }
}
