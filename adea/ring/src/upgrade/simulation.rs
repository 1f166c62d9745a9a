//! Upgrades of whole rings, with pods that die, software that fails, orders that are called off and replaced, and
//! gossip that is late: from a seed, so that what fails can be run again.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Act, Order, OrderState, Own, Peer, Progress, Side, Source, Step, next};
use crate::member::PodId;

/// A turn of each pod, in milliseconds.
const TURN_MS: u64 = 250;
/// What a pod hears of others is at most so many turns old.
const MAX_LATE_TURNS: usize = 4;
/// After this nothing more happens from outside, and all must come to an end.
const CALM_TURN: usize = 1_500;
const TURNS: usize = 4_000;
/// Of the software that the ring begins with.
const FIRST: u32 = 0;

/// How the new software does on a pod.
#[derive(Clone, Copy, PartialEq)]
enum Luck {
    Good,
    Crashes,
    Silent,
    Behind,
    Faulty,
    /// It can't be used at all.
    Hopeless,
}

struct Pod {
    id: PodId,
    is_live: bool,
    is_removed: bool,
    /// The order that it goes by, and what it stands at: on disk.
    order: Option<Order>,
    step: Option<Step>,
    why: Option<String>,
    old: u32,
    wanted: u32,
    agent: u32,
    trial_began: Option<usize>,
    /// In memory.
    step_began: usize,
    running: Option<u32>,
    up_at: usize,
    crashes: u32,
    fetch_at: usize,
    is_master: bool,
    luck: Luck,
    /// What it has said, by turn.
    said: Vec<Option<Progress>>,
}

impl Pod {
    fn new(name: usize) -> Self {
        Self {
            id: format!("pod-{name}").parse().expect("a pod's id"),
            is_live: true,
            is_removed: false,
            order: None,
            step: None,
            why: None,
            old: FIRST,
            wanted: FIRST,
            agent: FIRST,
            trial_began: None,
            step_began: 0,
            running: Some(FIRST),
            up_at: 0,
            crashes: 0,
            fetch_at: 0,
            is_master: false,
            luck: Luck::Good,
            said: Vec::new(),
        }
    }

    fn is_up(&self, turn: usize) -> bool {
        let is_old = self.wanted == self.old;
        self.running == Some(self.wanted)
            && turn >= self.up_at
            && (is_old || !matches!(self.luck, Luck::Crashes | Luck::Silent))
    }

    /// Whether clients find it away, or may do so at any moment.
    fn is_out(&self, turn: usize) -> bool {
        !self.is_removed && self.is_live && !self.is_up(turn)
    }

    fn progress(&self) -> Option<Progress> {
        let order = self.order.as_ref()?;
        Some(Progress { order: order.id.clone(), step: self.step?, reason: self.why.clone() })
    }
}

