//! From where the settings come to what they are: [`Sources::load`].

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::diagnose::{Error, Problem};
use super::layers::{self, Layer};
use super::tree::{Node, Span};
use super::{Level, Settings, conflicts, merge, print, read};
use crate::address::Address;

/// The variable in which the service manager names the directories of a service with settings (systemd.exec(5)).
const CONFIGURATION_DIRECTORY: &str = "CONFIGURATION_DIRECTORY";

/// The sources of settings. They can be [loaded](Self::load) repeatedly.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Below this are `usr/lib/echoed`, `run/echoed` and `etc/echoed`: `/`, except in tests.
    pub root: PathBuf,
    /// A file that replaces all files below `root`.
    pub config: Option<PathBuf>,
    /// The environment, of which `ECHOED_SECTION__KEY` are settings, and `CONFIGURATION_DIRECTORY` takes the place of
    /// `run/echoed` and `etc/echoed`.
    pub environment: Vec<(OsString, OsString)>,
    /// `--log-level`.
    pub log_level: Option<Level>,
    /// `--listen`: names of listeners and where they listen, instead of all `listen` keys. They change no settings, but
    /// what is [printed](Loaded::print).
    pub listen: Vec<(String, Address)>,
}

/// The usual files, and nothing else.
impl Default for Sources {
    fn default() -> Self {
        Self { root: "/".into(), config: None, environment: Vec::new(), log_level: None, listen: Vec::new() }
    }
}

impl Sources {
    /// Returns the default files and the environment of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self { environment: env::vars_os().collect(), ..Self::default() }
    }

    /// Reads and checks everything, as it is now.
    ///
    /// # Errors
    /// Returns all problems of all sources, if one cannot be read or has invalid settings.
    pub fn load(&self) -> Result<Loaded, Error> {
        let (mut layers, mut masks) = (Vec::new(), Vec::new());
        match &self.config {
            Some(path) => layers::add_file(path, &mut layers),
            None => masks = layers::add_files(&self.directories(), &mut layers),
        }
        layers::add_variables(&self.environment, &mut layers);
        if let Some(level) = self.log_level {
            layers.push(Layer::from_option(layers.len(), "--log-level", &["log", "level"], level.as_str()));
        }
        let warnings = layers::warn_about_variables(&self.environment);
        Ok(Loaded { masks, warnings, ..Loaded::from_layers(layers, self.listen.clone())? })
    }

    /// Returns the directories with settings, the strongest last.
    fn directories(&self) -> Vec<PathBuf> {
        let assigned = self.environment.iter().find(|(name, _)| name == CONFIGURATION_DIRECTORY);
        layers::directories(&self.root, assigned.map(|(_, value)| &**value))
    }
}

/// Settings, and where each of them comes from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The files that were read, the strongest last.
    pub files: Vec<PathBuf>,
    /// The files that hide others: empty ones, and links to /dev/null.
    pub masks: Vec<PathBuf>,
    /// Settings that were set but are not read, each in one line.
    pub warnings: Vec<String>,
    layers: Vec<Layer>,
    tree: Node,
    listen: Vec<(String, Address)>,
}

impl Loaded {
    pub(super) fn from_layers(layers: Vec<Layer>, listen: Vec<(String, Address)>) -> Result<Self, Error> {
        let (mut unreadable, mut problems) = (Vec::new(), Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            match &layer.tree {
                Ok(tree) => problems.extend(read::read_settings(tree).1),
                Err(error) => unreadable.push((index, error)),
            }
        }
        let invalid: BTreeSet<_> = problems.iter().map(|problem| problem.span).collect();
        let merged = merge::merge(layers.iter().filter_map(|layer| layer.tree.as_ref().ok()), &invalid);
        let tree = merged.map_err(|error| {
            let mut shown = Error::default();
            shown.push(|| format!("the layers cannot be merged: {error}"));
            shown
        })?;
        let (settings, again) = read::read_settings(&tree);
        problems.extend(again);
        // Without the missing layer, conflicts may be reported that do not exist.
        if unreadable.is_empty() {
            problems.extend(conflicts::find(&settings, &tree));
        }
        let error = show_problems(&layers, problems, &unreadable);
        if !error.is_empty() {
            return Err(error);
        }
        Ok(Self {
            settings,
            files: layers::files(&layers),
            masks: Vec::new(),
            warnings: Vec::new(),
            layers,
            tree,
            listen,
        })
    }

    /// Prints the settings as a document that can be loaded, with every key and its origin as a comment:
    /// `FILE:LINE`, a variable, an option, or `default`.
    #[must_use]
    pub fn print(&self) -> String {
        let mut settings = self.settings.clone();
        if !self.listen.is_empty() {
            settings.listeners.values_mut().for_each(|listener| listener.listen.clear());
        }
        for (name, address) in &self.listen {
            let listener = settings.listeners.entry(name.clone()).or_insert_with(|| settings.defaults.clone());
            listener.listen.push(address.clone());
        }
        print::document(settings, |section, key| self.origin(section, key.name))
    }

    fn origin(&self, section: &[&str], key: &str) -> String {
        if key == "listen" && !self.listen.is_empty() {
            return "--listen".to_owned();
        }
        let own = self.tree.find(&[section, &[key]].concat());
        // A listener takes the settings that it does not set from the defaults.
        let inherited = || match section {
            ["listener", _, rest @ ..] => self.tree.find(&[&["defaults"], rest, &[key]].concat()),
            _ => None,
        };
        let span = own.or_else(inherited).map(|node| node.span);
        let layer = span.and_then(|span| Some((self.layers.get(span.layer)?, span)));
        layer.map_or("default".to_owned(), |(layer, span)| layer.source.format_origin(span))
    }
}

/// Returns the error with all problems, in the order of the layers. Those of `unreadable` layers are formatted already.
fn show_problems(layers: &[Layer], mut problems: Vec<Problem>, unreadable: &[(usize, &Arc<Error>)]) -> Error {
    let origin_of = |span: Span| layers.get(span.layer).map(|layer| layer.source.format_origin(span));
    let mut error = Error::default();
    let mut unreadable = unreadable.iter().peekable();
    problems.sort_by_key(|problem| (problem.span.layer, problem.span.start));
    for problem in problems {
        while let Some((_, earlier)) = unreadable.next_if(|(index, _)| *index <= problem.span.layer) {
            error.extend(earlier);
        }
        let Some(layer) = layers.get(problem.span.layer) else { continue };
        error.push(|| {
            let mut message = problem.message;
            for (key, span) in problem.related {
                let origin = span.and_then(origin_of).unwrap_or_else(|| "its default".to_owned());
                message.push_str(&format!(" ({key}: {origin})"));
            }
            layer.source.format_block(problem.span, &message)
        });
    }
    unreadable.for_each(|(_, rest)| error.extend(rest));
    error
}
