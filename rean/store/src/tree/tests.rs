use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use super::{Merged, Node, RevTree};
use crate::rev::Rev;

/// "3-c 2-b" as a history.
fn history(text: &str) -> Vec<Rev> {
    text.split_whitespace().map(|rev| rev.parse().unwrap()).collect()
}

/// A tree of these histories; the first one's body has number 1, and so on.
fn tree(histories: &[&str]) -> RevTree {
    let mut tree = RevTree::new();
    for (i, text) in histories.iter().enumerate() {
        tree.merge(&history(text), false, Some(i as u64 + 1), 0);
    }
    tree
}

fn put(tree: &mut RevTree, text: &str, deleted: bool) -> Merged {
    tree.merge(&history(text), deleted, Some(99), 7)
}

fn names(tree: &RevTree, indexes: &[usize]) -> Vec<String> {
    indexes.iter().map(|&i| tree.nodes()[i].rev.to_string()).collect()
}

fn leaves(tree: &RevTree) -> Vec<String> {
    names(tree, &tree.leaves())
}

fn path(tree: &RevTree, rev: &str) -> String {
    let i = tree.find(&rev.parse().unwrap()).unwrap();
    tree.path(i).iter().map(Rev::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_edit_extends_its_leaf() {
    let mut tree = tree(&["1-a"]);
    let merged = put(&mut tree, "2-b 1-a", false);
    assert_eq!(merged, Merged::Extended { index: 1, parent_leaf: 0 });
    let node = &tree.nodes()[1];
    assert_eq!((node.body, node.acl, node.parent), (Some(99), 7, Some(0)));
    assert_eq!(put(&mut tree, "2-b 1-a", false), Merged::Known(1));
    assert_eq!(path(&tree, "2-b"), "2-b 1-a");
}

#[test]
fn forks_and_unrelated_roots_are_branches() {
    let mut tree = tree(&["1-a", "2-c 1-a"]);
    assert_eq!(put(&mut tree, "2-b 1-a", false), Merged::Branched { index: 1 });
    assert_eq!(put(&mut tree, "1-z", false), Merged::Branched { index: 1 });
    assert_eq!(leaves(&tree), ["2-c", "2-b", "1-z"]);
    assert_eq!(path(&tree, "2-c"), "2-c 1-a");
}

#[test]
fn the_winner_is_live_then_long_then_high() {
    let mut tree = tree(&["2-f 1-a", "3-b 2-c 1-a"]);
    assert_eq!(leaves(&tree), ["3-b", "2-f"]);
    put(&mut tree, "9-x 8-y", true);
    assert_eq!(leaves(&tree), ["3-b", "2-f", "9-x"]);
    assert_eq!(tree.winner(), tree.find(&"3-b".parse().unwrap()));
    put(&mut tree, "10-a", false);
    assert_eq!(tree.winner(), tree.find(&"10-a".parse().unwrap()));
    assert_eq!(RevTree::new().winner(), None);
}

#[test]
fn a_late_ancestor_changes_nothing() {
    let mut tree = tree(&["3-c 2-b 1-a"]);
    let before = tree.clone();
    assert_eq!(put(&mut tree, "2-b 1-a", true), Merged::Known(1));
    assert_eq!(tree, before);
}

#[test]
fn stemmed_histories_are_grafted_both_ways() {
    // The tree has the middle of the new path.
    let mut a = tree(&["2-b 1-a"]);
    assert_eq!(put(&mut a, "4-d 3-c 2-b", false), Merged::Extended { index: 3, parent_leaf: 1 });
    assert_eq!(path(&a, "4-d"), "4-d 3-c 2-b 1-a");
    // The new path has what lies before the tree's root.
    let mut b = tree(&["4-d 3-c"]);
    assert_eq!(put(&mut b, "5-e 4-d 3-c 2-b 1-a", false), Merged::Extended { index: 4, parent_leaf: 3 });
    assert_eq!(path(&b, "5-e"), "5-e 4-d 3-c 2-b 1-a");
    let mut c = tree(&["4-d 3-c"]);
    assert_eq!(put(&mut c, "4-d 3-c 2-b 1-a", false), Merged::Grafted(3));
    assert_eq!(path(&c, "4-d"), "4-d 3-c 2-b 1-a");
    // It joins two parts that were a conflict until then.
    let mut d = tree(&["2-b 1-a", "5-e 4-d"]);
    assert_eq!(leaves(&d), ["5-e", "2-b"]);
    assert_eq!(put(&mut d, "6-f 5-e 4-d 3-c 2-b", false), Merged::Extended { index: 5, parent_leaf: 4 });
    assert_eq!(leaves(&d), ["6-f"]);
    assert_eq!(path(&d, "6-f"), "6-f 5-e 4-d 3-c 2-b 1-a");
}

#[test]
fn contradictions_are_cut_off() {
    let mut a = tree(&["3-c 2-b 1-a"]);
    assert_eq!(put(&mut a, "4-d 3-c 2-x 1-y", false), Merged::Extended { index: 3, parent_leaf: 2 });
    assert_eq!(path(&a, "4-d"), "4-d 3-c 2-b 1-a");
    // Generations that do not fall are the caller's to refuse; here they only must do no harm.
    let mut b = tree(&["2-a"]);
    assert_eq!(put(&mut b, "2-b 2-a 5-z", false), Merged::Branched { index: 1 });
    assert_eq!(put(&mut b, "2-b 2-b", false), Merged::Known(1));
    assert_eq!(b.merge(&[], false, None, 0), Merged::Known(0));
}

#[test]
fn a_leaf_without_body_gets_one() {
    let mut tree = RevTree::new();
    tree.merge(&history("2-b 1-a"), false, None, 0);
    assert_eq!(put(&mut tree, "2-b", true), Merged::Filled(1));
    assert_eq!((tree.nodes()[1].body, tree.nodes()[1].deleted), (Some(99), true));
}

#[test]
fn who_descends_from_whom() {
    let tree = tree(&["3-d 2-b 1-a", "3-e 2-b 1-a", "2-z 1-a", "1-q"]);
    let at = |rev: &str| tree.find(&rev.parse().unwrap()).unwrap();
    assert_eq!(names(&tree, &tree.leaves_below(at("2-b"))), ["3-e", "3-d"]);
    assert_eq!(names(&tree, &tree.leaves_below(at("1-a"))), ["3-e", "3-d", "2-z"]);
    assert_eq!(names(&tree, &tree.leaves_below(at("1-q"))), ["1-q"]);
    assert!(tree.descends(at("3-d"), at("1-a")) && tree.descends(at("3-d"), at("3-d")));
    assert!(!tree.descends(at("1-a"), at("3-d")) && !tree.descends(at("3-d"), at("2-z")));
    assert_eq!(tree.ancestors(at("3-d")).collect::<Vec<_>>(), [at("2-b"), at("1-a")]);
    assert!(tree.leaves_below(77).is_empty() && tree.path(77).is_empty() && !tree.is_leaf(77));
    assert!(!tree.is_leaf(at("2-b")) && tree.is_leaf(at("2-z")) && !tree.is_leaf(usize::MAX));
}

#[test]
fn purging_a_leaf_keeps_what_others_need() {
    let mut tree = tree(&["1-a", "2-b 1-a", "3-c 2-b 1-a", "2-z 1-a"]);
    assert!(tree.remove_leaf(0).is_empty(), "not a leaf");
    let c = tree.find(&"3-c".parse().unwrap()).unwrap();
    assert_eq!(tree.remove_leaf(c), [2, 3]);
    assert_eq!(leaves(&tree), ["2-z"]);
    assert_eq!(path(&tree, "2-z"), "2-z 1-a");
    assert_eq!(tree.remove_leaf(1), [1, 4]);
    assert!(tree.is_empty());
}

#[test]
fn stemming_and_compacting_tell_what_they_dropped() {
    let mut tree = tree(&["1-a", "2-b 1-a", "3-c 2-b 1-a", "4-d 3-c 2-b 1-a"]);
    assert_eq!(tree.stem(3), [1]);
    assert_eq!(path(&tree, "4-d"), "4-d 3-c 2-b");
    assert_eq!(tree.forget_inner_bodies(), [2, 3]);
    assert_eq!(tree.nodes()[2].body, Some(4));
    assert!(tree.stem(0).is_empty());
    assert_eq!(path(&tree, "4-d"), "4-d");
}

#[test]
fn a_thousand_edits_stay_cheap() {
    let mut whole: Vec<Rev> = (1..=20_000).map(|n| Rev::new(n, "x").unwrap()).collect();
    whole.reverse();
    let mut tree = RevTree::new();
    for start in (0..20_000).step_by(1_000).rev() {
        let merged = tree.merge(&whole[start..], false, Some(1), 0);
        assert!(!matches!(merged, Merged::Known(_)));
    }
    let mut reversed = RevTree::new();
    reversed.merge(&whole[..10], false, Some(1), 0);
    assert_eq!(reversed.merge(&whole, false, Some(1), 0), Merged::Grafted(19_999));
    assert_eq!(reversed.path(19_999), whole);
    assert_eq!(tree.path(19_999), whole);
}

/// Histories from one true past: each revision has one parent, or is a root; each history may end early.
fn histories() -> impl Strategy<Value = Vec<(Vec<Rev>, bool)>> {
    let revisions = vec((any::<Index>(), 0..5_u8), 1..40);
    let told = vec((any::<Index>(), 1..12_usize), 1..25);
    (revisions, told).prop_map(|(revisions, told)| {
        let mut past: Vec<(Vec<Rev>, bool)> = Vec::new();
        for (i, (parent, dice)) in revisions.into_iter().enumerate() {
            let mut path = match (past.is_empty(), dice) {
                (true, _) | (_, 0) => Vec::new(),
                _ => past[parent.index(past.len())].0.clone(),
            };
            let generation = path.first().map_or(1 + u64::from(dice), |rev| rev.generation + 1);
            path.insert(0, Rev::new(generation, &format!("r{i}")).unwrap());
            past.push((path, dice == 1));
        }
        let told = told.into_iter().map(|(which, kept)| {
            let (path, deleted) = which.get(&past);
            (path[..kept.min(path.len())].to_vec(), *deleted)
        });
        told.collect()
    })
}

fn grow(histories: &[(Vec<Rev>, bool)]) -> RevTree {
    let mut tree = RevTree::new();
    for (history, deleted) in histories {
        tree.merge(history, *deleted, Some(1), 0);
        check(&tree);
    }
    tree
}

/// What always holds.
fn check(tree: &RevTree) {
    let nodes = tree.nodes();
    assert!(nodes.windows(2).all(|pair| pair[0].rev < pair[1].rev));
    for (i, node) in nodes.iter().enumerate() {
        if let Some(parent) = node.parent {
            assert!((parent as usize) < i && nodes[parent as usize].rev.generation < node.rev.generation);
        }
    }
    assert_eq!(tree.winner(), tree.leaves().first().copied());
    assert!(tree.leaves().iter().all(|&i| tree.is_leaf(i)));
    assert_eq!(tree.leaves().len(), (0..nodes.len()).filter(|&i| tree.is_leaf(i)).count());
}

proptest! {
    #[test]
    fn order_of_arrival_does_not_matter(
        (histories, shuffled) in histories().prop_flat_map(|all| {
            let shuffled = proptest::strategy::Just(all.clone()).prop_shuffle();
            (proptest::strategy::Just(all), shuffled)
        }),
    ) {
        let (a, b) = (grow(&histories), grow(&shuffled));
        prop_assert_eq!(leaves(&a), leaves(&b));
        let paths = |tree: &RevTree| tree.leaves().iter().map(|&i| tree.path(i)).collect::<Vec<_>>();
        prop_assert_eq!(paths(&a), paths(&b));
        // A third pod that syncs from the first gets the same.
        let synced: Vec<_> = a.leaves().iter().map(|&i| (a.path(i), a.nodes()[i].deleted)).collect();
        prop_assert_eq!(paths(&grow(&synced)), paths(&a));
    }

    #[test]
    fn what_merge_says_is_what_it_did(histories in histories()) {
        let mut tree = RevTree::new();
        for (history, deleted) in &histories {
            let before = tree.clone();
            let merged = tree.merge(history, *deleted, Some(1), 0);
            let was = |i: usize| before.find(&tree.nodes()[i].rev);
            match merged {
                Merged::Known(i) => { prop_assert_eq!(&tree, &before); prop_assert_eq!(was(i), Some(i)); }
                Merged::Grafted(i) => { prop_assert!(was(i).is_some()); prop_assert!(tree != before); }
                Merged::Filled(_) => prop_assert!(false, "all had bodies"),
                Merged::Extended { index, parent_leaf } => {
                    prop_assert!(was(index).is_none() && tree.is_leaf(index));
                    prop_assert!(before.is_leaf(was(parent_leaf).unwrap()) && tree.descends(index, parent_leaf));
                }
                Merged::Branched { index } => prop_assert!(was(index).is_none() && tree.is_leaf(index)),
            }
            let at = tree.find(&history[0]).unwrap();
            prop_assert!(tree.path(at).starts_with(history));
        }
    }

    #[test]
    fn stemming_keeps_leaves_and_limits_paths(histories in histories(), limit in 1..6_usize) {
        let mut tree = grow(&histories);
        let (before, nodes) = (leaves(&tree), tree.clone());
        let dropped = tree.stem(limit);
        check(&tree);
        prop_assert_eq!(leaves(&tree), before);
        for (leaf, old) in tree.leaves().iter().zip(nodes.leaves()) {
            let (path, old) = (tree.path(*leaf), nodes.path(old));
            prop_assert!(path.len() >= limit.min(old.len()) && old.starts_with(&path));
        }
        let bodies = |tree: &RevTree| tree.nodes().iter().filter(|node| node.body.is_some()).count();
        prop_assert_eq!(bodies(&tree) + dropped.len(), bodies(&nodes));
    }

    #[test]
    fn removing_a_leaf_keeps_the_others_paths(histories in histories(), which in any::<Index>()) {
        let mut tree = grow(&histories);
        let all: Vec<_> = tree.leaves().iter().map(|&i| tree.path(i)).collect();
        let gone = which.index(all.len());
        tree.remove_leaf(tree.leaves()[gone]);
        check(&tree);
        let left: BTreeSet<_> = tree.leaves().iter().map(|&i| tree.path(i)).collect();
        let expected: BTreeSet<_> = all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, path)| path.clone()).collect();
        prop_assert_eq!(left, expected);
        while !tree.is_empty() {
            tree.remove_leaf(tree.leaves()[0]);
        }
    }

    #[test]
    fn stored_form_comes_back(histories in histories()) {
        let tree = grow(&histories);
        let stored = postcard::to_allocvec(&tree).unwrap();
        prop_assert_eq!(postcard::from_bytes::<RevTree>(&stored).unwrap(), tree);
    }

    #[test]
    fn contradicting_and_damaged_trees_never_panic(
        told in vec((vec((1..6_u64, 0..4_u8), 1..8), any::<bool>()), 1..20),
        parents in vec(any::<Option<u8>>(), 1..20),
    ) {
        let mut tree = RevTree::new();
        for (history, deleted) in told {
            let history: Vec<Rev> = history.iter().map(|(n, hash)| Rev::new(*n, &hash.to_string()).unwrap()).collect();
            tree.merge(&history, deleted, Some(1), 0);
            check(&tree);
        }
        let mut damaged = RevTree { nodes: Vec::new() };
        for (i, parent) in parents.into_iter().enumerate() {
            let rev = Rev::new(1 + i as u64, "x").unwrap();
            damaged.nodes.push(Node { rev, parent: parent.map(u32::from), deleted: true, body: None, acl: 0 });
        }
        let last = damaged.nodes.len() - 1;
        damaged.path(last);
        damaged.leaves_below(0);
        damaged.winner();
        damaged.merge(&history("5-z 4-x 3-y"), false, Some(1), 0);
        damaged.stem(2);
        damaged.remove_leaf(damaged.leaves()[0]);
    }
}
