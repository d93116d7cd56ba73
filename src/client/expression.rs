//! Expressions about a VM, as the tools take them: `state=running`, `alias!=web`,
//! `nics.*.ip=~^10\.`. Pure.
//!
//! The left side is a [`Path`]. The right side is compared with the value's text: strings raw, all
//! else as JSON. A property that is missing or null has an empty text, as it has no file. Of several
//! values that a `*` finds, one is enough for `=` and `=~`; `!=` is always the opposite of `=`. A
//! regex ignores case and may match anywhere in the text.

use std::str::FromStr;

use regex::{Regex, RegexBuilder};

use super::path::{NoPath, Path};
use super::raw_text;
use crate::vm::Object;

/// One expression; whether it holds depends on the VM.
#[derive(Clone, Debug)]
pub struct Expression {
    path: Path,
    test: Test,
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
    #[error(transparent)]
    Path(#[from] NoPath),
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

    /// The left side.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The texts of all values that the path leads to; one empty text if there is none.
    fn texts(&self, vm: &Object) -> Vec<String> {
        let values = self.path.values(vm);
        let mut found: Vec<String> = values
            .into_iter()
            .filter(|value| !value.is_null())
            .map(raw_text)
            .collect();
        if found.is_empty() {
            found.push(String::new());
        }
        found
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
            path: path.parse()?,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

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
