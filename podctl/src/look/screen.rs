//! A terminal that is drawn anew again and again, and given back as it was.

use std::io::{self, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Keys that wait to be looked at; more nobody types between two looks.
const MOST_KEYS: usize = 64;
/// What a terminal has that tells no size.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// The terminal while it shows another page than the shell's. It is given back when this goes, however that comes.
pub struct Screen {
    before: Termios,
    keys: mpsc::Receiver<u8>,
}

impl Screen {
    /// Takes the terminal; none where there isn't one to show something on and to hear keys from.
    ///
    /// # Errors
    /// When the terminal can't be set.
    pub fn take() -> anyhow::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Keys come at once and unseen; Ctrl-C still ends the program, by its signal.
        raw.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        let (sender, keys) = mpsc::channel(MOST_KEYS);
        let screen = Self { before, keys };
        // It waits in a read; the program doesn't wait for it at its end.
        std::thread::spawn(move || {
            let mut key = [0u8];
            while let Ok(1) = io::stdin().read(&mut key) {
                if sender.blocking_send(key[0]).is_err() {
                    return;
                }
            }
        });
        let mut out = io::stdout().lock();
        // The other page of the terminal, without a cursor.
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J")?;
        out.flush()?;
        Ok(Some(screen))
    }

    /// The next key; none when there will be no more.
    pub async fn key(&mut self) -> Option<u8> {
        self.keys.recv().await
    }

    /// Draws the page from its top. Lines that don't fit are left out; a line must not be wider than the terminal.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub fn draw(&self, lines: &[String]) -> io::Result<()> {
        let (_, height) = Self::size();
        let mut page = String::from("\x1b[H");
        for (at, line) in lines.iter().take(height).enumerate() {
            if at > 0 {
                page.push_str("\r\n");
            }
            page.push_str(line);
            page.push_str("\x1b[K");
        }
        page.push_str("\x1b[J");
        let mut out = io::stdout().lock();
        out.write_all(page.as_bytes())?;
        out.flush()
    }

    /// Columns and lines.
    pub fn size() -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => USUAL_SIZE,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        // Nothing is left to be done where the terminal is gone.
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| out.flush());
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
