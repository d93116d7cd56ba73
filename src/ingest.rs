//! The one loop that owns the cache's writer: it takes what the source reports, completes it with
//! the last good values of what could not be read, and publishes.
//!
//! It runs on the thread `ingest`, does no IO and waits for nothing but the next report. A failed
//! source deletes nothing: a VM goes only when a report says so, or when a complete listing does
//! not have it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::cache::events::Kind;
use crate::cache::{Cache, Change, Published, Writer};
use crate::source::{Failure, Listing, Loaded, Report, Via};
use crate::vm::files::Rendered;
use crate::vm::property::{self, Part};
use crate::vm::state::Reading;
use crate::vm::{Object, nanos};

/// How many changes are taken together at the most: a burst becomes few publications, and the
/// first of it is not kept waiting for the last.
const BATCH: usize = 512;

/// How many refresh errors and scans are remembered.
const REMEMBERED: usize = 5;

/// What ingest knows about its own health, for `.status`.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Whether the first listing has been published: the tree is complete.
    pub ready: bool,
    /// The newest listings.
    pub listings: VecDeque<Scanned>,
    /// When anything was last published.
    pub last_refresh: Option<SystemTime>,
    /// The newest problems: VMs that could not be read, listings that cannot be trusted.
    pub errors: VecDeque<Problem>,
    /// Changes that no event announced and only a scan found, by the part of the VM.
    pub missed: BTreeMap<&'static str, u64>,
    /// VMs that exist but were never readable, so that nothing can be shown of them.
    pub unreadable: BTreeMap<Uuid, String>,
}

/// A problem, of a VM or of the list of VMs.
#[derive(Clone, Debug)]
pub struct Problem {
    /// When.
    pub at: SystemTime,
    /// The VM, if it is about one.
    pub vm: Option<Uuid>,
    /// What was wrong.
    pub reason: String,
}

/// A full scan that was published.
#[derive(Clone, Copy, Debug)]
pub struct Scanned {
    /// When it was published.
    pub at: SystemTime,
    /// How many VMs it found.
    pub vms: usize,
    /// How many of them had changed, come or gone.
    pub changed: usize,
}

impl Health {
    fn error(&mut self, vm: Option<Uuid>, reason: &str) {
        if self.errors.len() == REMEMBERED {
            self.errors.pop_front();
        }
        self.errors.push_back(Problem {
            at: SystemTime::now(),
            vm,
            reason: reason.to_owned(),
        });
    }

    fn missed(&mut self, parts: BTreeMap<&'static str, u64>) {
        for (part, count) in parts {
            *self.missed.entry(part).or_default() += count;
        }
    }
}

/// Says which write through us made a VM what it is now, if one did: its number. The new one is none
/// when the VM has gone.
pub type Writes = dyn Fn(&Uuid, Option<&Rendered>, Option<&Rendered>) -> Option<String> + Send;

/// Takes reports until the source hangs up.
pub fn run(
    mut writer: Writer,
    reports: Receiver<Report>,
    health: Arc<Mutex<Health>>,
    writes: &Writes,
) {
    while let Ok(first) = reports.recv() {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(report) = next.take() {
            take(&mut writer, &mut batch, report, &health, writes);
            if batch.len() >= BATCH {
                break;
            }
            next = reports.try_recv().ok();
        }
        publish(&mut writer, batch, &health, writes);
    }
    debug!("the source has ended");
}

/// Adds what a report changes to the batch, and publishes what has to be published before.
fn take(
    writer: &mut Writer,
    batch: &mut Vec<Change>,
    report: Report,
    health: &Mutex<Health>,
    writes: &Writes,
) {
    match report {
        Report::Changed(all) => {
            for loaded in all {
                // What could not be read is taken from the VM as it was: that has to be there.
                if !loaded.failed.is_empty() {
                    publish_before(writer, batch, &loaded.uuid, health, writes);
                }
                batch.extend(put(writer.cache(), loaded, health));
            }
        }
        Report::Silent { uuid, reason } => {
            publish_before(writer, batch, &uuid, health, writes);
            batch.push(silent(writer.cache(), uuid, reason, health));
        }
        Report::Gone(uuid) => {
            health.lock().unreadable.remove(&uuid);
            batch.push(Change::Remove {
                uuid,
                via: Via::Event.as_str(),
                txn: None,
            });
        }
        Report::Listing(listing) => {
            // What came before the listing was read before it.
            publish(writer, std::mem::take(batch), health, writes);
            publish_listing(writer, listing, health, writes);
        }
    }
}

