//! One run of a replication: finds where to go on, then carries over round after round of changes, and marks how far it
//! has come (<https://docs.couchdb.org/en/stable/replication/protocol.html#replication-protocol-algorithm>).

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::carry::Carrier;
use super::checkpoint::{self, Log};
use super::fault::Fault;
use super::feed::{Page, read_page};
use super::filter;
use super::job::Job;
use super::moment::Moment;
use super::peer::{Peer, escaped};
use super::progress::Stats;
use crate::pod::Pod;

/// A source that was to wait for a change and has none is not asked again before: some servers don't wait.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// One run.
pub struct Session {
    job: Arc<Job>,
    source: Arc<Peer>,
    target: Arc<Peer>,
    id: String,
    /// Under which id its checkpoints lie.
    checkpoint_id: String,
    source_log: Log,
    target_log: Log,
    /// The runs before.
    history: Vec<Value>,
    started: Moment,
    start_seq: Value,
    seq: Value,
    marked_seq: Option<Value>,
    marked_at: Instant,
    /// Whether all that there was has been carried over.
    waits: bool,
    carrier: Carrier,
    /// Whether anything was carried over without a fault: then a later fault is a first one again.
    pub went_on: bool,
}

impl Session {
    /// A run that has not begun.
    pub fn new(pod: &Arc<Pod>, job: &Arc<Job>) -> Self {
        let end = |end| Arc::new(Peer::new(pod, &job.who, end, pod.replications.client()));
        let (source, target) = (end(&job.spec.source), end(&job.spec.target));
        let carrier =
            Carrier::new(Arc::clone(job), Arc::clone(&source), Arc::clone(&target), pod.limits.max_body_bytes);
        Self {
            job: Arc::clone(job),
            checkpoint_id: job.checkpoint_id.clone(),
            source,
            target,
            id: hex::encode(rand::random::<[u8; 16]>()),
            source_log: Log::default(),
            target_log: Log::default(),
            history: Vec::new(),
            started: Moment::now(),
            start_seq: 0.into(),
            seq: 0.into(),
            marked_seq: None,
            marked_at: Instant::now(),
            waits: false,
            carrier,
            went_on: false,
        }
    }

    /// Carries over the next changes; once a replication that goes on has caught up, waits for them. Gives the answer for
    /// who waits when there are no more.
    ///
    /// # Errors
    /// What stopped it.
    pub async fn round(&mut self) -> Result<Option<Value>, Fault> {
        let continuous = self.job.spec.continuous;
        let asked = Instant::now();
        let page = self.next_page().await?;
        let is_last = page.is_last;
        if self.waits && page.rows.is_empty() && asked.elapsed() < SHORTEST_WAIT {
            tokio::time::sleep(SHORTEST_WAIT).await;
        }
        self.carry(page).await?;
        if is_last && !continuous {
            return self.finish().await.map(Some);
        }
        self.waits = is_last;
        if self.is_new() && self.marked_at.elapsed() >= self.interval() {
            self.mark().await?;
        }
        Ok(None)
    }

