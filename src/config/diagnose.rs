//! Problems, each shown with its position:
//!
//! ```text
//! echoed.toml:3:8: read: 2 has no unit; write "2s" if that is meant
//!   |
//! 3 | read = 2
//!   |        ^
//! ```

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::tree::Span;
use crate::escape::is_unsafe;

/// The origin of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The path of a file, as it is shown.
    File(String),
    /// The name of an environment variable or of a command line option.
    Inline(String),
}

/// One thing that is wrong with a value or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) span: Span,
    /// The problem and what to write instead, in one line.
    pub(super) message: String,
    /// Other keys that are part of it, and where they are set; nowhere is their default.
    pub(super) related: Vec<(&'static str, Option<Span>)>,
}

/// How many problems are shown. A file that is not a configuration at all has thousands.
const MAX_SHOWN: usize = 200;

/// How much of a line is shown, in characters before and after the start of the span.
const CONTEXT: usize = 100;

/// How many characters of a message are shown. It may quote a value, which may be long.
const MAX_MESSAGE: usize = 1000;

/// Why there are no settings: every problem, in the order of the layers.
///
/// It is shown as a block for each of the first 200, and how many more there are.
#[derive(Debug, Default)]
pub struct Error {
    blocks: Vec<String>,
    omitted: usize,
}

impl Error {
    /// Adds a problem. `block` is only called if it is to be shown.
    pub(super) fn push(&mut self, block: impl FnOnce() -> String) {
        if self.blocks.len() < MAX_SHOWN { self.blocks.push(block()) } else { self.omitted += 1 }
    }

    /// Adds the problems of another error.
    pub(super) fn extend(&mut self, other: &Self) {
        other.blocks.iter().for_each(|block| self.push(|| block.clone()));
        self.omitted += other.omitted;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns one line for each problem that is shown.
    pub fn headlines(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().filter_map(|block| block.lines().next())
    }

    /// Returns how many problems there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.blocks.len() + self.omitted
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.blocks.join("\n"))?;
        match self.omitted {
            0 => Ok(()),
            1 => f.write_str("\nand 1 more problem"),
            omitted => write!(f, "\nand {omitted} more problems"),
        }
    }
}

impl std::error::Error for Error {}

/// The text of a layer, where it comes from, and where its lines begin.
#[derive(Debug, Clone)]
pub(super) struct SourceText {
    pub(super) origin: Origin,
    pub(super) text: String,
    line_starts: Vec<usize>,
}

impl SourceText {
    pub(super) fn new(origin: Origin, text: String) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { origin, text, line_starts }
    }

    /// Returns the number of the line in which a byte is, counted from 1.
    pub(super) fn line_number(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// Returns the bytes of a line, without its line feed.
    fn line(&self, number: usize) -> Range<usize> {
        let end = self.line_starts.get(number).map_or(self.text.len(), |next| next - 1);
        self.line_starts[number - 1]..end
    }

    /// Returns `FILE:LINE`, or the name of a variable or an option.
    pub(super) fn format_origin(&self, span: Span) -> String {
        match &self.origin {
            Origin::File(path) => {
                let at = floor_char_boundary(&self.text, span.start);
                format!("{path}:{}", self.line_number(at))
            }
            Origin::Inline(name) => name.clone(),
        }
    }

    /// Formats a problem at this span.
    pub(super) fn format_block(&self, span: Span, message: &str) -> String {
        let text = &self.text;
        let start = floor_char_boundary(text, span.start);
        let line_number = self.line_number(start);
        let range = self.line(line_number);
        let before = &text[range.start..start];
        let characters_before = before.chars().count();
        let (head, number) = match &self.origin {
            Origin::File(path) => (format!("{path}:{line_number}:{}", characters_before + 1), line_number.to_string()),
            // A variable has one line as a rule, so its number says nothing.
            Origin::Inline(name) => (name.clone(), String::new()),
        };
        let end = span.end.clamp(start, range.end);
        let line = text[range].trim_end_matches('\r');
        let marked = text.get(start..end).unwrap_or("").trim_end_matches('\r').chars().take(CONTEXT).count();

        let (skipped, ellipsis) = match characters_before.checked_sub(CONTEXT) {
            Some(skipped @ 1..) => (skipped, "…"),
            _ => (0, ""),
        };
        let mut rest_of_line = line.chars().skip(skipped);
        let visible: String = rest_of_line.by_ref().take(2 * CONTEXT).map(printable).collect();
        let rest = if rest_of_line.next().is_some() { "…" } else { "" };
        // A tab in front stays a tab, so that the caret stands below what it means.
        let indent: String = before.chars().skip(skipped).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let indent = format!("{}{indent}", if skipped > 0 { " " } else { "" });
        let carets = "^".repeat(marked.max(1));
        let (margin, number) = match number.as_str() {
            "" => (" ".to_owned(), " ".to_owned()),
            number => (" ".repeat(number.len()), number.to_owned()),
        };
        let message = shorten(message);
        format!("{head}: {message}\n{margin} |\n{number} | {ellipsis}{visible}{rest}\n{margin} | {indent}{carets}")
    }
}

