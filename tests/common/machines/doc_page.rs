//! A page of the documentation as something that can be done: its commands, its files, and what it says that they say.
//!
//! - A line of a ```` ```sh ```` block is a command. ```` ```sh since 256 ```` is for a systemd of that version or newer.
//! - An `ini` or `toml` block is a file. Its path is in its first line (`# /etc/…`), or it is what stands last in backquotes
//!   before it; there, `systemctl edit UNIT` will do, too.
//! - A block without a language, or a `text` block, that follows commands directly is what they print. `…` stands for
//!   anything within a line, and by itself for any number of lines.

/// A heading and what is below it.
pub struct Section {
    /// The text of the heading.
    pub heading: String,
    /// The blocks of code, in their order.
    pub blocks: Vec<Block>,
}

/// A block of code.
pub struct Block {
    /// The line of the page it begins with.
    pub line: usize,
    /// What is in it.
    pub text: String,
    /// What it is.
    pub kind: BlockKind,
}

/// What a block is.
pub enum BlockKind {
    /// Commands of a shell.
    Commands {
        /// The oldest systemd that can do it.
        since: u32,
        /// What they print, if the page says so.
        expected_output: Option<String>,
    },
    /// To be written there.
    File(String),
    /// To be read by people only.
    Other,
}

impl Block {
    /// The commands: the line and the text of each.
    pub fn commands(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(at, command)| (self.line + 1 + at, command));
        numbered.filter(|(_, command)| !command.is_empty())
    }
}

/// The sections of a page, with those before the first heading.
pub fn sections(page: &str) -> Vec<Section> {
    let mut sections = vec![Section { heading: String::new(), blocks: Vec::new() }];
    // What stands between the last block and here.
    let mut prose = String::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let section = sections.last_mut().expect("there is one");
        if let Some(heading) = line.strip_prefix("## ") {
            sections.push(Section { heading: heading.to_owned(), blocks: Vec::new() });
            prose.clear();
        } else if let Some(info) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            let text = block.join("\n");
            match (info, section.blocks.last_mut()) {
                ("" | "text", Some(Block { kind: BlockKind::Commands { expected_output, .. }, .. }))
                    if prose.trim().is_empty() =>
                {
                    *expected_output = Some(text);
                }
                _ => section.blocks.push(Block { line: at + 1, kind: kind(info, &text, &prose), text }),
            }
            prose.clear();
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    sections
}

fn kind(info: &str, text: &str, prose: &str) -> BlockKind {
    let mut words = info.split(' ');
    match words.next() {
        Some("sh") => {
            let since = info.strip_prefix("sh since ").map_or(0, |version| version.parse().expect("it is a version"));
            BlockKind::Commands { since, expected_output: None }
        }
        Some("ini" | "toml") => {
            let named = text.lines().next().and_then(|first| first.strip_prefix("# ")).and_then(target_file);
            let quoted = prose.split('`').skip(1).step_by(2);
            named.or_else(|| quoted.filter_map(target_file).last()).map_or(BlockKind::Other, BlockKind::File)
        }
        _ => BlockKind::Other,
    }
}

/// The file that is meant, if one is.
fn target_file(text: &str) -> Option<String> {
    match text.strip_prefix("systemctl edit ") {
        Some(unit) => Some(format!("/etc/systemd/system/{unit}.d/override.conf")),
        None => {
            let is_file = [".toml", ".conf", ".socket", ".service"].iter().any(|end| text.ends_with(end));
            (text.starts_with("/etc/") && is_file).then(|| text.to_owned())
        }
    }
}

/// Whether what was said is what the page shows.
pub fn matches_output(expected: &str, actual: &str) -> bool {
    fn lines_match(expected: &[&str], actual: &[&str]) -> bool {
        match expected {
            [] => actual.is_empty(),
            ["…", rest @ ..] => (0..=actual.len()).any(|skipped| lines_match(rest, &actual[skipped..])),
            [line, rest @ ..] => {
                actual.first().is_some_and(|first| line_matches(line, first)) && lines_match(rest, &actual[1..])
            }
        }
    }
    lines_match(&lines(expected), &lines(actual))
}

fn lines(text: &str) -> Vec<&str> {
    text.trim_end().lines().map(str::trim_end).collect()
}

fn line_matches(expected: &str, actual: &str) -> bool {
    match expected.split_once('…') {
        None => expected == actual,
        Some((start, rest)) => actual.strip_prefix(start).is_some_and(|left| {
            let ends = left.char_indices().map(|(at, _)| at).chain([left.len()]);
            ends.into_iter().any(|at| line_matches(rest, &left[at..]))
        }),
    }
}
