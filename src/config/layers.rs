//! Which files are read, in which order, and how variables and options take part:
//!
//! 1. `echoed.toml` of `/usr/lib/echoed`, `/run/echoed`, `/etc/echoed`, in this order. An empty one, or one that is a
//!    link to /dev/null, masks those before it.
//! 2. The drop-ins `echoed.toml.d/*.toml` of the same three directories, in the order of their file names. Of two with
//!    the same name, only that of the later directory counts; an empty one, or a link to /dev/null, does not.
//! 3. Variables `ECHOED_SECTION__KEY`.
//! 4. Options.
//!
//! This is how systemd and much around it do it (UAPI.6, the configuration files specification), except that there of
//! several main files only the last is read.
//!
//! A service that has directories of its own (`ConfigurationDirectory=`: an instance, the service of a user) has its
//! settings there, and not in `/run/echoed` and `/etc/echoed`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnose::{Error, Origin, SourceText};
use super::keys;
use super::notation::toml_string;
use super::tree::{Node, Span, Table, Value};
use crate::escape::{Controls, escape_unsafe};

/// The directory of what the distribution sets, below the root.
const VENDOR_DIRECTORY: &str = "usr/lib/echoed";

/// The directories of what the administrator sets, until the next boot and for ever, below the root.
const ADMIN_DIRECTORIES: [&str; 2] = ["run/echoed", "etc/echoed"];

/// Returns the directories of the configuration below `root`, the strongest last. `assigned` is what the service manager
/// has set for this process (`CONFIGURATION_DIRECTORY`, systemd.exec(5)): absolute paths with colons between them.
pub(super) fn directories(root: &Path, assigned: Option<&OsStr>) -> Vec<PathBuf> {
    let admin = ADMIN_DIRECTORIES.map(|directory| Path::new("/").join(directory));
    let assigned: Vec<_> =
        assigned.into_iter().flat_map(env::split_paths).filter(|directory| directory.is_absolute()).collect();
    let mut directories = vec![Path::new("/").join(VENDOR_DIRECTORY)];
    // Those of echoed.service, which has this one assigned.
    if assigned.is_empty() || assigned.contains(&admin[1]) {
        directories.extend(admin);
    }
    for directory in assigned {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories.iter().map(|directory| root.join(directory.strip_prefix("/").unwrap_or(directory))).collect()
}

/// The largest file, in bytes: a hundred times a usual one, and small enough to read at once.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Why the target of a link may be missing for the service and present for other programs.
const SANDBOX_HINT: &str = " (the service sees /etc/echoed, /run/echoed and /usr/lib only)";

/// The prefix of environment variables that are settings.
const VARIABLE_PREFIX: &str = "ECHOED_";

/// One source of settings.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// The text that the spans of its tree refer to.
    pub(super) source: SourceText,
    /// The settings in it, or why they cannot be read.
    pub(super) tree: Result<Node, Arc<Error>>,
}

impl Layer {
    /// Creates the layer number `index` from a document.
    pub(super) fn from_document(index: usize, name: &str, text: &str) -> Self {
        let origin = Origin::File(escape_name(name));
        // Editors of other systems write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
        let source = SourceText::new(origin, text);
        let tree = Node::from_document(index, &source.text).map_err(|errors| {
            let mut spans: Vec<_> = errors.iter().map(|error| (span_of(index, &source.text, error), error)).collect();
            spans.sort_by_key(|(span, _)| *span);
            // Further errors in the same line usually follow from the first.
            spans.dedup_by_key(|(span, _)| source.line_number(span.start));
            let mut shown = Error::default();
            for (span, error) in spans {
                shown.push(|| source.format_block(span, &describe_syntax_error(&source.text, span, error)));
            }
            Arc::new(shown)
        });
        Self { source, tree }
    }

    /// Creates the layer number `index` from an environment variable, if its name is one of ours.
    fn from_variable(index: usize, name: &OsString, value: &OsString) -> Option<Self> {
        let text = name.to_string_lossy();
        let path = text.strip_prefix(VARIABLE_PREFIX).filter(|path| path.contains("__"))?;
        let capitals = path.to_uppercase();
        let (Some(value), true) = (value.to_str(), path == capitals && name.to_str().is_some()) else {
            let why =
                if path == capitals { "is not UTF-8".to_owned() } else { format!("write {VARIABLE_PREFIX}{capitals}") };
            return Some(Self::unreadable(&text, &why));
        };
        let mut start = VARIABLE_PREFIX.len();
        let mut keys = Vec::new();
        for key in path.split("__") {
            keys.push((key.to_lowercase(), Span::new(index, start..start + key.len())));
            start += key.len() + "__".len();
        }
        let node = Node::from_value(index, text.len() + 1, value);
        let origin = Origin::Inline(escape_name(&text));
        Some(Self { source: SourceText::new(origin, format!("{text}={value}")), tree: Ok(nested(keys, node)) })
    }