/// Returns a message without what exceeds [`MAX_MESSAGE`] in its middle: a hint stands at the end.
fn shorten(message: &str) -> Cow<'_, str> {
    let half = MAX_MESSAGE / 2;
    let Some((cut, _)) = message.char_indices().nth(half) else { return message.into() };
    match message[cut..].char_indices().nth_back(half - 1) {
        Some((resume, _)) if resume > 0 => format!("{}…{}", &message[..cut], &message[cut + resume..]).into(),
        _ => message.into(),
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Replaces a character that would change how a terminal shows the line.
fn printable(character: char) -> char {
    if is_unsafe(character) && character != '\t' { char::REPLACEMENT_CHARACTER } else { character }
}

/// Returns the word of `known` that is closest to `word`, if it is close enough.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().count();
    let most = |name: &str| (word.len().max(name.len()) / 3).max(1);
    // The distance is the difference of the lengths at least. It takes as long to find as both are long together.
    let comparable = known.iter().copied().filter(|name| length.abs_diff(name.chars().count()) <= most(name));
    let (distance, best) =
        comparable.map(|name| (strsim::damerau_levenshtein(word, name), name)).min_by_key(|(distance, _)| *distance)?;
    (distance <= most(best)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceText {
        SourceText::new(Origin::File("f.toml".to_owned()), text.to_owned())
    }

    fn span(start: usize, end: usize) -> Span {
        Span { layer: 0, start, end }
    }

    #[test]
    fn a_problem_is_shown_below_its_line() {
        let text = "[log]\n\tlevel = \"é\" # x\r\nmore";
        let at = text.find("\"é\"").unwrap();
        let shown = file(text).format_block(span(at, at + 4), "wrong");
        assert_eq!(shown, "f.toml:2:10: wrong\n  |\n2 | \tlevel = \"é\" # x\n  | \t        ^^^");
    }

    #[test]
    fn spans_outside_the_text_are_shown_at_its_end() {
        let shown = file("a = [").format_block(span(90, 99), "ended");
        assert_eq!(shown, "f.toml:1:6: ended\n  |\n1 | a = [\n  |      ^");
        let shown = file("é").format_block(span(1, 1), "inside");
        assert_eq!(shown, "f.toml:1:1: inside\n  |\n1 | é\n  | ^");
    }

    #[test]
    fn a_variable_is_shown_without_a_line_number() {
        let shown = SourceText::new(Origin::Inline("A__B".to_owned()), "A__B=é 3".to_owned());
        let shown = shown.format_block(span(8, 9), "wrong");
        assert_eq!(shown, "A__B: wrong\n  |\n  | A__B=é 3\n  |        ^");
    }

    #[test]
    fn only_the_relevant_part_of_a_long_line_is_shown() {
        let text = format!("{}HERE{}", "a".repeat(300), "b".repeat(300));
        let shown = file(&text).format_block(span(300, 304), "wrong");
        let (a, b) = ("a".repeat(100), "b".repeat(96));
        assert_eq!(shown, format!("f.toml:1:301: wrong\n  |\n1 | …{a}HERE{b}…\n  |  {}^^^^", " ".repeat(100)));
        let shown = file(&text).format_block(span(0, 604), "all");
        assert_eq!(shown.lines().next_back(), Some(&*format!("  | {}", "^".repeat(100))));
    }

    #[test]
    fn control_characters_are_replaced() {
        let shown = file("\u{1b}[31m\u{7f}").format_block(span(0, 1), "wrong");
        assert!(!shown.contains(['\u{1b}', '\u{7f}']), "{shown:?}");
    }

    #[test]
    fn only_the_first_200_problems_are_shown_and_the_others_are_counted() {
        let of = |count: usize| {
            let mut error = Error::default();
            (0..count).for_each(|number| error.push(|| format!("{number}\n  | x")));
            error
        };
        let error = of(203);
        assert_eq!((error.headlines().count(), error.count()), (200, 203));
        assert!(error.to_string().ends_with("\n199\n  | x\nand 3 more problems"));
        assert!(of(201).to_string().ends_with("\n199\n  | x\nand 1 more problem"));
        assert_eq!(of(1).to_string(), "0\n  | x");
        let mut all = of(199);
        all.extend(&error);
        assert_eq!((all.headlines().count(), all.count()), (200, 402));
    }

    #[test]
    fn lines_are_numbered_from_1_and_end_before_their_line_feed() {
        let text = file("a\n\nbc\n");
        let lines = [(0, 1), (1, 1), (2, 2), (3, 3), (5, 3), (6, 4)];
        for (at, number) in lines {
            assert_eq!(text.line_number(at), number, "{at}");
        }
        assert_eq!([1, 2, 3, 4].map(|number| text.line(number)), [0..1, 2..2, 3..5, 6..6]);
    }

    #[test]
    fn a_long_message_is_shortened_in_its_middle() {
        for length in [0, 1, 999, 1000] {
            let message = "é".repeat(length);
            assert_eq!(shorten(&message), message);
        }
        let message = format!("unknown key {}; is prefix meant?", "é".repeat(100_000));
        let shown = shorten(&message);
        assert!(shown.starts_with("unknown key éé") && shown.ends_with("é; is prefix meant?"), "{shown}");
        assert_eq!(shown.chars().count(), 1001);
    }

    #[test]
    fn a_similar_key_is_suggested_and_a_distant_one_is_not() {
        let known = ["delimiter", "prefix", "max_message"];
        assert_eq!(closest("delimeter", &known), Some("delimiter"));
        assert_eq!(closest("max-message", &known), Some("max_message"));
        assert_eq!(closest("colour", &known), None);
        assert_eq!(closest(&"delimiter".repeat(100_000), &known), None);
    }
}
