//! The pods of a ring as one of them sees them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::host::DiskLevel;

/// The longest id of a pod, in bytes: it becomes part of document ids, host names and file names.
const MAX_POD_ID_BYTES: usize = 64;

/// The name of a pod: 1 to 64 of `a-z`, `0-9` and `-`. Given once, it stays with the pod's data.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PodId(Arc<str>);

/// Why a text is no pod's id. It does not repeat the text, which may have come from anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pod's id is 1 to {MAX_POD_ID_BYTES} of a-z, 0-9 and -")]
pub struct PodIdError;

/// What is known of a pod. All but `alive`, which is this pod's own judgement, the pod says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which pod.
    pub id: PodId,
    /// Where it is reached, as those who talk to it write it; nothing here looks into it.
    pub address: String,
    /// Whether the failure detector takes it for alive.
    pub alive: bool,
    /// Whether it has said that it goes.
    pub left: bool,
    /// Grows with each start of the pod.
    pub generation: u64,
    /// Grows within a generation with each change of what the pod says.
    pub version: u64,
    /// The newest epoch that it has heard of, whoever is master in it.
    pub epoch: Option<Stamp>,
    /// The epoch in which it is the write master at this moment.
    pub claim: Option<Stamp>,
    /// The newest epoch in which it has everything that the others could give it: a master from the start, others as
    /// soon as they have pulled all that their neighbours had when the epoch began. It stays through small lags, is
    /// persisted, and is none for a pod that has found itself behind (back from a pause or a split) until it has pulled.
    pub caught_up_to: Option<Stamp>,
    /// When it said all this, by its clock.
    pub stamp: Option<Stamp>,
    /// The pods whose stamps its clock refuses ([`crate::clock::DriftError`]).
    pub refuses: Vec<PodId>,
    /// Whether it wants to be no master: inactive, removed, or about to be replaced.
    #[serde(default)]
    pub reluctant: bool,
    /// Room on its disk.
    #[serde(default)]
    pub disk: DiskLevel,
}

/// The ring as one pod sees it: each pod once, sorted by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Member>", into = "Vec<Member>")]
pub struct View {
    members: Vec<Member>,
}

impl PodId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PodId {
    type Err = PodIdError;

    fn from_str(text: &str) -> Result<Self, PodIdError> {
        let fits = (1..=MAX_POD_ID_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(text.into())) } else { Err(PodIdError) }
    }
}

impl TryFrom<String> for PodId {
    type Error = PodIdError;

    fn try_from(text: String) -> Result<Self, PodIdError> {
        text.parse()
    }
}

impl From<PodId> for String {
    fn from(id: PodId) -> Self {
        id.as_str().to_owned()
    }
}

impl Member {
    /// A pod of which nothing is known yet but that it lives.
    pub fn new(id: PodId, address: &str, generation: u64) -> Self {
        Self {
            id,
            address: address.to_owned(),
            alive: true,
            left: false,
            generation,
            version: 0,
            epoch: None,
            claim: None,
            caught_up_to: None,
            stamp: None,
            refuses: Vec::new(),
            reluctant: false,
            disk: DiskLevel::Roomy,
        }
    }

    /// Whether it takes part: alive, and not about to go.
    pub fn is_live(&self) -> bool {
        self.alive && !self.left
    }

    /// The newest epoch that it knows all of: what it is caught up to, or the one in which it is master.
    pub fn informed_of(&self) -> Option<&Stamp> {
        self.caught_up_to.as_ref().max(self.claim.as_ref())
    }

    /// Whether `other` says later what the same pod says.
    fn is_older_than(&self, other: &Self) -> bool {
        (self.generation, self.version) < (other.generation, other.version)
    }
}

