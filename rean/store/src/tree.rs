//! The revisions of one document: who descends from whom, and which leaf wins.
//!
//! Rules are CouchDB's (<https://docs.couchdb.org/en/stable/replication/conflicts.html>): of the leaves, a
//! live one wins over a deleted one, then the higher generation, then the higher hash. Merging is a union
//! of what histories say, so pods that got the same histories in any order have the same leaves and winner.
//!
//! What always holds: a revision is in the tree once; nodes are in ascending order of their revision; a
//! node's parent has a lower generation, so it stands before its children. One parent for a revision is
//! kept, the first that was told; a history that contradicts it is cut off there.

use serde::{Deserialize, Serialize};

use crate::rev::Rev;

/// One revision in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub rev: Rev,
    /// Where in the tree the revision is that this one was made from; `None` if that is not known.
    pub parent: Option<u32>,
    /// Whether this revision is a tombstone. False for one known only by name.
    pub deleted: bool,
    /// The number under which its body is stored; `None` if it is not, or no longer.
    pub body: Option<u64>,
    /// The number of the access list it was written with; 0 for one known only by name.
    pub acl: u32,
}

/// What a merge did. Indexes are those after the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The revision was there, as a leaf with a body or as an inner node, and so was its history: nothing
    /// changed, nothing has to be stored.
    Known(usize),
    /// The revision was there, but its history linked or added ancestors. Its body was not taken. Leaves
    /// can have become fewer, if the history joined two branches.
    Grafted(usize),
    /// The revision was there as a leaf without a body; now it has the body, flags and access list given.
    Filled(usize),
    /// A new leaf on top of one that was a leaf before (`parent_leaf`, possibly with ancestors between).
    Extended {
        /// The new leaf.
        index: usize,
        /// What is no leaf any more.
        parent_leaf: usize,
    },
    /// A new leaf where there was none: the first revision, a fork, or an unrelated root.
    Branched {
        /// The new leaf.
        index: usize,
    },
}

/// All that is known of one document's revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevTree {
    nodes: Vec<Node>,
}

impl RevTree {
    /// A tree without revisions.
    pub fn new() -> RevTree {
        RevTree::default()
    }

    /// All revisions, in ascending order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Whether there are no revisions.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Where this revision is.
    pub fn find(&self, rev: &Rev) -> Option<usize> {
        self.nodes.binary_search_by(|node| node.rev.cmp(rev)).ok()
    }

    /// The leaves, best first: live before deleted, then the higher generation, then the higher hash.
    pub fn leaves(&self) -> Vec<usize> {
        let is_parent = self.parents();
        let mut leaves: Vec<usize> = (0..self.nodes.len()).rev().filter(|&i| !is_parent[i]).collect();
        // Nodes are in order of revision already, and the sort is stable.
        leaves.sort_by_key(|&i| self.nodes[i].deleted);
        leaves
    }

    /// The leaf that a read without a revision gets.
    pub fn winner(&self) -> Option<usize> {
        // The highest revision is nobody's parent. If it lives, it wins, and that is the usual case.
        let last = self.nodes.last()?;
        if !last.deleted {
            return Some(self.nodes.len() - 1);
        }
        self.leaves().first().copied()
    }

    /// Whether nothing descends from the revision at `i`. False if there is none.
    pub fn is_leaf(&self, i: usize) -> bool {
        i < self.nodes.len() && (i + 1..self.nodes.len()).all(|at| self.parent(at) != Some(i))
    }

    /// The revision at `i` and its known ancestors, newest first: what `_revisions` shows.
    pub fn path(&self, i: usize) -> Vec<Rev> {
        let own = self.nodes.get(i).map(|_| i);
        own.into_iter().chain(self.ancestors(i)).map(|i| self.nodes[i].rev.clone()).collect()
    }

