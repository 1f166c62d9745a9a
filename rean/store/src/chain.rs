//! Revisions that no one wrote.
//!
//! A reader from whose sight a document goes gets a tombstone: a revision one generation above the one that
//! they have and its child. Its hash is an HMAC under a ring key, so that every pod makes the same one, a
//! client's push of it is recognised, and nobody else can make one. It is never written to the aggregate.
//!
//! When the same revision comes back, its readers' devices hold it as dead. So it first gets a successor: a
//! real revision with the same content, whose name is made the same way on every pod.
//!
//! Pods make successors on their own, from what their readers were shown. So a revision that one pod has given a
//! successor may have been edited on another, by somebody who never saw it. That is no conflict: the successor says
//! nothing new. It is closed by a deletion, whose name is again the same everywhere, so that all pods that have got
//! the same revisions, in whatever order, come to the same tree (see `close_overtaken`).

use crate::rev::{Rev, RevHash};
use crate::tree::RevTree;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Makes and recognises the revisions of one database.
#[derive(Clone)]
pub(crate) struct Chain {
    key: [u8; 32],
    database: String,
}

impl Chain {
    /// `key` is the ring's, so that all pods agree; the name of the database keeps databases apart.
    pub fn new(key: [u8; 32], database: &str) -> Chain {
        Chain { key, database: database.to_owned() }
    }

