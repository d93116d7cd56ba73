//! Waiting until something is true of a VM.
//!
//! No wakeup is lost: the stream is opened first, the VM is read when the stream says that it is
//! ready, and every event after that carries the whole VM. A gap is met by reading the VM again.
//! The wait ends when the condition held at some moment since it began; it may be over again by
//! the time the caller looks, as the VM does not stop changing.
//!
//! A VM that does not exist is waited for, unless the condition is that it does not.

use std::str::FromStr;
use std::time::Instant;

use super::event::Kind;
use super::expression::{Expression, ExpressionError};
use super::stream::{Start, Until};
use super::{Error, Mount, VmName};
use crate::vm::Object;

/// The word that stands for a VM's absence.
const DELETED: &str = "deleted";

/// One word of a condition.
#[derive(Clone, Debug)]
pub enum Term {
    /// The VM does not exist.
    Deleted,
    /// The VM exists, and this is true of it.
    Holds(Expression),
}

/// What is waited for.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The VM does not exist.
    Deleted,
    /// The VM exists, and all of these are true of it.
    All(Vec<Expression>),
}

/// The terms contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`deleted` stands alone: nothing else can be true of a VM that does not exist")]
pub struct Contradiction;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The condition holds.
    Met,
    /// It did not until the deadline.
    TimedOut,
}

/// Waits for the condition, for ever without a deadline.
///
/// # Errors
/// When the mount cannot be read, or goes away meanwhile.
pub fn wait(
    mount: &Mount,
    name: &VmName,
    condition: &Condition,
    deadline: Option<Instant>,
) -> Result<Outcome, Error> {
    let mut stream = mount.follow(Start::Now, Some(name.clone()))?;
    let until = Until {
        deadline,
        closed: None,
    };
    while let Some(event) = stream.next(&until)? {
        let met = match event.kind() {
            Kind::Ready | Kind::Gap => condition.holds(mount.vm(name)?.as_ref()),
            Kind::Create | Kind::Modify => condition.holds(event.vm()),
            Kind::Delete => condition.holds(None),
            Kind::Other => false,
        };
        if met {
            return Ok(Outcome::Met);
        }
        // A VM that changes all the time leaves the stream never without an event.
        if until.is_over() {
            break;
        }
    }
    Ok(Outcome::TimedOut)
}

impl FromStr for Term {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Term, ExpressionError> {
        match text {
            DELETED => Ok(Term::Deleted),
            expression => expression.parse().map(Term::Holds),
        }
    }
}

impl Condition {
    /// All terms together.
    ///
    /// # Errors
    /// When `deleted` is not the only one.
    pub fn new(terms: Vec<Term>) -> Result<Condition, Contradiction> {
        if let [Term::Deleted] = terms.as_slice() {
            return Ok(Condition::Deleted);
        }
        terms
            .into_iter()
            .map(|term| match term {
                Term::Deleted => Err(Contradiction),
                Term::Holds(expression) => Ok(expression),
            })
            .collect::<Result<_, _>>()
            .map(Condition::All)
    }

    /// Whether it is met by a VM as it is, or by there being none.
    pub fn holds(&self, vm: Option<&Object>) -> bool {
        match (self, vm) {
            (Condition::Deleted, vm) => vm.is_none(),
            (Condition::All(_), None) => false,
            (Condition::All(all), Some(vm)) => all.iter().all(|expression| expression.holds(vm)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn condition(words: &[&str]) -> Result<Condition, Contradiction> {
        Condition::new(words.iter().map(|word| word.parse().unwrap()).collect())
    }

    fn vm(value: Value) -> Option<Object> {
        value.as_object().cloned()
    }

    #[test]
    fn every_expression_must_hold() {
        let both = condition(&["state=running", "tags.role=~web"]).unwrap();
        let holds = |value| both.holds(vm(value).as_ref());
        assert!(holds(json!({"state": "running", "tags": {"role": "web"}})));
        assert!(!holds(json!({"state": "running"})));
        assert!(!holds(json!({"state": "stopped", "tags": {"role": "web"}})));
    }

    #[test]
    fn nothing_is_true_of_a_vm_that_does_not_exist_but_its_absence() {
        assert!(!condition(&["alias="]).unwrap().holds(None));
        assert!(condition(&["deleted"]).unwrap().holds(None));
        let exists = vm(json!({"state": "running"}));
        assert!(!condition(&["deleted"]).unwrap().holds(exists.as_ref()));
    }

    #[test]
    fn deleted_stands_alone() {
        assert!(condition(&["deleted", "state=running"]).is_err());
        assert!(condition(&["state=running", "deleted"]).is_err());
    }
}
