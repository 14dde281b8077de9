//! Layers to one tree, in which the later layers have beaten the earlier ones: key by key, where a list is one value.
//!
//! The merge itself is that of the `config` crate. What it would do beside that, it never gets to do: whatever type a
//! value should have is checked before, layer by layer, and what was refused there goes in as nothing at all, so that
//! nothing can be made to fit. Each value keeps its place as its origin.

use std::collections::BTreeSet;

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use super::tree::{Data, Node, Place, Table};

/// Merges `layers`, the first of which is the weakest. `refused` are the places of keys and values with a problem: such
/// a key is left out, such a value becomes [`Data::Refused`], and so hides those of the layers below.
///
/// # Errors
/// None is expected, for all that can be wrong with a layer was found before.
pub(super) fn merge<'a>(
    layers: impl IntoIterator<Item = &'a Node>,
    refused: &BTreeSet<Place>,
) -> Result<Node, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(Layer(layer.table().map(|table| to_map(table, refused)).unwrap_or_default()));
    }
    let merged = builder.build()?.collect()?;
    let place = Place::new(0, 0..0);
    Ok(Node { key: place, place, data: Data::Table(from_map(merged)) })
}

/// A layer as the crate takes it.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn to_map(table: &Table, refused: &BTreeSet<Place>) -> Map<String, Value> {
    let known = table.iter().filter(|(_, node)| !refused.contains(&node.key));
    known.map(|(key, node)| (key.clone(), to_value(node, refused))).collect()
}

fn to_value(node: &Node, refused: &BTreeSet<Place>) -> Value {
    let kind = match &node.data {
        _ if refused.contains(&node.place) => ValueKind::Nil,
        Data::Text(text) => ValueKind::String(text.clone()),
        Data::Integer(Some(number), _) => ValueKind::I64(*number),
        Data::Boolean(is) => ValueKind::Boolean(*is),
        Data::Array(nodes) if nodes.iter().any(|node| refused.contains(&node.place)) => ValueKind::Nil,
        Data::Array(nodes) => ValueKind::Array(nodes.iter().map(|node| to_value(node, refused)).collect()),
        Data::Table(table) => ValueKind::Table(to_map(table, refused)),
        // No key takes any of these.
        Data::Integer(None, _) | Data::Float(_) | Data::Datetime | Data::Refused => ValueKind::Nil,
    };
    Value::new(Some(&node.place.to_string()), kind)
}

fn from_map(map: Map<String, Value>) -> Table {
    map.into_iter().map(|(key, value)| (key, from_value(value))).collect()
}

fn from_value(value: Value) -> Node {
    // Tables that the merge has made have no origin, and need none.
    let place = value.origin().and_then(Place::parse).unwrap_or(Place::new(0, 0..0));
    let data = match value.kind {
        ValueKind::String(text) => Data::Text(text),
        ValueKind::I64(number) => Data::Integer(Some(number), number.to_string()),
        ValueKind::Boolean(is) => Data::Boolean(is),
        ValueKind::Array(values) => Data::Array(values.into_iter().map(from_value).collect()),
        ValueKind::Table(map) => Data::Table(from_map(map)),
        _ => Data::Refused,
    };
    Node { key: place, place, data }
}
