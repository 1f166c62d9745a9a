//! Thousands of schedules in which documents move under a master that changes, sometimes under two at once, and the
//! pods hear of it late, in any order and twice, crash at any commit, and stay away for long.
//!
//! The stores are real, on the memory engine, and so are the numbering, the looks and the pruning; the links, the pods'
//! statuses and the election are the schedule's.
//!
//! One schedule is one seed. To replay one: `REAN_SIM_SEED=<seed> cargo test -p rean instructions::simulation`; to run
//! more: `REAN_SIM_SCHEDULES=<number>`.

use std::collections::{BTreeMap, BTreeSet};

use adea_ring::{PodId, Stamp};
use rean_store::{Db, Edit, Mode, Move, Rev, Scope};
use serde_json::{Map, json};

use self::pod::{DOCS, Given, Pod, READERS, RULES, USERS, submit};
use super::carry_out::Reason;
use super::prune::prunable;
use super::{Number, PREFIX};
use crate::ring::ring_doc;

mod cases;
mod pod;

/// Schedules of a run that asks for no other number: some 8 seconds.
const SCHEDULES: u64 = 45;
/// Steps of one schedule.
const STEPS: u64 = 90;
/// Rounds of exchange, placing and looking within which all must be done once nothing goes wrong any more.
const ROUNDS: usize = 30;

/// SplitMix64 (G. Steele, D. Lea, C. Flood, 2014): a seed means the same schedule in every version of every library.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).expect("a small number");
        usize::try_from(self.next() % bound).expect("a small number")
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// What has happened, to be sure that it does.
#[derive(Debug, Default)]
struct Seen {
    instructions: usize,
    /// Commits with moves that a crash has undone.
    undone: usize,
    splits: usize,
    pruned: usize,
    /// Of these, those that not all pods had carried out.
    aged: usize,
    purged: usize,
    /// Gaps that stayed.
    gaps: usize,
    /// Looks that left something open.
    waits: usize,
}

struct Ring {
    seed: u64,
    chance: Chance,
    pods: Vec<Pod>,
    /// Who takes writes: one, or two that don't know of each other.
    masters: Vec<usize>,
    epochs: u64,
    /// All instructions that are on a disk, or were.
    log: BTreeMap<Number, Given>,
    /// Those that were pruned before all had carried them out.
    aged: BTreeSet<Number>,
    seen: Seen,
}

impl Drop for Ring {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this is REAN_SIM_SEED={}", self.seed);
        }
    }
}

