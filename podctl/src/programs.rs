//! From the command line to the servers' own configuration.

use std::future::Future;

use anyhow::bail;

use crate::command;

pub async fn rean(_args: &command::rean::Args, _stop: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    bail!("the database server is not linked in")
}

pub async fn proxy(
    _args: &command::proxy::Args,
    _stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    bail!("the proxy is not linked in")
}
