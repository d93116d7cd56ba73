//! A value of a VM, as the text that stands for it in the XML: the reader's conversions, the other way
//! round.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::EditError;
use crate::source::zones::units::MIB;
use crate::source::zones::xml::{Conversion, Row};
use crate::vm::Object;

/// A list of texts.
pub(super) fn texts(object: &Object, member: &'static str) -> Result<Vec<String>, EditError> {
    let list = match object.get(member) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong(member, "a list")),
    };
    let text = |element: &Value| match element.as_str() {
        Some(text) if is_writable(text) => Ok(text.to_owned()),
        Some(_) => Err(EditError::Characters {
            property: member.to_owned(),
        }),
        None => Err(wrong(member, "a list of texts")),
    };
    list.iter().map(text).collect()
}

/// What stands in the XML for a value; `None` if nothing does.
pub(super) fn text_of(row: Row, value: Option<&Value>) -> Result<Option<String>, EditError> {
    let (_, property, conversion) = row;
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let wrong = || wrong(property, conversion.wants());
    let text = match (conversion, value) {
        (Conversion::Base64, Value::String(text)) => STANDARD.encode(text),
        (Conversion::Text, Value::String(text)) => text.clone(),
        // limit_priv and fs_allowed are lists to those who set them.
        (Conversion::Text | Conversion::List | Conversion::Numbers, Value::Array(list)) => {
            let part = |part: &Value| match part {
                Value::String(text) if !text.contains(',') => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                _ => Err(wrong()),
            };
            list.iter()
                .map(part)
                .collect::<Result<Vec<_>, _>>()?
                .join(",")
        }
        (Conversion::Bool, Value::Bool(value)) => value.to_string(),
        (Conversion::Number, Value::Number(number)) => number.to_string(),
        (Conversion::Mebibytes, Value::Number(number)) => {
            mebibytes(number).ok_or_else(wrong)?.to_string()
        }
        _ => return Err(wrong()),
    };
    match text {
        text if text.is_empty() => Ok(None),
        text if is_writable(&text) => Ok(Some(text)),
        _ => Err(EditError::Characters {
            property: property.to_owned(),
        }),
    }
}

/// A size in MiB, which may have a fraction, in bytes.
pub(in crate::source::zones::apply) fn mebibytes(number: &serde_json::Number) -> Option<u64> {
    match number.as_u64() {
        Some(whole) => whole.checked_mul(MIB),
        None => {
            let bytes = number.as_f64()? * MIB as f64;
            // Beyond this a float has no room for single bytes.
            (0.0..9e15).contains(&bytes).then(|| bytes.round() as u64)
        }
    }
}

fn wrong(property: &str, expected: &'static str) -> EditError {
    EditError::Value {
        property: property.to_owned(),
        expected,
    }
}

/// Whether XML has a way to write all of a text.
fn is_writable(text: &str) -> bool {
    text.chars().all(|letter| match letter {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => other >= ' ',
    })
}
