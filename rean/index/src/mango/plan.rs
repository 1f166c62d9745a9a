//! Which index serves a query, by CouchDB's rules
//! (<https://docs.couchdb.org/en/stable/api/database/find.html#index-selection>).

use rean_store::selector::{FieldPath, Selector};
use serde_json::Value;

use super::conditions::{self, Condition};
use super::definition::IndexDef;
use super::error::MangoError;
use super::range::{FieldRange, KeyRange};
use super::sort::Sort;

/// What the planner has to know of a query.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Its selector.
    pub selector: &'a Selector,
    /// The wanted order; no fields: any.
    pub sort: &'a Sort,
    /// The fields that are wanted of each document; none: all.
    pub fields: &'a [FieldPath],
    /// The index that was asked for.
    pub use_index: Option<&'a UseIndex>,
    /// Whether another index may serve in its place, or all documents be looked at.
    pub allow_fallback: bool,
}

/// The index that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseIndex {
    /// The id of its design document.
    pub ddoc: String,
    /// Its name there; none: any of the design document.
    pub name: Option<String>,
}

/// What serves.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// All documents, or those with one of a range of ids.
    AllDocs(IdBounds),
    /// An index, by its place in the list.
    Index(usize, KeyRange),
}

/// Ends of a range of ids. Both belong to it; the selector is asked anyway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdBounds {
    /// The lowest id.
    pub low: Option<String>,
    /// The highest.
    pub high: Option<String>,
    /// These alone, in order: the selector names them.
    pub ids: Option<Vec<String>>,
}

/// What a query will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What serves.
    pub choice: Choice,
    /// Nothing can match.
    pub nothing: bool,
    /// All that is asked of a document stands in the index.
    pub covering: bool,
    /// What did not serve, and why.
    pub candidates: Vec<Candidate>,
    /// What may be said of the index that was asked for and not taken.
    pub warning: Option<String>,
}

/// An index that was looked at and not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the list; none: all documents.
    pub index: Option<usize>,
    /// Whether it could have served.
    pub usable: bool,
    /// Why it doesn't serve.
    pub reason: &'static str,
    /// How near it came, from 0.
    pub ranking: usize,
    /// Whether all that is asked for stands in it; none where that has no meaning.
    pub covering: Option<bool>,
}

/// Which of the selector's fields an index can help with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hints {
    /// Those.
    pub indexable: Vec<String>,
    /// The others.
    pub unindexable: Vec<String>,
}

impl UseIndex {
    /// Reads a name, or a list of a design document's and an index's. Empty and `null` are none.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(value: &Value) -> Result<Option<UseIndex>, MangoError> {
        let bad = || MangoError::IndexName(super::error::shown(value));
        let (ddoc, name) = match value {
            Value::Null => return Ok(None),
            Value::String(text) => match text.split('/').collect::<Vec<_>>().as_slice() {
                [ddoc] | ["_design", ddoc] => (*ddoc, None),
                [ddoc, name] | ["_design", ddoc, name] => (*ddoc, Some(*name)),
                _ => return Err(bad()),
            },
            Value::Array(items) => match items.as_slice() {
                [] => return Ok(None),
                [Value::String(ddoc)] => (ddoc.as_str(), None),
                [Value::String(ddoc), Value::String(name)] => (ddoc.as_str(), Some(name.as_str())),
                _ => return Err(bad()),
            },
            _ => return Err(bad()),
        };
        Ok(Some(UseIndex { ddoc: super::definition::design_id(ddoc), name: name.map(str::to_owned) }))
    }

    fn names(&self, index: &IndexDef) -> bool {
        index.ddoc == self.ddoc && self.name.as_ref().is_none_or(|name| *name == index.name)
    }

    /// `_design/x`, or `_design/x, name`.
    fn text(&self) -> String {
        match &self.name {
            None => self.ddoc.clone(),
            Some(name) => format!("{}, {name}", self.ddoc),
        }
    }

    fn warning(&self) -> String {
        let why = match self.name {
            None => "it does not contain a valid index for this query",
            Some(_) => "it is not a valid index for this query",
        };
        format!("{} was not used because {why}.", self.text())
    }
}

