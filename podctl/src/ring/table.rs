//! Columns of text, as wide as they need to be.

use crate::paint::{Paint, Tone, harmless};

/// Rows under a heading.
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

/// A text in a table, and what its colour says.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A text with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { tone: Some(tone), ..Self::from(text.into()) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text: harmless(&text), tone: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Table {
    /// A table with these columns.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|text| Cell::toned(text.to_uppercase(), Tone::Bold)).collect()] }
    }

    /// Adds a row.
    pub fn push<C: Into<Cell>>(&mut self, row: Vec<C>) {
        self.rows.push(row.into_iter().map(Into::into).collect());
    }

    /// The table as lines.
    pub fn text(&self) -> String {
        self.painted(Paint::off())
    }

    /// The table as lines in colours.
    pub fn painted(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate().take(last + 1) {
                text.push_str(&cell.tone.map_or_else(|| cell.text.clone(), |tone| paint.paint(tone, &cell.text)));
                if at < last {
                    // What colours take doesn't count.
                    text.extend(std::iter::repeat_n(' ', width - cell.text.chars().count() + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Cell, Table};
    use crate::paint::{Paint, Tone};

    #[test]
    fn columns_stand_below_one_another() {
        let mut table = Table::new(&["pod", "url"]);
        table.push(vec!["pöd-1".to_owned(), "-".to_owned()]);
        assert_eq!(table.text(), "POD    URL\npöd-1  -\n");
    }

    #[test]
    fn colours_take_no_room_and_others_give_none() {
        let mut table = Table::new(&["a", "b"]);
        table.push(vec![Cell::toned("x\x1b[2J", Tone::Bad), "".into()]);
        table.push(vec![Cell::from("1"), "2".into()]);
        let painted = table.painted(Paint::on());
        assert!(painted.contains("\x1b[31mx\u{fffd}[2J\x1b[0m\n"), "{painted:?}");
        assert_eq!(painted.replace("\x1b[1m", "").replace("\x1b[31m", "").replace("\x1b[0m", ""), table.text());
        assert!(table.text().ends_with("1      2\n"), "{}", table.text());
    }
}