impl Ring {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let pods: Vec<Pod> = ["a", "b", "c", "d"].iter().take(2 + chance.below(3)).map(|id| Pod::new(id)).collect();
        let (log, aged, seen) = (BTreeMap::new(), BTreeSet::new(), Seen::default());
        let mut ring = Self { seed, chance, pods, masters: Vec::new(), epochs: 0, log, aged, seen };
        ring.lead(0, &[]);
        ring
    }

    /// Begins an epoch of this pod, beside those of `others`.
    fn lead(&mut self, pod: usize, others: &[usize]) {
        self.epochs += 1;
        let epoch = format!("{:012x}-0000-{}", self.epochs, self.pods[pod].id).parse().expect("a stamp");
        self.pods.iter().enumerate().filter(|(at, _)| !others.contains(at)).for_each(|(_, old)| old.lead(None));
        self.pods[pod].lead(Some(epoch));
        self.masters = std::iter::once(pod).chain(others.iter().copied()).collect();
    }

    /// One that isn't away.
    fn some_pod(&mut self) -> usize {
        loop {
            let at = self.chance.below(self.pods.len());
            if !self.pods[at].is_away {
                return at;
            }
        }
    }

    fn some_master(&mut self) -> usize {
        self.masters[self.chance.below(self.masters.len())]
    }

    fn step(&mut self) {
        let kind = self.chance.below(100);
        let pod = if kind < 34 { self.some_master() } else { self.some_pod() };
        let crashes = self.chance.percent(6);
        if crashes {
            self.pods[pod].film();
        }
        // Nobody records the moves of others.
        let is_master = self.pods[pod].epoch().is_some();
        let before = is_master.then(|| self.pods[pod].places());
        match kind {
            0..26 => self.write(pod),
            26..30 => {
                let version = self.chance.next() % 3;
                self.pods[pod].write_rules(version);
                self.pods[pod].rule();
            }
            30..34 => self.prune(pod),
            34..60 => {
                let from = self.some_pod();
                self.replicate(from, pod, 6);
            }
            60..72 => self.look(pod),
            72..80 => self.pods[pod].report(),
            80..86 => self.pods[pod].place(),
            86..88 => {
                self.pods[pod].purge();
                self.seen.purged += 1;
            }
            88..92 => self.away(),
            92..96 => self.elect(pod),
            // Rules that came with a crash, or are in force already.
            _ => self.pods[pod].rule(),
        }
        if crashes {
            // Whoever was master of the newest epoch may be told again that it is.
            let is_newest = self.pods[pod].epoch().is_some_and(|epoch| epoch.millis() == self.epochs);
            let (which, keeps_role) = (self.chance.below(usize::MAX), is_newest && self.chance.percent(50));
            let given = self.pods[pod].given();
            self.pods[pod].crash(which, keeps_role);
            self.account(pod, before, given);
            if self.masters.contains(&pod) && !keeps_role {
                self.masters.retain(|master| *master != pod);
                if self.masters.is_empty() {
                    let next = self.some_pod();
                    self.lead(next, &[]);
                }
            }
        } else {
            let given = self.pods[pod].given();
            self.account(pod, before, given);
        }
        self.pods[pod].note_said();
        let user = self.chance.below(USERS.len());
        self.check(pod, user);
    }

    /// Compares where documents are with what was instructed: each move is in exactly one instruction, and that is on
    /// the disk when the move is. Numbers follow one another.
    fn account(&mut self, pod: usize, before: Option<Vec<Option<String>>>, given: Vec<Given>) {
        let now = &self.pods[pod];
        let is_known = before.is_some();
        let mut places = before.unwrap_or_else(|| vec![None; DOCS]);
        for one in given {
            if now.winner(&now.ring, &one.number.doc_id()).is_none() {
                self.seen.undone += 1;
                continue;
            }
            for made in &one.moves {
                let doc: usize = made.id[1..].parse().expect("a document");
                let place = &mut places[doc];
                assert!(place.is_none() || place.as_ref() == Some(&made.from), "{made:?}, and it was in {place:?}");
                place.clone_from(&made.to);
            }
            let last = self.log.keys().rfind(|known| known.epoch == one.number.epoch);
            let next = last.map_or(1, |last| last.number + 1);
            assert_eq!(one.number.number, next, "pod {pod} gave {}", one.number);
            self.seen.instructions += 1;
            self.log.insert(one.number.clone(), one);
        }
        if !is_known {
            return;
        }
        for (doc, (told, is)) in places.into_iter().zip(now.places()).enumerate() {
            assert!(
                told.is_none() || told == is,
                "d{doc} of pod {pod} is in {is:?}; by what was instructed in {told:?}"
            );
        }
    }

    fn write(&mut self, pod: usize) {
        let mut docs: Vec<usize> = (0..DOCS).collect();
        self.chance.shuffle(&mut docs);
        let count = if self.chance.percent(70) { 1 } else { 1 + self.chance.below(DOCS) };
        let mut edits = Vec::new();
        for doc in docs.into_iter().take(count) {
            let value = self.chance.next();
            let body = match self.chance.below(10) {
                0..6 => Some(json!({"value": value, "access": {"read": READERS[self.chance.below(READERS.len())]}})),
                6..9 => Some(json!({"value": value, "owner": USERS[self.chance.below(USERS.len())]})),
                _ => None,
            };
            let pod = &self.pods[pod];
            edits.extend(pod.edit(&pod.db, &format!("d{doc}"), body.as_ref()));
        }
        if !edits.is_empty() {
            let results = submit(&self.pods[pod].db, edits, Mode::Interactive);
            assert!(results.iter().all(Result::is_ok));
        }
    }

    /// What the write master does now and then; sometimes long after all was given.
    fn prune(&mut self, pod: usize) {
        let oldest_ms = if self.chance.percent(10) { u64::MAX } else { 0 };
        let all: Vec<PodId> = self.pods.iter().map(|pod| pod.id.clone()).collect();
        let pod = &self.pods[pod];
        let others: Vec<PodId> = all.into_iter().filter(|id| *id != pod.id).collect();
        let found = prunable(&pod.ring, &pod.progress, &others, oldest_ms).expect("the store works");
        let mut edits: Vec<Edit> = Vec::new();
        for (id, rev) in found {
            let number = Number::of_doc(&id).expect("an instruction");
            let has = |one: &Pod| one.said.get(&number.epoch).is_some_and(|said| *said >= number.number);
            let own = pod.progress.reached(&number.epoch) >= number.number;
            if !own || !self.pods.iter().filter(|one| one.id != pod.id).all(has) {
                assert_eq!(oldest_ms, u64::MAX, "{number} was pruned before all had carried it out");
                self.seen.aged += 1;
                self.aged.insert(number);
            }
            self.seen.pruned += 1;
            edits.push(ring_doc::deletion(&id, rev, &Map::new()));
        }
        if !edits.is_empty() {
            submit(&pod.ring, edits, Mode::Interactive);
        }
    }

    /// One page of a link: what is missing of the rows after the checkpoint, the ring's documents first, the others in
    /// any order, some of it twice. Tells whether the page held anything.
    fn replicate(&mut self, from: usize, to: usize, limit: usize) -> bool {
        if from == to || self.pods[from].is_away || self.pods[to].is_away {
            return false;
        }
        // A link that begins again.
        if self.chance.percent(3) {
            self.pods[to].taken.remove(&from);
        }
        let since = self.pods[to].taken.get(&from).copied().unwrap_or_default();
        let limit = 1 + self.chance.below(limit);
        let mut page = self.pods[from].store.rows(since, limit, &|_| false).expect("the store works");
        let is_news = !page.rows.is_empty();
        self.chance.shuffle(&mut page.rows);
        page.rows.sort_by_key(|row| row.db.name() != ring_doc::RING);
        let mut is_ruled = false;
        for row in page.rows {
            let target = &self.pods[to];
            let is_ring = row.db.name() == ring_doc::RING;
            let db: &Db = if is_ring { &target.ring } else { &target.db };
            let diff = db.revs_diff(&Scope::All, &row.id, &row.leaves).expect("the store works");
            let mut wanted = diff.missing;
            wanted.extend(row.leaves.iter().filter(|_| self.chance.percent(20)).cloned());
            self.chance.shuffle(&mut wanted);
            if !is_ring && !is_ruled {
                target.rule();
                is_ruled = true;
                // The worker looks when it likes: also between the two.
                if self.chance.percent(30) {
                    self.look(to);
                }
            }
            let target = &self.pods[to];
            // What is gone since comes with a later row.
            let edits: Vec<Edit> =
                wanted.iter().filter_map(|rev| self.pods[from].give(&row.db, &row.id, rev)).collect();
            let db: &Db = if is_ring { &target.ring } else { &target.db };
            if !edits.is_empty() {
                let results = submit(db, edits, Mode::Replicated);
                assert!(results.iter().all(Result::is_ok));
            }
        }
        self.pods[to].rule();
        self.pods[to].taken.insert(from, page.until);
        is_news
    }

    fn look(&mut self, pod: usize) {
        let before: BTreeMap<Stamp, u64> = self
            .log
            .keys()
            .map(|number| (number.epoch.clone(), self.pods[pod].progress.reached(&number.epoch)))
            .collect();
        let look = self.pods[pod].look();
        self.seen.waits += usize::from(!look.open.is_empty());
        let now = &self.pods[pod];
        let is_new = |number: &Number| number.number > before.get(&number.epoch).copied().unwrap_or(0);
        for given in self.log.values().filter(|given| is_new(&given.number) && has_reached(now, &given.number)) {
            let elsewhere =
                given.moves.iter().all(|made| now.part_of(&made.id).is_none_or(|part| part.signature != made.from));
            assert!(
                elsewhere || !now.db.needs_repartition(),
                "pod {pod} places documents, and {} is there",
                given.number
            );
        }
    }

    fn away(&mut self) {
        let at = self.chance.below(self.pods.len());
        let is_back = self.pods[at].is_away;
        if is_back || !self.masters.contains(&at) {
            self.pods[at].is_away = !is_back;
        }
    }

    /// The pod becomes master, mostly after it took what the others have; or one of two.
    fn elect(&mut self, pod: usize) {
        if self.chance.percent(70) {
            for from in 0..self.pods.len() {
                while self.replicate(from, pod, 20) {}
            }
        }
        let other = self.some_master();
        let splits = other != pod && self.chance.percent(30);
        self.seen.splits += usize::from(splits);
        self.lead(pod, if splits { std::slice::from_ref(&other) } else { &[] });
    }

    /// Looks for somebody who reads what they may not, and for what a pod says wrongly.
    fn check(&mut self, pod: usize, user: usize) {
        let shown = self.pods[pod].read(user);
        let now = &self.pods[pod];
        for id in shown {
            assert!(now.is_named(user, &id), "{} reads {id} on pod {pod}", USERS[user]);
        }
        for given in self.log.values() {
            if !has_reached(now, &given.number) || self.aged.contains(&given.number) {
                continue;
            }
            for made in &given.moves {
                if let Some(wrong) = is_wrong(now, made, given.rules.as_ref()) {
                    panic!("pod {pod} says that {} is carried out, but {wrong}: {made:?}", given.number);
                }
            }
        }
    }

    /// Exchanges, places and looks until nothing changes; then all is carried out, and goes.
    fn finish(&mut self) {
        let master = self.masters[0];
        self.pods.iter_mut().for_each(|pod| pod.is_away = false);
        self.lead(master, &[]);
        self.settle();
        (0..self.pods.len()).for_each(|at| self.must_notice(at));
        // Everything is compared: only then it is sure what is missing for good.
        self.pods.iter_mut().for_each(|pod| pod.taken.clear());
        self.settle();
        (0..self.pods.len()).for_each(|at| self.pass_gaps(at));
        self.settle();
        let live: Vec<Number> = numbers(&self.pods[master]);
        for (at, pod) in self.pods.iter().enumerate() {
            assert_eq!(numbers(pod), live, "pod {at}");
            let look = pod.look();
            assert!(look.open.is_empty(), "pod {at}: {:?}", look.open);
            for number in &live {
                assert!(has_reached(pod, number), "pod {at} has not carried out {number}");
            }
            for given in self.log.values() {
                for made in &given.moves {
                    let wrong = is_wrong(pod, made, given.rules.as_ref());
                    assert!(wrong.is_none(), "pod {at}, {}: {wrong:?}", given.number);
                }
            }
            assert_eq!(pod.places(), self.pods[0].places(), "pod {at} and pod 0");
            assert_eq!(pod.db.verify().expect("the store works"), Vec::<String>::new());
        }
        self.pods.iter_mut().for_each(Pod::report);
        self.settle();
        self.pods.iter_mut().for_each(Pod::note_said);
        self.prune(master);
        assert!(numbers(&self.pods[master]).len() <= 1, "what all have carried out stays");
        for at in 0..self.pods.len() {
            (0..USERS.len()).for_each(|user| self.check(at, user));
        }
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let before: Vec<u64> = self.pods.iter().map(|pod| pod.store.seq()).collect();
            for to in 0..self.pods.len() {
                for from in 0..self.pods.len() {
                    while self.replicate(from, to, 20) {}
                }
                self.pods[to].place();
                self.look(to);
            }
            for at in 0..self.pods.len() {
                let given = self.pods[at].given();
                self.account(at, None, given);
            }
            if self.pods.iter().map(|pod| pod.store.seq()).eq(before) {
                return;
            }
        }
        panic!("pods exchange without end");
    }

    /// Passes over the gaps of a pod, as after a long wait: all must be of what was pruned.
    fn pass_gaps(&mut self, at: usize) {
        for _ in 0..self.log.len() + 1 {
            let look = self.pods[at].look();
            let mut gaps = Vec::new();
            for (number, reason) in look.open.into_values() {
                let Reason::Gap { prev } = reason else { panic!("pod {at}: {number} {reason:?}") };
                let prev: Number = prev.parse().expect("a number");
                assert!(self.aged.contains(&prev), "pod {at} misses {prev}, which was not pruned early");
                gaps.push(number);
            }
            if gaps.is_empty() {
                return;
            }
            self.seen.gaps += gaps.len();
            self.pods[at].passed.extend(gaps);
        }
        panic!("pod {at} finds gaps without end");
    }

    /// A pod that was there before, and away while something was pruned, sees so by the first that comes after.
    fn must_notice(&self, at: usize) {
        let pod = &self.pods[at];
        let live = numbers(pod);
        let Some(first) = live.first() else { return };
        let lost = |number: &&Number| {
            number.epoch == first.epoch && **number < *first && pod.progress.reached(&number.epoch) < number.number
        };
        if pod.progress.is_new() || pod.progress.reached(&first.epoch) >= first.number {
            return;
        }
        if let Some(lost) = self.log.keys().rfind(lost) {
            let look = pod.look();
            let open = look.open.get(&first.epoch);
            assert!(open.is_some_and(|(number, _)| number == first), "pod {at} doesn't notice that {lost} is missing");
        }
    }
}

