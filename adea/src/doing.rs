//! What the agent tells its other parts after each look: how the programs are, and under which software.

use std::net::SocketAddr;

use crate::plan::{Desired, Program};
use crate::software::Software;
use crate::state::State;

/// What should run, and the software that it was worked out for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The software.
    pub software: Software,
    /// What it comes to.
    pub desired: Desired,
}

/// How the programs are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doing {
    /// The software that was wanted at this look.
    pub software: Software,
    /// Whether all programs run as they are wanted, and answer.
    pub up: bool,
    /// How often a program has ended by itself, hung or could not be started since that software was first wanted.
    pub ends: u32,
    /// The account of what runs.
    pub state: State,
}

impl Doing {
    /// Where a program answers, if it runs.
    pub fn addr(&self, program: Program) -> Option<SocketAddr> {
        self.state.programs.get(&program)?.addr
    }
}
