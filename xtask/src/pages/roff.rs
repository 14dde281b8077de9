//! Text as man(7) has it.

/// A page in the making.
#[derive(Default)]
pub(crate) struct Roff {
    text: String,
}

impl Roff {
    /// A page that begins: its name, its section, when it was made, of what it is.
    pub(crate) fn page(name: &str, section: &str, date: &str, source: &str) -> Self {
        let mut page = Self::default();
        page.line(".\\\" Generated: do not edit this, but what it is made from (see xtask/src/pages).");
        page.line(&format!(".TH {} {section} {date} \"{source}\" \"\"", escape(&name.to_uppercase())));
        // Names of options and keys are not broken, nor is space put between words.
        page.line(".nh");
        page.line(".ad l");
        page
    }

    /// A line as it is: a request, or text that was escaped.
    pub(crate) fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A line of escaped text. It is never a request, whatever it begins with.
    pub(crate) fn text(&mut self, text: &str) {
        let text = text.trim();
        if text.starts_with(['.', '\'']) {
            self.text.push_str("\\&");
        }
        self.line(text);
    }

    /// Begins a paragraph; after a heading, there is one already.
    pub(crate) fn paragraph(&mut self) {
        let last = self.text.lines().last().unwrap_or_default();
        if !last.starts_with(".SH") && !last.starts_with(".SS") {
            self.line(".PP");
        }
    }

    /// A heading of the first order.
    pub(crate) fn section(&mut self, heading: &str) {
        self.line(&format!(".SH {}", argument(&heading.to_uppercase())));
    }

    /// A heading of the second order.
    pub(crate) fn subsection(&mut self, heading: &str) {
        self.line(&format!(".SS {}", argument(heading)));
    }

    /// What follows belongs to this tag, which was escaped.
    pub(crate) fn tagged_paragraph(&mut self, tag: &str) {
        self.line(".TP");
        self.text(tag);
    }

    /// Lines as they are, set apart.
    pub(crate) fn example(&mut self, lines: &str) {
        self.paragraph();
        self.line(".RS 4");
        self.line(".EX");
        for line in lines.trim_end().lines() {
            let line = escape(line);
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            self.line(&format!("{guard}{line}"));
        }
        self.line(".EE");
        self.line(".RE");
    }

    /// The whole page.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Text in which nothing has a meaning of its own, and what is typed is shown as it is typed.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Bold, of text that was not escaped.
pub(crate) fn bold(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\\fB{}\\fP", escape(text)) }
}

/// Italic, of text that was not escaped.
pub(crate) fn italic(text: &str) -> String {
    format!("\\fI{}\\fP", escape(text))
}

/// One argument of a request.
fn argument(text: &str) -> String {
    format!("\"{}\"", escape(text).replace('"', "\\(dq"))
}
