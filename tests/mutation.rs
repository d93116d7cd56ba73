//! The way of a change, from a wish to its outcome, over a source that the test plays: what it is told
//! when, and what the mount shows when, is up to the test, so that each race is forced and none is waited for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;
use vminfod::cache::{Cache, Change, Writer};
use vminfod::mutation::{Changes, Done, Failure, Mutations, Outcome, Timeouts, Wait, Wish};
use vminfod::source::{
    Accepted, Apply, Cut, Extent, Failed, FailedKind, Locked, Report, Source, SourceError,
};
use vminfod::vm::Object;
use vminfod::vm::files::Rendered;
use vminfod::vm::property::Part;
use vminfod::vm::verb::Verb;

const PATIENCE: Duration = Duration::from_secs(30);
const VM: Uuid = Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0001);

/// Called in the middle of an update, when the source has it and nobody has been told.
type Hook = Box<dyn FnMut(&Host) + Send>;

/// A host: what its source has, and what the cache and the mount have of it.
struct Host {
    vms: Mutex<BTreeMap<Uuid, Object>>,
    writer: Mutex<Writer>,
    cache: Arc<Cache>,
    mutations: Mutex<Option<Mutations>>,
    /// Whether a nudge is heard.
    hears: Mutex<bool>,
    nudges: Mutex<Sender<Uuid>>,
    nudged: Mutex<Receiver<Uuid>>,
    in_update: Mutex<Option<Hook>>,
    fails: Mutex<Option<Failed>>,
    /// Whether no VM can be read afresh.
    broken: Mutex<bool>,
    /// Whether another tool has the lock of every VM.
    locked: Mutex<bool>,
    /// How long a reading has to be allowed to take.
    takes: Mutex<Duration>,
}

struct PlayedSource(Arc<Host>);
struct PlayedApply(Arc<Host>);

struct Opened<'a> {
    host: &'a Arc<Host>,
    uuid: Uuid,
    vm: Object,
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

fn vm() -> Object {
    object(json!({
        "zonename": VM.to_string(), "autoboot": true, "brand": "joyent", "cpu_shares": 100,
        "alias": "one", "firewall_enabled": false, "resolvers": [], "nics": [], "hvm": false,
        "uuid": VM.to_string(), "zoneid": 3, "zonepath": format!("/zones/{VM}"),
        "customer_metadata": {}, "internal_metadata": {}, "routes": {}, "tags": {},
        "quota": 10, "zfs_filesystem": format!("zones/{VM}"), "zpool": "zones", "snapshots": [],
        "last_modified": "2026-01-01T00:00:00.000Z", "zone_state": "running", "state": "running",
    }))
}

impl Host {
    fn new() -> Arc<Host> {
        Host::with(Timeouts {
            change: PATIENCE,
            life: PATIENCE,
        })
    }

    fn with(timeouts: Timeouts) -> Arc<Host> {
        let (cache, writer) = Cache::new(1 << 20);
        let (nudges, nudged) = mpsc::channel();
        let host = Arc::new(Host {
            vms: Mutex::new(BTreeMap::from([(VM, vm())])),
            writer: Mutex::new(writer),
            cache: cache.clone(),
            mutations: Mutex::default(),
            hears: Mutex::new(true),
            nudges: Mutex::new(nudges),
            nudged: Mutex::new(nudged),
            in_update: Mutex::default(),
            fails: Mutex::default(),
            broken: Mutex::default(),
            locked: Mutex::default(),
            takes: Mutex::default(),
        });
        let (source, apply) = (PlayedSource(host.clone()), PlayedApply(host.clone()));
        let mutations = Mutations::new(cache, Arc::new(source), Arc::new(apply), timeouts);
        *host.mutations.lock() = Some(mutations);
        host.look(VM);
        host
    }

    fn mutations(&self) -> Mutations {
        self.mutations.lock().clone().unwrap()
    }

