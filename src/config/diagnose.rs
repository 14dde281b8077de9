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

/// Where a layer comes from.
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
    /// What is wrong and what to write instead, in one line.
    pub(super) message: String,
    /// Other keys that are part of it, and where they are set; nowhere is their default.
    pub(super) related: Vec<(&'static str, Option<Span>)>,
}

/// How many problems are shown. A file that is not a configuration at all has thousands.
const MAX_SHOWN: usize = 200;

/// How much of a line is shown, in characters before and after the start of the span.
const CONTEXT: usize = 100;

/// Why there are no settings: every problem, in the order of the layers.
///
/// It is shown as a block for each.
#[derive(Debug)]
pub struct Error {
    blocks: Vec<String>,
    omitted: usize,
}

impl Error {
    pub(super) fn new(mut blocks: Vec<String>) -> Self {
        let omitted = blocks.len().saturating_sub(MAX_SHOWN);
        blocks.truncate(MAX_SHOWN);
        Self { blocks, omitted }
    }

    /// What is wrong, in one line for each problem.
    pub fn headlines(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().filter_map(|block| block.lines().next())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.blocks.join("\n"))?;
        if self.omitted > 0 {
            write!(f, "\nand {} problems more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// A position in a text.
struct Position {
    line: usize,
    column: usize,
    /// The bytes of its line.
    bytes: Range<usize>,
}

impl Position {
    fn locate(text: &str, at: usize) -> Self {
        let at = floor_char_boundary(text, at);
        let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
        let end = text[at..].find('\n').map_or(text.len(), |end| at + end);
        let column = text[start..at].chars().count() + 1;
        Self { line: text[..start].matches('\n').count() + 1, column, bytes: start..end }
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `FILE:LINE`, or the name of a variable or an option.
pub(super) fn format_origin(origin: &Origin, text: &str, span: Span) -> String {
    match origin {
        Origin::File(path) => format!("{path}:{}", Position::locate(text, span.start).line),
        Origin::Inline(name) => name.clone(),
    }
}

/// Formats a problem at this span of `text`.
pub(super) fn format_block(origin: &Origin, text: &str, span: Span, message: &str) -> String {
    let start = floor_char_boundary(text, span.start);
    let position = Position::locate(text, start);
    let (head, number) = match origin {
        Origin::File(path) => (format!("{path}:{}:{}", position.line, position.column), position.line.to_string()),
        // A variable has one line as a rule, so its number says nothing.
        Origin::Inline(name) => (name.clone(), String::new()),
    };
    let line = text[position.bytes.clone()].trim_end_matches('\r');
    let before = &text[position.bytes.start..start];
    let end = span.end.clamp(start, position.bytes.end);
    let marked = text.get(start..end).unwrap_or("").trim_end_matches('\r').chars().count();

    let (skipped, ellipsis) = match before.chars().count().checked_sub(CONTEXT) {
        Some(skipped @ 1..) => (skipped, "…"),
        _ => (0, ""),
    };
    let visible: String = line.chars().skip(skipped).take(2 * CONTEXT).map(printable).collect();
    let rest = if line.chars().count() > skipped + 2 * CONTEXT { "…" } else { "" };
    // A tab in front stays a tab, so that the caret stands below what it means.
    let indent: String = before.chars().skip(skipped).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let indent = format!("{}{indent}", if skipped > 0 { " " } else { "" });
    let carets = "^".repeat(marked.clamp(1, CONTEXT));
    let (margin, number) = match number.as_str() {
        "" => (" ".to_owned(), " ".to_owned()),
        number => (" ".repeat(number.len()), number.to_owned()),
    };
    format!("{head}: {message}\n{margin} |\n{number} | {ellipsis}{visible}{rest}\n{margin} | {indent}{carets}")
}

/// Replaces a character that would change how a terminal shows the line.
fn printable(character: char) -> char {
    if character.is_control() && character != '\t' { char::REPLACEMENT_CHARACTER } else { character }
}

/// Returns a name as it is shown: control characters are escaped.
pub(super) fn escape_controls(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_control) { name.escape_debug().to_string().into() } else { name.into() }
}

/// Returns the word of `known` that is closest to `word`, if it is close enough.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(word, name);
    let best = known.iter().copied().min_by_key(|name| distance(name))?;
    (distance(best) <= (word.len().max(best.len()) / 3).max(1)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Origin {
        Origin::File("f.toml".to_owned())
    }

    fn span(start: usize, end: usize) -> Span {
        Span { layer: 0, start, end }
    }

    #[test]
    fn a_problem_is_shown_below_its_line() {
        let text = "[log]\n\tlevel = \"é\" # x\r\nmore";
        let at = text.find("\"é\"").unwrap();
        let shown = format_block(&file(), text, span(at, at + 4), "wrong");
        assert_eq!(shown, "f.toml:2:10: wrong\n  |\n2 | \tlevel = \"é\" # x\n  | \t        ^^^");
    }

    #[test]
    fn spans_outside_the_text_are_shown_at_its_end() {
        let shown = format_block(&file(), "a = [", span(90, 99), "ended");
        assert_eq!(shown, "f.toml:1:6: ended\n  |\n1 | a = [\n  |      ^");
        let shown = format_block(&file(), "é", span(1, 1), "inside");
        assert_eq!(shown, "f.toml:1:1: inside\n  |\n1 | é\n  | ^");
    }

    #[test]
    fn a_variable_is_shown_without_a_line_number() {
        let shown = format_block(&Origin::Inline("A__B".to_owned()), "A__B=é 3", span(8, 9), "wrong");
        assert_eq!(shown, "A__B: wrong\n  |\n  | A__B=é 3\n  |        ^");
    }

    #[test]
    fn only_the_relevant_part_of_a_long_line_is_shown() {
        let text = format!("{}HERE{}", "a".repeat(300), "b".repeat(300));
        let shown = format_block(&file(), &text, span(300, 304), "wrong");
        let (a, b) = ("a".repeat(100), "b".repeat(96));
        assert_eq!(shown, format!("f.toml:1:301: wrong\n  |\n1 | …{a}HERE{b}…\n  |  {}^^^^", " ".repeat(100)));
        let shown = format_block(&file(), &text, span(0, 604), "all");
        assert_eq!(shown.lines().next_back(), Some(&*format!("  | {}", "^".repeat(100))));
    }

    #[test]
    fn control_characters_are_escaped_or_replaced() {
        let shown = format_block(&file(), "\u{1b}[31m\u{7f}", span(0, 1), "wrong");
        assert!(!shown.contains(['\u{1b}', '\u{7f}']), "{shown:?}");
        assert_eq!(super::escape_controls("a\nb"), "a\\nb");
    }

    #[test]
    fn only_the_first_200_problems_are_shown_and_the_others_are_counted() {
        let error = Error::new((0..203).map(|number| format!("{number}\n  | x")).collect());
        assert_eq!(error.headlines().count(), 200);
        assert!(error.to_string().ends_with("\n199\n  | x\nand 3 problems more"));
        assert_eq!(Error::new(vec!["a".to_owned()]).to_string(), "a");
    }

    #[test]
    fn a_similar_key_is_suggested_and_a_distant_one_is_not() {
        let known = ["delimiter", "prefix", "max_message"];
        assert_eq!(closest("delimeter", &known), Some("delimiter"));
        assert_eq!(closest("max-message", &known), Some("max_message"));
        assert_eq!(closest("colour", &known), None);
    }
}