struct World {
    rng: StdRng,
    pods: Vec<Pod>,
    /// The orders that were given, the newest last, and since when each pod may know it.
    orders: Vec<(Order, u32)>,
    published: usize,
    turn: usize,
    /// Steps that were entered in all, and pods that went back.
    entered: usize,
    backs: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..=5);
        let mut pods: Vec<Pod> = (1..=count).map(Pod::new).collect();
        pods[0].is_master = true;
        Self { rng, pods, orders: Vec::new(), published: 0, turn: 0, entered: 0, backs: 0 }
    }

    fn give_order(&mut self) {
        let software = self.orders.len() as u32 + 1;
        let pods = self.pods.iter().filter(|pod| !pod.is_removed).map(|pod| pod.id.clone()).collect();
        let mut order = Order::new(Source::Ring, None, pods, self.turn as u64 + 1);
        // As random as the rest of the run.
        order.id = format!("{:016x}", self.rng.random::<u64>());
        order.patience_s = 30;
        self.orders.push((order, software));
        self.published = self.turn;
        for pod in &mut self.pods {
            pod.luck = match self.rng.random_range(0..14) {
                0 => Luck::Crashes,
                1 => Luck::Silent,
                2 => Luck::Behind,
                3 => Luck::Faulty,
                4 => Luck::Hopeless,
                _ => Luck::Good,
            };
        }
    }

    fn call_off(&mut self) {
        if let Some((order, _)) = self.orders.last_mut() {
            order.state = OrderState::Stopped;
            self.published = self.turn;
        }
    }

    fn disturb(&mut self) {
        let which = self.rng.random_range(0..self.pods.len());
        match self.rng.random_range(0..900) {
            0..4 => {
                let pod = &mut self.pods[which];
                // What is in memory is lost; programs end.
                (pod.is_live, pod.running) = (false, None);
            }
            4..12 => self.revive(which),
            12..14 => self.call_off(),
            14..16 => self.give_order(),
            16 if self.pods.iter().filter(|pod| !pod.is_removed).count() > 1 => {
                self.pods[which].is_removed = true;
            }
            17 if self.pods.len() < 7 => {
                let name = self.pods.len() + 1;
                let mut pod = Pod::new(name);
                pod.said = vec![None; self.turn];
                self.pods.push(pod);
            }
            18..24 => {
                for (place, pod) in self.pods.iter_mut().enumerate() {
                    pod.is_master = place == which;
                }
            }
            _ => {}
        }
    }

    fn revive(&mut self, which: usize) {
        let turn = self.turn;
        let late = self.rng.random_range(4..20);
        let pod = &mut self.pods[which];
        if pod.is_live {
            return;
        }
        (pod.is_live, pod.step_began, pod.crashes) = (true, turn, 0);
        (pod.running, pod.up_at) = (Some(pod.wanted), turn + late);
    }

    /// One turn of one pod, and then gossip.
    fn act(&mut self, which: usize) {
        let (turn, late) = (self.turn, self.rng.random_range(4..20));
        if !self.pods[which].is_live || self.pods[which].is_removed {
            return;
        }
        let peers = self.peers_of(which);
        let knows = self.rng.random_range(0..4) == 0 || turn > self.published + 8;
        let newest = if knows { self.orders.last().cloned() } else { None };
        let has_heir = self.pods.iter().enumerate().any(|(i, pod)| i != which && pod.is_live && !pod.is_removed);
        let pod = &mut self.pods[which];
        if let Some((newest, _)) = &newest {
            take_order(pod, newest);
        }
        let Some(order) = pod.order.clone() else { return };
        let software = self.orders.iter().find(|(known, _)| known.id == order.id).map_or(FIRST, |(_, s)| *s);
        let age = |since: usize| (turn - since) as u64 * TURN_MS;
        if pod.running == Some(pod.wanted) && pod.wanted == software && pod.luck == Luck::Crashes {
            pod.crashes += u32::from(turn % 8 == 0);
        }
        if pod.step.is_some_and(Step::is_busy) && has_heir && turn > pod.step_began + 6 {
            pod.is_master = false;
        }
        let side = |one: u32| if one == pod.old { Side::Old } else { Side::New };
        let own = Own {
            step: pod.step,
            step_ms: age(pod.step_began),
            trial_ms: pod.trial_began.map_or(0, age),
            why: pod.why.clone(),
            has_software: turn >= pod.fetch_at && pod.luck != Luck::Hopeless,
            is_master: pod.is_master,
            up: pod.is_up(turn).then(|| side(pod.wanted)),
            agent: Some(side(pod.agent)),
            crashes: if pod.wanted == software { pod.crashes } else { 0 },
            is_caught_up: turn >= pod.up_at + 4 && (pod.luck != Luck::Behind || pod.wanted == pod.old),
            trouble: None,
            fault: ((pod.luck == Luck::Faulty && pod.wanted == software)
                || (pod.luck == Luck::Hopeless && pod.step == Some(Step::Fetching)))
            .then(|| "faulty".to_owned()),
        };
        match next(&order, &pod.id, &peers, &own) {
            Act::Rest | Act::Wait(_) | Act::Fetch => {}
            Act::Enter(step, why) => {
                self.entered += 1;
                (pod.step, pod.step_began) = (Some(step), turn);
                if step == Step::Replacing {
                    pod.trial_began = Some(turn);
                }
                if matches!(step, Step::RollingBack | Step::RolledBack) {
                    pod.why = why;
                }
                self.backs += usize::from(step == Step::RolledBack);
                // The worst moment: some are done, one is about to begin.
                if step == Step::HandingOver && turn < CALM_TURN && self.rng.random_range(0..6) == 0 {
                    self.call_off();
                }
            }
            Act::Programs(to) => {
                let wanted = if to == Side::New { software } else { pod.old };
                if pod.wanted != wanted || pod.running.is_none() {
                    (pod.wanted, pod.running, pod.up_at, pod.crashes) = (wanted, Some(wanted), turn + late, 0);
                }
            }
            Act::Agent(to) => {
                pod.agent = if to == Side::New { software } else { pod.old };
                // The programs of child processes go and come with it.
                pod.step_began = turn;
                pod.up_at = turn + late;
            }
        }
    }

    /// As `which` hears of them: late.
    fn peers_of(&mut self, which: usize) -> Vec<Peer> {
        let mut peers = Vec::new();
        for (place, pod) in self.pods.iter().enumerate() {
            if place == which {
                continue;
            }
            let late = self.rng.random_range(0..=MAX_LATE_TURNS);
            let said = pod.said.len().checked_sub(1 + late).and_then(|at| pod.said[at].clone());
            let is_live = pod.is_live && pod.is_up(self.turn);
            peers.push(Peer { id: pod.id.clone(), is_live, is_removed: pod.is_removed, progress: said });
        }
        peers
    }

    fn run(&mut self, seed: u64) {
        for turn in 0..TURNS {
            self.turn = turn;
            if turn == 10 {
                self.give_order();
            }
            if (20..CALM_TURN).contains(&turn) {
                self.disturb();
            }
            if turn == CALM_TURN {
                for which in 0..self.pods.len() {
                    self.revive(which);
                }
            }
            for which in 0..self.pods.len() {
                self.act(which);
            }
            for pod in &mut self.pods {
                let said = if pod.is_live { pod.progress() } else { pod.said.last().cloned().flatten() };
                pod.said.push(said);
            }
            let at_it = |pod: &&Pod| matches!(pod.step, Some(Step::Replacing | Step::CatchingUp | Step::RollingBack));
            let out: Vec<_> =
                self.pods.iter().filter(|pod| pod.is_out(turn)).filter(at_it).map(|pod| &pod.id).collect();
            assert!(out.len() <= 1, "seed {seed}, turn {turn}: without their programs are {out:?}");
        }
        self.check_end(seed);
    }

    fn check_end(&self, seed: u64) {
        let Some((order, software)) = self.orders.last() else { return };
        let pods: Vec<&Pod> = self.pods.iter().filter(|pod| !pod.is_removed && order.pods.contains(&pod.id)).collect();
        let steps: Vec<_> = pods.iter().map(|pod| (&pod.id, pod.step, &pod.why)).collect();
        assert!(
            pods.iter().all(|pod| pod.order.as_ref().is_none_or(|known| known.id == order.id)),
            "seed {seed}: {steps:?}"
        );
        let is_done = |pod: &&Pod| pod.step == Some(Step::Done) && pod.wanted == *software && pod.agent == *software;
        let is_old = |pod: &&Pod| {
            pod.wanted == pod.old
                && pod.agent == pod.old
                && !pod.step.is_some_and(|step| step.is_busy() || step == Step::Done)
        };
        let failed = pods.iter().any(|pod| pod.step == Some(Step::RolledBack));
        if failed || order.state == OrderState::Stopped {
            assert!(pods.iter().all(is_old), "seed {seed}: not all went back: {steps:?}");
        } else {
            assert!(pods.iter().all(is_done), "seed {seed}: not all are done: {steps:?}");
        }
    }
}

/// As the agent does it: what is under way is brought to an end first.
fn take_order(pod: &mut Pod, newest: &Order) {
    match &mut pod.order {
        Some(known) if known.id == newest.id => known.state = known.state.max(newest.state),
        Some(_) if pod.step.is_some_and(|step| step.is_busy() && step != Step::HandingOver) => {}
        Some(known) if !newest.is_newer_than(known) => {}
        _ => {
            (pod.order, pod.step, pod.why, pod.trial_began) = (Some(newest.clone()), None, None, None);
            pod.old = pod.wanted;
        }
    }
}

#[test]
fn rings_come_through_upgrades() {
    let seeds = match std::env::var("ADEA_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("ADEA_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..100,
    };
    let is_single = seeds.end - seeds.start == 1;
    let (mut entered, mut backs) = (0, 0);
    for seed in seeds {
        let mut world = World::new(seed);
        world.run(seed);
        entered += world.entered;
        backs += world.backs;
    }
    // A world in which nothing happens shows nothing.
    assert!(is_single || (entered > 2_000 && backs > 100), "{entered} steps were entered, {backs} pods went back");
}