    /// Ingest reads a VM and the mount shows it.
    fn look(&self, uuid: Uuid) {
        let object = self.vms.lock().get(&uuid).cloned();
        let mut writer = self.writer.lock();
        let rendered = object.as_ref().map(Rendered::new);
        let old = self.cache.vm(&uuid);
        let txn = self.mutations().txn(
            &uuid,
            old.as_ref().map(|vm| &vm.rendered),
            rendered.as_ref(),
        );
        let change = match rendered {
            Some(rendered) => Change::Put {
                uuid,
                zonename: uuid.to_string(),
                rendered,
                via: "event",
                observed: SystemTime::now(),
                stale: None,
                txn,
            },
            None => Change::Remove {
                uuid,
                via: "event",
                txn,
            },
        };
        writer.publish(vec![change]);
        self.mutations().shown(&self.cache.now());
    }

    fn set(&self, name: &str, value: Value) {
        let mut vms = self.vms.lock();
        vms.get_mut(&VM).unwrap().insert(name.to_owned(), value);
    }

    fn get(&self, name: &str) -> Value {
        self.vms.lock()[&VM]
            .get(name)
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn in_update(&self, hook: impl FnMut(&Host) + Send + 'static) {
        *self.in_update.lock() = Some(Box::new(hook));
    }

    fn wish(&self, wish: Wish, wait: Wait) -> Receiver<Outcome> {
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |outcome| drop(tell.send(outcome)));
        self.mutations().change(VM, wish, wait, done);
        told
    }

    fn change(&self, document: Value) -> Outcome {
        let document = Wish::Document(object(document));
        self.wish(document, Wait::Confirmed)
            .recv_timeout(PATIENCE)
            .unwrap()
    }

    fn deaf(&self) {
        *self.hears.lock() = false;
    }
}

impl Source for PlayedSource {
    fn describe(&self) -> String {
        "a played host".into()
    }

    fn start(&self, _: Sender<Report>) -> Result<(), SourceError> {
        Ok(())
    }

    fn rescan(&self) {}

    fn reload(&self, uuid: Uuid) {
        if *self.0.hears.lock() {
            let host = self.0.clone();
            std::thread::spawn(move || host.look(uuid));
        }
        self.0.nudges.lock().send(uuid).unwrap();
    }

    fn status(&self) -> Value {
        Value::Null
    }
}

impl Apply for PlayedApply {
    fn lock_for(
        &self,
        uuid: Uuid,
        _: Extent,
        until: Instant,
        deadline: Instant,
    ) -> Result<Box<dyn Locked + '_>, Failed> {
        if deadline < Instant::now() + *self.0.takes.lock() {
            return Err(Failed {
                kind: FailedKind::Source,
                applied: Vec::new(),
                reason: format!("{uuid}: not read in time"),
            });
        }
        if *self.0.locked.lock() && until <= Instant::now() {
            return Err(Failed {
                kind: FailedKind::Busy,
                applied: Vec::new(),
                reason: format!("{uuid}: locked by another operation"),
            });
        }
        let mut opened = Opened {
            host: &self.0,
            uuid,
            vm: Object::new(),
        };
        opened.read()?;
        Ok(Box::new(opened))
    }

    fn delete(&self, uuid: Uuid, _: Instant) -> Result<(), Failed> {
        self.0.vms.lock().remove(&uuid);
        Ok(())
    }

    fn create(&self, uuid: Uuid, target: &Object, _: Instant) -> Result<(), Failed> {
        self.0.vms.lock().insert(uuid, target.clone());
        self.0.fails.lock().take().map_or(Ok(()), Err)
    }

    fn recover(&self) -> Vec<Cut> {
        Vec::new()
    }

    fn watcher(&self, part: Part) -> String {
        format!("the watcher of {}", part.as_str())
    }
}

