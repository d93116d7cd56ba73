//! Expressions about a VM, as the tools take them: `state=running`, `alias!=web`,
//! `nics.*.ip=~^10\.`. Pure.
//!
//! The left side is a path as events print it (`prettyPath`): members joined by `.`, a number for
//! an element of a list, `*` for all of them, and brackets around a name that itself holds a dot
//! or bracket (`customer_metadata[user.script]`). The right side is compared with the value's
//! text: strings raw, all else as JSON. A property that is missing or null has an empty text, as
//! it has no file. Of several values that a `*` finds, one is enough for `=` and `=~`; `!=` is
//! always the opposite of `=`. A regex ignores case and may match anywhere in the text.

use std::str::FromStr;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::raw_text;
use crate::vm::Object;

/// One expression; whether it holds depends on the VM.
#[derive(Clone, Debug)]
pub struct Expression {
    path: Vec<Part>,
    test: Test,
}

/// One step from a value into what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// A member of an object, or the number of an element of a list.
    Name(String),
    /// Every element or member.
    Any,
}

#[derive(Clone, Debug)]
enum Test {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

/// Why a text is no expression.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    /// There is nothing that compares.
    #[error("{0:?} compares nothing; write property=value, property!=value or property=~regex")]
    NoOperator(String),
    /// The left side is no path.
    #[error("{path:?} names no property: {problem}")]
    Path {
        /// The left side.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The right side of `=~` is no regex.
    #[error("{regex:?} is no regular expression: {problem}")]
    Regex {
        /// The right side.
        regex: String,
        /// What is wrong with it, in one line.
        problem: String,
    },
}

impl Expression {
    /// Whether it is true of this VM.
    pub fn holds(&self, vm: &Object) -> bool {
        let texts = self.texts(vm);
        match &self.test {
            Test::Is(wanted) => texts.contains(wanted),
            Test::IsNot(unwanted) => !texts.contains(unwanted),
            Test::Matches(regex) => texts.iter().any(|text| regex.is_match(text)),
        }
    }