    /// The known ancestors of the revision at `i`, newest first, without itself.
    pub fn ancestors(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.parent(i), |&i| self.parent(i))
    }

    /// Whether `ancestor` is the revision at `i` or an ancestor of it.
    pub fn descends(&self, i: usize, ancestor: usize) -> bool {
        i == ancestor || self.ancestors(i).take_while(|&at| at >= ancestor).any(|at| at == ancestor)
    }

    /// The leaves that descend from the revision at `i`, best first; itself if it is one.
    pub fn leaves_below(&self, i: usize) -> Vec<usize> {
        // Parents stand before children, so one pass marks all descendants.
        let mut below = vec![false; self.nodes.len()];
        if let Some(own) = below.get_mut(i) {
            *own = true;
        }
        for at in i.saturating_add(1)..below.len() {
            below[at] = self.parent(at).is_some_and(|parent| below[parent]);
        }
        let mut leaves = self.leaves();
        leaves.retain(|&leaf| below[leaf]);
        leaves
    }

    /// Takes in a revision with what is known of its history.
    ///
    /// `history` is newest first, `history[0]` the revision itself; the caller has checked that generations
    /// fall. `deleted`, `body` and `acl` are those of `history[0]`. Ancestors that were not known are added by
    /// name. A history that ends early is grafted onto the tree if any part of it is there, and a tree that
    /// ends early is continued if the history goes on further back. Takes
    /// O(history * log(tree) + tree) steps, and less for the usual edit on top of the winner.
    ///
    /// # Panics
    /// Never; an empty history changes nothing and gives `Known(0)`.
    pub fn merge(&mut self, history: &[Rev], deleted: bool, body: Option<u64>, acl: u32) -> Merged {
        let Some(newest) = history.first() else {
            return Merged::Known(0);
        };
        let known = self.find(newest);
        let base = known.is_none().then(|| history[1..].iter().find_map(|rev| self.find(rev))).flatten();
        let base_leaf = base.filter(|&i| self.is_leaf(i)).map(|i| self.nodes[i].rev.clone());

        let changed = self.link(history);
        let Some(index) = self.find(newest) else {
            return Merged::Known(0); // `link` has just put it in.
        };
        if known.is_some() {
            let missing = self.nodes[index].body.is_none();
            if missing && body.is_some() && self.is_leaf(index) {
                self.set(index, deleted, body, acl);
                return Merged::Filled(index);
            }
            return if changed { Merged::Grafted(index) } else { Merged::Known(index) };
        }
        self.set(index, deleted, body, acl);
        match base_leaf.and_then(|rev| self.find(&rev)) {
            Some(parent_leaf) if self.descends(index, parent_leaf) => Merged::Extended { index, parent_leaf },
            _ => Merged::Branched { index },
        }
    }

    /// Forgets ancestors that are `limit` or more steps behind every leaf (`_revs_limit`; at least 1, so a
    /// leaf is never lost). Returns the numbers of the bodies that nothing names any more.
    pub fn stem(&mut self, limit: usize) -> Vec<u64> {
        let distance = self.distances();
        let limit = limit.max(1);
        self.retain(|i| distance[i] < limit)
    }

    /// How many steps each revision is behind the nearest leaf.
    fn distances(&self) -> Vec<usize> {
        let mut distance = vec![usize::MAX; self.nodes.len()];
        for i in (0..self.nodes.len()).rev() {
            if distance[i] == usize::MAX {
                distance[i] = 0; // Children come later and would have set it: a leaf.
            }
            if let Some(parent) = self.parent(i) {
                distance[parent] = distance[parent].min(distance[i] + 1);
            }
        }
        distance
    }

    /// Forgets the bodies of ancestors that are `limit` or more steps behind every leaf, and keeps their names. Returns
    /// the numbers of the bodies.
    pub fn forget_bodies_behind(&mut self, limit: usize) -> Vec<u64> {
        let distance = self.distances();
        let behind = self.nodes.iter_mut().zip(distance).filter(|(_, distance)| *distance >= limit.max(1));
        behind.filter_map(|(node, _)| node.body.take()).collect()
    }

    /// Forgets the leaf at `i` and those ancestors that no other leaf has (`_purge`). Returns the numbers of
    /// their bodies. Does nothing if `i` is not a leaf.
    pub fn remove_leaf(&mut self, i: usize) -> Vec<u64> {
        if !self.is_leaf(i) {
            return Vec::new();
        }
        let mut children = vec![0_u32; self.nodes.len()];
        for at in 0..self.nodes.len() {
            if let Some(parent) = self.parent(at) {
                children[parent] += 1;
            }
        }
        let mut gone = vec![false; self.nodes.len()];
        gone[i] = true;
        for ancestor in self.ancestors(i).take_while(|&at| children[at] == 1) {
            gone[ancestor] = true;
        }
        self.retain(|at| !gone[at])
    }

    /// Forgets the bodies of all revisions that are no leaves (`_compact`), and returns their numbers.
    pub fn forget_inner_bodies(&mut self) -> Vec<u64> {
        let is_parent = self.parents();
        let inner = self.nodes.iter_mut().zip(is_parent).filter(|(_, is_parent)| *is_parent);
        inner.filter_map(|(node, _)| node.body.take()).collect()
    }

    /// Gives the revision at `i` another access list. Does nothing if there is no such revision.
    pub fn set_acl(&mut self, i: usize, acl: u32) {
        if let Some(node) = self.nodes.get_mut(i) {
            node.acl = acl;
        }
    }

    /// Tells where the body of the revision at `i` is now. Does nothing if there is no such revision.
    pub fn set_body(&mut self, i: usize, body: Option<u64>) {
        if let Some(node) = self.nodes.get_mut(i) {
            node.body = body;
        }
    }

    /// Where the parent of `i` is. A stored tree that was damaged must not send us in circles.
    fn parent(&self, i: usize) -> Option<usize> {
        let parent = self.nodes.get(i)?.parent? as usize;
        (parent < i).then_some(parent)
    }

    /// For each node, whether it has children.
    fn parents(&self) -> Vec<bool> {
        let mut is_parent = vec![false; self.nodes.len()];
        for i in 0..self.nodes.len() {
            if let Some(parent) = self.parent(i) {
                is_parent[parent] = true;
            }
        }
        is_parent
    }

    fn set(&mut self, i: usize, deleted: bool, body: Option<u64>, acl: u32) {
        let node = &mut self.nodes[i];
        (node.deleted, node.body, node.acl) = (deleted, body, acl);
    }

    /// Adds the revisions of a history that are not there, and the links between them. Tells whether it
    /// changed anything.
    fn link(&mut self, history: &[Rev]) -> bool {
        let path = self.agreeing(history);
        self.insert(path.iter().filter(|step| step.known.is_none()).map(|step| step.rev));
        let mut changed = path.iter().any(|step| step.known.is_none());
        // Indexes have moved; each lookup is a binary search.
        let mut child = path.first().and_then(|step| self.find(step.rev));
        for step in path.iter().skip(1) {
            let parent = self.find(step.rev);
            if let (Some(child), Some(parent)) = (child, parent)
                && self.nodes[child].parent.is_none()
                && let Ok(parent) = u32::try_from(parent)
            {
                self.nodes[child].parent = Some(parent);
                changed = true;
            }
            child = parent;
        }
        changed
    }

    /// The part of a history, from the newest on, that contradicts neither the tree nor the rule that
    /// generations fall.
    fn agreeing<'a>(&self, history: &'a [Rev]) -> Vec<Step<'a>> {
        let mut path: Vec<Step<'a>> = Vec::with_capacity(history.len());
        for rev in history {
            let mut known = None;
            if let Some(child) = path.last() {
                if rev.generation >= child.rev.generation {
                    break;
                }
                match child.known.and_then(|i| self.parent(i)) {
                    Some(parent) if self.nodes[parent].rev != *rev => break,
                    parent => known = parent,
                }
            }
            let known = known.or_else(|| self.find(rev));
            path.push(Step { rev, known });
        }
        path
    }

    /// Puts in revisions that are not there, given newest first, without parents.
    fn insert<'a>(&mut self, newest_first: impl DoubleEndedIterator<Item = &'a Rev>) {
        let mut added =
            newest_first.rev().map(|rev| Node { rev: rev.clone(), parent: None, deleted: false, body: None, acl: 0 });
        let Some(first) = added.next() else {
            return;
        };
        if self.nodes.last().is_none_or(|last| last.rev < first.rev) {
            self.nodes.push(first);
            self.nodes.extend(added);
            return;
        }
        // Both are in ascending order: merge them, and note where each old node went.
        let mut added = std::iter::once(first).chain(added).peekable();
        let old = std::mem::take(&mut self.nodes);
        let mut moved_to = Vec::with_capacity(old.len());
        for mut node in old {
            while let Some(new) = added.next_if(|new| new.rev < node.rev) {
                self.nodes.push(new);
            }
            node.parent = node.parent.and_then(|parent| moved_to.get(parent as usize).copied());
            moved_to.push(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
            self.nodes.push(node);
        }
        self.nodes.extend(added);
    }

    /// Keeps the nodes for which `keep` holds; children of the others become roots. Returns the numbers of
    /// the bodies of those that went.
    fn retain(&mut self, keep: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut dropped = Vec::new();
        let mut moved_to: Vec<Option<u32>> = Vec::with_capacity(self.nodes.len());
        let mut kept = 0;
        let mut at = 0;
        self.nodes.retain_mut(|node| {
            let stays = keep(at);
            at += 1;
            if stays {
                node.parent = node.parent.and_then(|parent| moved_to.get(parent as usize).copied().flatten());
                moved_to.push(Some(kept));
                kept += 1;
            } else {
                moved_to.push(None);
                dropped.extend(node.body);
            }
            stays
        });
        dropped
    }
}

/// One revision of a history on its way into a tree.
struct Step<'a> {
    rev: &'a Rev,
    /// Where it is in the tree already.
    known: Option<usize>,
}

#[cfg(test)]
mod tests;