impl Locked for Opened<'_> {
    fn vm(&self) -> &Object {
        &self.vm
    }

    fn read(&mut self) -> Result<(), Failed> {
        if *self.host.broken.lock() {
            return Err(Failed {
                kind: FailedKind::Source,
                applied: Vec::new(),
                reason: format!("{}: its XML is broken", self.uuid),
            });
        }
        let found = self.host.vms.lock().get(&self.uuid).cloned();
        self.vm = found.ok_or(Failed {
            kind: FailedKind::Gone,
            applied: Vec::new(),
            reason: format!("{}: no such VM", self.uuid),
        })?;
        Ok(())
    }

    fn update(&mut self, target: &Object) -> Result<Accepted, Failed> {
        if let Some(failed) = self.host.fails.lock().take() {
            return Err(failed);
        }
        self.host.vms.lock().insert(self.uuid, target.clone());
        let hook = self.host.in_update.lock().take();
        if let Some(mut hook) = hook {
            hook(self.host);
        }
        self.read()?;
        Ok(Accepted::Done)
    }

    fn run(&mut self, verb: &Verb) -> Result<Accepted, Failed> {
        match verb {
            Verb::Delete => drop(self.host.vms.lock().remove(&self.uuid)),
            Verb::Stop { .. } => {
                self.host.set("state", json!("stopped"));
                self.host.set("zone_state", json!("installed"));
                self.host.set("zoneid", Value::Null);
            }
            Verb::Start => {
                self.host.set("state", json!("running"));
                self.host.set("zone_state", json!("running"));
                self.host.set("zoneid", json!(4));
            }
            Verb::Snapshot(name) => {
                let made =
                    json!({"name": name, "created_at": "2026-01-01T00:00:00.000Z", "size": 0});
                self.host.set("snapshots", json!([made]));
            }
            _ => {}
        }
        if *verb != Verb::Delete {
            self.read()?;
        }
        Ok(Accepted::Done)
    }
}

#[track_caller]
fn text(outcome: Outcome) -> String {
    outcome.unwrap_err().to_string()
}

#[test]
fn a_change_is_applied_shown_and_confirmed() {
    let host = Host::new();
    assert_eq!(host.change(json!({"quota": 20})), Ok(Done::Confirmed));
    assert_eq!(host.get("quota"), json!(20));
    let shown = host.cache.vm(&VM).unwrap();
    assert_eq!(shown.text("quota").as_deref(), Some("20"));
}

#[test]
fn a_value_that_holds_already_returns_at_once_and_touches_nothing() {
    let host = Host::new();
    host.deaf();
    host.in_update(|_| panic!("something was written"));
    assert_eq!(host.change(json!({"quota": 10})), Ok(Done::Already));
}

#[test]
fn what_the_source_has_already_but_nobody_was_shown_is_waited_for() {
    let host = Host::new();
    host.set("quota", json!(20));
    host.deaf();
    let wish = Wish::Document(object(json!({"quota": 20})));
    let told = host.wish(wish, Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    assert!(told.try_recv().is_err());
    host.look(VM);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
}

#[test]
fn what_others_changed_beside_a_value_that_holds_is_not_waited_for() {
    let host = Host::new();
    host.deaf();
    host.set("alias", json!("two"));
    for document in [
        json!({"quota": 10}),
        json!({"remove_tags": ["gone"]}),
        json!({"uuid": VM.to_string(), "nics": [], "alias": "two", "quota": 10}),
    ] {
        let is_whole = document.get("uuid").is_some();
        let told = host.wish(Wish::Document(object(document)), Wait::Confirmed);
        if is_whole {
            // This one says what the alias is.
            host.nudged.lock().recv_timeout(PATIENCE).unwrap();
            host.look(VM);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
        } else {
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Already));
        }
    }
    host.set("alias", json!("three"));
    let told = host.wish(Wish::Verb(Verb::Start), Wait::Confirmed);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Already));
}

