//! Several lists as one answer, one after the other: `{"results":[...]}`, or one list alone.

use crate::error::ApiError;
use crate::page_body::Out;
use crate::target::Target;

/// A list on its way.
pub trait Listing: Sized {
    /// What is asked of it.
    type Ask;

    /// Begins it, and writes its head.
    fn begin(target: &Target, ask: Self::Ask, out: &mut Out) -> Result<Self, ApiError>;

    /// Adds rows; `false`: the list has ended.
    fn fill(&mut self, target: &Target, out: &mut Out) -> Result<bool, ApiError>;
}

/// The lists of one answer.
pub struct Several<L: Listing> {
    waiting: std::vec::IntoIter<L::Ask>,
    current: Option<L>,
    /// Whether the answer is `{"results":[...]}`.
    several: bool,
    before: &'static [u8],
}

impl<L: Listing> Several<L> {
    /// The lists that are asked for; `several`: as `{"results":[...]}`, also if there is but one.
    pub fn new(asks: Vec<L::Ask>, several: bool) -> Self {
        let before: &[u8] = if several { b"{\"results\":[\n" } else { b"" };
        Self { waiting: asks.into_iter(), current: None, several, before }
    }

    /// Adds a page; `false`: the answer has ended.
    ///
    /// # Errors
    /// Those of the lists.
    pub fn fill(&mut self, target: &Target, out: &mut Out) -> Result<bool, ApiError> {
        while !out.is_full() {
            if let Some(list) = &mut self.current {
                let more = list.fill(target, out)?;
                if !more {
                    self.current = None;
                }
                // Of several at most one at a time: a thousand may give a row each and take long.
                if more || self.several {
                    return Ok(true);
                }
                continue;
            }
            let Some(ask) = self.waiting.next() else {
                if self.several {
                    if self.before != b",\n" {
                        out.text.extend_from_slice(self.before);
                    }
                    out.text.extend_from_slice(b"\n]}");
                }
                out.text.push(b'\n');
                return Ok(false);
            };
            out.text.extend_from_slice(self.before);
            self.before = b",\n";
            self.current = Some(L::begin(target, ask, out)?);
        }
        Ok(true)
    }
}