/// The instructions that are there.
fn numbers(pod: &Pod) -> Vec<Number> {
    let rows = pod.ring.all_docs(&Scope::All, &ring_doc::prefixed(PREFIX), 10_000).expect("the store works");
    rows.iter().filter_map(|row| Number::of_doc(&row.id)).collect()
}

fn has_reached(pod: &Pod, number: &Number) -> bool {
    pod.progress.reached(&number.epoch) >= number.number
}

/// Why a move is not carried out: its document is where it was, and neither a revision that wins over the move's nor
/// later rules have brought it back there.
fn is_wrong(pod: &Pod, made: &Move, rules: Option<&Rev>) -> Option<&'static str> {
    let place = pod.part_of(&made.id)?;
    if place.signature != made.from {
        return None;
    }
    let (winner, deleted) = pod.winner(&pod.db, &made.id)?;
    if !pod.knows(&pod.db, &made.id, &made.rev) {
        return (deleted || winner < made.rev).then_some("its revision has not come, and the document is where it was");
    }
    if winner != made.rev {
        return None;
    }
    let is_ruled = rules.is_none_or(|rules| pod.knows(&pod.ring, RULES, rules));
    (!is_ruled).then_some("its rules have not come, and the document is where it was")
}

#[test]
fn moves_are_carried_out_everywhere_and_nothing_is_said_too_early() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("REAN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REAN_SIM_SCHEDULES").unwrap_or(SCHEDULES),
    };
    let many = seeds.end - seeds.start >= SCHEDULES;
    let mut all = Seen::default();
    for seed in seeds {
        let mut ring = Ring::new(seed);
        (0..STEPS).for_each(|_| ring.step());
        ring.finish();
        let seen = &ring.seen;
        all.instructions += seen.instructions;
        all.undone += seen.undone;
        all.splits += seen.splits;
        all.pruned += seen.pruned;
        all.aged += seen.aged;
        all.purged += seen.purged;
        all.gaps += seen.gaps;
        all.waits += seen.waits;
    }
    println!("{all:?}");
    if many {
        let counts = [all.instructions, all.undone, all.splits, all.pruned, all.aged, all.purged, all.gaps, all.waits];
        assert!(counts.iter().all(|count| *count > 0), "{all:?}");
    }
}
