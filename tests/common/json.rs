//! JSON as RFC 8259 has it, read strictly.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Index;
use std::str::Chars;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Object(BTreeMap<String, Self>),
}

impl Json {
    /// Reads one value and nothing else.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut rest = text.chars().peekable();
        let value = parse_value(&mut rest);
        match value {
            Some(value) if rest.next().is_none() => value,
            _ => panic!("this is not JSON: {text}"),
        }
    }

    #[track_caller]
    pub fn number(&self) -> f64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("{other:?} is no number"),
        }
    }

    #[track_caller]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("{other:?} is no text"),
        }
    }

    #[track_caller]
    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            other => panic!("{other:?} is no list"),
        }
    }

    pub fn is_true(&self) -> bool {
        *self == Self::Bool(true)
    }

    /// All keys, those of inner objects after a dot.
    pub fn keys(&self) -> Vec<String> {
        match self {
            Self::Object(object) => object
                .iter()
                .flat_map(|(key, value)| {
                    let inner = value.keys().into_iter().map(|inner| format!("{key}.{inner}"));
                    [key.clone()].into_iter().chain(inner).collect::<Vec<_>>()
                })
                .collect(),
            Self::List(list) => list.first().map(Self::keys).unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

impl Index<&str> for Json {
    type Output = Self;

    #[track_caller]
    fn index(&self, key: &str) -> &Self {
        match self {
            Self::Object(object) if object.contains_key(key) => &object[key],
            _ => panic!("no \"{key}\" in {self:?}"),
        }
    }
}

fn parse_value(rest: &mut Peekable<Chars<'_>>) -> Option<Json> {
    match *rest.peek()? {
        '{' => {
            let pair = |rest: &mut Peekable<Chars<'_>>| {
                let key = parse_string(rest)?;
                (rest.next()? == ':').then_some(())?;
                Some((key, parse_value(rest)?))
            };
            let pairs = parse_list(rest, '}', pair)?;
            let count = pairs.len();
            let object: BTreeMap<_, _> = pairs.into_iter().collect();
            (object.len() == count).then_some(Json::Object(object))
        }
        '[' => parse_list(rest, ']', parse_value).map(Json::List),
        '"' => parse_string(rest).map(Json::Text),
        _ => {
            let mut word = String::new();
            while let Some(character) = rest.next_if(|character| !",]}".contains(*character)) {
                word.push(character);
            }
            match &*word {
                "null" => Some(Json::Null),
                "true" => Some(Json::Bool(true)),
                "false" => Some(Json::Bool(false)),
                // Unlike JSON, Rust would take "inf" and "+1".
                _ if word.starts_with(|first: char| first.is_ascii_digit() || first == '-') => {
                    word.parse().ok().map(Json::Number)
                }
                _ => None,
            }
        }
    }
}

fn parse_list<T>(
    rest: &mut Peekable<Chars<'_>>,
    end: char,
    mut next: impl FnMut(&mut Peekable<Chars<'_>>) -> Option<T>,
) -> Option<Vec<T>> {
    rest.next()?;
    let mut found = Vec::new();
    if rest.next_if_eq(&end).is_some() {
        return Some(found);
    }
    loop {
        found.push(next(rest)?);
        match rest.next()? {
            ',' => {}
            character if character == end => return Some(found),
            _ => return None,
        }
    }
}

fn parse_string(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    (rest.next()? == '"').then_some(())?;
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => text.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let digits: String = rest.by_ref().take(4).collect();
                    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                }
                character @ ('"' | '\\' | '/') => character,
                _ => return None,
            }),
            character if character < ' ' => return None,
            character => text.push(character),
        }
    }
}