impl Hints {
    /// What an index can do for a selector.
    pub fn of(selector: &Selector) -> Hints {
        let normal = selector.to_json();
        let indexable = conditions::indexable_fields(&conditions::conjuncts(&normal));
        let all = conditions::fields(&normal);
        let unindexable = all.into_iter().filter(|field| !indexable.contains(field)).map(str::to_owned).collect();
        Hints { indexable: indexable.into_iter().map(str::to_owned).collect(), unindexable }
    }
}

impl Plan {
    /// Chooses among the indexes of a database.
    ///
    /// # Errors
    /// No index has the order of the sort, or falling back was forbidden.
    pub fn of(query: Query<'_>, indexes: &[IndexDef]) -> Result<Plan, MangoError> {
        let normal = query.selector.to_json();
        let planner = Planner::new(query, &normal, indexes);
        planner.plan()
    }

    /// Why none of a database's indexes serves a query for which [`Plan::of`] found none.
    pub fn why_none(query: Query<'_>, indexes: &[IndexDef]) -> Vec<Candidate> {
        let normal = query.selector.to_json();
        let planner = Planner::new(query, &normal, indexes);
        let loser = |index, reason, covering| Candidate { index, usable: false, reason, ranking: 1, covering };
        let of_index = |(at, index): (usize, &IndexDef)| {
            let partial = index.partial.is_some().then_some("is_partial");
            let reason = planner.unusable(index).or(partial).unwrap_or("excluded_by_user");
            loser(Some(at), reason, Some(planner.is_covered(index)))
        };
        let mut losers: Vec<Candidate> = indexes.iter().enumerate().rev().map(of_index).collect();
        losers.push(loser(None, planner.all_docs_unusable().unwrap_or("excluded_by_user"), None));
        losers
    }
}

/// A query that is being planned.
struct Planner<'a> {
    query: Query<'a>,
    normal: &'a Value,
    conditions: Vec<Condition<'a>>,
    /// The indexable fields and what may be there; none: nothing can match.
    ranges: Vec<(&'a str, Option<FieldRange>)>,
    sort: Vec<String>,
    indexes: &'a [IndexDef],
}

/// An index that may serve.
struct Rated<'a> {
    at: usize,
    index: &'a IndexDef,
    prefix: Vec<&'a FieldRange>,
    /// How many of the selector's indexable fields it leaves unused.
    distance: usize,
}

impl<'a> Planner<'a> {
    fn new(query: Query<'a>, normal: &'a Value, indexes: &'a [IndexDef]) -> Planner<'a> {
        let conditions = conditions::conjuncts(normal);
        let fields = conditions::indexable_fields(&conditions);
        let ranges = fields.into_iter().map(|field| (field, FieldRange::of(&conditions, field))).collect();
        let sort = query.sort.fields.iter().map(|field| field.path.text()).collect();
        Planner { query, normal, conditions, ranges, sort, indexes }
    }

    fn plan(&self) -> Result<Plan, MangoError> {
        let named = |index: &IndexDef| self.query.use_index.is_some_and(|wanted| wanted.names(index));
        let in_play = |at: &usize| self.indexes[*at].partial.is_none() || named(&self.indexes[*at]);
        let why_not: Vec<Option<&'static str>> = self.indexes.iter().map(|index| self.unusable(index)).collect();
        let usable: Vec<usize> = (0..self.indexes.len()).filter(in_play).filter(|at| why_not[*at].is_none()).collect();
        let all_docs = self.all_docs_unusable();
        if usable.is_empty() && all_docs.is_some() {
            return Err(MangoError::NoSortIndex);
        }
        let chosen: Vec<usize> = usable.iter().copied().filter(|at| named(&self.indexes[*at])).collect();
        self.check_fallback(&usable, &chosen)?;
        let eligible = if chosen.is_empty() { &usable } else { &chosen };
        let rated = self.rate(eligible);
        let winner = rated.first();
        let facts = Facts { why_not: &why_not, all_docs, usable: &usable, chosen: &chosen, rated: &rated };
        let choice = match winner {
            None => Choice::AllDocs(self.id_bounds()),
            Some(best) => Choice::Index(best.at, KeyRange::of(&best.prefix)),
        };
        let taken = winner.map(|best| best.index);
        Ok(Plan {
            nothing: self.ranges.iter().any(|(_, range)| range.is_none()) || conditions::matches_nothing(self.normal),
            covering: taken.is_some_and(|index| self.is_covered(index)),
            candidates: self.candidates(&facts),
            warning: self
                .query
                .use_index
                .filter(|wanted| !taken.is_some_and(|index| wanted.names(index)))
                .map(UseIndex::warning),
            choice,
        })
    }

    fn check_fallback(&self, usable: &[usize], chosen: &[usize]) -> Result<(), MangoError> {
        match self.query.use_index {
            _ if self.query.allow_fallback => Ok(()),
            Some(wanted) if chosen.is_empty() => Err(MangoError::Unsuitable(wanted.text())),
            None if usable.is_empty() => Err(MangoError::NoIndex),
            _ => Ok(()),
        }
    }

    /// Why an index can't serve.
    fn unusable(&self, index: &IndexDef) -> Option<&'static str> {
        let columns = index.columns();
        let is_there = |column: &&String| {
            // What is sorted by must be there; and every document has an id and a revision.
            self.sort.contains(column)
                || ["_id", "_rev"].contains(&column.as_str())
                || conditions::requires(self.normal, column)
        };
        if !columns.iter().all(|column| is_there(&column)) {
            return Some("field_mismatch");
        }
        (!self.has_order(columns)).then_some("sort_order_mismatch")
    }