#[test]
fn who_waits_for_a_value_is_not_overtaken_by_another_one() {
    let host = Host::new();
    host.deaf();
    host.set("quota", json!(20));
    host.set("alias", json!("two"));
    let wish = Wish::Document(object(json!({"quota": 20})));
    let told = host.wish(wish, Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    // The alias that the source had then is never shown.
    host.set("alias", json!("three"));
    host.look(VM);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
}

#[test]
fn who_is_not_to_wait_waits_for_no_turn_and_no_lock() {
    let host = Host::new();
    host.deaf();
    let quota = |quota: u32| Wish::Document(object(json!({"quota": quota})));
    let first = host.wish(quota(20), Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    let outcome = |told: Receiver<Outcome>| told.recv_timeout(PATIENCE).unwrap();
    let second = outcome(host.wish(quota(30), Wait::AtOnce));
    assert!(matches!(second, Err(Failure::WouldBlock(_))), "{second:?}");
    host.look(VM);
    assert_eq!(outcome(first), Ok(Done::Confirmed));
    *host.locked.lock() = true;
    let third = outcome(host.wish(quota(30), Wait::AtOnce));
    assert!(matches!(third, Err(Failure::WouldBlock(_))), "{third:?}");
    assert_eq!(host.get("quota"), json!(20));
    *host.locked.lock() = false;
    // Its confirmation, of which nobody hears, is not waited for.
    assert_eq!(
        outcome(host.wish(quota(30), Wait::AtOnce)),
        Ok(Done::Applied)
    );
    assert_eq!(host.get("quota"), json!(30));
}

#[test]
fn a_vm_that_cannot_be_read_can_be_deleted_and_nothing_else() {
    let host = Host::new();
    *host.broken.lock() = true;
    let failed = host.change(json!({"quota": 20}));
    assert!(matches!(failed, Err(Failure::Source { .. })), "{failed:?}");
    let told = host.wish(Wish::Verb(Verb::Delete), Wait::Confirmed);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
    assert!(host.cache.vm(&VM).is_none());
}

#[test]
fn an_event_that_comes_before_apply_has_returned_confirms() {
    let host = Host::new();
    host.deaf();
    host.in_update(|host| host.look(VM));
    assert_eq!(host.change(json!({"quota": 20})), Ok(Done::Confirmed));
}

#[test]
fn a_lost_event_costs_time_and_nothing_else() {
    let host = Host::new();
    host.deaf();
    let told = host.wish(
        Wish::Document(object(json!({"quota": 20}))),
        Wait::Confirmed,
    );
    // The first nudge is not heard, the next one is.
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    *host.hears.lock() = true;
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
}

#[test]
fn a_change_that_is_never_shown_ends_at_its_deadline_and_names_the_watcher() {
    let short = Duration::from_millis(50);
    let host = Host::with(Timeouts {
        change: short,
        life: short,
    });
    host.deaf();
    let outcome = host.change(json!({"quota": 20}));
    assert!(
        matches!(outcome, Err(Failure::Unconfirmed(_))),
        "{outcome:?}"
    );
    let text = text(outcome);
    assert!(
        text.contains("quota") && text.contains("the watcher of datasets"),
        "{text}"
    );
}

#[test]
fn who_is_overtaken_is_told_so_when_the_other_value_is_shown() {
    let host = Host::new();
    host.deaf();
    let told = host.wish(
        Wish::Document(object(json!({"quota": 20}))),
        Wait::Confirmed,
    );
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    host.set("quota", json!(30));
    host.look(VM);
    let outcome = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(outcome, Err(Failure::Overtaken(_))), "{outcome:?}");
}

#[test]
fn who_is_overtaken_before_apply_returns_is_told_so() {
    let host = Host::new();
    host.in_update(|host| host.set("quota", json!(30)));
    let outcome = host.change(json!({"quota": 20}));
    assert!(matches!(outcome, Err(Failure::Overtaken(_))), "{outcome:?}");
}

#[test]
fn a_vm_that_goes_ends_the_wait() {
    let host = Host::new();
    host.deaf();
    let told = host.wish(
        Wish::Document(object(json!({"quota": 20}))),
        Wait::Confirmed,
    );
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    host.vms.lock().remove(&VM);
    host.look(VM);
    let outcome = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(outcome, Err(Failure::Gone(_))), "{outcome:?}");
}

