//! What a change wants the mount to show.

use std::fmt::Write as _;
use std::time::SystemTime;

use crate::vm::payload::Wanted;
use crate::vm::property::{self, Part};
use crate::vm::verb::Verb;
use crate::vm::{Object, Vm, nanos};

/// What has to be shown before a change is confirmed.
#[derive(Debug)]
pub enum Goal {
    /// These values.
    Values(Vec<Wanted>),
    /// What a verb does to a VM that was like `before`.
    Verb {
        /// The verb.
        verb: Verb,
        /// The VM before it.
        before: Object,
    },
    /// A VM that is there.
    There,
}

impl Goal {
    /// Whether a VM that was read after the change was applied, at `since`, shows it.
    pub fn is_met(&self, vm: Option<&Vm>, since: SystemTime) -> bool {
        let object = || vm.map(|vm| vm.rendered.object());
        let is_seen = || vm.is_some_and(|vm| vm.stale.is_none() && vm.observed() >= nanos(since));
        match self {
            Goal::Values(_) => object().is_some_and(|object| self.is_met_by(Some(&object))),
            Goal::Verb { verb, .. } if is_look(verb) => is_seen(),
            Goal::Verb { .. } => self.is_met_by(object().as_ref()),
            Goal::There => is_seen(),
        }
    }

    /// Whether a VM as its source has it is as it should be.
    pub fn is_met_by(&self, vm: Option<&Object>) -> bool {
        match self {
            Goal::Values(wanted) => {
                vm.is_some_and(|vm| wanted.iter().all(|wanted| wanted.holds(vm)))
            }
            Goal::Verb { verb, before } => verb.confirmed(before, vm),
            Goal::There => vm.is_some(),
        }
    }

    /// Whether the time of the VM's last reading matters: then the goal may be met by a reading that
    /// changes nothing, of which nobody is told.
    pub fn is_of_time(&self) -> bool {
        match self {
            Goal::Values(_) => false,
            Goal::Verb { verb, .. } => is_look(verb),
            Goal::There => true,
        }
    }

    /// Whether `new` has something of this that `old` has not. When a VM's files are written its
    /// `last_modified` moves: that alone belongs to the change as well.
    pub fn brings(&self, old: Option<&Object>, new: Option<&Object>) -> bool {
        match (self, old, new) {
            (Goal::Values(wanted), Some(old), Some(new)) => {
                wanted.iter().any(|one| one.holds(new) && !one.holds(old))
                    || only_modified(old, new)
            }
            (Goal::Values(_), ..) => false,
            (Goal::There, old, _) => old.is_none(),
            (Goal::Verb { verb, before }, Some(old), Some(new)) => {
                let [was, is] = [old, new].map(|vm| verb.confirmed(before, Some(vm)));
                // What undoes it was done by others, and what looks like it and comes later too.
                let is_toward = match verb {
                    Verb::Snapshot(_) | Verb::DeleteSnapshot(_) => is && !was,
                    _ => is || !was,
                };
                only_modified(old, new)
                    || (is_toward && differing(old, new).any(|name| concerns(verb, name)))
            }
            (Goal::Verb { verb, before }, _, None) => verb.confirmed(before, None),
            (Goal::Verb { .. }, None, Some(_)) => false,
        }
    }

    /// What is as it should be in a VM, in words; empty if nothing is.
    pub fn met(&self, vm: &Object) -> String {
        let Goal::Values(wanted) = self else {
            return String::new();
        };
        let met = wanted.iter().filter(|one| one.holds(vm));
        met.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// What is not as it should be in a VM, in words, and the parts from which it is read.
    pub fn missing(&self, vm: Option<&Object>) -> (String, Vec<Part>) {
        let mut text = String::new();
        let mut parts = Vec::new();
        match (self, vm) {
            (Goal::Values(wanted), Some(vm)) => {
                for one in wanted.iter().filter(|one| !one.holds(vm)) {
                    let comma = if text.is_empty() { "" } else { ", " };
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{comma}{one}");
                    if !parts.contains(&one.part) {
                        parts.push(one.part);
                    }
                }
            }
            (Goal::Values(_) | Goal::There, _) => {
                text.push_str("the VM");
                parts.push(Part::Zone);
            }
            (Goal::Verb { verb, .. }, _) => {
                let _ = write!(text, "{verb}");
                parts.push(match verb {
                    Verb::Snapshot(_) | Verb::Rollback(_) | Verb::DeleteSnapshot(_) => {
                        Part::Datasets
                    }
                    Verb::Delete => Part::Zone,
                    _ => Part::Runtime,
                });
            }
        }
        (text, parts)
    }
}

/// Whether nothing but a look at the VM shows that the verb was done.
fn is_look(verb: &Verb) -> bool {
    matches!(verb, Verb::Kill(_) | Verb::Sync | Verb::Rollback(_))
}

/// Whether a verb changes this property.
fn concerns(verb: &Verb, name: &str) -> bool {
    let part = property::property(name).map(|property| property.part);
    match verb {
        Verb::Snapshot(_) | Verb::DeleteSnapshot(_) => name == "snapshots",
        // What a snapshot holds is anything.
        Verb::Rollback(_) => true,
        Verb::Sync | Verb::Revert => false,
        Verb::Start
        | Verb::Stop { .. }
        | Verb::Reboot { .. }
        | Verb::Suspend
        | Verb::Resume
        | Verb::Kill(_)
        | Verb::Delete => {
            matches!(part, Some(Part::Runtime | Part::LastExited)) || name == "autoboot"
        }
    }
}

/// The properties that differ.
fn differing<'a>(old: &'a Object, new: &'a Object) -> impl Iterator<Item = &'a str> {
    let changed = new
        .iter()
        .filter(|(name, value)| old.get(*name) != Some(*value));
    let removed = old.keys().filter(|name| !new.contains_key(*name));
    changed
        .map(|(name, _)| name.as_str())
        .chain(removed.map(String::as_str))
}

fn only_modified(old: &Object, new: &Object) -> bool {
    differing(old, new).eq(["last_modified"])
}