    /// Whether rows in the order of these fields are in the wanted order too: fields before the sort's own must not
    /// differ among the answers.
    fn has_order(&self, columns: &[String]) -> bool {
        if self.sort.is_empty() {
            return true;
        }
        let constant = |column: &String| conditions::is_constant(&self.conditions, column);
        let first = columns.iter().position(|column| *column == self.sort[0]);
        first.is_some_and(|first| columns[..first].iter().all(constant) && columns[first..].starts_with(&self.sort))
    }

    fn all_docs_unusable(&self) -> Option<&'static str> {
        if self.sort.is_empty() {
            return None;
        }
        if !self.ranges.iter().any(|(field, _)| *field == "_id") {
            return Some("field_mismatch");
        }
        (self.sort != ["_id"]).then_some("sort_order_mismatch")
    }

    /// The usable indexes, best first: the one that uses most of the selector, then the one with the fewest fields, then
    /// by name.
    fn rate(&self, usable: &[usize]) -> Vec<Rated<'_>> {
        let mut rated: Vec<Rated<'_>> = usable
            .iter()
            .map(|at| {
                let index = &self.indexes[*at];
                let prefix = self.prefix(index);
                Rated { at: *at, index, distance: self.ranges.len() - prefix.len(), prefix }
            })
            .collect();
        rated.sort_by(|a, b| {
            let by_use = a.distance.cmp(&b.distance).then(a.index.columns().len().cmp(&b.index.columns().len()));
            by_use.then_with(|| (&a.index.ddoc, &a.index.name).cmp(&(&b.index.ddoc, &b.index.name)))
        });
        rated
    }

    /// The ranges of an index's first fields, as far as each has one.
    fn prefix(&self, index: &IndexDef) -> Vec<&FieldRange> {
        let range = |column: &String| {
            let (_, range) = self.ranges.iter().find(|(field, _)| field == column)?;
            // Ids compare by their bytes, but an index has the order of collation: there only one value is one range.
            range.as_ref().filter(|range| column != "_id" || range.is_one_value())
        };
        index.columns().iter().map_while(range).collect()
    }

    /// Whether an index has all that is asked for: the wanted fields, and those of the selector.
    fn is_covered(&self, index: &IndexDef) -> bool {
        let has = |field: &str| field == "_id" || index.columns().iter().any(|column| column == field);
        !self.query.fields.is_empty()
            && self.query.fields.iter().all(|field| has(&field.text()))
            && conditions::fields(self.normal).into_iter().all(has)
    }

    fn id_bounds(&self) -> IdBounds {
        let mut bounds = IdBounds::default();
        for (_, operator, argument) in self.conditions.iter().filter(|(field, ..)| *field == "_id") {
            match (*operator, argument) {
                ("$eq", Value::String(id)) => {
                    raise(&mut bounds.low, id);
                    lower(&mut bounds.high, id);
                }
                ("$gt" | "$gte", Value::String(id)) => raise(&mut bounds.low, id),
                ("$lt" | "$lte", Value::String(id)) => lower(&mut bounds.high, id),
                // Also in the order of bytes, what begins with a text lies behind it.
                ("$beginsWith", Value::String(start)) => raise(&mut bounds.low, start),
                ("$in", Value::Array(list)) => {
                    let mut ids: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                    ids.sort_unstable();
                    ids.dedup();
                    bounds.ids = Some(ids);
                }
                _ => {}
            }
        }
        bounds
    }

    fn candidates(&self, facts: &Facts<'_>) -> Vec<Candidate> {
        let winner = facts.rated.first();
        let ranks = facts.ranks();
        let mut out = Vec::new();
        // CouchDB's order: the indexes backwards, all documents last.
        for (at, index) in self.indexes.iter().enumerate().rev() {
            if winner.is_some_and(|winner| winner.at == at) {
                continue;
            }
            let place = facts.rated.iter().position(|rated| rated.at == at);
            let (usable, reason, ranking) = match (place, facts.why_not[at]) {
                (Some(place), _) => (true, facts.beaten(place), place),
                (None, _) if facts.usable.contains(&at) => (true, "excluded_by_user", ranks.excluded),
                (None, _) if index.partial.is_some() && !self.is_named(index) => (false, "is_partial", ranks.partial),
                (None, reason) => (false, reason.unwrap_or("field_mismatch"), ranks.unusable),
            };
            out.push(Candidate { index: Some(at), usable, reason, ranking, covering: Some(self.is_covered(index)) });
        }
        if winner.is_some() {
            let (usable, reason, ranking) = match facts.all_docs {
                Some(reason) => (false, reason, ranks.unusable),
                None if !facts.chosen.is_empty() => (true, "excluded_by_user", ranks.excluded),
                None => (true, "unfavored_type", ranks.unfavored),
            };
            out.push(Candidate { index: None, usable, reason, ranking, covering: None });
        }
        out
    }

    fn is_named(&self, index: &IndexDef) -> bool {
        self.query.use_index.is_some_and(|wanted| wanted.names(index))
    }
}

