//! The requests for views: what they ask, whether it may be asked, and with what it is answered.

use std::fmt::Write as _;
use std::sync::Arc;

use ::http::header::ETAG;
use ::http::{HeaderValue, Method, StatusCode};
use adea_ring::Identity;
use md5::{Digest, Md5};
use rean_index::{Group, IndexError, View};
use rean_store::Scope;

use crate::aside::aside;
use crate::body_in;
use crate::databases::ok;
use crate::designs::DesignDoc;
use crate::docs::{matches_etag, not_modified};
use crate::error::ApiError;
use crate::page_body::paged;
use crate::pod::Pod;
use crate::render;
use crate::route::{Request, Response};
use crate::standing::Standing;
use crate::target::{self, Target};
use crate::views::answer::{Answers, Query};
use crate::views::args::{self, Asked, Update, ViewArgs};
use crate::views::spec::{DesignViews, ViewPlace};
use crate::views::{Wanted, fresh, fresh_later, index_error, indexer};

/// Changes with what answers look like, so that no client keeps an old form.
const ETAG_FORM: &str = "1";

/// `GET` and `POST /db/_design/x/_view/y`, `POST /db/_design/x/_view/y/queries`.
///
/// # Errors
/// 404 when there is no such design document or view, 400 for what can't be asked.
pub async fn view(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let standing = Standing::new(pod, who)?;
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let design = design(pod, &target, &request)?;
    let below: Vec<String> = request.segments.iter().skip(3).cloned().collect();
    let (name, queries) = match below.as_slice() {
        [name] => (name, false),
        [name, queries] if queries == "queries" => (name, true),
        _ => return Err(ApiError::missing()),
    };
    if queries && request.method != Method::POST {
        return Err(ApiError::method_not_allowed("POST"));
    }
    let headers = request.headers.clone();
    let (asked, several) = read(pod, request, queries).await?;
    let views = pod.views.of(&target.db, &design, &pod.scripts)?;
    let place = views.view(name)?;
    let plans = plans(asked, place, views.group.partitioned)?;
    // Before the index: what the answer shows is at least as new.
    let state = State::of(pod, &target);
    let view =
        open(pod, &target, &views, place, &design, &plans).await.map_err(|error| index_error(error, &target.db))?;
    // Bringing the index up to date may have taken long.
    standing.check(&target, Target::require_read)?;
    let etag = (!several).then(|| etag(&target, &views, place, &view, &state, &plans)).flatten();
    if let Some(etag) = &etag
        && matches_etag(&headers, etag)
    {
        return Ok(not_modified(etag.clone()));
    }
    let queries = plans.into_iter().map(|plan| plan.query(&target, &view, &state)).collect();
    let db = target.db.clone();
    let mut response = render::json(StatusCode::OK, paged(&db, Answers::new(pod, standing, target, queries, several))?);
    if let Some(etag) = etag {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}

/// `POST /db/_view_cleanup`: drops the indexes that no design document needs.
///
/// # Errors
/// 401 without the right.
pub async fn cleanup(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_db_admin()?;
    body_in::read_json(pod, &request.headers, request.body).await?;
    indexer::cleanup(pod, &target.db).await?;
    Ok(ok(StatusCode::ACCEPTED))
}

/// `POST /db/_compact/x`. Indexes give back space by themselves; this has all of them do it now.
///
/// # Errors
/// 401 without the right, 404 when there is no such design document.
pub async fn compact(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_db_admin()?;
    let name = request.segments.get(2).cloned().unwrap_or_default();
    body_in::read_json(pod, &request.headers, request.body).await?;
    pod.designs.of(&target.db)?.get(&name).ok_or_else(ApiError::missing)?;
    if pod.views.begin_compaction() {
        let pod = Arc::clone(pod);
        tokio::task::spawn_blocking(move || {
            let _task = pod.tasks.begin_for("view_compaction", target.db.name(), Some(&name));
            if let Err(error) = pod.indexes.compact() {
                tracing::warn!(%error, "compacting the indexes failed");
            }
            pod.views.end_compaction();
        });
    }
    Ok(ok(StatusCode::ACCEPTED))
}

/// `_search`, `_search_info`, `_nouveau` and their like below a design document: full-text search is another program's
/// work in CouchDB too.
///
/// # Errors
/// 404, or what comes before it.
pub fn no_search(pod: &Pod, who: &Identity, request: &Request) -> Result<Response, ApiError> {
    target::resolve(pod, who, request.db_name())?.require_read()?;
    Err(ApiError::not_found("Search is not available on this server."))
}

/// `_temp_view`: views that nobody stored.
///
/// # Errors
/// 410 as CouchDB, or what comes before it.
pub fn temporary(pod: &Pod, who: &Identity, request: &Request) -> Result<Response, ApiError> {
    target::resolve(pod, who, request.db_name())?.require_read()?;
    Err(ApiError::new(StatusCode::GONE, "gone", "Temporary views are not supported in CouchDB"))
}

/// The design document that a request names.
///
/// # Errors
/// 404 `missing` or `deleted`.
pub fn design(pod: &Pod, target: &Target, request: &Request) -> Result<Arc<DesignDoc>, ApiError> {
    let id = request.segments.get(1).map_or("", String::as_str);
    if let Some(design) = pod.designs.of(&target.db)?.get(id) {
        return Ok(design);
    }
    // Who reads all documents may know of deleted ones too.
    let deleted = target.whole() && target.db.doc(&target.scope, id)?.is_some_and(|doc| doc.winner().deleted);
    Err(if deleted { ApiError::not_found("deleted") } else { ApiError::missing() })
}

/// What is asked, and whether there are several answers.
async fn read(pod: &Pod, request: Request, queries: bool) -> Result<(Vec<ViewArgs>, bool), ApiError> {
    if request.method != Method::POST {
        return Ok((vec![ViewArgs::from_query(&request.query)?], false));
    }
    let text = body_in::read_json(pod, &request.headers, request.body).await?;
    if queries {
        return Ok((ViewArgs::queries(&request.query, &text)?, true));
    }
    Ok(match ViewArgs::from_body(&request.query, &text)? {
        Asked::One(args) => (vec![*args], false),
        Asked::Several(list) => (list, true),
    })
}

/// A query that has been checked.
struct Plan {
    args: ViewArgs,
    group: Option<args::Group>,
}

impl Plan {
    fn query(self, target: &Target, view: &View, state: &State) -> Query {
        let update_seq = self.args.update_seq.then(|| {
            let seq = if target.whole() { view.seq() } else { state.seq };
            target.db.seq_token(&target.scope, seq)
        });
        let view = self.args.partition.as_ref().map_or_else(|| view.clone(), |partition| view.within(partition));
        Query { args: self.args, group: self.group, view, update_seq }
    }
}

fn plans(asked: Vec<ViewArgs>, place: &ViewPlace, is_partitioned: bool) -> Result<Vec<Plan>, ApiError> {
    let plan = |mut args: ViewArgs| {
        if place.is_raw {
            args.collate_raw();
        }
        let group = args.check(place.has_reduce)?;
        args.check_partition(is_partitioned)?;
        if group.is_some() {
            place.require_reduce()?;
        }
        Ok(Plan { args, group })
    };
    asked.into_iter().map(plan).collect()
}

/// The view's rows, as fresh as the queries want them.
async fn open(
    pod: &Arc<Pod>,
    target: &Target,
    views: &DesignViews,
    place: &ViewPlace,
    design: &DesignDoc,
    plans: &[Plan],
) -> Result<View, IndexError> {
    let once = async || {
        let group = pod.indexes.group(&target.db, Arc::clone(&views.group))?;
        refresh(pod, target, &group, design, plans).await?;
        aside(|| group.view(&target.scope, place.view))
    };
    match once().await {
        // It was dropped as one that nobody needs, a moment before its design document came or came back.
        Err(IndexError::Gone) if !target.db.is_gone() => once().await,
        other => other,
    }
}

/// Brings the index as far as the queries want it. Readers of a part of an app always get all that is there: an older
/// row could show what they may no longer read.
async fn refresh(
    pod: &Arc<Pod>,
    target: &Target,
    group: &Group,
    design: &DesignDoc,
    plans: &[Plan],
) -> Result<(), IndexError> {
    let any = |update: Update| plans.iter().any(|plan| plan.args.update == update);
    if !target.whole() || any(Update::First) {
        return fresh(pod, group, &design.id, Wanted::Now).await;
    }
    if any(Update::Later) {
        fresh_later(pod, group, &design.id);
    }
    Ok(())
}

/// What of the database a target shows, at one moment: it changes with all that could change an answer, and with
/// nothing else.
struct State {
    seq: u64,
    text: String,
}

impl State {
    fn of(pod: &Pod, target: &Target) -> Self {
        let db = &target.db;
        let info = db.scoped_info(&target.scope);
        let mut text = format!(
            "{ETAG_FORM} {} {} {} {} {} {} {}",
            pod.store.history(),
            db.instance(),
            target.name,
            target.owner,
            info.update_seq,
            info.doc_count,
            info.del_count
        );
        match &target.scope {
            Scope::All => {
                let _ = write!(text, " {}", info.purge_seq);
            }
            Scope::Part(..) => {}
            Scope::Personal(reader) => {
                for part in db.parts_of(reader) {
                    text.push(' ');
                    text.push_str(&part.signature);
                }
            }
        }
        Self { seq: info.update_seq, text }
    }
}

/// The same for the same answer. An index that is not up to date answers by its own sequence.
fn etag(
    target: &Target,
    views: &DesignViews,
    place: &ViewPlace,
    view: &View,
    state: &State,
    plans: &[Plan],
) -> Option<HeaderValue> {
    let mut sum = Md5::new();
    sum.update(format!("{} {place:?} {}\n", views.group.signature, state.text));
    for plan in plans {
        if target.whole() {
            sum.update(view.seq().to_be_bytes());
        }
        sum.update(format!("{:?}\n", plan.args));
    }
    HeaderValue::from_str(&format!("\"{}\"", hex::encode(sum.finalize()))).ok()
}