#[test]
fn a_vm_that_went_before_its_start_was_waited_for_ends_the_wait() {
    let host = Host::new();
    host.set("state", json!("stopped"));
    host.set("zone_state", json!("installed"));
    host.look(VM);
    host.deaf();
    let told = host.wish(Wish::Verb(Verb::Start), Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    host.vms.lock().remove(&VM);
    // Nobody shows that it has gone: the source is asked.
    let outcome = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(outcome, Err(Failure::Gone(_))), "{outcome:?}");
}

#[test]
fn an_old_version_that_is_shown_meanwhile_ends_nothing() {
    let host = Host::new();
    host.deaf();
    // Read before the change, shown after it.
    host.in_update(|host| {
        let newest = host.vms.lock().insert(VM, {
            let mut old = vm();
            old.insert("alias".into(), json!("two"));
            old
        });
        host.look(VM);
        host.vms.lock().insert(VM, newest.unwrap());
    });
    let told = host.wish(
        Wish::Document(object(json!({"quota": 20}))),
        Wait::Confirmed,
    );
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    assert!(told.try_recv().is_err());
    host.look(VM);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
}

#[test]
fn changes_of_one_vm_are_made_in_their_order() {
    let host = Host::new();
    let all: Vec<_> = (1..=50)
        .map(|quota| {
            let wish = Wish::Document(object(json!({"quota": quota})));
            // A change has its turn when its thread has asked for it.
            let told = host.wish(wish, Wait::Confirmed);
            told.recv_timeout(PATIENCE).unwrap()
        })
        .collect();
    assert!(
        all.into_iter()
            .all(|outcome| outcome == Ok(Done::Confirmed))
    );
    assert_eq!(host.get("quota"), json!(50));
}

