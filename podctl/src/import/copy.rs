//! One database: makes it at the target, carries all its documents over, sets what is to be set and compares.
//!
//! Design documents come last, so that a validation function refuses nothing that was written before there was one, and
//! so that nothing is indexed again and again while documents pour in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use rean::replicate::carry::Carrier;
use rean::replicate::fault::Fault;
use rean::replicate::feed::{Page, read_page};
use rean::replicate::peer::Peer;
use rean::replicate::spec::Spec;
use serde_json::{Value, json};

use super::choice::{ACCOUNTS, Choice, REPLICATIONS, Way};
use super::patience::Patience;
use super::place::{self, Place};
use super::server::{Server, Welcome, ask};
use super::tally::Tally;
use super::teller::Teller;
use super::{accounts, replications, settings, verify};

/// Time between two marks of how far it is.
const MARK_PAUSE: Duration = Duration::from_secs(5);
/// What the ids of design documents begin with.
pub const DESIGN: &str = "_design/";

/// What is to be done beyond copying.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From or to a pod.
    pub way: Way,
    /// Databases are made as apps.
    pub as_apps: bool,
    /// Databases that are there at the target are written to.
    pub go_on: bool,
    /// What both sides have is compared at the end.
    pub verify: bool,
    /// Replications run at the target from the start.
    pub start_replications: bool,
}

/// Both ends, and who is told.
pub struct Ends<'a> {
    /// Where from.
    pub source: &'a Server,
    /// What the source says of itself.
    pub source_is: &'a Welcome,
    /// Where to.
    pub target: &'a Server,
    /// What is to be done.
    pub options: Options,
    /// Tells the operator.
    pub teller: &'a Teller,
}

/// What became of one database.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Documents of the source that were looked at.
    pub documents: u64,
    /// Documents that the target took.
    pub written: u64,
    /// Documents that it refused.
    pub refused: u64,
    /// Differences that are left; none if the sides were not compared.
    pub differences: Option<u64>,
    /// Bytes that were carried over.
    pub bytes: u64,
}

/// Counts of a database, as `GET /db` tells them.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Live documents.
    pub live: u64,
    /// Deleted ones, if the server counts them.
    pub deleted: Option<u64>,
    /// The database's own name for its life, where it tells one.
    pub instance: String,
    /// Whether the ids of its documents name partitions.
    pub partitioned: bool,
}

/// Copies one database.
///
/// # Errors
/// What stopped it. It can be gone on with.
pub async fn copy(ends: &Ends<'_>, choice: &Choice) -> anyhow::Result<Outcome> {
    match choice.from.as_str() {
        ACCOUNTS => return accounts::copy(ends).await,
        REPLICATIONS => return replications::copy(ends).await,
        _ => {}
    }
    let source = Arc::new(ends.source.database(&choice.from));
    let target = Arc::new(ends.target.database(&choice.to));
    let counts = count(&source).await?.with_context(|| format!("there is no {}", source.shown()))?;
    let place_name = place::name(ends.source.shown(), &ends.source_is.uuid, &choice.from, &counts.instance);
    let opened = open(ends, &target, choice, counts.partitioned).await?;
    if opened != Opened::Made && !ends.options.go_on {
        bail!(
            "{} is there already: to go on with a copy that was broken off, or to add to what is there, give --continue",
            target.shown()
        );
    }
    let place = match Place::read(&target, &place_name).await? {
        Some(place) => place,
        None => begin(ends, (&source, &target), choice, opened, &place_name).await?,
    };
    let tally = Arc::new(Tally::default());
    tally.expect(counts.live + counts.deleted.unwrap_or(0));
    let ends_of_spec = json!({"source": ends.source.end(&choice.from), "target": ends.target.end(&choice.to)});
    let max_doc_bytes = rean::Limits::default().max_body_bytes;
    let mut copying = Copying {
        carrier: Carrier::new(Arc::clone(&tally), Arc::clone(&source), Arc::clone(&target), max_doc_bytes),
        source,
        target,
        tally: Arc::clone(&tally),
        place,
        place_name,
        marked: Instant::now(),
        spec: spec(&ends_of_spec, None)?,
    };
    ends.teller.during("copying", &choice.to, &tally, copying.documents()).await?;
    let designs = spec(&ends_of_spec, ends.source_is.filters_designs.then_some("_design"))?;
    copying.designs(&designs).await?;
    if copying.place.made && !copying.place.settings {
        settings::after(ends, &copying.source, &copying.target, choice).await?;
        copying.place.settings = true;
    }
    copying.mark().await?;
    let differences = match ends.options.verify {
        true => Some(verify::verify(ends, &copying, choice).await?),
        false => None,
    };
    let (stats, refusals) = (tally.stats(), tally.refusals());
    ends.teller.refusals(&choice.to, &refusals);
    Ok(Outcome {
        documents: tally.done(),
        written: stats.written,
        refused: refusals.count(),
        differences,
        bytes: stats.bytes,
    })
}

fn spec(ends: &Value, filter: Option<&str>) -> anyhow::Result<Spec> {
    let mut object = ends.as_object().cloned().unwrap_or_default();
    if let Some(filter) = filter {
        object.insert("filter".to_owned(), filter.into());
    }
    Spec::parse(&object).map_err(|why| anyhow::anyhow!("that can't be copied: {why}"))
}

