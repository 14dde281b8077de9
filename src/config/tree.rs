//! A layer of the configuration as a tree of values, each with its place.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue, Error as TomlError};

/// Some bytes of a layer's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Which layer: the later ones beat the earlier ones.
    pub(super) layer: usize,
    /// The first byte.
    pub(super) start: usize,
    /// The byte after the last.
    pub(super) end: usize,
}

impl Place {
    pub(super) fn new(layer: usize, span: Range<usize>) -> Self {
        Self { layer, start: span.start, end: span.end }
    }

    /// Reads what [`Place::fmt`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self { layer: next()?, start: next()?, end: next()? })
    }
}

/// Three numbers, with which a value keeps its place through a merge.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.layer, self.start, self.end)
    }
}

/// A value, its place and that of its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// The key; the value itself where it has none.
    pub(super) key: Place,
    pub(super) place: Place,
    pub(super) data: Data,
}

/// What is written somewhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Text(String),
    /// Its number, where 64 bits hold it, and how it was written.
    Integer(Option<i64>, String),
    /// How it was written.
    Float(String),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
    /// Something that was refused before; its problem is known.
    Refused,
}

pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    /// The tree of a document.
    ///
    /// # Errors
    /// It is no TOML: everything that the parser found.
    pub(super) fn of_document(layer: usize, text: &str) -> Result<Self, Vec<TomlError>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors);
        }
        let place = Place::new(layer, 0..0);
        Ok(Self { key: place, place, data: Data::Table(table(layer, 0, document.get_ref())) })
    }

    /// The tree of a value that stands at `offset` of its layer's text: as in TOML, else it is a string.
    pub(super) fn of_value(layer: usize, offset: usize, text: &str) -> Self {
        let place = Place::new(layer, offset..offset + text.len());
        let parsed = DeValue::parse(text);
        let data = parsed.map_or_else(|_| Data::Text(text.to_owned()), |value| data(layer, offset, value.get_ref()));
        Self { key: place, place, data }
    }

    /// What stands below these keys.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.table()?.get(*key))
    }

    pub(super) fn table(&self) -> Option<&Table> {
        if let Data::Table(table) = &self.data { Some(table) } else { None }
    }
}

impl Data {
    /// What it is, with its article: "an integer".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(..) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a datetime",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Refused => "refused",
        }
    }
}

fn table(layer: usize, offset: usize, table: &DeTable<'_>) -> Table {
    let moved = |span: Range<usize>| Place::new(layer, span.start + offset..span.end + offset);
    let nodes = table.iter().map(|(key, value)| {
        let data = data(layer, offset, value.get_ref());
        (key.get_ref().to_string(), Node { key: moved(key.span()), place: moved(value.span()), data })
    });
    nodes.collect()
}

fn data(layer: usize, offset: usize, value: &DeValue<'_>) -> Data {
    match value {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => {
            Data::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok(), number.to_string())
        }
        DeValue::Float(number) => Data::Float(number.to_string()),
        DeValue::Boolean(is) => Data::Boolean(*is),
        DeValue::Datetime(_) => Data::Datetime,
        DeValue::Array(values) => {
            let nodes = values.iter().map(|value| {
                let span = value.span();
                let place = Place::new(layer, span.start + offset..span.end + offset);
                Node { key: place, place, data: data(layer, offset, value.get_ref()) }
            });
            Data::Array(nodes.collect())
        }
        DeValue::Table(inner) => Data::Table(table(layer, offset, inner)),
    }
}
