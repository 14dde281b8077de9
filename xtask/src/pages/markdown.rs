//! Markdown as a part of a page: headings, paragraphs, lists, tables, code.

use std::mem::take;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::roff::{Roff, bold, escape};

/// What readers of man pages have in place of a document of the project.
const PAGES: [(&str, &str); 5] = [
    ("configuration.md", "echoed.toml(5)"),
    ("protocol.md", "echoed-protocol(7)"),
    ("echoctl-json.md", "echoctl(1)"),
    ("operations.md", "echoed(8)"),
    ("README.md", "echoed(8)"),
];

/// Adds a text to a page. Its title is left out.
pub(crate) fn markdown(page: &mut Roff, text: &str) {
    let mut writer =
        Writer { page, line: String::new(), plain: String::new(), open_elements: Vec::new(), row: Vec::new() };
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        writer.handle_event(event);
    }
}

struct Writer<'a> {
    page: &'a mut Roff,
    /// The text of the paragraph in progress, escaped.
    line: String,
    /// The text of a heading, of code or of a link, as it is.
    plain: String,
    /// What we are in, the innermost last.
    open_elements: Vec<Element>,
    /// The cells of a table's row, escaped.
    row: Vec<String>,
}

enum Element {
    Heading(HeadingLevel),
    Code,
    /// The number of the next item, where they are numbered.
    List(Option<u64>),
    Item,
    /// The names of its columns.
    Table(Vec<String>),
    Link(String),
    Strong,
    Emphasis,
}
use Element::{Code, Emphasis, Heading, Item, Link, List, Strong, Table};

impl Writer<'_> {
    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start_element(tag),
            Event::End(tag) => self.end_element(tag),
            Event::Text(text) => self.text(&text),
            Event::Code(code) => self.code(&code),
            Event::SoftBreak | Event::HardBreak => self.text(" "),
            // A comment.
            Event::Html(_) | Event::InlineHtml(_) => {}
            other => panic!("a man page has no {other:?}"),
        }
    }

    fn start_element(&mut self, tag: Tag) {
        match tag {
            Tag::Heading { level, .. } => self.open_elements.push(Heading(level)),
            Tag::Paragraph => match self.open_elements.last() {
                Some(Item) => {}
                _ => self.page.paragraph(),
            },
            Tag::CodeBlock(_) => self.open_elements.push(Code),
            Tag::List(number) => self.open_elements.push(List(number)),
            Tag::Item => {
                self.flush();
                let Some(List(number)) = self.open_elements.last_mut() else { panic!("an item outside of a list") };
                let mark = match number {
                    Some(number) => {
                        *number += 1;
                        format!("{}. 4", *number - 1)
                    }
                    None => "\\(bu 2".to_owned(),
                };
                self.page.line(&format!(".IP {mark}"));
                self.open_elements.push(Item);
            }
            Tag::Table(_) => self.open_elements.push(Table(Vec::new())),
            Tag::TableHead | Tag::TableRow | Tag::TableCell | Tag::HtmlBlock => {}
            Tag::Link { dest_url, .. } => self.open_elements.push(Link(dest_url.into_string())),
            Tag::Strong => {
                self.line.push_str("\\fB");
                self.open_elements.push(Strong);
            }
            Tag::Emphasis => {
                self.line.push_str("\\fI");
                self.open_elements.push(Emphasis);
            }
            other => panic!("a man page has no {other:?}"),
        }
    }

    fn end_element(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => self.flush(),
            TagEnd::HtmlBlock => {}
            TagEnd::TableCell => {
                let cell = take(&mut self.line);
                self.row.push(cell);
            }
            TagEnd::TableHead => {
                let names = take(&mut self.row);
                let Some(Table(columns)) = self.open_elements.last_mut() else { panic!("a row outside of a table") };
                *columns = names;
            }
            TagEnd::TableRow => self.row(),
            _ => {
                let element = self.open_elements.pop().expect("what ends has begun");
                self.finish_element(element);
            }
        }
    }

    fn finish_element(&mut self, element: Element) {
        match element {
            // The title.
            Heading(HeadingLevel::H1) => self.plain.clear(),
            Heading(HeadingLevel::H2) => self.page.section(&take(&mut self.plain)),
            Heading(_) => self.page.subsection(&take(&mut self.plain)),
            Code => self.page.example(&take(&mut self.plain)),
            Item => self.flush(),
            Link(target) => {
                let text = take(&mut self.plain);
                self.line.push_str(&link(&text, &target));
            }
            Strong | Emphasis => self.line.push_str("\\fP"),
            List(_) | Table(_) => {}
        }
    }

    fn text(&mut self, text: &str) {
        match self.open_elements.last() {
            Some(Heading(_) | Code | Link(_)) => self.plain.push_str(text),
            _ => self.line.push_str(&escape(text)),
        }
    }

    fn code(&mut self, code: &str) {
        match self.open_elements.last() {
            Some(Heading(_) | Link(_)) => self.plain.push_str(code),
            Some(Strong) => self.line.push_str(&escape(code)),
            _ => self.line.push_str(&bold(code)),
        }
    }

    fn flush(&mut self) {
        let line = take(&mut self.line);
        if !line.is_empty() {
            self.page.text(&line);
        }
    }

    /// A row: the first cell is what it is about. A default stands beside it, other cells are called by their columns but
    /// for the last one, or the only one, which says it all.
    fn row(&mut self) {
        let row = take(&mut self.row);
        let Some(Table(columns)) = self.open_elements.last() else { panic!("a row outside of a table") };
        let (tag, rest) = row.split_first().expect("a row has cells");
        let default = columns.iter().position(|column| column == "default");
        let tag = default.map_or_else(|| tag.clone(), |at| format!("{tag} = {}", row[at]));
        self.page.tagged_paragraph(&tag);
        let mut paragraphs = Vec::new();
        for (column, cell) in columns[1..].iter().zip(rest) {
            let needs_no_heading = rest.len() == 1 || column == "what it is" || column.is_empty();
            if column == "default" || cell.is_empty() {
                continue;
            }
            paragraphs.push(if needs_no_heading { cell.clone() } else { format!("{column}: {cell}") });
        }
        for (number, paragraph) in paragraphs.iter().enumerate() {
            if number > 0 {
                self.page.line(".br");
            }
            self.page.text(paragraph);
        }
    }
}

/// What a reader of a man page sees of a link.
fn link(text: &str, target: &str) -> String {
    let (file, _) = target.split_once('#').unwrap_or((target, ""));
    let file = file.rsplit_once('/').filter(|_| !file.contains("://")).map_or(file, |(_, name)| name);
    if file.is_empty() {
        return escape(text);
    }
    let page = PAGES.iter().find(|(document, _)| *document == file).map(|(_, page)| *page);
    let target = page.unwrap_or(file);
    let (name, section) =
        target.split_once('(').map_or((target, String::new()), |(name, section)| (name, format!("({section}")));
    let target = format!("{}{section}", bold(name));
    let is_file = text.ends_with(".md") || text == file;
    if is_file { target } else { format!("{} ({target})", escape(text)) }
}