/// The counts of a database; none if there is no such database.
///
/// # Errors
/// When it can't be asked.
pub async fn count(peer: &Peer) -> anyhow::Result<Option<Counts>> {
    let answer = ask(peer, &Method::GET, "", None).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        _ => return Err(peer.fault("opening the database", &answer).into()),
    }
    let info: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let number = |name: &str| info.get(name).and_then(Value::as_u64);
    let instance = info.get("instance_start_time").map(Value::to_string).unwrap_or_default();
    let partitioned = info.pointer("/props/partitioned") == Some(&Value::Bool(true));
    Ok(Some(Counts { live: number("doc_count").unwrap_or(0), deleted: number("doc_del_count"), instance, partitioned }))
}

/// How a target was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opened {
    /// It was made.
    Made,
    /// It was there, with nothing in it: perhaps a copy was broken off as soon as it had made it.
    Empty,
    /// It was there.
    There,
}

/// Marks the beginning of a copy. A database that others use keeps its settings.
async fn begin(
    ends: &Ends<'_>,
    (source, target): (&Peer, &Peer),
    choice: &Choice,
    opened: Opened,
    place_name: &str,
) -> anyhow::Result<Place> {
    let made = opened == Opened::Made || (opened == Opened::Empty && ends.options.go_on);
    if made {
        settings::before(ends, source, target, choice).await?;
    } else {
        ends.teller.note(&choice.to, "was there already: its `_security` and `_revs_limit` stay as they are");
    }
    let mut place = Place::start(source.shown(), made);
    place.write(target, place_name).await?;
    Ok(place)
}

/// With which query a database of this kind is made.
pub fn query_to_make(is_app: bool, is_partitioned: bool) -> &'static str {
    match (is_app, is_partitioned) {
        (true, _) => "?access=true",
        (false, true) => "?partitioned=true",
        (false, false) => "",
    }
}

/// Makes the target, unless it is there: with partitions where the source has them.
async fn open(ends: &Ends<'_>, target: &Peer, choice: &Choice, partitioned: bool) -> anyhow::Result<Opened> {
    if let Some(counts) = count(target).await? {
        return Ok(if counts.live == 0 && counts.deleted == Some(0) { Opened::Empty } else { Opened::There });
    }
    let is_app = ends.options.as_apps && ends.options.way == Way::In;
    let kind = query_to_make(is_app, partitioned);
    let answer = ask(target, &Method::PUT, kind, None).await?;
    if answer.status == StatusCode::PRECONDITION_FAILED {
        return Ok(Opened::There);
    }
    if !answer.status.is_success() {
        return Err(target.fault(&format!("making the database {}", choice.to), &answer).into());
    }
    Ok(Opened::Made)
}

/// A copy under way.
pub struct Copying {
    /// Carries documents from one side to the other.
    pub carrier: Carrier,
    /// Where from.
    pub source: Arc<Peer>,
    /// Where to.
    pub target: Arc<Peer>,
    /// What is done.
    pub tally: Arc<Tally>,
    /// How far it is.
    pub place: Place,
    place_name: String,
    marked: Instant,
    /// All changes.
    pub spec: Spec,
}

impl Copying {
    /// Carries over all documents but design documents.
    async fn documents(&mut self) -> anyhow::Result<()> {
        let mut patience = Patience::default();
        let mut round = Round { since: self.place.since.clone(), skip_designs: true };
        loop {
            match round.run(&self.source, &self.spec, &self.carrier, &self.tally).await {
                Ok(is_last) => {
                    patience.restore();
                    self.place.since = round.since.clone();
                    if is_last {
                        return Ok(());
                    }
                }
                Err(fault) => patience.bear(fault).await?,
            }
            if self.marked.elapsed() >= MARK_PAUSE {
                self.mark().await?;
            }
        }
    }

    /// Carries over design documents; those that `spec` gives besides are left out.
    async fn designs(&mut self, spec: &Spec) -> anyhow::Result<()> {
        let mut patience = Patience::default();
        let mut round = Round { since: 0.into(), skip_designs: false };
        loop {
            match round.run(&self.source, spec, &self.carrier, &self.tally).await {
                Ok(true) => return Ok(()),
                Ok(false) => patience.restore(),
                Err(fault) => patience.bear(fault).await?,
            }
        }
    }

    async fn mark(&mut self) -> anyhow::Result<()> {
        self.marked = Instant::now();
        self.place.write(&self.target, &self.place_name).await
    }
}

/// Goes through changes, some at a time.
struct Round {
    since: Value,
    /// Design documents are left out; else all others are.
    skip_designs: bool,
}

impl Round {
    /// Carries over the next changes; says whether they were the last.
    async fn run(&mut self, source: &Peer, spec: &Spec, carrier: &Carrier, tally: &Tally) -> Result<bool, Fault> {
        let page = read_page(source, spec, &self.since, false).await?;
        let (is_last, pending) = (page.is_last, page.pending);
        let documents = page.rows.len() as u64;
        let last_seq = goes_on(source, &self.since, &page)?;
        let mut rows = page.rows;
        rows.retain(|row| row.id.starts_with(DESIGN) != self.skip_designs);
        if !rows.is_empty() {
            carrier.carry(rows).await?;
        }
        if self.skip_designs {
            tally.advance(documents, pending);
        }
        self.since = last_seq;
        Ok(is_last)
    }
}

/// The place behind a page. A source that gives changes and no new place would be read for ever.
pub fn goes_on(source: &Peer, since: &Value, page: &Page) -> Result<Value, Fault> {
    if !page.is_last && page.last_seq == *since {
        let reason = format!("{}: its changes don't go on", source.shown());
        return Err(Fault::fatal(StatusCode::BAD_GATEWAY, "bad_source", reason));
    }
    Ok(page.last_seq.clone())
}