/// Publishes the batch if it changes this VM, so that the cache has what was last reported of it.
fn publish_before(
    writer: &mut Writer,
    batch: &mut Vec<Change>,
    uuid: &Uuid,
    health: &Mutex<Health>,
    writes: &Writes,
) {
    if batch.iter().any(|change| change.uuid() == uuid) {
        publish(writer, std::mem::take(batch), health, writes);
    }
}

fn publish(writer: &mut Writer, mut changes: Vec<Change>, health: &Mutex<Health>, writes: &Writes) {
    if changes.is_empty() {
        return;
    }
    ascribe(&mut changes, writer.cache(), writes);
    let published = writer.publish(changes);
    let missed = count_missed(&published);
    let mut health = health.lock();
    health.last_refresh = Some(SystemTime::now());
    health.missed(missed);
    drop(health);
    for one in &published {
        debug!(vm = %one.uuid, seq = one.seq, kind = one.kind.as_str(), "published");
    }
}

/// What marks a VM stale that gives no answer.
fn silent(cache: &Cache, uuid: Uuid, reason: String, health: &Mutex<Health>) -> Change {
    warn!(vm = %uuid, reason, "no answer: the VM keeps its values and is marked stale");
    let mut health = health.lock();
    health.error(Some(uuid), &reason);
    if cache.vm(&uuid).is_none() {
        health.unreadable.insert(uuid, reason.clone());
    }
    Change::Stale { uuid, reason }
}

/// Notes in changes which write through us caused them.
fn ascribe(changes: &mut [Change], cache: &Cache, writes: &Writes) {
    let now = cache.now();
    // What an earlier change of the same batch makes of a VM.
    let mut made: HashMap<Uuid, Option<Rendered>> = HashMap::new();
    for change in changes {
        let uuid = *change.uuid();
        let old = match made.get(&uuid) {
            Some(made) => made.as_ref(),
            None => now.vm(&uuid).map(|vm| &vm.rendered),
        };
        let new = match change {
            Change::Put { rendered, .. } => Some(rendered.clone()),
            Change::Remove { .. } => None,
            Change::Stale { .. } => continue,
        };
        let found = writes(&uuid, old, new.as_ref());
        if let (Some(found), Change::Put { txn, via, .. } | Change::Remove { txn, via, .. }) =
            (found, change)
        {
            *txn = Some(found);
            // What only a scan found is still a missed event.
            if *via == Via::Event.as_str() {
                *via = Via::Write.as_str();
            }
        }
        made.insert(uuid, new);
    }
}

fn publish_listing(writer: &mut Writer, listing: Listing, health: &Mutex<Health>, writes: &Writes) {
    let first = !health.lock().ready;
    let cache = writer.cache().clone();
    let found = listing.vms.len() + listing.same.len();
    let mut here: HashSet<Uuid> = listing.vms.iter().map(|loaded| loaded.uuid).collect();
    let now = cache.now();
    for (uuid, observed) in listing.same {
        here.insert(uuid);
        if let Some(vm) = now.vm(&uuid) {
            vm.seen(nanos(observed));
        }
    }
    here.extend(listing.silent.iter().map(|(uuid, _)| *uuid));
    let mut changes = Vec::with_capacity(found);
    for loaded in listing.vms {
        changes.extend(put(&cache, loaded, health));
    }
    for (uuid, reason) in listing.silent {
        changes.push(silent(&cache, uuid, reason, health));
    }
    for (_, vm) in now.vms.iter().filter(|(_, vm)| !here.contains(&vm.uuid)) {
        changes.push(match &listing.incomplete {
            None => Change::Remove {
                uuid: vm.uuid,
                via: Via::Scan.as_str(),
                txn: None,
            },
            Some(reason) => Change::Stale {
                uuid: vm.uuid,
                reason: reason.clone(),
            },
        });
    }
    let published = if first {
        writer.load(changes);
        Vec::new()
    } else {
        ascribe(&mut changes, &cache, writes);
        writer.publish(changes)
    };
    let missed = count_missed(&published);

    let mut health = health.lock();
    if let Some(reason) = &listing.incomplete {
        warn!(
            reason,
            "the list of VMs cannot be trusted: nothing is deleted"
        );
        health.error(None, reason);
    } else {
        health.unreadable.retain(|uuid, _| here.contains(uuid));
    }
    health.missed(missed);
    health.last_refresh = Some(SystemTime::now());
    health.ready = true;
    if health.listings.len() == REMEMBERED {
        health.listings.pop_front();
    }
    health.listings.push_back(Scanned {
        at: SystemTime::now(),
        vms: found,
        changed: published.len(),
    });
    drop(health);
    info!(vms = found, changed = published.len(), "listing published");
}