    /// Creates the layer number `index` from a command line option, which sets a key.
    pub(super) fn from_option(index: usize, option: &str, path: &[&str], value: &str) -> Self {
        let span = Span::new(index, 0..option.len());
        let keys = path.iter().map(|key| ((*key).to_owned(), span)).collect();
        let start = option.len() + 1;
        let range = Span::new(index, start..start + value.len());
        let node = Node { key_span: range, span: range, value: Value::Text(value.to_owned()) };
        let source = SourceText::new(Origin::Inline(option.to_owned()), format!("{option} {value}"));
        Self { source, tree: Ok(nested(keys, node)) }
    }

    fn unreadable(name: &str, why: &str) -> Self {
        let name = escape_name(name);
        let problem = format!("{name}: {why}");
        Self::invalid(Origin::File(name), problem)
    }

    fn invalid(origin: Origin, problem: String) -> Self {
        let mut error = Error::default();
        error.push(|| problem);
        Self { source: SourceText::new(origin, String::new()), tree: Err(Arc::new(error)) }
    }
}

/// Returns a tree in which only the value at the path `keys` is set.
fn nested(keys: Vec<(String, Span)>, value: Node) -> Node {
    let mut node = value;
    for (key, range) in keys.into_iter().rev() {
        node.key_span = range;
        node = Node { key_span: range, span: range, value: Value::Table(Table::from([(key, node)])) };
    }
    node
}

/// Returns a name as it is shown, on one line.
fn escape_name(name: &str) -> String {
    escape_unsafe(name, Controls::Unicode, |_| false).into_owned()
}

fn span_of(layer: usize, text: &str, error: &toml::de::Error) -> Span {
    Span::new(layer, error.span().unwrap_or(text.len()..text.len()))
}

fn describe_syntax_error(text: &str, span: Span, error: &toml::de::Error) -> String {
    let there = text.get(span.start..span.end).unwrap_or_default();
    let (before, after) = (text.get(..span.start).unwrap_or(text), text.get(span.end..).unwrap_or_default());
    let (start, end) = (before.lines().next_back().unwrap_or_default(), after.lines().next().unwrap_or_default());
    if there.contains(is_typographic_quote) || there.is_empty() && start.contains(is_typographic_quote) {
        return format!("typographic quotes are not quotes in TOML; write {}", toml_string(trim_quotes(there)));
    }
    if there == ":" && error.message().starts_with("invalid unquoted key") {
        return format!("an equals sign separates a key from its value; write {} = {}", start.trim(), end.trim());
    }
    // The intended value, if it is certain.
    match (error.message(), &*there.to_lowercase()) {
        (_, "true" | "yes" | "on") => format!("invalid value {there}; write true, or \"{there}\""),
        (_, "off") => format!("invalid value {there}; write \"{there}\", or false for a key that is true or false"),
        (_, "false" | "no") => format!("invalid value {there}; write false, or \"{there}\""),
        (message, "") if message.starts_with("string values must be quoted") => "a value is missing".to_owned(),
        (message, word)
            if message.starts_with("string values must be quoted")
                || (message.starts_with("invalid ") && word.bytes().all(|byte| byte.is_ascii_lowercase())) =>
        {
            format!("invalid value {there}; strings need quotes: {}", toml_string(there))
        }
        ("duplicate key", _) => "duplicate key; it is already set above".to_owned(),
        (message, _) => message.lines().collect::<Vec<_>>().join(", "),
    }
}

/// Returns whether this is a quotation mark of text, which word processors and web pages put in place of `"` and `'`.
fn is_typographic_quote(character: char) -> bool {
    matches!(character, '\u{2018}'..='\u{201f}' | '\u{ab}' | '\u{bb}')
}

/// Returns what is quoted, or `...` where that is not in the text.
fn trim_quotes(text: &str) -> &str {
    let quoted =
        text.trim_matches(|character| is_typographic_quote(character) || character == '"' || character == '\'');
    if quoted.is_empty() { "..." } else { quoted }
}

/// Warns about variables that are not ours, but look as if they should be: `ECHOED_LOG_LEVEL`.
pub(super) fn warn_about_variables(environment: &[(OsString, OsString)]) -> Vec<String> {
    let names = environment.iter().filter_map(|(name, _)| name.to_str());
    let warn = |name: &str| {
        let meant = keys::variable_meant_by(name.strip_prefix(VARIABLE_PREFIX)?)?;
        Some(format!("the variable {name} is not read; write {VARIABLE_PREFIX}{meant} if that is meant"))
    };
    names.filter_map(warn).collect()
}

/// Adds the variables of echoed, the more specific of two after the other.
pub(super) fn add_variables(environment: &[(OsString, OsString)], layers: &mut Vec<Layer>) {
    let sorted: BTreeMap<_, _> = environment.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in sorted {
        layers.extend(Layer::from_variable(layers.len(), name, value));
    }
}

/// Adds the one file that replaces all others. It may be a pipe, but it has to exist.
pub(super) fn add_file(path: &Path, layers: &mut Vec<Layer>) {
    let layer = match read(path) {
        Ok(text) => Layer::from_document(layers.len(), &path.to_string_lossy(), &text),
        Err(layer) => *layer,
    };
    layers.push(layer);
}