#[test]
fn who_is_overtaken_is_told_so_by_a_source_that_is_slow_to_read() {
    let host = Host::new();
    *host.takes.lock() = Duration::from_millis(500);
    host.deaf();
    let wish = Wish::Document(object(json!({"quota": 20})));
    let told = host.wish(wish, Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    host.set("quota", json!(50));
    let why = text(told.recv_timeout(PATIENCE).unwrap());
    assert!(why.contains("somebody has changed it since"), "{why}");
}

#[test]
fn what_the_source_refuses_changes_nothing_and_says_why() {
    let host = Host::new();
    *host.fails.lock() = Some(Failed {
        kind: FailedKind::Source,
        applied: vec!["tags.json".into()],
        reason: "zfs set quota=20G zones/x: out of space".into(),
    });
    let outcome = host.change(json!({"quota": 20}));
    let Err(Failure::Source { reason, applied }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(reason.contains("out of space"));
    assert_eq!(applied, ["tags.json"]);
    assert_eq!(host.get("quota"), json!(10));
}

#[test]
fn what_a_change_that_failed_has_left_is_shown_before_it_is_told() {
    let failures = [
        (FailedKind::Source, vec!["alias".to_owned()]),
        // What failed may have left something by itself.
        (FailedKind::Source, vec![]),
        (FailedKind::Busy, vec![]),
    ];
    for (kind, applied) in failures {
        let host = Host::new();
        host.deaf();
        *host.fails.lock() = Some(Failed {
            kind,
            applied,
            reason: "quota: out of space".into(),
        });
        let told = host.wish(
            Wish::Document(object(json!({"alias": "two", "quota": 20}))),
            Wait::Confirmed,
        );
        host.nudged.lock().recv_timeout(PATIENCE).unwrap();
        // Nothing says when somebody does not go on.
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        host.set("alias", json!("two"));
        host.look(VM);
        let outcome = told.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(
            outcome,
            Err(Failure::Source { .. } | Failure::Busy(_))
        ));
        let shown = host.cache.vm(&VM).unwrap().rendered.object();
        assert_eq!(shown["alias"], json!("two"));
    }
}

#[test]
fn a_payload_with_one_bad_member_is_refused_whole() {
    let host = Host::new();
    for bad in [
        json!({"quota": 20, "nosuch": 1}),
        json!({"quota": 20, "zoneid": 1}),
    ] {
        let outcome = host.change(bad);
        assert!(matches!(outcome, Err(Failure::Refused(_))), "{outcome:?}");
    }
    assert_eq!(host.get("quota"), json!(10));
}

#[test]
fn if_generation_lets_only_the_version_that_was_read_be_changed() {
    let host = Host::new();
    let generation = || host.cache.vm(&VM).unwrap().generation;
    let read = generation();
    assert_eq!(
        host.change(json!({"quota": 20, "if_generation": read})),
        Ok(Done::Confirmed)
    );
    let outcome = host.change(json!({"quota": 30, "if_generation": read}));
    assert!(matches!(outcome, Err(Failure::Moved(_))), "{outcome:?}");
    // Somebody changed it behind our back, and nobody has noticed yet.
    host.set("alias", json!("two"));
    let outcome = host.change(json!({"quota": 30, "if_generation": generation()}));
    assert!(matches!(outcome, Err(Failure::Moved(_))), "{outcome:?}");
    assert_eq!(host.get("quota"), json!(20));
}

#[test]
fn revert_undoes_the_last_change_and_can_be_undone() {
    let host = Host::new();
    let revert = || {
        let told = host.wish(Wish::Verb(Verb::Revert), Wait::Confirmed);
        told.recv_timeout(PATIENCE).unwrap()
    };
    assert!(matches!(revert(), Err(Failure::Refused(_))));
    let change = json!({"quota": 20, "set_tags": {"role": "web"}});
    assert_eq!(host.change(change), Ok(Done::Confirmed));
    assert_eq!(revert(), Ok(Done::Confirmed));
    assert_eq!(
        (host.get("quota"), host.get("tags")),
        (json!(10), json!({}))
    );
    assert_eq!(revert(), Ok(Done::Confirmed));
    assert_eq!(host.get("tags"), json!({"role": "web"}));
    host.set("quota", json!(99));
    host.look(VM);
    assert!(matches!(revert(), Err(Failure::Refused(_))));
}

#[test]
fn verbs_are_confirmed_by_what_the_vm_does() {
    let host = Host::new();
    let run = |verb: Verb| {
        let told = host.wish(Wish::Verb(verb), Wait::Confirmed);
        told.recv_timeout(PATIENCE).unwrap()
    };
    assert_eq!(run(Verb::Start), Ok(Done::Already));
    let stop = Verb::Stop {
        force: false,
        timeout: None,
    };
    assert_eq!(run(stop.clone()), Ok(Done::Confirmed));
    assert_eq!(run(stop), Ok(Done::Already));
    assert_eq!(run(Verb::Start), Ok(Done::Confirmed));
    assert_eq!(run(Verb::Sync), Ok(Done::Confirmed));
    assert_eq!(run(Verb::Delete), Ok(Done::Confirmed));
    assert!(host.cache.vm(&VM).is_none());
    assert!(matches!(run(Verb::Start), Err(Failure::Gone(_))));
}

#[test]
fn events_of_a_write_carry_its_number_and_others_do_not() {
    let host = Host::new();
    assert_eq!(host.change(json!({"quota": 20})), Ok(Done::Confirmed));
    host.set("alias", json!("two"));
    host.look(VM);
    let events = host.cache.events();
    let lines: Vec<Value> = events
        .from(0)
        .map(|kept| {
            let mut line = Vec::new();
            kept.event.write(0, &mut line);
            serde_json::from_slice(&line).unwrap()
        })
        .collect();
    let last = &lines[lines.len() - 2..];
    assert!(last[0]["txn"].is_string(), "{}", last[0]);
    assert_eq!(last[1].get("txn"), None, "{}", last[1]);
}

/// The events so far.
fn events(host: &Host) -> Vec<Value> {
    let events = host.cache.events();
    let lines = events.from(0).map(|kept| {
        let mut line = Vec::new();
        kept.event.write(0, &mut line);
        serde_json::from_slice(&line).unwrap()
    });
    lines.collect()
}

#[test]
fn what_others_did_carries_no_number_of_a_write_that_did_nothing() {
    let host = Host::new();
    host.set("alias", json!("two"));
    // It waits for what the mount does not show yet.
    assert_eq!(host.change(json!({"alias": "two"})), Ok(Done::Confirmed));
    let events = events(&host);
    let last = &events[events.len() - 1];
    assert_eq!(last["vm"]["alias"], "two");
    assert_eq!(last.get("txn"), None, "{last}");
}

#[test]
fn what_undoes_a_verb_or_follows_it_is_not_its_doing() {
    let host = Host::new();
    let verb = |verb| {
        let told = host.wish(Wish::Verb(verb), Wait::Confirmed);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Confirmed));
    };
    let last = || events(&host).pop().unwrap();
    verb(Verb::Stop {
        force: false,
        timeout: None,
    });
    assert!(last()["txn"].is_string());
    host.set("zone_state", json!("running"));
    host.set("state", json!("running"));
    host.look(VM);
    assert_eq!(last().get("txn"), None, "{}", last());
    verb(Verb::Snapshot("a".into()));
    assert!(last()["txn"].is_string());
    let with =
        |name: &str| json!({"name": name, "created_at": "2026-01-01T00:00:00.000Z", "size": 0});
    host.set("snapshots", json!([with("b"), with("a")]));
    host.look(VM);
    assert_eq!(last().get("txn"), None, "{}", last());
}

