//! Tokens on the command line: all users of a machine can see that, so the process begins anew at once without.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use adea_ring::join::Token;
use anyhow::{Context, bail};

use crate::command::join::Args;
use crate::exit;

/// The variable that a token may be in. Only its user and root can see a process's variables.
pub const TOKEN_ENV: &str = "ADEA_JOIN_TOKEN";

/// Where to join, and what to show there.
pub struct Invitation {
    pub token: Token,
    /// `HOST:PORT` or a URL.
    pub place: String,
}

/// Runs this program again without the token in its arguments, if it is there. To be called before anything else.
pub fn hide() -> anyhow::Result<()> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_none_or(|command| command != "join") {
        return Ok(());
    }
    let mut token = None;
    for arg in args.iter_mut().skip(2) {
        // `TOKEN@PLACE`, also as the value of an option that has none: nothing that looks like a token stays.
        let Some((before, place)) = arg.to_str().and_then(|text| text.split_once('@')) else { continue };
        if before.parse::<Token>().is_ok() {
            token = Some(before.to_owned());
            *arg = place.into();
        }
    }
    let Some(token) = token else { return Ok(()) };
    let program = std::env::current_exe().context("can't find the running program")?;
    let mut again = Command::new(program);
    if let Some(name) = args.first().filter(|name| !name.as_bytes().is_empty()) {
        again.arg0(name);
    }
    let failed = again.args(&args[1..]).env(TOKEN_ENV, token).exec();
    Err(failed).context("can't hide the token: give it in the variable ADEA_JOIN_TOKEN instead")
}

/// The invitation, wherever its parts are.
pub fn invitation(args: &Args) -> anyhow::Result<Invitation> {
    let place = args.place.clone();
    if place.is_empty() || place.contains('@') {
        return Err(exit::wrong_use("join what? podctl join TOKEN@HOST:PORT, as `podctl token create` prints it"));
    }
    let text = match (&args.token_file, std::env::var(TOKEN_ENV)) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("can't read the token")?;
            line
        }
        (Some(path), _) => std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?,
        (None, Ok(text)) => text,
        (None, Err(_)) => bail!(
            "no token: podctl join TOKEN@{place}, or set {TOKEN_ENV}, or give --token-file FILE (- is standard input)"
        ),
    };
    Ok(Invitation { token: text.parse()?, place })
}
