//! The answer of `_changes`, made while it is sent.
//!
//! A feed reads the store page by page until there is nothing more, then (if it waits at all) takes its changes from
//! the hub, and goes back to the store when it has missed some. It makes the next piece only when the last one has been
//! sent: a slow listener costs a place in the store's sequence, not memory. Before each piece it asks whether its
//! reader's rights have changed since it began; if so, it ends.

mod guard;
pub mod seen;
mod sift;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use rean_store::json::push_string;
use rean_store::{Change, Feed, FeedRow, Offer, Scope, Since, StoreError};
use tokio::time::Instant;

use crate::aside::aside;
use crate::changes::{Filter, Form, Options};
use crate::error::ApiError;
pub use crate::feed_body::guard::Guard;
use crate::feed_body::sift::{Batch, Shown};
use crate::hub::News;
use crate::page_body::{ChunkError, Out};
use crate::render;
use crate::target::Target;

/// Rows that are read from the store at once.
const PAGE_ROWS: usize = 200;
/// Live changes that a function sees at once.
const LIVE_AT_ONCE: usize = 100;
/// The longest serialized row that all listeners share, in bytes. The hub keeps 1,024 changes of a database, so the rows
/// that hang on them take at most 16 MiB twice.
const MAX_SHARED_BYTES: usize = 16 * 1024;

/// Where a feed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Read,
    Wait,
    Tail,
    Done,
}

/// One feed.
pub struct Run {
    target: Target,
    options: Options,
    guard: Guard,
    source: Source,
    phase: Phase,
    out: Out,
    /// What is left of the page that was read last.
    rows: std::vec::IntoIter<FeedRow>,
    /// Rows of the page that the filter has seen, and what is to be shown of them.
    sifted: VecDeque<(FeedRow, Shown)>,
    /// How many rows were given.
    sent: u64,
    /// The sequence of the last row that was given or left out by the filter.
    last_seq: Option<String>,
    last_output: Instant,
}

enum Source {
    Forward(Box<Feed>),
    /// Newest first; the sequence of the last row that was given.
    Back(Option<rean_store::Seq>),
}

/// What became of the rows that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// They were given.
    All,
    /// There is enough to send, or as many as were wanted.
    Some,
    /// The reader's rights have changed meanwhile.
    Lost,
}

/// Why a feed was cut off.
#[derive(Debug, thiserror::Error)]
pub enum CutOff {
    /// The store failed, or the database went while it was read.
    #[error("the feed was cut off: {0}")]
    Store(#[from] StoreError),
    /// An attachment could not be given.
    #[error("the feed was cut off: {0}")]
    Attachment(#[from] ChunkError),
    /// A document could not be given.
    #[error("the feed was cut off: {0}")]
    Document(String),
    /// The filter is a function, and failed.
    #[error("the feed was cut off: its filter failed: {}", .0.cause())]
    Filter(Box<ApiError>),
    /// The reader's rights changed while a feed was read that can't end early.
    #[error("the feed was cut off: its reader's rights have changed")]
    Rights,
}

/// A body that is the feed.
pub fn body(run: Box<Run>) -> Body {
    Body::from_stream(stream::unfold(Some(run), |run| async {
        let mut run = run?;
        match run.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(run))),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(%error, "a feed ended early");
                Some((Err(error), None))
            }
        }
    }))
}

impl Run {
    /// A feed from a place on.
    ///
    /// # Errors
    /// 400 when the place isn't one of this reader's feed.
    pub fn new(target: Target, since: Since, options: Options, guard: Guard) -> Result<Box<Self>, ApiError> {
        let feed = target.db.feed(&target.scope, since)?;
        let source = if options.descending { Source::Back(None) } else { Source::Forward(Box::new(feed)) };
        Ok(Box::new(Self {
            target,
            options,
            guard,
            source,
            phase: Phase::Head,
            out: Out::default(),
            rows: Vec::new().into_iter(),
            sifted: VecDeque::new(),
            sent: 0,
            last_seq: None,
            last_output: Instant::now(),
        }))
    }

