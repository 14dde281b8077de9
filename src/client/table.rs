//! Tables for people.

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// A table with a head, as ss(8) and loginctl(1) print it: columns as wide as they have to be.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these columns.
    #[must_use]
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, with a text for each column.
    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Returns the text, with a line feed after each line.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = |(at, (name, _)): (usize, &(&str, Align))| {
            let texts = self.rows.iter().filter_map(|row| row.get(at));
            texts.map(|text| text.chars().count()).chain([name.len()]).max().unwrap_or_default()
        };
        let widths: Vec<_> = self.columns.iter().enumerate().map(width).collect();
        let head: Vec<_> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut text = String::new();
        for row in [&head].into_iter().chain(&self.rows) {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((cell, (_, align)), width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_text() {
        let mut table = Table::new(&[("ID", Align::Right), ("PEER", Align::Left), ("STATE", Align::Left)]);
        table.push(vec!["7".to_owned(), "127.0.0.1:40000".to_owned(), "idle".to_owned()]);
        table.push(vec!["12345".to_owned(), "ü".to_owned(), "receiving".to_owned()]);
        let expected = concat!(
            "   ID  PEER             STATE\n",
            "    7  127.0.0.1:40000  idle\n",
            "12345  ü                receiving\n",
        );
        assert_eq!(table.to_text(), expected);
    }
}