    /// The texts of all values that the path leads to; one empty text if there is none.
    fn texts(&self, vm: &Object) -> Vec<String> {
        let mut found = Vec::new();
        if let Some((first, rest)) = self.path.split_first() {
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
        if found.is_empty() {
            found.push(String::new());
        }
        found
    }
}

fn collect(value: &Value, path: &[Part], found: &mut Vec<String>) {
    let Some((first, rest)) = path.split_first() else {
        if !value.is_null() {
            found.push(raw_text(value));
        }
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

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Expression, ExpressionError> {
        let Some(equals) = position_of_equals(text) else {
            return Err(ExpressionError::NoOperator(text.to_owned()));
        };
        let (left, right) = (&text[..equals], &text[equals + 1..]);
        let (path, test) = if let Some(path) = left.strip_suffix('!') {
            (path, Test::IsNot(right.to_owned()))
        } else if let Some(regex) = right.strip_prefix('~') {
            (left, Test::Matches(parse_regex(regex)?))
        } else {
            (left, Test::Is(right.to_owned()))
        };
        Ok(Expression {
            path: parse_path(path)?,
            test,
        })
    }
}

/// The first `=` that is not part of a bracketed name.
fn position_of_equals(text: &str) -> Option<usize> {
    let mut bracketed = false;
    let mut previous = None;
    for (position, c) in text.char_indices() {
        match c {
            '[' if !bracketed => bracketed = true,
            ']' if previous != Some('\\') => bracketed = false,
            '=' if !bracketed => return Some(position),
            _ => {}
        }
        previous = Some(c);
    }
    None
}

fn parse_regex(text: &str) -> Result<Regex, ExpressionError> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .build()
        .map_err(|error| ExpressionError::Regex {
            regex: text.to_owned(),
            // The crate draws a picture of several lines; its last line says what is wrong.
            problem: error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
        })
}

fn parse_path(text: &str) -> Result<Vec<Part>, ExpressionError> {
    let wrong = |problem| ExpressionError::Path {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn holds(expression: &str, vm: Value) -> bool {
        let Value::Object(vm) = vm else {
            panic!("a VM is an object")
        };
        expression.parse::<Expression>().unwrap().holds(&vm)
    }

    fn message(expression: &str) -> String {
        expression.parse::<Expression>().unwrap_err().to_string()
    }

    #[test]
    fn strings_are_compared_raw_and_other_values_as_json() {
        assert!(holds("state=running", json!({"state": "running"})));
        assert!(!holds("state=run", json!({"state": "running"})));
        assert!(holds("quota=10", json!({"quota": 10})));
        assert!(holds("quota=10", json!({"quota": "10"})));
        assert!(holds("autoboot=true", json!({"autoboot": true})));
        assert!(holds(
            r#"resolvers=["8.8.8.8"]"#,
            json!({"resolvers": ["8.8.8.8"]})
        ));
    }

    #[test]
    fn a_missing_property_and_a_null_are_empty() {
        for vm in [json!({}), json!({"zoneid": null})] {
            assert!(holds("zoneid=", vm.clone()));
            assert!(holds("zoneid!=3", vm.clone()));
            assert!(holds("zoneid=~^$", vm.clone()));
            assert!(!holds("zoneid!=", vm));
        }
    }

    #[test]
    fn a_value_may_hold_operators() {
        assert!(holds("tags.a=b=c", json!({"tags": {"a": "b=c"}})));
        assert!(holds("tags.a=!=", json!({"tags": {"a": "!="}})));
        assert!(holds("tags.a!=~x", json!({"tags": {"a": "y"}})));
    }

    #[test]
    fn a_regex_matches_anywhere_and_ignores_case() {
        let vm = json!({"alias": "Web-01"});
        assert!(holds("alias=~web", vm.clone()));
        assert!(holds("alias=~^web-[0-9]+$", vm.clone()));
        assert!(!holds("alias=~(?-i)web", vm.clone()));
        assert!(!holds("alias=~db", vm));
    }

    #[test]
    fn paths_lead_into_lists_and_objects() {
        let vm = json!({
            "nics": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2", "primary": true}],
            "tags": {"role": "web"},
            "resolvers": ["8.8.8.8", "1.1.1.1"],
        });
        assert!(holds("nics.0.ip=10.0.0.1", vm.clone()));
        assert!(holds("nics.1.ip=10.0.0.2", vm.clone()));
        assert!(holds("nics.2.ip=", vm.clone()));
        assert!(holds("nics.*.ip=10.0.0.2", vm.clone()));
        assert!(holds("nics.*.primary=true", vm.clone()));
        assert!(holds("tags.role=web", vm.clone()));
        assert!(holds("tags.*=web", vm.clone()));
        assert!(holds("resolvers.*=1.1.1.1", vm.clone()));
        assert!(holds("tags.role.deeper=", vm));
    }

    #[test]
    fn not_equal_is_the_opposite_of_equal_for_every_element_too() {
        let vm = json!({"nics": [{"ip": "a"}, {"ip": "b"}]});
        assert!(!holds("nics.*.ip!=a", vm.clone()));
        assert!(holds("nics.*.ip!=c", vm.clone()));
        assert!(holds("nics.*.mac!=c", vm));
    }

    #[test]
    fn bracketed_names_are_those_that_events_print() {
        let vm = json!({
            "customer_metadata": {"user.script": "x", "a=b": "y"},
            "tags": {"a[1]": "z", "*": "star"},
        });
        assert!(holds("customer_metadata[user.script]=x", vm.clone()));
        assert!(holds("customer_metadata[a=b]=y", vm.clone()));
        assert!(holds(r"tags[a\[1\]]=z", vm.clone()));
        assert!(holds("tags[*]=star", vm.clone()));
        assert!(!holds("tags[*]=z", vm));
    }

    #[test]
    fn what_is_no_expression_is_refused_with_its_name() {
        assert!(message("running").contains("\"running\" compares nothing"));
        assert!(message("=x").contains("a part of it is empty"));
        assert!(message("nics..ip=x").contains("a part of it is empty"));
        assert!(message("nics.=x").contains("a part of it is empty"));
        assert!(message("tags[a=x").contains("compares nothing"));
        assert!(message("tags]=x").contains("not opened"));
        assert!(message("alias=~(").contains("no regular expression: unclosed group"));
    }

    /// A name as `prettyPath` writes it after another part.
    fn pretty(name: &str) -> String {
        if name.is_empty() || name.contains(['.', '[', ']', '=', '!', '*']) {
            format!("[{}]", name.replace('[', r"\[").replace(']', r"\]"))
        } else {
            format!(".{name}")
        }
    }

    proptest! {
        #[test]
        fn every_tag_can_be_named(
            // A backslash has no escape in this notation, as it has none where events print it.
            name in r"[^\\\pC]{0,8}|[a-z.=!\[\]*~]{0,6}",
            value in r"\PC{0,8}",
        ) {
            prop_assume!(!value.starts_with('~'));
            let vm = json!({"tags": {name.clone(): value.clone()}});
            let expression = format!("tags{}={value}", pretty(&name));
            prop_assert!(holds(&expression, vm.clone()));
            prop_assert!(!holds(&(expression + "x"), vm));
        }

        #[test]
        fn not_equal_negates_equal(value in "[a-c]{0,2}", held in "[a-c]{0,2}") {
            let vm = json!({"alias": held});
            let equal = holds(&format!("alias={value}"), vm.clone());
            prop_assert_eq!(holds(&format!("alias!={value}"), vm), !equal || value.starts_with('~'));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in r"[a-z.=!\[\]\\*~ä]{0,12}") {
            let _ = text.parse::<Expression>();
        }
    }
}
