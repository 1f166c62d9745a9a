//! A neighbour's feed, read page by page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;

use crate::replicate::carry::Leaves;
use crate::ring::feed::lines::Lines;
use crate::ring::feed::text::{First, Line, Mark, Row};

/// Rows of a page, beyond those of one mark: what is compared and fetched at once.
const PAGE_ROWS: usize = 1_000;
/// Text of a page, in bytes: a page is cut between two marks rather than grow beyond it.
const PAGE_BYTES: usize = 8 << 20;
/// A feed says something at least twice a second. A pod that is busy, or has just come back from a pause, gets this long.
const SILENCE: Duration = Duration::from_secs(10);

/// The rows of one database.
#[derive(Debug, Default)]
pub struct DbRows {
    /// Which database of that name it is, if the neighbour has told.
    pub instance: Option<Arc<str>>,
    /// The leaves of the documents that have changed.
    pub leaves: Leaves,
}

/// Some rows of a feed, and the mark behind them.
#[derive(Debug, Default)]
pub struct Page {
    /// Them, by database.
    pub rows: BTreeMap<String, DbRows>,
    /// How many lines these were.
    pub count: usize,
    /// How far the feed is behind them; nothing in the middle of what belongs to one mark.
    pub mark: Option<Mark>,
    bytes: usize,
}

/// Why there is no next page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The feed ended or broke off.
    #[error("the feed ended: {0}")]
    Ended(String),
    /// It is no feed.
    #[error("the feed has another form")]
    Form,
    /// Nothing came.
    #[error("the feed was silent for {} s", SILENCE.as_secs())]
    Silent,
}

/// A feed, read page by page.
pub struct Pages {
    lines: Lines,
    /// What has been read of the next page.
    page: Page,
    instances: HashMap<String, Arc<str>>,
}

impl Pages {
    /// The pages of a body.
    pub fn new(body: Body) -> Self {
        Self { lines: Lines::new(body), page: Page::default(), instances: HashMap::new() }
    }

    /// The first line.
    ///
    /// # Errors
    /// When it doesn't come.
    pub async fn first(&mut self) -> Result<First, PageError> {
        match Line::parse(&self.line().await?) {
            Ok(Line::First(first)) => Ok(first),
            _ => Err(PageError::Form),
        }
    }

    /// The next page: up to the next mark, and on as long as there is more that has arrived already, so that pages grow
    /// where they are not taken as fast as they come. A call that is given up loses nothing.
    ///
    /// # Errors
    /// When the feed ends.
    pub async fn next(&mut self) -> Result<Page, PageError> {
        loop {
            let line = match self.page.mark {
                None => self.line().await?,
                Some(_) if self.page.count >= PAGE_ROWS => return Ok(std::mem::take(&mut self.page)),
                Some(_) => match self.line().now_or_never() {
                    Some(line) => line?,
                    None => return Ok(std::mem::take(&mut self.page)),
                },
            };
            match Line::parse(&line).map_err(|_| PageError::Form)? {
                Line::First(_) => return Err(PageError::Form),
                Line::Instance(db, instance) => {
                    // What came of an earlier one of that name is nothing any more.
                    self.page.rows.remove(&db);
                    self.instances.insert(db, instance.into());
                }
                Line::Row(row) => {
                    let instance = self.instances.get(&row.db);
                    self.page.add(row, instance, line.len());
                    if self.page.bytes >= PAGE_BYTES {
                        return Ok(std::mem::take(&mut self.page));
                    }
                }
                Line::Mark(mark) => self.page.mark(mark),
            }
        }
    }

    async fn line(&mut self) -> Result<Bytes, PageError> {
        match tokio::time::timeout(SILENCE, self.lines.next()).await {
            Err(_) => Err(PageError::Silent),
            Ok(Err(error)) => Err(PageError::Ended(error.to_string())),
            Ok(Ok(None)) => Err(PageError::Ended("the other pod ended it".to_owned())),
            Ok(Ok(Some(line))) => Ok(line),
        }
    }
}

impl Page {
    fn add(&mut self, row: Row, instance: Option<&Arc<str>>, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        let rows = self.rows.entry(row.db).or_default();
        rows.instance = instance.cloned();
        rows.leaves.entry(row.id).or_default().extend(row.revs);
    }

    fn mark(&mut self, mark: Mark) {
        match &mut self.mark {
            None => self.mark = Some(mark),
            Some(known) => {
                known.seq = mark.seq;
                known.newest = mark.newest;
                known.applied.extend(mark.applied);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PageError, Pages};
    use axum::body::Body;
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};

    /// A feed that says this, in pieces, and then goes on without a word.
    fn pages(pieces: &[&'static str]) -> Pages {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        Pages::new(Body::from_stream(stream::iter(pieces).chain(stream::pending())))
    }

    const FIRST: &str = "{\"origin\":\"b@0a1b2c3d\",\"newest\":9,\"since\":3}\n";

    #[tokio::test(start_paused = true)]
    async fn marks_that_have_arrived_are_one_page() {
        let mut pages = pages(&[
            FIRST,
            "{\"seq\":4,\"db\":\"a\",\"id\":\"x\",\"changes\":[{\"rev\":\"1-a\"}]}\n{\"mark\":4,\"newest\":9}\n",
            "{\"seq\":5,\"db\":\"a\",\"id\":\"x\",\"changes\":[{\"rev\":\"2-b\"}]}\n",
            "{\"mark\":5,\"applied\":{\"a@00000001\":7}}\n{\"seq\":6,\"db\":\"b\",\"id\":\"y\",\"cha",
        ]);
        assert_eq!(pages.first().await.expect("a first line").since, 3);
        let page = pages.next().await.expect("a page");
        assert_eq!((page.count, page.rows["a"].leaves["x"].len()), (2, 2));
        let mark = page.mark.expect("a mark");
        assert_eq!((mark.seq, mark.newest, mark.applied.len()), (5, None, 1));
        assert!(matches!(pages.next().await, Err(PageError::Silent)));
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_a_database_that_was_made_anew_are_those_of_the_new_one() {
        let mut pages = pages(&[
            "{\"db\":\"a\",\"instance\":\"00000001\"}\n{\"seq\":4,\"db\":\"a\",\"id\":\"x\",\"changes\":[]}\n",
            "{\"db\":\"a\",\"instance\":\"00000002\"}\n{\"seq\":5,\"db\":\"a\",\"id\":\"y\",\"changes\":[]}\n{\"mark\":5}\n",
        ]);
        let page = pages.next().await.expect("a page");
        let rows = &page.rows["a"];
        assert_eq!(rows.instance.as_deref(), Some("00000002"));
        assert_eq!(rows.leaves.keys().collect::<Vec<_>>(), ["y"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_feed_is_a_fault() {
        assert!(matches!(pages(&["{\"mark\":1}\n"]).first().await, Err(PageError::Form)));
        assert!(matches!(pages(&["hello\n"]).next().await, Err(PageError::Form)));
    }
}