    /// The tombstone of a revision.
    pub fn tomb(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("tomb", id, rev) }
    }

    /// The successor of a revision whose end somebody was shown.
    pub fn successor(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("successor", id, rev) }
    }

    /// The deletion that ends a successor when there is an edit of what it succeeded.
    pub fn closing(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("closing", id, rev) }
    }

    /// The revision that a real edit of an app's document gets, from its plain one. A reader sees the names
    /// of revisions that they could not read (they stand in histories); without a key those would confirm a
    /// guess of the content.
    pub fn veil(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation, hash: self.hash("veil", id, rev) }
    }

    /// Closes each live leaf that is a successor, of a successor and so on, of a revision from which something else
    /// descends too: an edit, live or deleted since, or the deletion that closed it elsewhere.
    ///
    /// What it does follows from the tree alone. A closing that came before the edit that it was made for needs
    /// nothing more; one that is made here of what another pod has continued meanwhile stays a closed side branch
    /// on both.
    pub fn close_overtaken(&self, id: &str, tree: &mut RevTree) {
        let leaves = tree.leaves();
        if leaves.len() < 2 {
            return;
        }
        let mut children = vec![0_u32; tree.nodes().len()];
        for parent in tree.nodes().iter().filter_map(|node| node.parent) {
            if let Some(count) = children.get_mut(parent as usize) {
                *count += 1;
            }
        }
        let live = leaves.into_iter().filter(|leaf| !tree.nodes()[*leaf].deleted);
        let overtaken = live.filter(|leaf| self.is_overtaken(id, tree, *leaf, &children));
        let closings: Vec<_> = overtaken.map(|leaf| (tree.path(leaf), tree.nodes()[leaf].acl)).collect();
        for (mut history, acl) in closings {
            history.insert(0, self.closing(id, &history[0]));
            let _ = tree.merge(&history, true, None, acl);
        }
    }

    fn is_overtaken(&self, id: &str, tree: &RevTree, leaf: usize, children: &[u32]) -> bool {
        let mut at = leaf;
        for parent in tree.ancestors(leaf) {
            if self.successor(id, &tree.nodes()[parent].rev) != tree.nodes()[at].rev {
                return false;
            }
            if children[parent] > 1 {
                return true;
            }
            at = parent;
        }
        false
    }

    /// Whether the revision at `index` is a closing.
    pub fn is_closing(&self, id: &str, tree: &RevTree, index: usize) -> bool {
        let node = &tree.nodes()[index];
        let parent = tree.ancestors(index).next();
        node.deleted && parent.is_some_and(|parent| self.closing(id, &tree.nodes()[parent].rev) == node.rev)
    }

    /// Whether `rev` is the tombstone of `base`.
    pub fn is_tomb(&self, id: &str, base: &Rev, rev: &Rev) -> bool {
        rev.generation == base.generation + 1 && matches!(rev.hash, RevHash::Md5(_)) && self.tomb(id, base) == *rev
    }

    fn hash(&self, purpose: &str, id: &str, rev: &Rev) -> RevHash {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for part in [purpose, &self.database, id, &rev.to_string()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        let tag = mac.finalize().into_bytes();
        let mut hash = [0u8; 16];
        hash.copy_from_slice(&tag[..16]);
        RevHash::Md5(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tombstone_is_recognised_by_key_database_document_and_base() {
        let chain = Chain::new([1; 32], "notes");
        let base: Rev = "3-0123456789abcdef0123456789abcdef".parse().unwrap();
        let tomb = chain.tomb("x", &base);
        assert_eq!(tomb.generation, 4);
        assert!(chain.is_tomb("x", &base, &tomb));
        assert!(!chain.is_tomb("y", &base, &tomb));
        assert!(!chain.is_tomb("x", &base, &chain.successor("x", &base)));
        assert!(!chain.is_tomb("x", &tomb, &tomb));
        assert!(!Chain::new([2; 32], "notes").is_tomb("x", &base, &tomb));
        assert!(!Chain::new([1; 32], "other").is_tomb("x", &base, &tomb));
    }

    /// A revision of the shape that clients make.
    fn rev(generation: u64, hash: u8) -> Rev {
        Rev { generation, hash: RevHash::Md5([hash; 16]) }
    }

    #[test]
    fn an_edit_of_a_revision_closes_the_successors_that_it_was_given_elsewhere() {
        let chain = Chain::new([1; 32], "notes");
        let base = rev(1, 1);
        let first = chain.successor("x", &base);
        let second = chain.successor("x", &first);
        let path = [second.clone(), first.clone(), base.clone()];
        let closing = chain.closing("x", &second);
        // Of the base or of a successor, live or a deletion.
        for (parent, deleted) in [(1, false), (1, true), (2, false), (2, true)] {
            let mut tree = RevTree::new();
            let _ = tree.merge(&path, false, Some(1), 1);
            chain.close_overtaken("x", &mut tree);
            assert_eq!(
                tree.winner().map(|at| tree.nodes()[at].rev.clone()),
                Some(second.clone()),
                "nothing overtakes it"
            );
            let history: Vec<Rev> =
                std::iter::once(rev(path[parent].generation + 1, 9)).chain(path[parent..].to_vec()).collect();
            let _ = tree.merge(&history, deleted, Some(2), 1);
            chain.close_overtaken("x", &mut tree);
            let leaves: Vec<(Rev, bool)> =
                tree.leaves().into_iter().map(|at| (tree.nodes()[at].rev.clone(), tree.nodes()[at].deleted)).collect();
            assert_eq!(leaves.len(), 2, "{leaves:?}");
            assert!(leaves.contains(&(history[0].clone(), deleted)));
            assert!(leaves.contains(&(closing.clone(), true)), "{leaves:?}");
            assert!(chain.is_closing("x", &tree, tree.find(&closing).unwrap()));
            assert!(!chain.is_closing("x", &tree, tree.find(&history[0]).unwrap()));
            let before = tree.clone();
            chain.close_overtaken("x", &mut tree);
            assert_eq!(tree, before, "twice is once");
        }
    }

    #[test]
    fn an_edit_of_a_successor_is_a_conflict_with_an_edit_of_what_it_succeeded() {
        let chain = Chain::new([1; 32], "notes");
        let base = rev(1, 1);
        let successor = chain.successor("x", &base);
        let mut tree = RevTree::new();
        let _ = tree.merge(&[rev(3, 5), successor, base.clone()], false, Some(1), 1);
        let _ = tree.merge(&[rev(2, 6), base], false, Some(2), 1);
        chain.close_overtaken("x", &mut tree);
        assert_eq!(tree.leaves().iter().filter(|at| !tree.nodes()[**at].deleted).count(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        /// Pods that get the same revisions in whatever order, and what each of them closes, have the same tree.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            steps in proptest::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<bool>()), 1..12),
            seeds in proptest::collection::vec(any::<u64>(), 3),
        ) {
            let chain = Chain::new([1; 32], "notes");
            // Each history continues one that is there: by the successor, or by an edit that lives or deletes.
            let mut histories: Vec<(Vec<Rev>, bool)> = vec![(vec![rev(1, 0)], false)];
            for (number, (on, kind, deleted)) in steps.iter().enumerate() {
                let (parent, _) = histories[on.index(histories.len())].clone();
                let succeeds = *kind < 2;
                let new = if succeeds { chain.successor("x", &parent[0]) } else { rev(parent[0].generation + 1, number as u8 + 1) };
                if !histories.iter().any(|(history, _)| history[0] == new) {
                    let history = std::iter::once(new).chain(parent).collect();
                    histories.push((history, *deleted && !succeeds));
                }
            }
            let mut pods: Vec<RevTree> = seeds.iter().map(|seed| {
                let mut order = histories.clone();
                order.sort_by_key(|(history, _)| chain.hash("order", &seed.to_string(), &history[0]).to_string());
                let mut tree = RevTree::new();
                for (history, deleted) in order {
                    let _ = tree.merge(&history, deleted, Some(1), 1);
                    chain.close_overtaken("x", &mut tree);
                }
                tree
            }).collect();
            let leaves = |tree: &RevTree| -> Vec<(Vec<Rev>, bool)> {
                tree.leaves().into_iter().map(|at| (tree.path(at), tree.nodes()[at].deleted)).collect()
            };
            // The second round brings what was closed in the first.
            for _ in 0..2 {
                let given: Vec<_> = pods.iter().map(leaves).collect();
                for tree in &mut pods {
                    for (history, deleted) in given.iter().flatten() {
                        let _ = tree.merge(history, *deleted, Some(1), 1);
                        chain.close_overtaken("x", tree);
                    }
                }
            }
            let exchanged: Vec<_> = pods.iter().map(leaves).collect();
            prop_assert_eq!(&exchanged[0], &exchanged[1]);
            prop_assert_eq!(&exchanged[0], &exchanged[2]);
        }
    }
}
