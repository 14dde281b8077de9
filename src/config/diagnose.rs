//! Problems in a document, each shown with its place:
//!
//! ```text
//! echoed.toml:3:9: "2" is no time; write for example 2s, 500ms or 1h 30min
//!   |
//! 3 | read = "2"
//!   |        ^^^
//! ```

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which bytes of the document it is about.
    pub span: Range<usize>,
    /// What is wrong and what to write instead, in one line.
    pub message: String,
}

/// The problems of one document, ready to be shown: a block each, in the order of the document.
#[derive(Debug)]
pub struct Report {
    blocks: Vec<String>,
}

impl Report {
    /// Shows `problems` of `text`, which came from `file`.
    #[must_use]
    pub fn new(file: &Path, text: &str, problems: &[Problem]) -> Self {
        let mut sorted: Vec<_> = problems.iter().collect();
        sorted.sort_by_key(|problem| problem.span.start);
        Self { blocks: sorted.into_iter().map(|problem| block(file, text, problem)).collect() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.blocks.join("\n"))
    }
}

fn block(file: &Path, text: &str, problem: &Problem) -> String {
    let mut start = problem.span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let line = text[line_start..line_end].trim_end_matches('\r');
    let number = text[..line_start].matches('\n').count() + 1;
    let before = &text[line_start..start];
    let column = before.chars().count() + 1;
    // A tab in front stays a tab, so that the caret stands below what it means.
    let indent: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let end = problem.span.end.clamp(start, line_end);
    let marked = text.get(start..end).unwrap_or("").chars().count().max(1);
    let margin = " ".repeat(number.to_string().len());
    format!(
        "{}:{number}:{column}: {}\n{margin} |\n{number} | {line}\n{margin} | {indent}{}",
        file.display(),
        problem.message,
        "^".repeat(marked)
    )
}

/// The one of `known` that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(word, name);
    let best = known.iter().copied().min_by_key(|name| distance(name))?;
    (distance(best) <= (word.len().max(best.len()) / 3).max(1)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_below_its_line() {
        let text = "[log]\n\tlevel = \"é\" # x\r\nmore";
        let at = text.find("\"é\"").unwrap();
        let problem = Problem { span: at..at + 4, message: "wrong".to_owned() };
        let shown = Report::new(Path::new("f.toml"), text, &[problem]).to_string();
        assert_eq!(shown, "f.toml:2:10: wrong\n  |\n2 | \tlevel = \"é\" # x\n  | \t        ^^^");
    }

    #[test]
    fn places_outside_of_the_text_are_shown_at_its_end() {
        let problem = Problem { span: 90..99, message: "ended".to_owned() };
        let shown = Report::new(Path::new("f"), "a = [", &[problem]).to_string();
        assert_eq!(shown, "f:1:6: ended\n  |\n1 | a = [\n  |      ^");
    }

    #[test]
    fn the_nearest_key_is_found_and_none_that_is_far() {
        let known = ["delimiter", "prefix", "max_message"];
        assert_eq!(nearest("delimeter", &known), Some("delimiter"));
        assert_eq!(nearest("max-message", &known), Some("max_message"));
        assert_eq!(nearest("colour", &known), None);
    }
}