    /// Reads the next changes. Where that means to wait, what was done before is marked meanwhile, so that a replication at
    /// rest has nothing left to repeat.
    async fn next_page(&mut self) -> Result<Page, Fault> {
        let (source, job, seq) = (Arc::clone(&self.source), Arc::clone(&self.job), self.seq.clone());
        let mut reading = std::pin::pin!(read_page(&source, &job.spec, &seq, self.waits));
        if self.waits && self.is_new() {
            let rest = self.interval().saturating_sub(self.marked_at.elapsed());
            tokio::select! {
                page = &mut reading => return page,
                () = tokio::time::sleep(rest) => self.mark().await?,
            }
        }
        reading.await
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.job.spec.checkpoint_interval_ms)
    }

    async fn carry(&mut self, page: Page) -> Result<(), Fault> {
        if !page.rows.is_empty() {
            self.carrier.carry(page.rows).await?;
        }
        self.seq = page.last_seq;
        {
            let mut progress = self.job.progress.lock();
            progress.through_seq = self.seq.clone();
            progress.pending = page.pending;
        }
        self.job.touch();
        self.went_on = true;
        Ok(())
    }

    /// Checks both ends and finds where to go on.
    ///
    /// # Errors
    /// When one of them isn't there or can't be asked.
    pub async fn open(&mut self) -> Result<(), Fault> {
        self.open_end(&self.source, None).await?;
        self.open_end(&self.target, self.job.spec.create_target.as_deref()).await?;
        let mut start = None;
        if self.job.spec.checkpoints {
            if let Some(code) = filter::code(&self.source, &self.job.spec.filter).await? {
                self.checkpoint_id = filter::checkpoint_id(&self.job.checkpoint_id, &code);
            }
            self.source_log = Log::read(&self.source, &self.checkpoint_id).await?;
            self.target_log = Log::read(&self.target, &self.checkpoint_id).await?;
            start = checkpoint::common_seq(&self.source_log, &self.target_log);
            if start.is_some() {
                self.history = self.source_log.history();
            }
        }
        let start = start.or_else(|| self.job.spec.since.clone()).unwrap_or_else(|| 0.into());
        (self.start_seq, self.seq) = (start.clone(), start.clone());
        let mut progress = self.job.progress.lock();
        progress.checkpointed_seq = start.clone();
        progress.through_seq = start;
        Ok(())
    }

    async fn open_end(&self, peer: &Peer, create: Option<&[(String, String)]>) -> Result<(), Fault> {
        let answer = peer.ask(Method::GET, "", None).await?;
        if answer.status == StatusCode::OK {
            return Ok(());
        }
        if answer.status != StatusCode::NOT_FOUND {
            return Err(peer.fault("opening the database", &answer));
        }
        let Some(parameters) = create else {
            let reason = format!("could not open {}", peer.shown());
            return Err(Fault::fatal(StatusCode::NOT_FOUND, "db_not_found", reason));
        };
        let mut below = String::new();
        for (name, value) in parameters {
            below.push(if below.is_empty() { '?' } else { '&' });
            below.push_str(&format!("{}={}", escaped(name), escaped(value)));
        }
        let answer = peer.ask(Method::PUT, &below, None).await?;
        // Somebody else may have made it meanwhile.
        if answer.status.is_success() || answer.status == StatusCode::PRECONDITION_FAILED {
            return Ok(());
        }
        Err(peer.fault("making the target", &answer))
    }

    fn is_new(&self) -> bool {
        self.marked_seq.as_ref().unwrap_or(&self.start_seq) != &self.seq
    }

    async fn finish(&mut self) -> Result<Value, Fault> {
        if self.carried().checked == 0 && !self.history.is_empty() {
            if self.is_new() {
                self.mark().await?;
            }
            return Ok(json!({
                "ok": true,
                "no_changes": true,
                "session_id": self.source_log.last_session().unwrap_or_else(|| self.id.clone()),
                "source_last_seq": self.seq,
                "replication_id_version": checkpoint::VERSION,
                "history": self.source_log.history(),
            }));
        }
        self.mark().await?;
        let mut answer = checkpoint::body(&self.id, &self.seq, self.entry(), &self.history);
        answer.insert("ok".to_owned(), true.into());
        Ok(Value::Object(answer))
    }

    /// What was done since the job began: a run that goes on after a fault counts what was done before it.
    fn carried(&self) -> Stats {
        self.job.progress.lock().stats
    }

    /// What a checkpoint says of this run.
    fn entry(&self) -> Value {
        let mut entry = json!({
            "session_id": self.id,
            "start_time": self.started.rfc1123(),
            "end_time": Moment::now().rfc1123(),
            "start_last_seq": self.start_seq,
            "end_last_seq": self.seq,
            "recorded_seq": self.seq,
        });
        if let (Some(entry), Value::Object(counts)) = (entry.as_object_mut(), self.carried().members()) {
            entry.extend(counts);
        }
        entry
    }

    /// Writes the checkpoint on both sides, the target's first: what it has is what counts.
    ///
    /// # Errors
    /// When a side can't be asked. A source that may only be read goes without.
    pub async fn mark(&mut self) -> Result<(), Fault> {
        self.marked_at = Instant::now();
        self.marked_seq = Some(self.seq.clone());
        if !self.job.spec.checkpoints {
            return Ok(());
        }
        let body = checkpoint::body(&self.id, &self.seq, self.entry(), &self.history);
        self.target_log.write(&self.target, &self.checkpoint_id, &body).await?;
        match self.source_log.write(&self.source, &self.checkpoint_id, &body).await {
            Err(Fault::Fatal { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, reason, .. }) => {
                tracing::debug!(reason, "a replication's source takes no checkpoint");
            }
            result => result?,
        }
        self.job.progress.lock().checkpointed_seq = self.seq.clone();
        Ok(())
    }

    /// Marks what was done, before the run is left.
    pub async fn leave(&mut self) {
        if self.went_on
            && self.is_new()
            && let Err(fault) = self.mark().await
        {
            tracing::debug!(reason = fault.reason(), "a replication's last checkpoint could not be written");
        }
    }
}
