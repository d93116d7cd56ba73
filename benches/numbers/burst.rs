//! A burst of changes as fast as they can be made: none may be missing from what is shown in the
//! end, and whoever folded the stream must have the same VMs as `vms.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;

use crate::events::{Events, TAG};
use crate::mounts::{Daemon, Store};
use crate::report::Report;
use crate::{Failure, Size};

type Vms = BTreeMap<String, Value>;

fn vms(daemon: &Daemon<'_>) -> Result<Vms, Failure> {
    let named = |vm: Value| Some((vm["uuid"].as_str()?.to_owned(), vm));
    Ok(daemon.vms()?.into_iter().filter_map(named).collect())
}

/// Measures and reports.
pub fn run(report: &mut Report, size: Size, store: &Store<'_>) -> Result<(), Failure> {
    let (changes, _) = size.of((10_000, 0), (1_000, 0));
    let changes = changes as u64;
    let daemon = store.mount()?;
    let events = Events::open(&daemon)?;
    let mut folded = vms(&daemon)?;
    let mut zones = daemon.zones()?;
    // Several changes of each VM, so that some meet an older one that is still on its way.
    zones.truncate(changes as usize / 5);

    let mut last = BTreeMap::new();
    let mut prepared = Vec::new();
    for change in 0..changes {
        let zone = &zones[change as usize % zones.len()];
        // Values that no earlier section has left behind.
        let value = 1_000_000_000 + change;
        prepared.push(zone.prepare(value)?);
        last.insert(zone.uuid.clone(), value);
    }
    let began = Instant::now();
    for change in prepared {
        change.commit()?;
    }
    let made = began.elapsed();

    let mut missing: BTreeSet<&str> = last.keys().map(String::as_str).collect();
    let (mut lines, mut gaps, mut arrived) = (0, 0, began);
    while !missing.is_empty() {
        let line = events.next()?;
        let mut event: Value = serde_json::from_str(&line.text)?;
        (lines, arrived) = (lines + 1, line.arrived);
        let uuid = event["uuid"].as_str().unwrap_or_default().to_owned();
        match event["type"].as_str() {
            Some("create" | "modify") => {
                if let Some(value) = last.get(&uuid)
                    && event["vm"]["tags"][TAG] == *value
                {
                    missing.remove(uuid.as_str());
                }
                folded.insert(uuid, event["vm"].take());
            }
            Some("delete") => {
                folded.remove(&uuid);
            }
            _ => gaps += 1,
        }
    }
    let shown = vms(&daemon)?;
    let holds = |uuid: &str, value: u64| shown.get(uuid).is_some_and(|vm| vm["tags"][TAG] == value);
    let right = last
        .iter()
        .filter(|(uuid, value)| holds(uuid, **value))
        .count();

    report.section(format!(
        "A burst of {changes} changes to {} of {} VMs",
        zones.len(),
        store.vms
    ));
    report.line("made within", format!("{:.2} s", made.as_secs_f64()));
    report.line(
        "all on events within",
        format!("{:.2} s", arrived.duration_since(began).as_secs_f64()),
    );
    report.line("lines on events", lines);
    let all = zones.len();
    report.holds(
        "burst: VMs whose last change is in vms.json",
        right == all,
        format!("{right} of {all}"),
    );
    report.holds("burst: gaps in the stream", gaps == 0, gaps);
    let differ = shown
        .iter()
        .filter(|(uuid, vm)| folded.get(*uuid) != Some(vm))
        .count();
    let same = differ == 0 && shown.len() == folded.len();
    report.holds(
        "burst: VMs in which the folded stream differs",
        same,
        differ,
    );
    Ok(())
}
