//! A page of the documentation as something that can be done: its commands, its files, and what it says that they say.
//!
//! - A line of a ```` ```sh ```` block is a command. ```` ```sh since 256 ```` is for a systemd of that version or newer.
//! - An `ini` or `toml` block is a file. Its path is in its first line (`# /etc/…`), or it is what stands last in backquotes
//!   before it; there, `systemctl edit UNIT` will do, too.
//! - A block without a language, or a `text` block, that follows commands directly is what they print. `…` stands for
//!   anything within a line, and by itself for any number of lines.

/// A heading and what is below it.
pub struct Section {
    pub heading: String,
    pub blocks: Vec<Block>,
}

/// A block of code.
pub struct Block {
    /// The line of the page it begins with.
    pub line: usize,
    pub text: String,
    pub kind: Kind,
}

/// What a block is.
pub enum Kind {
    Commands {
        /// The oldest systemd that can do it.
        since: u32,
        /// What they print, if the page says so.
        shown: Option<String>,
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
                ("" | "text", Some(Block { kind: Kind::Commands { shown, .. }, .. })) if prose.trim().is_empty() => {
                    *shown = Some(text);
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

fn kind(info: &str, text: &str, prose: &str) -> Kind {
    let mut words = info.split(' ');
    match words.next() {
        Some("sh") => {
            let since = info.strip_prefix("sh since ").map_or(0, |version| version.parse().expect("it is a version"));
            Kind::Commands { since, shown: None }
        }
        Some("ini" | "toml") => {
            let named = text.lines().next().and_then(|first| first.strip_prefix("# ")).and_then(place);
            let quoted = prose.split('`').skip(1).step_by(2);
            named.or_else(|| quoted.filter_map(place).last()).map_or(Kind::Other, Kind::File)
        }
        _ => Kind::Other,
    }
}

/// The file that is meant, if one is.
fn place(text: &str) -> Option<String> {
    match text.strip_prefix("systemctl edit ") {
        Some(unit) => Some(format!("/etc/systemd/system/{unit}.d/override.conf")),
        None => {
            let is_file = [".toml", ".conf", ".socket", ".service"].iter().any(|end| text.ends_with(end));
            (text.starts_with("/etc/") && is_file).then(|| text.to_owned())
        }
    }
}

/// Whether what was said is what the page shows.
pub fn is_shown(shown: &str, said: &str) -> bool {
    fn lines_fit(shown: &[&str], said: &[&str]) -> bool {
        match shown {
            [] => said.is_empty(),
            ["…", rest @ ..] => (0..=said.len()).any(|skipped| lines_fit(rest, &said[skipped..])),
            [line, rest @ ..] => {
                said.first().is_some_and(|first| line_fits(line, first)) && lines_fit(rest, &said[1..])
            }
        }
    }
    lines_fit(&lines(shown), &lines(said))
}

fn lines(text: &str) -> Vec<&str> {
    text.trim_end().lines().map(str::trim_end).collect()
}

fn line_fits(shown: &str, said: &str) -> bool {
    match shown.split_once('…') {
        None => shown == said,
        Some((start, rest)) => said.strip_prefix(start).is_some_and(|left| {
            let ends = left.char_indices().map(|(at, _)| at).chain([left.len()]);
            ends.into_iter().any(|at| line_fits(rest, &left[at..]))
        }),
    }
}
