//! Which files are read, in which order, and how variables and options take part:
//!
//! 1. `echoed.toml` of `/usr/lib/echoed`, `/run/echoed`, `/etc/echoed`, in this order. An empty one, or one that is a link
//!    to /dev/null, masks those before it.
//! 2. The drop-ins `echoed.toml.d/*.toml` of the same three places, in the order of their file names. Of two with one
//!    name, the later place's alone is there; an empty one, or a link to /dev/null, is not.
//! 3. Variables `ECHOED_SECTION__KEY`.
//! 4. Options.
//!
//! This is how systemd and much around it do it (UAPI.6, the configuration files specification), except that there of
//! several main files only the last is read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::diagnose::{Origin, block, shown};
use super::keys::string;
use super::tree::{Data, Node, Place, Table};

/// Where configuration is, the strongest last.
const PLACES: [&str; 3] = ["usr/lib/echoed", "run/echoed", "etc/echoed"];

/// The largest file, in bytes: a hundred times what anybody writes, and nothing that would hurt.
const MAX_FILE: u64 = 1 << 20;

/// Why a link may lead nowhere that leads somewhere for everybody else.
const BOUNDS: &str = " (the service sees /etc/echoed, /run/echoed and /usr/lib only)";

/// What variables begin with.
const VARIABLES: &str = "ECHOED_";

/// One source of settings.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    /// What the places of its tree are about.
    pub(super) text: String,
    /// What it sets; or why that cannot be read, as blocks.
    pub(super) tree: Result<Node, Vec<String>>,
}

impl Layer {
    /// The layer number `index`: a document.
    pub(super) fn of_document(index: usize, name: &str, text: &str) -> Self {
        let origin = Origin::File(shown(name).into_owned());
        // Editors of other systems write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
        let tree = Node::of_document(index, &text).map_err(|errors| {
            let mut found: Vec<_> = errors.iter().map(|error| syntax_error(index, &text, error)).collect();
            found.sort_by_key(|(place, _)| *place);
            // What else is found in a line follows from the first as a rule.
            found.dedup_by_key(|(place, _)| text.get(..place.start).unwrap_or(&text).matches('\n').count());
            found.iter().map(|(place, message)| block(&origin, &text, *place, message)).collect()
        });
        Self { origin, text, tree }
    }

    /// The layer number `index`: a variable of the environment, if its name is one of ours.
    fn of_variable(index: usize, name: &OsString, value: &OsString) -> Option<Self> {
        let text = name.to_string_lossy();
        let path = text.strip_prefix(VARIABLES).filter(|path| path.contains("__"))?;
        let capitals = path.to_uppercase();
        let (Some(value), true) = (value.to_str(), path == capitals && name.to_str().is_some()) else {
            let why = if path == capitals { "is not UTF-8".to_owned() } else { format!("write {VARIABLES}{capitals}") };
            return Some(Self::unreadable(&text, &why));
        };
        let mut start = VARIABLES.len();
        let mut keys = Vec::new();
        for key in path.split("__") {
            keys.push((key.to_lowercase(), Place::new(index, start..start + key.len())));
            start += key.len() + "__".len();
        }
        let node = Node::of_value(index, text.len() + 1, value);
        let (origin, text) = (Origin::Word(shown(&text).into_owned()), format!("{text}={value}"));
        Some(Self { origin, text, tree: Ok(nested(keys, node)) })
    }

    /// The layer number `index`: an option of the command line, which sets a key.
    pub(super) fn of_option(index: usize, option: &str, path: &[&str], value: &str) -> Self {
        let place = Place::new(index, 0..option.len());
        let keys = path.iter().map(|key| ((*key).to_owned(), place)).collect();
        let start = option.len() + 1;
        let place = Place::new(index, start..start + value.len());
        let node = Node { key: place, place, data: Data::Text(value.to_owned()) };
        let (origin, text) = (Origin::Word(option.to_owned()), format!("{option} {value}"));
        Self { origin, text, tree: Ok(nested(keys, node)) }
    }

    fn unreadable(name: &str, why: &str) -> Self {
        let name = shown(name).into_owned();
        let problem = format!("{name}: {why}");
        Self { origin: Origin::File(name), text: String::new(), tree: Err(vec![problem]) }
    }
}

/// A tree in which nothing is set but what these keys lead to.
fn nested(keys: Vec<(String, Place)>, value: Node) -> Node {
    let mut node = value;
    for (key, place) in keys.into_iter().rev() {
        node.key = place;
        node = Node { key: place, place, data: Data::Table(Table::from([(key, node)])) };
    }
    node
}

fn syntax_error(layer: usize, text: &str, error: &toml::de::Error) -> (Place, String) {
    let span = error.span().unwrap_or(text.len()..text.len());
    let there = text.get(span.clone()).unwrap_or_default();
    // What is meant by it, where that is certain.
    let message = match (error.message(), &*there.to_lowercase()) {
        (_, "true" | "yes" | "on") => format!("{there} is no value; write true, or \"{there}\""),
        (_, "false" | "no" | "off") => format!("{there} is no value; write false, or \"{there}\""),
        (message, "") if message.starts_with("string values must be quoted") => "a value is missing".to_owned(),
        (message, word)
            if message.starts_with("string values must be quoted")
                || (message.starts_with("invalid ") && word.bytes().all(|byte| byte.is_ascii_lowercase())) =>
        {
            format!("{there} is no value; strings stand in quotes: {}", string(there))
        }
        ("duplicate key", _) => "duplicate key; it is there before, and only one can be".to_owned(),
        (message, _) => message.lines().collect::<Vec<_>>().join(", "),
    };
    (Place::new(layer, span), message)
}