/// What was found out about all indexes.
struct Facts<'a> {
    why_not: &'a [Option<&'static str>],
    all_docs: Option<&'static str>,
    usable: &'a [usize],
    chosen: &'a [usize],
    rated: &'a [Rated<'a>],
}

/// The places of those that don't serve, behind those that might.
struct Ranks {
    unfavored: usize,
    excluded: usize,
    unusable: usize,
    partial: usize,
}

impl Facts<'_> {
    fn ranks(&self) -> Ranks {
        let unfavored = self.rated.len().max(1);
        let is_unfavored = !self.rated.is_empty() && self.all_docs.is_none() && self.chosen.is_empty();
        let excluded = unfavored + usize::from(is_unfavored);
        let unusable = excluded + usize::from(!self.chosen.is_empty() && self.usable.len() > self.chosen.len());
        let partial = unusable + usize::from(self.why_not.iter().any(Option::is_some));
        Ranks { unfavored, excluded, unusable, partial }
    }

    /// Why the best was preferred to the one at this place.
    fn beaten(&self, place: usize) -> &'static str {
        let (best, other) = (&self.rated[0], &self.rated[place]);
        if other.distance > 0 {
            "less_overlap"
        } else if other.index.columns().len() > best.index.columns().len() {
            "too_many_fields"
        } else {
            "alphabetically_comes_after"
        }
    }
}

fn raise(low: &mut Option<String>, id: &str) {
    if low.as_deref().is_none_or(|low| low < id) {
        *low = Some(id.to_owned());
    }
}

fn lower(high: &mut Option<String>, id: &str) {
    if high.as_deref().is_none_or(|high| high > id) {
        *high = Some(id.to_owned());
    }
}