impl View {
    /// The members in any order; of two with the same id, the newer counts.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_by(|a, b| (&a.id, b.generation, b.version).cmp(&(&b.id, a.generation, a.version)));
        members.dedup_by(|later, first| later.id == first.id);
        Self { members }
    }

    /// All members, sorted by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One member.
    pub fn get(&self, id: &PodId) -> Option<&Member> {
        self.place(id).ok().map(|place| &self.members[place])
    }

    /// The members that take part, sorted by id.
    pub fn live(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.is_live())
    }

    /// Takes in what a pod says unless something newer is known; true when it was news. News may come late and in any order.
    pub fn update(&mut self, member: Member) -> bool {
        match self.place(&member.id) {
            Ok(place) if self.members[place].is_older_than(&member) => self.members[place] = member,
            Ok(_) => return false,
            Err(place) => self.members.insert(place, member),
        }
        true
    }

    /// Notes what the failure detector says of a pod; true when that was news.
    pub fn set_alive(&mut self, id: &PodId, alive: bool) -> bool {
        match self.place(id) {
            Ok(place) => std::mem::replace(&mut self.members[place].alive, alive) != alive,
            Err(_) => false,
        }
    }

    /// The live pods with a wrong clock: they refuse the stamps of most of the other live pods, or most of those refuse
    /// theirs. One pod's word is not enough, as it is the wrong clock that refuses all others. Where all clocks are wrong
    /// by that measure (two pods that differ), none is.
    pub fn clocks_off(&self) -> Vec<&PodId> {
        let live: Vec<&Member> = self.live().collect();
        if live.iter().all(|member| member.refuses.is_empty()) {
            return Vec::new();
        }
        let refuses = |a: &Member, b: &Member| a.id != b.id && a.refuses.contains(&b.id);
        let most = |count: usize| 2 * count > live.len().saturating_sub(1);
        let mut off: Vec<&PodId> = Vec::new();
        for pod in &live {
            let refused_by = live.iter().filter(|other| refuses(other, pod)).count();
            let refused = live.iter().filter(|other| refuses(pod, other)).count();
            if most(refused_by) || most(refused) {
                off.push(&pod.id);
            }
        }
        if off.len() == live.len() { Vec::new() } else { off }
    }

    fn place(&self, id: &PodId) -> Result<usize, usize> {
        self.members.binary_search_by(|member| member.id.cmp(id))
    }
}

impl From<Vec<Member>> for View {
    fn from(members: Vec<Member>) -> Self {
        Self::new(members)
    }
}

impl From<View> for Vec<Member> {
    fn from(view: View) -> Self {
        view.members
    }
}

#[cfg(test)]
mod tests {
    use super::{Member, PodId, View};

    fn member(id: &str, generation: u64, version: u64) -> Member {
        Member { version, ..Member::new(id.parse().expect("a pod's id"), "here", generation) }
    }

    #[test]
    fn ids() {
        for good in ["a", "pod-1f0c", "0", "-", &"x".repeat(64)] {
            assert_eq!(good.parse::<PodId>().expect(good).as_str(), good);
        }
        for bad in ["", "A", "a b", "pod_1", "é", "a/b", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<PodId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_newest_counts_whatever_the_order() {
        let rows = [member("b", 1, 9), member("a", 2, 0), member("a", 1, 7), member("b", 2, 1), member("b", 2, 0)];
        let view = View::new(rows.clone());
        let newest: Vec<_> = view.members().iter().map(|m| (m.id.as_str(), m.generation, m.version)).collect();
        assert_eq!(newest, [("a", 2, 0), ("b", 2, 1)]);
        for turn in 0..rows.len() {
            let mut rows = rows.clone();
            rows.rotate_left(turn);
            let mut updated = View::default();
            for row in rows {
                updated.update(row);
            }
            assert_eq!(updated, view);
        }
    }

    #[test]
    fn who_is_live() {
        let id: PodId = "a".parse().expect("a pod's id");
        let mut view = View::new([member("a", 1, 0), Member { left: true, ..member("b", 1, 0) }]);
        assert_eq!(view.live().count(), 1);
        assert!(view.set_alive(&id, false) && !view.set_alive(&id, false));
        assert_eq!(view.live().count(), 0);
        assert!(!view.set_alive(&"c".parse().expect("a pod's id"), true));
        assert!(view.get(&id).is_some());
    }

    #[test]
    fn whose_clock_is_off() {
        let refusing = |id: &str, refused: &[&str]| Member {
            refuses: refused.iter().map(|id| id.parse().expect("a pod's id")).collect(),
            ..member(id, 1, 0)
        };
        let off = |members: Vec<Member>| -> Vec<String> {
            View::new(members).clocks_off().into_iter().map(PodId::to_string).collect()
        };
        assert_eq!(off(vec![refusing("a", &["c"]), refusing("b", &["c"]), refusing("c", &[])]), ["c"], "ahead");
        assert_eq!(off(vec![refusing("a", &["b", "c"]), refusing("b", &[]), refusing("c", &[])]), ["a"], "behind");
        assert!(off(vec![refusing("a", &["b"]), refusing("b", &[])]).is_empty(), "who can tell");
        assert!(off(vec![refusing("a", &["a"])]).is_empty());
    }

    #[test]
    fn json() {
        let view = View::new([member("a", 1, 0), member("b", 1, 0)]);
        let text = serde_json::to_string(&view).expect("JSON");
        assert_eq!(serde_json::from_str::<View>(&text).expect("a view"), view);
        assert!(serde_json::from_str::<View>(&text.replace("\"a\"", "\"A\"")).is_err());
    }
}
