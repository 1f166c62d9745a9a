//! How podctl ends: exit codes that scripts may rely on, and the errors that carry them.

use std::error::Error;
use std::fmt;
use std::io;

use anyhow::anyhow;
use http::{Method, StatusCode};

/// What the codes mean, for `podctl help exit-codes` and the manual.
pub const MEANINGS: &str = "\
0  done, and all is well
1  it failed; also what `ring status`, `divergences`, `revocations` and `check` say when they find something
2  wrong use: an option or a value that podctl doesn't take
3  no pod answers
4  not allowed: no log-in, a wrong or an ended one, or one without the right
5  the question was answered, and the state is not well: `status` and `doctor` have found troubles";

/// How podctl ends when it doesn't end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Whatever has no code of its own.
    Failed = 1,
    /// As clap ends, too.
    WrongUse = 2,
    /// No pod answers.
    NoPod = 3,
    /// No log-in, or one without the right.
    NotAllowed = 4,
    /// Troubles were found and told.
    NotWell = 5,
}

/// An error whose code is known where it is made.
#[derive(Debug)]
struct Coded {
    code: Code,
    text: String,
}

/// A pod's answer that is no success.
#[derive(Debug)]
pub struct Refused {
    /// What was asked.
    pub method: Method,
    /// With its parameters.
    pub path: String,
    /// What it said.
    pub status: StatusCode,
    /// The beginning of its reason.
    pub excerpt: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Coded {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, status, excerpt } = self;
        write!(f, "{method} {path}: {status}: {excerpt}")
    }
}

impl Error for Refused {}

/// Wrong use that only shows when it is tried.
pub fn wrong_use(text: impl Into<String>) -> anyhow::Error {
    coded(Code::WrongUse, text)
}

/// No pod answers.
pub fn no_pod(text: impl Into<String>) -> anyhow::Error {
    coded(Code::NoPod, text)
}

/// No log-in, or one without the right.
pub fn not_allowed(text: impl Into<String>) -> anyhow::Error {
    coded(Code::NotAllowed, text)
}

/// Troubles were found; the text names them.
pub fn not_well(text: impl Into<String>) -> anyhow::Error {
    coded(Code::NotWell, text)
}

fn coded(code: Code, text: impl Into<String>) -> anyhow::Error {
    anyhow!(Coded { code, text: text.into() })
}

impl Code {
    /// The code of an error: what it says itself, else what its causes come to.
    pub fn of(err: &anyhow::Error) -> Self {
        err.chain().find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(coded) = cause.downcast_ref::<Coded>() {
            return Some(coded.code);
        }
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            let is_right = matches!(refused.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            return is_right.then_some(Self::NotAllowed);
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return is_of_the_net(io.kind()).then_some(Self::NoPod);
        }
        if cause.is::<tokio::time::error::Elapsed>() {
            return Some(Self::NoPod);
        }
        cause.downcast_ref::<hyper::Error>().filter(|err| err.is_closed() || err.is_incomplete_message())?;
        Some(Self::NoPod)
    }
}

/// Errors that files have as well don't count.
fn is_of_the_net(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, TimedOut,
    };
    matches!(
        kind,
        AddrNotAvailable
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::{Code, Refused, no_pod, not_well, wrong_use};
    use anyhow::{Context, anyhow};
    use http::{Method, StatusCode};
    use std::io;

    #[test]
    fn the_first_cause_that_has_a_code_gives_it() {
        let refused = |status| {
            let refused = Refused { method: Method::GET, path: "/".into(), status, excerpt: String::new() };
            Code::of(&anyhow!(refused).context("the pods"))
        };
        assert_eq!(refused(StatusCode::UNAUTHORIZED), Code::NotAllowed);
        assert_eq!(refused(StatusCode::FORBIDDEN), Code::NotAllowed);
        assert_eq!(refused(StatusCode::NOT_FOUND), Code::Failed);
        assert_eq!(Code::of(&no_pod("none").context("outer")), Code::NoPod);
        assert_eq!(Code::of(&not_well("a, b")), Code::NotWell);
        assert_eq!(Code::of(&wrong_use("x")), Code::WrongUse);
        let net = Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused)).context("connecting");
        assert_eq!(Code::of(&net.expect_err("an error")), Code::NoPod);
        let file = Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("reading a file");
        assert_eq!(Code::of(&file.expect_err("an error")), Code::Failed);
    }
}
