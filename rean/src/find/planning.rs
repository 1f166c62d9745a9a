//! Which of a database's indexes serves a query.

use rean_index::Group;
use rean_index::mango::{self, Candidate, Choice, IndexDef, MangoError, Plan, Query, UseIndex};
use rean_store::selector::FieldPath;

use super::args::FindArgs;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::target::Target;
use crate::views::index_error;

/// A query with its plan.
pub struct Planned {
    /// The indexes of the database that are of the query's kind, in the order of their design documents: those of
    /// partitions for a query of one, else the others.
    pub indexes: Vec<IndexDef>,
    /// What will be done.
    pub plan: Plan,
}

impl Planned {
    /// Plans a query. With a bookmark the index that it comes from goes on, also if there is a better one by now.
    ///
    /// # Errors
    /// 400 when nothing can serve, or when the bookmark's index can't any more.
    pub fn of(pod: &Pod, target: &Target, args: &FindArgs) -> Result<Self, ApiError> {
        let indexes = of_kind(pod, target, args)?;
        let fields = wanted_fields(args);
        let query = query_of(args, &fields);
        let Some(bookmark) = &args.bookmark else {
            let plan = Plan::of(query, &indexes).map_err(|error| named(error, target, args))?;
            return Ok(Self { indexes, plan });
        };
        let plan = match &bookmark.row {
            None => Plan::of(Query { use_index: None, allow_fallback: true, ..query }, &[])?,
            Some(row) => {
                let of_bookmark = UseIndex { ddoc: row.ddoc.clone(), name: Some(row.name.clone()) };
                let plan = Plan::of(Query { use_index: Some(&of_bookmark), ..query }, &indexes)?;
                let goes_on = match plan.choice {
                    Choice::Index(at, _) => plan.warning.is_none() && indexes[at].columns().len() == row.key.len(),
                    Choice::AllDocs(_) => false,
                };
                if !goes_on {
                    return Err(MangoError::Bookmark(format!("\"{}\"", mango::clip(&args.bookmark_text))).into());
                }
                plan
            }
        };
        Ok(Self { indexes, plan })
    }

    /// Why nothing serves a query for which [`Planned::of`] found nothing, with the indexes that were looked at.
    ///
    /// # Errors
    /// The store failed.
    pub fn why_none(pod: &Pod, target: &Target, args: &FindArgs) -> Result<(Vec<IndexDef>, Vec<Candidate>), ApiError> {
        let indexes = of_kind(pod, target, args)?;
        let fields = wanted_fields(args);
        let losers = Plan::why_none(query_of(args, &fields), &indexes);
        Ok((indexes, losers))
    }

    /// The index that serves; none: all documents.
    pub fn index(&self) -> Option<&IndexDef> {
        match self.plan.choice {
            Choice::Index(at, _) => Some(&self.indexes[at]),
            Choice::AllDocs(_) => None,
        }
    }
}

/// The indexes that can serve a query of one partition, or those that can serve others.
fn of_kind(pod: &Pod, target: &Target, args: &FindArgs) -> Result<Vec<IndexDef>, ApiError> {
    let mut indexes = indexes_of(pod, target)?;
    indexes.retain(|index| index.partitioned == args.partition.is_some());
    Ok(indexes)
}

/// The error, with the kind of index that is missing where there are two.
fn named(error: MangoError, target: &Target, args: &FindArgs) -> MangoError {
    match error {
        MangoError::NoSortIndex if target.db.is_partitioned() => {
            MangoError::NoSortIndexOf(if args.partition.is_some() { "partitioned" } else { "global" })
        }
        other => other,
    }
}

fn wanted_fields(args: &FindArgs) -> Vec<FieldPath> {
    args.fields.iter().map(|field| field.path.clone()).collect()
}

fn query_of<'a>(args: &'a FindArgs, fields: &'a [FieldPath]) -> Query<'a> {
    Query {
        selector: &args.selector,
        sort: &args.sort,
        fields,
        use_index: args.use_index.as_ref(),
        allow_fallback: args.allow_fallback,
    }
}

/// All Mango indexes of a database. Those of an app serve its partial and personal databases too.
///
/// # Errors
/// The store failed.
pub fn indexes_of(pod: &Pod, target: &Target) -> Result<Vec<IndexDef>, ApiError> {
    let designs = pod.designs.of(&target.db)?;
    Ok(designs
        .all()
        .iter()
        .flat_map(|design| IndexDef::of_design(&design.id, &design.value, target.db.is_partitioned()))
        .collect())
}

/// The index that holds the rows of `wanted`, and its place there; `None`: its design document has changed since.
///
/// # Errors
/// The indexes' engine failed.
pub fn group_of(pod: &Pod, target: &Target, wanted: &IndexDef) -> Result<Option<(Group, usize)>, ApiError> {
    let designs = pod.designs.of(&target.db)?;
    let Some(design) = designs.get(&wanted.ddoc) else { return Ok(None) };
    let indexes = IndexDef::of_design(&design.id, &design.value, target.db.is_partitioned());
    let is_it = |index: &IndexDef| {
        index.name == wanted.name && index.columns() == wanted.columns() && index.partitioned == wanted.partitioned
    };
    let Some(at) = indexes.iter().position(is_it) else { return Ok(None) };
    let Some(spec) = mango::group_of(indexes) else { return Ok(None) };
    let group = pod.indexes.group(&target.db, spec).map_err(|error| index_error(error, &target.db))?;
    Ok(Some((group, at)))
}