/// Counts, by part, what no event announced, and logs it.
fn count_missed(published: &[Published]) -> BTreeMap<&'static str, u64> {
    let mut missed = BTreeMap::new();
    for one in published.iter().filter(|one| one.via == Via::Scan.as_str()) {
        let mut parts: Vec<&'static str> = one
            .differences
            .iter()
            .filter_map(|difference| difference.path.first()?.as_deref())
            .filter_map(property::property)
            .map(|property| property.part.as_str())
            .collect();
        if one.kind != Kind::Modify || parts.is_empty() {
            parts.push("index");
        }
        parts.sort_unstable();
        parts.dedup();
        warn!(vm = %one.uuid, seq = one.seq, ?parts, "missed event: only the scan found this change");
        for part in parts {
            *missed.entry(part).or_default() += 1;
        }
    }
    missed
}

/// What publishes a VM as it was read, completed; `None` when there is nothing to show of it.
fn put(cache: &Cache, loaded: Loaded, health: &Mutex<Health>) -> Option<Change> {
    let Loaded {
        uuid,
        zonename,
        mut vm,
        failed,
        via,
        observed,
    } = loaded;
    let old = cache.vm(&uuid);
    let stale = reason(&failed);
    if let Some(reason) = &stale {
        let known = old.as_ref().and_then(|vm| vm.stale.as_deref()) == Some(reason.as_str());
        if !known {
            warn!(vm = %uuid, zonename, reason, "the VM could not be read whole and is marked stale");
            health.lock().error(Some(uuid), reason);
        }
        match &old {
            Some(old) => vm = keep_last_good(vm.object(), &old.rendered.object(), &failed),
            None if failed.iter().any(|failure| failure.part == Part::Zone) => {
                health.lock().unreadable.insert(uuid, reason.clone());
                return None;
            }
            None => vm = show_empty(vm.object(), &failed),
        }
    }
    health.lock().unreadable.remove(&uuid);
    let via = via.as_str();
    Some(Change::Put {
        uuid,
        zonename,
        rendered: vm,
        via,
        observed,
        stale,
        txn: None,
    })
}

