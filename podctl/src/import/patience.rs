//! Trying again what may pass: a server that restarts, a connection that breaks off.

use std::time::Duration;

use rean::replicate::fault::Fault;

/// Pause after a first fault; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Faults in a row after which it is given up, some 16 s after the first: an operator is waiting, and can go on later.
const MAX_FAULTS: u32 = 6;

/// How often in a row something has failed.
#[derive(Debug, Default)]
pub struct Patience {
    faults: u32,
}

impl Patience {
    /// Waits before the next try.
    ///
    /// # Errors
    /// The fault, when trying again doesn't help.
    pub async fn bear(&mut self, fault: Fault) -> Result<(), Fault> {
        if matches!(fault, Fault::Fatal { .. }) || self.faults + 1 >= MAX_FAULTS {
            return Err(fault);
        }
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.faults)).await;
        self.faults += 1;
        Ok(())
    }

    /// Something went well: a next fault is a first one.
    pub fn restore(&mut self) {
        self.faults = 0;
    }
}

/// Does something until it goes well.
///
/// # Errors
/// The last fault, when trying again doesn't help.
pub async fn patiently<T>(mut work: impl AsyncFnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut patience = Patience::default();
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(fault) => patience.bear(fault).await?,
        }
    }
}
