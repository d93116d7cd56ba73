//! Paths into a VM object, as events print them and users write them: `nics.0.ip`. Pure.
//!
//! Members are joined by `.`, a number stands for an element of a list, `*` for all of them, and
//! brackets enclose a name that itself holds a dot or bracket (`customer_metadata[user.script]`).
//!
//! A path knows nothing of properties: it may lead nowhere in every VM.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::vm::Object;

/// Where a value stands in a VM object. It has at least one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    text: String,
    parts: Vec<Part>,
}

/// One step from a value into what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A member of an object, or the number of an element of a list.
    Name(String),
    /// Every element or member.
    Any,
}

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} names no property: {problem}")]
pub struct NoPath {
    path: String,
    problem: &'static str,
}

impl Path {
    /// Its steps, the first of which is into the VM object.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All values that it leads to; more than one only with a `*`.
    pub fn values<'a>(&self, vm: &'a Object) -> Vec<&'a Value> {
        let mut found = Vec::new();
        if let Some((first, rest)) = self.parts.split_first() {
            match first {
                Part::Name(name) => vm
                    .get(name)
                    .into_iter()
                    .for_each(|value| collect(value, rest, &mut found)),
                Part::Any => vm
                    .values()
                    .for_each(|value| collect(value, rest, &mut found)),
            }
        }
        found
    }
}

impl FromStr for Path {
    type Err = NoPath;

    fn from_str(text: &str) -> Result<Path, NoPath> {
        Ok(Path {
            text: text.to_owned(),
            parts: parse_parts(text)?,
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn collect<'a>(value: &'a Value, path: &[Part], found: &mut Vec<&'a Value>) {
    let Some((first, rest)) = path.split_first() else {
        found.push(value);
        return;
    };
    match (first, value) {
        (Part::Any, Value::Array(elements)) => {
            elements
                .iter()
                .for_each(|element| collect(element, rest, found));
        }
        (Part::Any, Value::Object(members)) => {
            members
                .values()
                .for_each(|member| collect(member, rest, found));
        }
        (Part::Name(name), Value::Array(elements)) => {
            let element = name
                .parse()
                .ok()
                .and_then(|index: usize| elements.get(index));
            element
                .into_iter()
                .for_each(|element| collect(element, rest, found));
        }
        (Part::Name(name), Value::Object(members)) => {
            let member = members.get(name);
            member
                .into_iter()
                .for_each(|member| collect(member, rest, found));
        }
        _ => {}
    }
}

fn parse_parts(text: &str) -> Result<Vec<Part>, NoPath> {
    let wrong = |problem| NoPath {
        path: text.to_owned(),
        problem,
    };
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (name, after) =
                bracketed_name(bracketed).ok_or_else(|| wrong("a bracket is not closed"))?;
            parts.push(Part::Name(name));
            rest = after;
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
            parts.push(match &rest[..end] {
                "" => return Err(wrong("a part of it is empty")),
                "*" => Part::Any,
                name => Part::Name(name.to_owned()),
            });
            rest = &rest[end..];
        }
        match rest.chars().next() {
            None => return Ok(parts),
            Some('.') => rest = &rest[1..],
            Some('[') => {}
            Some(_) => {
                return Err(wrong(
                    "a bracket is closed that was not opened, or text follows it",
                ));
            }
        }
    }
}

/// The name up to the closing bracket, and what follows that. A bracket within the name has a
/// backslash before it.
fn bracketed_name(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((position, c)) = chars.next() {
        match c {
            ']' => return Some((name, &text[position + 1..])),
            '\\' => match chars.next_if(|(_, next)| matches!(next, '[' | ']')) {
                Some((_, bracket)) => name.push(bracket),
                None => name.push('\\'),
            },
            other => name.push(other),
        }
    }
    None
}
