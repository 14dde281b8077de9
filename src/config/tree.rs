//! A layer of the configuration as a tree of values, each with its span.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue, Error as TomlError};

/// A range of bytes in the text of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    /// Which layer: the later ones beat the earlier ones.
    pub(super) layer: usize,
    /// The first byte.
    pub(super) start: usize,
    /// The byte after the last.
    pub(super) end: usize,
}

impl Span {
    pub(super) fn new(layer: usize, range: Range<usize>) -> Self {
        Self { layer, start: range.start, end: range.end }
    }

    /// Parses what [`Span::fmt`](fmt::Display::fmt) wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self { layer: next()?, start: next()?, end: next()? })
    }
}

/// Three numbers, with which a value keeps its span through a merge.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.layer, self.start, self.end)
    }
}

/// A value, its span and that of its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// The span of the key; that of the value where it has no key.
    pub(super) key_span: Span,
    pub(super) span: Span,
    pub(super) value: Value,
}

/// A value as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Its number, where 64 bits hold it, and how it was written.
    Integer(Option<i64>, String),
    /// How it was written.
    Float(String),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
    /// An invalid value; its problem was reported before.
    Invalid,
}

pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    /// Parses the tree of a document.
    ///
    /// # Errors
    /// Returns all errors that the parser found, if the text is not TOML.
    pub(super) fn from_document(layer: usize, text: &str) -> Result<Self, Vec<TomlError>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors);
        }
        let span = Span::new(layer, 0..0);
        Ok(Self { key_span: span, span, value: Value::Table(to_table(layer, 0, document.get_ref())) })
    }

    /// Parses the tree of a value at `offset` of its layer's text: as TOML, or else as a string.
    pub(super) fn from_value(layer: usize, offset: usize, text: &str) -> Self {
        let span = Span::new(layer, offset..offset + text.len());
        let parsed = DeValue::parse(text);
        let value =
            parsed.map_or_else(|_| Value::Text(text.to_owned()), |parsed| to_value(layer, offset, parsed.get_ref()));
        Self { key_span: span, span, value }
    }

    /// Returns the node below these keys.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.table()?.get(*key))
    }

    pub(super) fn table(&self) -> Option<&Table> {
        if let Value::Table(table) = &self.value { Some(table) } else { None }
    }
}

impl Value {
    /// Returns its type with an article: "an integer".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(..) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a datetime",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Invalid => "refused",
        }
    }
}

fn to_table(layer: usize, offset: usize, table: &DeTable<'_>) -> Table {
    let moved = |range: Range<usize>| Span::new(layer, range.start + offset..range.end + offset);
    let nodes = table.iter().map(|(key, de_value)| {
        let value = to_value(layer, offset, de_value.get_ref());
        (key.get_ref().to_string(), Node { key_span: moved(key.span()), span: moved(de_value.span()), value })
    });
    nodes.collect()
}

fn to_value(layer: usize, offset: usize, de_value: &DeValue<'_>) -> Value {
    match de_value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok(), number.to_string())
        }
        DeValue::Float(number) => Value::Float(number.to_string()),
        DeValue::Boolean(is) => Value::Boolean(*is),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(values) => {
            let nodes = values.iter().map(|de_value| {
                let range = de_value.span();
                let span = Span::new(layer, range.start + offset..range.end + offset);
                Node { key_span: span, span, value: to_value(layer, offset, de_value.get_ref()) }
            });
            Value::Array(nodes.collect())
        }
        DeValue::Table(inner) => Value::Table(to_table(layer, offset, inner)),
    }
}
