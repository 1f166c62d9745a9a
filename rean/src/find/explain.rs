//! The answer of `_explain`.

use rean_index::mango::plan::IdBounds;
use rean_index::mango::{Candidate, Choice, Hints, IndexDef, definition};
use serde_json::{Value, json};

use super::args::FindArgs;
use super::planning::Planned;
use crate::target::Target;

/// What stands for "all that follow".
const MAX: &str = "<MAX>";

/// What a query would do, in CouchDB's shape.
pub fn explanation(target: &Target, args: &FindArgs, planned: &Planned) -> Value {
    let taken = match planned.plan.choice {
        Choice::Index(at, _) => Some(at),
        Choice::AllDocs(_) => None,
    };
    let mut told = of_query(target, args, &planned.indexes, &planned.plan.candidates);
    told["partitioned"] = taken.is_some_and(|at| planned.indexes[at].partitioned).into();
    told["index"] = index(&planned.indexes, taken);
    told["mrargs"] = arguments(args, planned);
    told["covering"] = planned.plan.covering.into();
    told
}

/// What is told of a query that nothing can serve: why not.
pub fn without_index(target: &Target, args: &FindArgs, indexes: &[IndexDef], losers: &[Candidate]) -> Value {
    of_query(target, args, indexes, losers)
}

/// What doesn't depend on the index that was taken; that is `null` here.
fn of_query(target: &Target, args: &FindArgs, indexes: &[IndexDef], candidates: &[Candidate]) -> Value {
    let fields: Vec<&str> = args.fields.iter().map(|field| field.name.as_str()).collect();
    let hints = Hints::of(&args.selector);
    let candidates: Vec<Value> = candidates.iter().map(|one| candidate(indexes, one)).collect();
    json!({
        "dbname": target.name,
        "index": null,
        "partitioned": false,
        "selector": args.selector.to_json(),
        "opts": options(args, &fields),
        "limit": args.limit,
        "skip": args.skip,
        "fields": fields,
        "index_candidates": candidates,
        "selector_hints": [{
            "type": "json",
            "indexable_fields": hints.indexable,
            "unindexable_fields": hints.unindexable,
        }],
        "mrargs": {},
        "covering": false,
    })
}

fn index(indexes: &[IndexDef], at: Option<usize>) -> Value {
    at.map_or_else(definition::all_docs_json, |at| indexes[at].to_json())
}

fn options(args: &FindArgs, fields: &[&str]) -> Value {
    json!({
        "use_index": args.use_index_shown,
        "bookmark": args.bookmark_text,
        "limit": args.limit,
        "skip": args.skip,
        "sort": args.sort.to_object(),
        "fields": fields,
        "partition": args.partition.as_deref().unwrap_or_default(),
        "r": args.r,
        "conflicts": args.conflicts,
        "stale": args.stale,
        "update": args.update,
        "stable": args.stable,
        "execution_stats": args.stats,
        "allow_fallback": args.allow_fallback,
    })
}

fn arguments(args: &FindArgs, planned: &Planned) -> Value {
    let (low, high) = match &planned.plan.choice {
        _ if planned.plan.nothing => (Value::Null, Value::Null),
        Choice::Index(_, range) => (range.start_key(), range.end_key()),
        Choice::AllDocs(bounds) => ids(bounds),
    };
    let (start, end, direction) = if args.sort.descending { (high, low, "rev") } else { (low, high, "fwd") };
    json!({
        "include_docs": !planned.plan.covering,
        "view_type": "map",
        "reduce": false,
        "partition": args.partition,
        "start_key": start,
        "end_key": end,
        "direction": direction,
        "stable": args.stable || args.stale,
        "update": !args.takes_stale(),
        // CouchDB's own, where it wasn't asked for.
        "conflicts": if args.conflicts { Value::Bool(true) } else { Value::from("undefined") },
    })
}

fn ids(bounds: &IdBounds) -> (Value, Value) {
    (bounds.low.as_deref().map_or(Value::Null, Value::from), bounds.high.as_deref().unwrap_or(MAX).into())
}

fn candidate(indexes: &[IndexDef], candidate: &Candidate) -> Value {
    json!({
        "index": index(indexes, candidate.index),
        "analysis": {
            "usable": candidate.usable,
            "reasons": [{"name": candidate.reason}],
            "ranking": candidate.ranking,
            "covering": candidate.covering,
        },
    })
}
