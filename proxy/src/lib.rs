//! The public port of a pod, and the only one that anybody but the pod itself can reach.
//!
//! What flows through it: a client's connection is accepted within bounds ([`server`], [`connection`]), with or without TLS
//! ([`tls`], and [`plain`] for who comes without it where there is); each of its
//! requests passes the [`stack`] - CORS, path rules, log-in, limits - and goes on to rean, with a signed header that
//! says who asks ([`upstream`]). Bodies stream both ways ([`body`]).
//!
//! What always holds:
//! - Identity headers from outside never reach rean, and no request reaches it without one of ours.
//! - No body is held as a whole, and everything that a client can make grow has a bound.
//! - A refused log-in does not tell which part was wrong, neither by its words nor by its time.
//! - A feed ends when the session or the account that opened it does.
//! - No secret is printed.
//!
//! What it is not: it knows nothing of documents and decides nothing about them; that is rean's.

mod access_log;
mod auth;
mod body;
pub mod cli;
mod clock;
mod config;
mod connection;
mod cors;
mod error;
mod feeds;
mod gzip;
mod head;
mod health;
mod host_port;
mod join;
mod metrics;
mod open_feed;
mod outflow;
mod patient;
mod plain;
mod raw_target;
mod rules;
mod server;
mod session;
mod settings;
mod socket;
mod stack;
mod tally;
mod tls;
mod tunnel;
mod upstream;
mod visitor;
mod web;

use std::future::Future;
use std::pin::Pin;

pub use config::{AccessLogTarget, Admin, Config, ConfigError, Cors, Limits, SECRET_VARIABLE};
pub use host_port::{HostPort, HostPortError};
pub use rules::{Access, Rules};
pub use server::{RunError, Server};
pub use tls::TlsError;

/// Runs the proxy until `shutdown`, and then until its requests are answered or the drain time is over.
///
/// # Errors
/// When the port can't be had or the access log can't be opened.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
    let server = Server::bind(&config)?;
    serve_here(server, Box::pin(shutdown)).await;
    Ok(())
}

/// The compiler makes a future's code in each crate that polls it: behind a box it is made once, in this one, and a program
/// that runs the proxy holds it once.
#[inline(never)]
fn serve_here<'a>(
    server: Server,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(server.serve(shutdown))
}