/// The variables that are ours, the more special of two after the other.
pub(super) fn add_variables(environment: &[(OsString, OsString)], layers: &mut Vec<Layer>) {
    let sorted: BTreeMap<_, _> = environment.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in sorted {
        layers.extend(Layer::of_variable(layers.len(), name, value));
    }
}

/// The one file that takes the place of all others. It may be a pipe, but it has to be there.
pub(super) fn add_file(path: &Path, layers: &mut Vec<Layer>) {
    let layer = match read(path) {
        Ok(text) => Layer::of_document(layers.len(), &path.to_string_lossy(), &text),
        Err(layer) => *layer,
    };
    layers.push(layer);
}

/// The files below `root` (`/`, except in tests). Those that are not there set nothing.
pub(super) fn add_files(root: &Path, layers: &mut Vec<Layer>) {
    let mut main_files = Vec::new();
    for place in PLACES {
        let directory = root.join(place);
        // In a mount namespace we keep the one that was there when we started.
        if fs::metadata(&directory).is_ok_and(|found| found.nlink() == 0) {
            let why = "was removed or replaced while echoed runs, which cannot see the new one; restart the service";
            main_files.push(Err(Box::new(Layer::unreadable(&directory.to_string_lossy(), why))));
        }
        let path = directory.join("echoed.toml");
        match look_at(&path) {
            Ok(Found::Nothing) => {}
            Ok(Found::Mask) => main_files.clear(),
            Ok(Found::File) => main_files.push(Ok(path)),
            Err(layer) => main_files.push(Err(layer)),
        }
    }
    let mut drop_ins = BTreeMap::new();
    for place in PLACES {
        let directory = root.join(place).join("echoed.toml.d");
        match drop_ins_of(&directory) {
            Ok(names) => drop_ins.extend(names.into_iter().map(|name| (name.clone(), directory.join(name)))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => main_files.push(Err(Box::new(not_read(&directory, &error)))),
        }
    }
    let drop_ins = drop_ins.into_values().filter_map(|path| match look_at(&path) {
        Ok(Found::Nothing | Found::Mask) => None,
        Ok(Found::File) => Some(Ok(path)),
        Err(layer) => Some(Err(layer)),
    });
    for found in main_files.into_iter().chain(drop_ins) {
        match found {
            Ok(path) => add_file(&path, layers),
            Err(layer) => layers.push(*layer),
        }
    }
}

/// The names of the drop-ins in a directory. What editors leave behind has other endings or begins with a point.
fn drop_ins_of(directory: &Path) -> io::Result<Vec<OsString>> {
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

/// What is at a path.
enum Found {
    Nothing,
    /// An empty file or /dev/null.
    Mask,
    File,
}

fn look_at(path: &Path) -> Result<Found, Box<Layer>> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_char_device() || (found.is_file() && found.len() == 0) => Ok(Found::Mask),
        Ok(found) if found.is_file() => Ok(Found::File),
        Ok(found) => {
            let what = if found.is_dir() { "is a directory" } else { "is no file" };
            Err(Box::new(Layer::unreadable(&path.to_string_lossy(), &format!("{what}; a file is expected here"))))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) if target == Path::new("/dev/null") => Ok(Found::Mask),
            Ok(target) => {
                let why = format!("is a link to {}, which is not there{BOUNDS}; mend or remove it", target.display());
                Err(Box::new(Layer::unreadable(&path.to_string_lossy(), &why)))
            }
            Err(_) => Ok(Found::Nothing),
        },
        Err(error) => Err(Box::new(not_read(path, &error))),
    }
}

/// The text of a file, or what takes its place in the layers.
fn read(path: &Path) -> Result<String, Box<Layer>> {
    let name = path.to_string_lossy();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(Box::new(not_read(path, &error))),
        Ok(count) if count as u64 > MAX_FILE => {
            let why = "has more than 1MiB, so it is probably not what was meant; configurations are smaller";
            Err(Box::new(Layer::unreadable(&name, why)))
        }
        Ok(_) => String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let (origin, text) = (Origin::File(shown(&name).into_owned()), String::from_utf8_lossy(error.as_bytes()));
            let place = Place::new(0, at..at + char::REPLACEMENT_CHARACTER.len_utf8());
            let problem = block(&origin, &text, place, "this is not UTF-8; save the file as UTF-8");
            Box::new(Layer { origin, text: String::new(), tree: Err(vec![problem]) })
        }),
    }
}

fn not_read(path: &Path, error: &io::Error) -> Layer {
    let hint = match error.kind() {
        ErrorKind::NotFound => "; --config takes a file that is there",
        ErrorKind::PermissionDenied => "; let the user that echoed runs as read it",
        ErrorKind::IsADirectory => "; a file is expected here",
        _ => "",
    };
    Layer::unreadable(&path.to_string_lossy(), &format!("cannot be read: {error}{hint}"))
}

/// The files among `layers`, in their order.
pub(super) fn files(layers: &[Layer]) -> Vec<PathBuf> {
    let path = |layer: &Layer| if let Origin::File(path) = &layer.origin { Some(path.into()) } else { None };
    layers.iter().filter_map(path).collect()
}
