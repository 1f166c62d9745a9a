//! What the agent's parts say of this pod to the ring's loop: each sets its own member, none sees the others'.

use std::sync::Arc;

use adea_ring::host::HostReport;
use adea_ring::upgrade::{OrderTrust, Progress};
use tokio::sync::watch;

use crate::ring::turn::Aside;

/// The one place where [`Aside`] is put together; clones share it.
#[derive(Debug, Clone)]
pub struct AsideBoard {
    sender: Arc<watch::Sender<Aside>>,
}

impl AsideBoard {
    /// An empty board, and the end that the ring's loop reads.
    pub fn new() -> (Self, watch::Receiver<Aside>) {
        let (sender, receiver) = watch::channel(Aside::default());
        (Self { sender: Arc::new(sender) }, receiver)
    }

    /// Says how the machine is.
    pub fn set_host(&self, host: HostReport) {
        self.change(|aside| aside.host = Some(host));
    }

    /// Says how far an upgrade is; none: there is none to speak of.
    pub fn set_upgrade(&self, upgrade: Option<Progress>) {
        self.change(|aside| aside.upgrade = upgrade);
    }

    /// Says whose orders of upgrades the pod follows.
    pub fn set_order_trust(&self, trust: Option<OrderTrust>) {
        self.change(|aside| aside.order_trust = trust);
    }

    /// Says whether the pod should be no master while another can be.
    pub fn set_reluctant(&self, reluctant: bool) {
        self.change(|aside| aside.reluctant = reluctant);
    }

    fn change(&self, change: impl FnOnce(&mut Aside)) {
        self.sender.send_if_modified(|aside| {
            let before = aside.clone();
            change(aside);
            *aside != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::AsideBoard;
    use adea_ring::host::HostReport;

    #[test]
    fn each_part_sets_its_own() {
        let (board, mut heard) = AsideBoard::new();
        board.set_reluctant(true);
        board.clone().set_host(HostReport { cpus: 2, ..HostReport::default() });
        let aside = heard.borrow_and_update().clone();
        assert!(aside.reluctant && aside.upgrade.is_none());
        assert_eq!(aside.host.map(|host| host.cpus), Some(2));
        board.set_reluctant(true);
        assert!(!heard.has_changed().expect("the board lives"), "nothing new was said");
    }
}