#[test]
fn a_write_that_does_not_wait_is_answered_when_it_has_been_applied() {
    let host = Host::new();
    host.deaf();
    let told = host.wish(Wish::Document(object(json!({"quota": 20}))), Wait::Applied);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(Done::Applied));
    assert_eq!(host.get("quota"), json!(20));
}

#[test]
fn the_end_answers_all_who_wait() {
    let host = Host::new();
    host.deaf();
    let wish = |quota: u64| Wish::Document(object(json!({"quota": quota})));
    let first = host.wish(wish(20), Wait::Confirmed);
    host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    let queued = host.wish(wish(30), Wait::Confirmed);
    host.mutations().end(PATIENCE);
    for told in [first, queued, host.wish(wish(40), Wait::Confirmed)] {
        let outcome = told.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(outcome, Err(Failure::Ended(_))), "{outcome:?}");
    }
    assert_eq!(host.get("quota"), json!(20));
}

#[test]
fn a_new_vm_is_created_and_shown_once() {
    let host = Host::new();
    let create = |payload: Value| {
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |uuid, outcome| drop(tell.send((uuid, outcome))));
        host.mutations()
            .create(object(payload), Wait::Confirmed, done);
        told.recv_timeout(PATIENCE).unwrap()
    };
    let payload = json!({"brand": "joyent", "image_uuid": Uuid::from_u128(7).to_string()});
    let (uuid, outcome) = create(payload.clone());
    assert_eq!(outcome, Ok(Done::Confirmed));
    assert!(host.cache.vm(&uuid.unwrap()).is_some());
    let mut again = payload;
    again["uuid"] = json!(uuid.unwrap().to_string());
    let (_, outcome) = create(again);
    assert!(matches!(outcome, Err(Failure::Exists(_))), "{outcome:?}");
    let (uuid, outcome) = create(json!({"alias": "x"}));
    assert_eq!(uuid, None);
    assert!(matches!(outcome, Err(Failure::Refused(_))), "{outcome:?}");
}

#[test]
fn a_new_vm_that_was_made_but_failed_is_shown_before_that_is_told() {
    let host = Host::new();
    host.deaf();
    *host.fails.lock() = Some(Failed {
        kind: FailedKind::Source,
        applied: vec!["created".into()],
        reason: "it was created, but does not start".into(),
    });
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |_, outcome| drop(tell.send(outcome)));
    let payload = json!({"brand": "joyent", "image_uuid": Uuid::from_u128(7).to_string()});
    host.mutations()
        .create(object(payload), Wait::Confirmed, done);
    let uuid = host.nudged.lock().recv_timeout(PATIENCE).unwrap();
    // Nothing says when somebody does not go on.
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
    host.look(uuid);
    let outcome = told.recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(outcome, Err(Failure::Source { .. })),
        "{outcome:?}"
    );
    assert!(host.cache.vm(&uuid).is_some());
}