/// Adds the files in these directories. Missing files set nothing. Returns the masks.
pub(super) fn add_files(directories: &[PathBuf], layers: &mut Vec<Layer>) -> Vec<PathBuf> {
    let (mut found_files, mut masks) = (Vec::new(), Vec::new());
    for directory in directories {
        // In a mount namespace we keep the one that was there when we started.
        if fs::metadata(directory).is_ok_and(|found| found.nlink() == 0) {
            let why = "was removed or replaced while echoed runs, which cannot see the new one; restart the service";
            found_files.push(Err(Box::new(Layer::unreadable(&directory.to_string_lossy(), why))));
        }
        let path = directory.join("echoed.toml");
        match classify_file(&path) {
            Ok(FileKind::Missing) => {}
            Ok(FileKind::Mask) => {
                found_files.clear();
                masks.push(path);
            }
            Ok(FileKind::Regular) => found_files.push(Ok(path)),
            Err(layer) => found_files.push(Err(layer)),
        }
    }
    let mut drop_ins = BTreeMap::new();
    for directory in directories {
        let directory = directory.join("echoed.toml.d");
        match list_drop_ins(&directory) {
            Ok(names) => drop_ins.extend(names.into_iter().map(|name| (name.clone(), directory.join(name)))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => found_files.push(Err(Box::new(unreadable_file(&directory, &error)))),
        }
    }
    for path in drop_ins.into_values() {
        match classify_file(&path) {
            Ok(FileKind::Missing) => {}
            Ok(FileKind::Mask) => masks.push(path),
            Ok(FileKind::Regular) => found_files.push(Ok(path)),
            Err(layer) => found_files.push(Err(layer)),
        }
    }
    for found in found_files {
        match found {
            Ok(path) => add_file(&path, layers),
            Err(layer) => layers.push(*layer),
        }
    }
    masks
}

/// Lists the names of the drop-ins in a directory. Files that editors leave have other endings or begin with a dot.
fn list_drop_ins(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The kind of a file.
enum FileKind {
    Missing,
    /// An empty file or /dev/null.
    Mask,
    Regular,
}

/// Returns whether a file is /dev/null (null(4)), whatever it is called.
fn is_null_device(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3)
}

fn classify_file(path: &Path) -> Result<FileKind, Box<Layer>> {
    match fs::metadata(path) {
        Ok(found) if is_null_device(&found) || (found.is_file() && found.len() == 0) => Ok(FileKind::Mask),
        Ok(found) if found.is_file() => Ok(FileKind::Regular),
        Ok(found) => {
            let why = match found.file_type() {
                kind if kind.is_dir() => "is a directory; a file is expected here",
                kind if kind.is_char_device() => {
                    "is another device than /dev/null; only an empty file or a link to /dev/null masks others"
                }
                _ => "is not a file; a file is expected here",
            };
            Err(Box::new(Layer::unreadable(&path.to_string_lossy(), why)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) if target == Path::new("/dev/null") => Ok(FileKind::Mask),
            Ok(target) => {
                let why =
                    format!("is a link to {}, which does not exist{SANDBOX_HINT}; fix or remove it", target.display());
                Err(Box::new(Layer::unreadable(&path.to_string_lossy(), &why)))
            }
            Err(_) => Ok(FileKind::Missing),
        },
        Err(error) => Err(Box::new(unreadable_file(path, &error))),
    }
}

/// Returns the text of a file, or a layer with the error.
fn read(path: &Path) -> Result<String, Box<Layer>> {
    let name = path.to_string_lossy();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(Box::new(unreadable_file(path, &error))),
        Ok(count) if count as u64 > MAX_FILE_SIZE => {
            let why = "is larger than 1MiB, the maximum for a configuration file";
            Err(Box::new(Layer::unreadable(&name, why)))
        }
        Ok(_) => String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let origin = Origin::File(escape_name(&name));
            let source = SourceText::new(origin, String::from_utf8_lossy(error.as_bytes()).into_owned());
            let span = Span::new(0, at..at + char::REPLACEMENT_CHARACTER.len_utf8());
            let problem = source.format_block(span, "invalid UTF-8; save the file as UTF-8");
            Box::new(Layer::invalid(source.origin, problem))
        }),
    }
}

fn unreadable_file(path: &Path, error: &io::Error) -> Layer {
    let hint = match error.kind() {
        ErrorKind::NotFound => "; --config needs an existing file",
        ErrorKind::PermissionDenied => "; let the user that echoed runs as read it",
        ErrorKind::IsADirectory => "; a file is expected here",
        _ => "",
    };
    Layer::unreadable(&path.to_string_lossy(), &format!("cannot be read: {error}{hint}"))
}

/// Returns the files among `layers`, in their order.
pub(super) fn files(layers: &[Layer]) -> Vec<PathBuf> {
    let path = |layer: &Layer| if let Origin::File(path) = &layer.source.origin { Some(path.into()) } else { None };
    layers.iter().filter_map(path).collect()
}