fn reason(failed: &[Failure]) -> Option<String> {
    let reasons: Vec<&str> = failed
        .iter()
        .map(|failure| failure.reason.as_str())
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Puts the last good values of the parts that failed into an object, where it has none.
fn keep_last_good(mut object: Object, old: &Object, failed: &[Failure]) -> Rendered {
    let object = &mut object;
    let lost: HashSet<Part> = failed.iter().map(|failure| failure.part).collect();
    let absent = |object: &Object, name: &str| !object.contains_key(name);
    if lost.contains(&Part::Zone)
        && let Some(zone_state) = object.get("zone_state").and_then(Value::as_str)
        && old.get("zone_state").and_then(Value::as_str) != Some(zone_state)
    {
        // The zone does something else than it did when its XML could last be read; what the XML
        // would add to that (failed, provisioning, a transition) nobody knows.
        let reading = Reading {
            zone_state,
            transition: None,
            provisioning: false,
            failed: false,
        };
        let state = Value::from(reading.state().state);
        object.insert("state".to_owned(), state);
    }
    for property in property::TABLE
        .iter()
        .filter(|property| lost.contains(&property.part))
    {
        if absent(object, property.name) && property.name != "last_modified" {
            restore(object, old, property.name);
        }
    }
    if lost.contains(&Part::Datasets) {
        // Disks are named by the XML and measured by the datasets: half of one is none.
        restore(object, old, "disks");
        if absent(object, "create_timestamp") {
            restore(object, old, "create_timestamp");
        }
    }
    let newest = |object: &Object| {
        object
            .get("last_modified")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    if newest(old) > newest(object) {
        restore(object, old, "last_modified");
    }
    property::sort(object);
    Rendered::new(object)
}

/// What a VM shows that was never read whole: as on SmartOS, maps that cannot be read are empty.
fn show_empty(mut object: Object, failed: &[Failure]) -> Rendered {
    for failure in failed {
        let names: &[&str] = match failure.part {
            Part::Tags => &["tags"],
            Part::Routes => &["routes"],
            Part::Metadata => &["customer_metadata", "internal_metadata"],
            _ => &[],
        };
        for name in names {
            object.entry(*name).or_insert_with(|| json!({}));
        }
    }
    property::sort(&mut object);
    Rendered::new(&object)
}

fn restore(object: &mut Object, old: &Object, name: &str) {
    match old.get(name) {
        Some(value) => object.insert(name.to_owned(), value.clone()),
        None => object.shift_remove(name),
    };
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const UUID: Uuid = Uuid::from_u128(1);

    fn read(value: Value, failed: &[Part], via: Via) -> Loaded {
        let Value::Object(object) = value else {
            panic!("not an object");
        };
        let failures = failed.iter().map(|part| Failure {
            part: *part,
            reason: format!("{} is broken", part.as_str()),
        });
        Loaded {
            uuid: UUID,
            zonename: "one".to_owned(),
            vm: Rendered::new(&object),
            failed: failures.collect(),
            via,
            observed: SystemTime::now(),
        }
    }

    fn changed(value: Value, failed: &[Part]) -> Report {
        Report::Changed(vec![read(value, failed, Via::Event)])
    }

    fn listing(vms: Vec<Loaded>) -> Report {
        Report::Listing(Listing {
            vms,
            ..Listing::default()
        })
    }

    /// What is there when all reports are waiting at once.
    fn ingested(all: Vec<Report>) -> (Arc<Cache>, Health) {
        let (cache, writer) = Cache::new(1 << 20);
        let (reports, reported) = mpsc::channel();
        for report in all {
            reports.send(report).unwrap();
        }
        drop(reports);
        let health = Arc::new(Mutex::new(Health::default()));
        run(writer, reported, health.clone(), &|_, _, _| None);
        let health = health.lock().clone();
        (cache, health)
    }

    fn tags(cache: &Cache) -> Value {
        cache.vm(&UUID).unwrap().rendered.object()["tags"].clone()
    }

    #[test]
    fn last_good_values_are_those_of_a_change_that_waits_in_the_same_batch() {
        let all = vec![
            listing(vec![read(json!({"tags": {"a": "1"}}), &[], Via::Scan)]),
            changed(json!({"tags": {"a": "2"}}), &[]),
            changed(json!({}), &[Part::Tags]),
        ];
        let (cache, _) = ingested(all);
        assert_eq!(tags(&cache), json!({"a": "2"}));
        assert!(cache.vm(&UUID).unwrap().stale.is_some());
    }

    #[test]
    fn last_good_values_are_those_of_a_change_in_the_same_report() {
        let all = vec![
            listing(vec![read(json!({"tags": {"a": "1"}}), &[], Via::Scan)]),
            Report::Changed(vec![
                read(json!({"tags": {"a": "2"}}), &[], Via::Event),
                read(json!({}), &[Part::Tags], Via::Event),
            ]),
        ];
        assert_eq!(tags(&ingested(all).0), json!({"a": "2"}));
    }

    #[test]
    fn a_vm_that_was_deleted_gives_the_next_of_its_uuid_nothing() {
        let all = vec![
            listing(vec![read(json!({"tags": {"a": "1"}}), &[], Via::Scan)]),
            Report::Gone(UUID),
            changed(json!({}), &[Part::Tags]),
        ];
        assert_eq!(tags(&ingested(all).0), json!({}));
    }

    #[test]
    fn a_vm_that_was_readable_once_in_a_batch_is_not_unreadable() {
        let unread = [Part::Zone];
        let silent = Report::Silent {
            uuid: UUID,
            reason: "no answer".to_owned(),
        };
        for last in [changed(json!({}), &unread), silent] {
            let first = changed(json!({"brand": "lx"}), &[]);
            let (cache, health) = ingested(vec![listing(Vec::new()), first, last]);
            let vm = cache.vm(&UUID).unwrap();
            assert_eq!(vm.text("brand").as_deref(), Some("lx"));
            assert!(vm.stale.is_some());
            assert!(health.unreadable.is_empty());
        }
    }

    #[test]
    fn what_only_a_scan_found_is_missed_also_when_it_is_reported_by_itself() {
        let all = vec![
            listing(vec![read(json!({"tags": {"a": "1"}}), &[], Via::Scan)]),
            changed(json!({"tags": {"a": "2"}}), &[]),
            Report::Changed(vec![read(json!({"tags": {"a": "3"}}), &[], Via::Scan)]),
        ];
        let (_, health) = ingested(all);
        assert_eq!(health.missed, BTreeMap::from([("tags", 1)]));
    }
}