    /// The next piece; `None` after the last one.
    ///
    /// # Errors
    /// When the feed is cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CutOff> {
        loop {
            let full = self.out.is_full() || matches!(self.phase, Phase::Wait | Phase::Done);
            if full && let Some(piece) = self.out.next_chunk(&self.target.db).await? {
                self.last_output = Instant::now();
                return Ok(Some(piece));
            }
            match self.phase {
                Phase::Head => {
                    self.head();
                    self.phase = Phase::Read;
                }
                Phase::Read => self.read().await?,
                Phase::Wait => self.wait().await?,
                Phase::Tail => {
                    self.tail();
                    self.phase = Phase::Done;
                }
                Phase::Done => return Ok(None),
            }
            if self.phase == Phase::Read {
                // A page that passes no filter makes no output: others must get the processor all the same.
                tokio::task::yield_now().await;
            }
        }
    }

    fn is_object(&self) -> bool {
        matches!(self.options.form, Form::Normal | Form::Longpoll)
    }

    fn head(&mut self) {
        if self.is_object() {
            self.out.text.extend_from_slice(b"{\"results\":[\n");
        }
    }

    /// Lets a filter that is a function see the first documents, so that its error becomes the answer.
    ///
    /// # Errors
    /// What the function threw, or the store.
    pub async fn try_filter(&mut self) -> Result<(), ApiError> {
        if !matches!(self.options.filter, Filter::Function(_)) || !self.guard.holds() {
            return Ok(());
        }
        self.rows = self.page()?.into_iter();
        match self.sift().await {
            Ok(()) => Ok(()),
            Err(CutOff::Filter(error)) => Err(*error),
            Err(CutOff::Store(error)) => Err(error.into()),
            Err(other) => Err(ApiError::internal("the feed could not be read").with_cause(other)),
        }
    }

    /// Rows from the store, until there is enough to send.
    async fn read(&mut self) -> Result<(), CutOff> {
        if !self.guard.holds() {
            return self.lost();
        }
        match self.give().await? {
            Given::All => self.next_page(),
            Given::Lost => self.lost(),
            Given::Some => {
                if self.sent >= self.options.limit {
                    self.phase = Phase::Tail;
                }
                Ok(())
            }
        }
    }

    /// Gives the rows that are there, until there is enough to send.
    async fn give(&mut self) -> Result<Given, CutOff> {
        while self.sent < self.options.limit && !self.out.is_full() {
            match self.sifted.pop_front() {
                Some((row, shown)) => self.row(row, &shown)?,
                None if self.rows.len() == 0 => return Ok(Given::All),
                None => {
                    self.sift().await?;
                    // A function takes its time.
                    if !self.guard.holds() {
                        return Ok(Given::Lost);
                    }
                }
            }
        }
        Ok(Given::Some)
    }

    /// Shows some of the rows to the filter.
    async fn sift(&mut self) -> Result<(), CutOff> {
        if let Filter::Function(function) = &self.options.filter {
            let batch = Batch::gather(&self.target, self.options.all_leaves, function, &mut self.rows)?;
            // In a box, so that a feed without such a filter has no room for it.
            let answered = Box::pin(batch.ask(function)).await?;
            self.sifted.extend(answered);
        } else if let Some(row) = self.rows.next() {
            let shown = sift::shown(&self.target, &self.options, &row)?;
            self.sifted.push_back((row, shown));
        }
        Ok(())
    }

    fn next_page(&mut self) -> Result<(), CutOff> {
        self.rows = self.page()?.into_iter();
        let more = matches!(&self.source, Source::Forward(feed) if !feed.caught_up());
        if self.rows.len() == 0 && !more {
            let done = !self.options.waits() || (self.options.form == Form::Longpoll && self.sent > 0);
            self.phase = if done { Phase::Tail } else { Phase::Wait };
            self.caught_up();
            self.rows = Vec::new().into_iter();
            return Ok(());
        }
        if let Some(heartbeat) = self.options.heartbeat
            && self.last_output.elapsed() >= heartbeat
            && self.out.text.is_empty()
        {
            self.beat();
            self.last_output = Instant::now();
        }
        Ok(())
    }

    /// Tells a client with many feeds that this one has come to where it waits, and its place.
    fn caught_up(&mut self) {
        if self.options.form != Form::Shared || self.phase != Phase::Wait {
            return;
        }
        if let Source::Forward(feed) = &self.source {
            let token = feed.token();
            self.out.text.extend_from_slice(b"{\"caught_up\":");
            push_string(&mut self.out.text, &token);
            self.out.text.extend_from_slice(b"}\n");
        }
    }

    fn page(&mut self) -> Result<Vec<FeedRow>, StoreError> {
        let most = match self.options.filter {
            Filter::All => usize::try_from(self.options.limit - self.sent).unwrap_or(PAGE_ROWS),
            _ => PAGE_ROWS,
        };
        let most = most.min(PAGE_ROWS);
        match &mut self.source {
            // A reader's page may wait for the writer, or open very many partial databases.
            Source::Forward(feed) if !matches!(self.target.scope, Scope::All) => aside(|| feed.next_page(most)),
            Source::Forward(feed) => feed.next_page(most),
            Source::Back(before) => {
                let scope = &self.target.scope;
                let rows = aside(|| self.target.db.changes_back(scope, *before, most))?;
                if let Some((seq, _)) = rows.last() {
                    *before = Some(*seq);
                }
                Ok(rows.into_iter().map(|(_, row)| row).collect())
            }
        }
    }

    /// The reader's rights, or the database, are not what they were.
    fn lost(&mut self) -> Result<(), CutOff> {
        if !self.options.waits() {
            return Err(CutOff::Rights);
        }
        self.phase = Phase::Tail;
        Ok(())
    }

    /// Waits for changes, the next heartbeat, or the end of patience.
    async fn wait(&mut self) -> Result<(), CutOff> {
        if !self.guard.holds() {
            return self.lost();
        }
        let until = match self.options.heartbeat {
            Some(heartbeat) => self.last_output + heartbeat,
            None => self.last_output + self.options.timeout,
        };
        let account = self.guard.account.as_mut();
        let account_changed = async {
            match account {
                Some(account) => account.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = account_changed => return self.lost(),
            () = self.guard.welcome.over() => return self.lost(),
            () = self.guard.news.changed() => {}
            () = tokio::time::sleep_until(until) => {
                if self.options.heartbeat.is_some() {
                    self.beat();
                } else {
                    self.phase = Phase::Tail;
                }
                return Ok(());
            }
        }
        self.take().await
    }

    /// Takes what the hub has.
    async fn take(&mut self) -> Result<(), CutOff> {
        let mut changes = Vec::new();
        match self.guard.news.take(&mut changes) {
            News::Ended => return self.lost(),
            News::Missed => self.phase = Phase::Read,
            News::Changes => {
                if self.give_live(&changes).await? == Given::Lost {
                    return self.lost();
                }
            }
        }
        let enough = self.options.form == Form::Longpoll && self.sent > 0;
        if self.sent >= self.options.limit || (enough && self.phase == Phase::Wait) {
            self.phase = Phase::Tail;
        }
        Ok(())
    }

    async fn give_live(&mut self, changes: &[Arc<Change>]) -> Result<Given, CutOff> {
        let at_once = if matches!(self.options.filter, Filter::Function(_)) { LIVE_AT_ONCE } else { 1 };
        for some in changes.chunks(at_once) {
            let gap = self.offer(some);
            let given = self.give().await?;
            if gap || given == Given::Some {
                // Many large documents at once are read from the store, page by page, as the listener takes them.
                self.phase = Phase::Read;
            }
            if gap || given != Given::All {
                return Ok(given);
            }
        }
        Ok(Given::All)
    }

    /// Makes live changes this feed's rows; says whether there is a gap before the rest of them.
    fn offer(&mut self, changes: &[Arc<Change>]) -> bool {
        let Source::Forward(feed) = &mut self.source else {
            return true;
        };
        let mut rows = Vec::new();
        let gap = changes.iter().any(|change| match feed.offer(change) {
            Offer::Row(row) => {
                rows.push(row);
                false
            }
            Offer::Skipped => false,
            Offer::Gap => true,
        });
        self.rows = rows.into_iter();
        gap
    }

    fn beat(&mut self) {
        let beat: &[u8] = match self.options.form {
            Form::EventSource => b"event: heartbeat\ndata: \n\n",
            _ => b"\n",
        };
        self.out.text.extend_from_slice(beat);
    }

    fn row(&mut self, row: FeedRow, shown: &Shown) -> Result<(), CutOff> {
        if *shown == Shown::Nothing {
            self.last_seq = Some(row.seq_token);
            return Ok(());
        }
        let text = &mut self.out.text;
        match self.options.form {
            Form::EventSource => text.extend_from_slice(b"data: "),
            Form::Normal | Form::Longpoll if self.sent > 0 => text.extend_from_slice(b",\n"),
            _ => {}
        }
        text.extend_from_slice(b"{\"seq\":");
        // Clients go on from the sequence of the last row, so that one always has it.
        let may_be_last = self.sent + 1 == self.options.limit || (self.rows.len() == 0 && self.sifted.is_empty());
        if may_be_last || (self.sent + 1).is_multiple_of(self.options.seq_interval) {
            push_string(text, &row.seq_token);
        } else {
            text.extend_from_slice(b"null");
        }
        text.push(b',');
        self.push_tail(&row, shown)?;
        let text = &mut self.out.text;
        match self.options.form {
            Form::EventSource => {
                text.extend_from_slice(b"\nid: ");
                text.extend_from_slice(row.seq_token.as_bytes());
                text.extend_from_slice(b"\n\n");
            }
            Form::Continuous | Form::Shared => text.push(b'\n'),
            _ => {}
        }
        self.sent += 1;
        self.last_seq = Some(row.seq_token);
        Ok(())
    }

    /// What comes after the sequence. Listeners who see the same take it from the change, where the first one put it.
    fn push_tail(&mut self, row: &FeedRow, shown: &Shown) -> Result<(), CutOff> {
        let slot = row
            .change
            .as_ref()
            .filter(|_| row.shared && row.revs.len() == 1 && self.options.document.is_plain())
            .map(|change| if self.options.include_docs { &change.line_with_doc } else { &change.line });
        if let Some(line) = slot.and_then(|slot| slot.get()) {
            self.out.text.extend_from_slice(line);
            return Ok(());
        }
        let before = self.out.text.len();
        sift::push_id_and_revs(&mut self.out.text, row, self.options.all_leaves, shown);
        if self.options.include_docs {
            self.out.text.extend_from_slice(b",\"doc\":");
            self.push_doc(row)?;
        }
        self.out.text.push(b'}');
        if let Some(slot) = slot
            && let Some(line) = self.out.text.get(before..)
            && line.len() <= MAX_SHARED_BYTES
        {
            // Another listener may have been first; it wrote the same.
            let _ = slot.set(Bytes::copy_from_slice(line));
        }
        Ok(())
    }

    fn push_doc(&mut self, row: &FeedRow) -> Result<(), CutOff> {
        let db = &self.target.db;
        if !self.options.document.is_plain() && !row.tomb {
            let doc = db.doc(&self.target.scope, &row.id)?;
            let leaf = doc.as_ref().and_then(|doc| {
                let leaf = doc.leaves.iter().find(|leaf| leaf.rev == row.revs[0])?;
                Some((doc, leaf))
            });
            if let Some((doc, leaf)) = leaf {
                return render::push_document(&mut self.out, db, doc, leaf, &self.options.document)
                    .map(|_| ())
                    .map_err(|error| CutOff::Document(error.reason.into_owned()));
            }
            // It has changed since: the row's own revision is given, and a later row follows.
        }
        push_plain_doc(&mut self.out.text, &self.target, row)?;
        Ok(())
    }

    fn tail(&mut self) {
        let left = (self.rows.len() + self.sifted.len()) as u64;
        let stopped_by_limit = self.sent >= self.options.limit;
        let (token, pending) = match &self.source {
            Source::Forward(feed) if stopped_by_limit => (feed.token(), feed.pending() + left),
            Source::Forward(feed) => (feed.token(), left),
            Source::Back(_) => (String::new(), 0),
        };
        // The feed may have read further than it gave.
        let behind = stopped_by_limit || left > 0 || self.options.descending;
        let last_seq = match self.last_seq.take() {
            Some(last) if behind => last,
            _ => token,
        };
        let text = &mut self.out.text;
        match self.options.form {
            Form::Normal | Form::Longpoll => text.extend_from_slice(b"\n],\n\"last_seq\":"),
            Form::Continuous | Form::Shared => text.extend_from_slice(b"{\"last_seq\":"),
            // An event stream just ends, and its client comes back with the last event's id.
            Form::EventSource => return,
        }
        push_string(text, &last_seq);
        // Writing to a vector can't fail.
        let _ = writeln!(text, ",\"pending\":{pending}}}");
    }
}

fn push_plain_doc(out: &mut Vec<u8>, target: &Target, row: &FeedRow) -> Result<(), StoreError> {
    let body = match &row.body {
        Some(at) => target.db.body(*at)?,
        None => None,
    };
    let Some(rev) = row.revs.first() else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    if body.is_none() && !row.deleted {
        // Compacted away since: a later row of this document follows.
        out.extend_from_slice(b"null");
        return Ok(());
    }
    render::push_plain(out, &row.id, rev, row.deleted, body.as_ref());
    Ok(())
}
