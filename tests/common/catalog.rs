//! systemd/catalog/echoed.catalog, entry by entry.

const CATALOG: &str = include_str!("../../systemd/catalog/echoed.catalog");

/// The explanation of one kind of entries.
#[derive(Debug)]
pub struct CatalogEntry {
    /// The MESSAGE_ID of the kind.
    pub id: &'static str,
    /// The severity and the words of each entry that it explains, from the comments before it; `…` stands for what varies.
    pub messages: Vec<(&'static str, &'static str)>,
    /// The names of its headers and their values.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The paragraphs of the explanation.
    pub paragraphs: Vec<&'static str>,
}

impl CatalogEntry {
    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> &'static str {
        let found = self.headers.iter().find(|(found, _)| *found == name);
        found.unwrap_or_else(|| panic!("{} has no {name}", self.id)).1
    }

    /// Returns the paragraphs about the cause, the first one and the indented ones after it, and those about the cure.
    pub fn cause_and_cure(&self) -> (&[&'static str], &[&'static str]) {
        let indented = self.paragraphs.iter().skip(1).take_while(|paragraph| paragraph.starts_with(' ')).count();
        self.paragraphs.split_at((1 + indented).min(self.paragraphs.len()))
    }
}

/// Returns all entries, in the order of the file.
///
/// # Panics
/// Panics if the file has another form.
pub fn catalog_entries() -> Vec<CatalogEntry> {
    let mut entries = Vec::new();
    let mut comments = Vec::new();
    let mut rest = CATALOG;
    while let Some(line) = rest.lines().next() {
        if let Some(id) = line.strip_prefix("-- ") {
            let (block, after) = rest.split_once("\n\n# ").map_or((rest, ""), |(block, _)| {
                // The comment belongs to the next entry.
                (block, &rest[block.len() + 2..])
            });
            let (head, text) =
                block.split_once("\n\n").unwrap_or_else(|| panic!("{id}: no empty line ends the headers"));
            let headers = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
            let paragraphs = text.trim_end().split("\n\n").collect();
            entries.push(CatalogEntry { id, messages: std::mem::take(&mut comments), headers, paragraphs });
            rest = after;
        } else {
            match line.strip_prefix("# ").map(|comment| comment.split_once(": ")) {
                Some(Some(message)) => comments.push(message),
                // The comment at the head of the file.
                _ => comments.clear(),
            }
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        }
    }
    entries
}
