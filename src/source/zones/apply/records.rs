//! The file provider's datasets, changed: what ZFS would do to them is recorded in their file.
//!
//! Pure. Members that nobody here knows are kept.

use serde_json::{Value, json};

use super::datasets::{Operation, Step};
use super::failed;
use crate::source::{Failed, FailedKind};
use crate::vm::Object;

/// Does a step to the content of a file of datasets. `now` is in seconds since 1970.
///
/// # Errors
/// When ZFS would refuse it: no such dataset, or one that is there already, or a snapshot that is held.
pub(super) fn apply(file: &mut Object, step: &Step, now: u64) -> Result<(), Failed> {
    let name = &step.dataset;
    match &step.operation {
        Operation::Create { properties, origin } => {
            let mut dataset = match properties.contains_key("volsize") {
                true => json!({
                    "type": "volume", "creation": now, "volblocksize": 8192, "compression": "off",
                    "refreservation": number(&properties["volsize"]), "usedbysnapshots": 0,
                }),
                false => json!({
                    "type": "filesystem", "creation": now, "quota": 0, "refquota": 0,
                    "recordsize": 131_072, "compression": "off",
                }),
            };
            for (property, value) in properties {
                dataset[property] = number(value);
            }
            if let Some(origin) = origin {
                dataset["origin"] = json!(origin);
            }
            add(file, name, dataset)
        }
        Operation::Set { property, value } => {
            let dataset = get(file, name)?;
            dataset.insert(property.clone(), number(value));
            Ok(())
        }
        Operation::Snapshot => {
            let snapshot = json!({"type": "snapshot", "creation": now, "written": 0, "used": 0,
                "userrefs": 0});
            add(file, name, snapshot)
        }
        Operation::Hold => {
            get(file, name)?.insert("userrefs".to_owned(), json!(1));
            Ok(())
        }
        Operation::Release => {
            get(file, name)?.insert("userrefs".to_owned(), json!(0));
            Ok(())
        }
        Operation::Rollback => rollback(file, name),
        Operation::Destroy | Operation::DestroyAlone => {
            get(file, name)?;
            destroy(file, |other| is_below(other, name))
        }
    }
}

fn add(file: &mut Object, name: &str, dataset: Value) -> Result<(), Failed> {
    if file.contains_key(name) {
        let reason = format!("{name}: there is such a dataset already");
        return Err(failed(FailedKind::Exists, &reason));
    }
    file.insert(name.to_owned(), dataset);
    Ok(())
}

fn get<'a>(file: &'a mut Object, name: &str) -> Result<&'a mut Object, Failed> {
    file.get_mut(name)
        .and_then(Value::as_object_mut)
        .ok_or_else(|| failed(FailedKind::Source, &format!("{name}: no such dataset")))
}

/// Removes the snapshots of the same dataset that are later: of the same second, those that the
/// file names later.
fn rollback(file: &mut Object, name: &str) -> Result<(), Failed> {
    let created = |dataset: &Value| {
        let creation = dataset.get("creation");
        creation.and_then(|creation| match creation {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        })
    };
    get(file, name)?;
    let dataset = name.split('@').next().unwrap_or(name);
    let siblings = format!("{dataset}@");
    let (mut since, mut later) = (None, Vec::new());
    for (other, snapshot) in file.iter() {
        if other == name {
            since = Some(created(snapshot).unwrap_or(0));
        }
    }
    let since = since.unwrap_or(0);
    let mut is_after = false;
    for (other, snapshot) in file.iter() {
        is_after |= other == name;
        if other == name || !other.starts_with(&siblings) {
            continue;
        }
        let created = created(snapshot).unwrap_or(0);
        if created > since || (created == since && is_after) {
            later.push(other.clone());
        }
    }
    destroy(file, |other| later.iter().any(|later| later == other))
}

fn destroy(file: &mut Object, is_meant: impl Fn(&str) -> bool) -> Result<(), Failed> {
    let held = file.iter().find(|(name, dataset)| {
        let holds = dataset.get("userrefs");
        is_meant(name) && holds.is_some_and(|holds| *holds != 0 && *holds != "0")
    });
    if let Some((name, _)) = held {
        let reason = format!("{name}: is held, so it cannot be destroyed; release it first");
        return Err(failed(FailedKind::Source, &reason));
    }
    file.retain(|name, _| !is_meant(name));
    Ok(())
}

/// Whether a dataset is another one, below it, or a snapshot of either.
fn is_below(other: &str, name: &str) -> bool {
    other
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
}

/// A raw value as a number where it is one.
fn number(raw: &str) -> Value {
    raw.parse::<u64>().map_or_else(|_| json!(raw), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(file: &Value, dataset: &str, operation: Operation) -> Result<Value, String> {
        let mut file = file.as_object().unwrap().clone();
        apply(&mut file, &Step::new("test", dataset, operation), 50)
            .map(|()| Value::Object(file))
            .map_err(|error| error.reason)
    }

    #[test]
    fn a_set_keeps_all_else() {
        let file = json!({"z": {"quota": 1, "strange": [1]}});
        let set = Operation::Set {
            property: "quota".to_owned(),
            value: "2".to_owned(),
        };
        assert_eq!(
            done(&file, "z", set).unwrap(),
            json!({"z": {"quota": 2, "strange": [1]}})
        );
    }

    #[test]
    fn a_rollback_removes_later_snapshots_of_that_dataset_only() {
        let file = json!({"z": {}, "z@a": {"creation": 10}, "z@b": {"creation": 10},
            "z@0": {"creation": "30"}, "y@c": {"creation": 40}, "z@early": {"creation": 5}});
        assert_eq!(
            done(&file, "z@a", Operation::Rollback).unwrap(),
            json!({"z": {}, "z@a": {"creation": 10}, "y@c": {"creation": 40},
                "z@early": {"creation": 5}})
        );
    }

    #[test]
    fn what_is_held_is_not_destroyed() {
        let file = json!({"z": {}, "z@indestructible": {"userrefs": 1}});
        let error = done(&file, "z", Operation::Destroy).unwrap_err();
        assert!(error.starts_with("z@indestructible: is held"), "{error}");
    }

    #[test]
    fn destroying_takes_children_and_snapshots_and_no_namesakes() {
        let file = json!({"z": {}, "z/data": {}, "z@a": {}, "z-disk0": {}, "zz": {}});
        assert_eq!(
            done(&file, "z", Operation::Destroy).unwrap(),
            json!({"z-disk0": {}, "zz": {}})
        );
    }

    #[test]
    fn what_is_there_is_not_made_again_and_what_is_not_cannot_change() {
        let file = json!({"z@a": {}});
        assert!(done(&file, "z@a", Operation::Snapshot).is_err());
        assert!(done(&file, "z@b", Operation::Hold).is_err());
    }
}
