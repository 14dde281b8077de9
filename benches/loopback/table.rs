//! Tables that line up.

use std::fmt::Write as _;

/// A table: a title, a row of headings, rows of cells; the first column is flush left, the others right.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table without rows.
    pub(crate) fn new<T: Into<String>>(title: impl Into<String>, headings: impl IntoIterator<Item = T>) -> Self {
        Self { title: title.into(), rows: vec![headings.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row, a cell to a heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    /// Returns the finished table, in Markdown.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(2))
            .collect();
        let mut text = format!("### {}\n\n", self.title);
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let written =
                    if column == 0 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
                written.expect("a String takes everything");
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    text.push('|');
                    text.push_str(&"-".repeat(width + 1));
                    text.push(if column == 0 { '-' } else { ':' });
                }
                text.push_str("|\n");
            }
        }
        text
    }
}
