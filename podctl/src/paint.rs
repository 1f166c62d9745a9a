//! Colours, for people at a terminal: never in a file or a pipe, nor where `NO_COLOR` is set
//! (<https://no-color.org>).

use std::env;
use std::io::{self, IsTerminal};

/// What a colour is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It is as it should be.
    Good,
    /// Somebody should look at it.
    Warn,
    /// It is wrong.
    Bad,
    /// Less important than the rest.
    Dim,
    /// A heading.
    Bold,
    /// One of some that are to be told apart.
    Of(usize),
}

/// Puts colours around texts, or doesn't.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    is_on: bool,
}

/// Of the sixteen of a terminal, those that are readable on both dark and light.
const OF_MANY: [&str; 6] = ["36", "33", "35", "32", "34", "31"];

impl Paint {
    /// For standard output.
    pub fn stdout() -> Self {
        Self { is_on: is_wanted() && io::stdout().is_terminal() }
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self { is_on: is_wanted() && io::stderr().is_terminal() }
    }

    /// No colours.
    pub const fn off() -> Self {
        Self { is_on: false }
    }

    /// Colours, whatever reads them.
    #[cfg(test)]
    pub const fn on() -> Self {
        Self { is_on: true }
    }

    /// The text in the colour of a tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.is_on || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
            Tone::Bold => "1",
            Tone::Of(which) => OF_MANY[which % OF_MANY.len()],
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

fn is_wanted() -> bool {
    let is_set = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_set && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text without what a terminal would act on: what others have written is shown and never obeyed.
pub fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::{Paint, Tone, harmless};

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(Paint::off().paint(Tone::Bad, "x"), "x");
        assert_eq!(Paint::on().paint(Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint::on().paint(Tone::Of(7), ""), "");
    }

    #[test]
    fn what_others_wrote_moves_no_cursor() {
        assert_eq!(harmless("a\x1b[2Jb\tc\r"), "a\u{fffd}[2Jb\tc\u{fffd}");
    }
}
