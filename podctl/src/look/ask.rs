//! Questions to whoever sits at the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::bail;

use crate::exit;

/// Asks for a word before something is done that can't be undone.
///
/// # Errors
/// When another word is given, or there is nobody to ask.
pub fn confirm(question: &str, word: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(exit::wrong_use(format!("{question}: nobody to ask here; give --yes")));
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question}.\nType {word} to go on: ")?;
    stderr.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() != word {
        bail!("nothing was done");
    }
    Ok(())
}

/// Prints to the standard output. Whoever reads it may have had enough, which is no error.
///
/// # Errors
/// When it can't be written for another reason.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(err.into()),
        _ => Ok(()),
    }
}
