//! Layers to one tree, in which the later layers have beaten the earlier ones: key by key, where a list is one value.
//!
//! The merge itself is that of the `config` crate. Its type conversions are not used: the type of each value is checked
//! before, layer by layer, and an invalid value is passed as nil, so that the crate cannot convert it. Each value keeps
//! its span as its origin.

use std::collections::BTreeSet;

use config::{Config, ConfigError, Map, Source, Value as MergedValue, ValueKind};

use super::tree::{Node, Span, Table, Value};

/// Merges `layers`, the first of which is the weakest. `invalid` are the spans of keys and values with a problem: such
/// a key is omitted, such a value becomes [`Value::Invalid`], and so hides those of the layers below.
///
/// # Errors
/// Returns an error of the `config` crate. None is expected, because every layer was checked before.
pub(super) fn merge<'a>(
    layers: impl IntoIterator<Item = &'a Node>,
    invalid: &BTreeSet<Span>,
) -> Result<Node, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(Layer(layer.table().map(|table| to_map(table, invalid)).unwrap_or_default()));
    }
    let merged = builder.build()?.collect()?;
    let span = Span::new(0, 0..0);
    Ok(Node { key_span: span, span, value: Value::Table(from_map(merged)) })
}

/// A layer as the crate takes it.
#[derive(Debug, Clone)]
struct Layer(Map<String, MergedValue>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, MergedValue>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn to_map(table: &Table, invalid: &BTreeSet<Span>) -> Map<String, MergedValue> {
    let known = table.iter().filter(|(_, node)| !invalid.contains(&node.key_span));
    known.map(|(key, node)| (key.clone(), to_value(node, invalid))).collect()
}

fn to_value(node: &Node, invalid: &BTreeSet<Span>) -> MergedValue {
    let kind = match &node.value {
        _ if invalid.contains(&node.span) => ValueKind::Nil,
        Value::Text(text) => ValueKind::String(text.clone()),
        Value::Integer(Some(number), _) => ValueKind::I64(*number),
        Value::Boolean(is) => ValueKind::Boolean(*is),
        Value::Array(nodes) if nodes.iter().any(|node| invalid.contains(&node.span)) => ValueKind::Nil,
        Value::Array(nodes) => ValueKind::Array(nodes.iter().map(|node| to_value(node, invalid)).collect()),
        Value::Table(table) => ValueKind::Table(to_map(table, invalid)),
        // No key takes any of these.
        Value::Integer(None, _) | Value::Float(_) | Value::Datetime | Value::Invalid => ValueKind::Nil,
    };
    MergedValue::new(Some(&node.span.to_string()), kind)
}

fn from_map(map: Map<String, MergedValue>) -> Table {
    map.into_iter().map(|(key, value)| (key, from_value(value))).collect()
}

fn from_value(value: MergedValue) -> Node {
    // Tables that the merge has made have no origin, and need none.
    let span = value.origin().and_then(Span::parse).unwrap_or(Span::new(0, 0..0));
    let value = match value.kind {
        ValueKind::String(text) => Value::Text(text),
        ValueKind::I64(number) => Value::Integer(Some(number), number.to_string()),
        ValueKind::Boolean(is) => Value::Boolean(is),
        ValueKind::Array(values) => Value::Array(values.into_iter().map(from_value).collect()),
        ValueKind::Table(map) => Value::Table(from_map(map)),
        _ => Value::Invalid,
    };
    Node { key_span: span, span, value }
}
