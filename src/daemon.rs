//! Wires the parts: which threads there are, which signals, in which order things start and stop.
//!
//! Start: mount point checked, source started (it watches first, then reads), `ingest` publishes the
//! first listing, the tree is mounted, `ready` is called. Whoever waits for the mount finds the
//! tree complete.
//!
//! Stop, on SIGTERM, SIGINT, SIGHUP or when the mount has gone: streams end, the tree is unmounted, the
//! process ends; nothing is waited for longer than a second or two.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::fs::mountpoint::{self, MountError};
use crate::fs::{Mount, MountOptions, Numbers, Places};
use crate::ingest::{self, Health};
use crate::mutation::{Changes, Mutations, Timeouts};
use crate::source::{Apply, Source, SourceError};

/// How many stale VMs the status document names; it counts all of them.
const NAMED: usize = 256;

/// What the daemon is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to mount.
    pub places: Places,
    /// How to mount.
    pub mount: MountOptions,
    /// How many bytes of events are kept.
    pub history: usize,
    /// How long a write waits for its confirmation.
    pub timeouts: Timeouts,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount point cannot be used.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The source cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source ended before it had listed its VMs.
    #[error("{0}: ended before it had listed its VMs; the log says why")]
    NoListing(String),
    /// A thread or a signal handler could not be set up.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// What ends the daemon.
enum End {
    Signal(i32),
    Unmounted,
}

/// Runs until a signal or an unmount ends it. `ready` is called once the tree is mounted and
/// complete.
///
/// # Errors
/// When it cannot start; nothing is left mounted then.
pub fn run(
    source: Arc<dyn Source>,
    apply: Arc<dyn Apply>,
    options: &Options,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let began = (Instant::now(), SystemTime::now());
    let places = options.places.prepared()?;
    let (ends, ended) = mpsc::channel();
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn({
        let ends = ends.clone();
        move || forward(signals, &ends)
    })?;

    let (cache, writer) = Cache::new(options.history);
    let health = Arc::new(Mutex::new(Health::default()));
    // Before anything is read: what a killed daemon left half done is ended or taken back first.
    let cuts = apply.recover();
    for cut in &cuts {
        warn!(vm = %cut.uuid, reason = cut.reason, "a change was cut off when the daemon was killed");
    }
    let mutations = Mutations::new(cache.clone(), source.clone(), apply, options.timeouts);
    let (reports, reported) = mpsc::channel();
    source.start(reports)?;
    let ingest = thread::Builder::new().name("ingest".into()).spawn({
        let (health, mutations) = (health.clone(), mutations.clone());
        move || {
            ingest::run(writer, reported, health, &move |uuid, old, new| {
                mutations.txn(uuid, old, new)
            });
        }
    })?;
    while !health.lock().ready {
        if let Ok(End::Signal(signal)) = ended.try_recv() {
            info!(signal, "stopped before the first listing");
            return Ok(());
        }
        if ingest.is_finished() {
            return Err(Error::NoListing(source.describe()));
        }
        cache.newer_than(
            cache.now().version,
            Some(Instant::now() + Duration::from_millis(20)),
            || ingest.is_finished(),
        );
    }

    mutations.shown(&cache.now());
    let numbers = Arc::new(OnceLock::new());
    let status = Status {
        began,
        cache: cache.clone(),
        health,
        source,
        numbers: numbers.clone(),
    };
    let changes = Arc::new(mutations);
    let mount = Mount::new(cache.clone(), &places, &options.mount, changes, move || {
        status.document()
    })?;
    for cut in &cuts {
        mount.report_cut(cut.uuid, &cut.reason);
    }
    // Set once; nobody else sets it.
    let _ = numbers.set(mount.numbers());
    let device = mount.device();
    thread::Builder::new()
        .name("mountinfo".into())
        .spawn(move || {
            mountpoint::wait_unmounted(device, None);
            // The daemon may have ended already.
            let _ = ends.send(End::Unmounted);
        })?;
    info!(path = %places.main().display(), vms = cache.now().vms.len(), ms = began.0.elapsed().as_millis(), "mounted");
    ready();

    wait(&ended);
    mount.stop();
    Ok(())
}

fn wait(ended: &Receiver<End>) {
    match ended.recv() {
        Ok(End::Signal(signal)) => info!(signal, "stopping"),
        Ok(End::Unmounted) | Err(_) => info!("unmounted"),
    }
}

fn forward(mut signals: Signals, ends: &Sender<End>) {
    for signal in signals.forever() {
        if ends.send(End::Signal(signal)).is_err() {
            warn!(signal, "already stopping");
        }
    }
}

/// Whatever the status document is made of.
struct Status {
    began: (Instant, SystemTime),
    cache: Arc<Cache>,
    health: Arc<Mutex<Health>>,
    source: Arc<dyn Source>,
    numbers: Arc<OnceLock<Numbers>>,
}

impl Status {
    /// The document of vminfod's `/status?full=true`, and what this daemon knows beyond it.
    fn document(&self) -> String {
        let now = SystemTime::now();
        let snapshot = self.cache.now();
        let health = self.health.lock().clone();
        let numbers = self.numbers.get();
        let mut watching = Map::from_iter([("running".to_owned(), Value::Bool(true))]);
        if let Value::Object(status) = self.source.status() {
            watching.extend(status);
        }
        let unplaced = watching.shift_remove("unplaced");
        let stale = || {
            let reasons = snapshot.vms.iter().map(|(_, vm)| (vm.uuid, &vm.stale));
            reasons.filter_map(|(uuid, reason)| Some((uuid, reason.as_deref()?)))
        };
        let stale_vms = stale().count();
        let stale: Map<String, Value> = stale()
            .take(NAMED)
            .map(|(uuid, reason)| (uuid.to_string(), Value::from(reason)))
            .collect();
        let listeners = numbers.map(Numbers::listeners).unwrap_or_default();
        let listeners: Map<String, Value> = listeners
            .iter()
            .map(|listener| {
                let created = listener
                    .since
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let ago = now.duration_since(listener.since).unwrap_or_default();
                let value = json!({
                    "userAgent": listener.program,
                    "createdTime": created.as_millis() as u64,
                    "createdDate": date(listener.since),
                    "createdAgo": duration(ago),
                });
                (listener.uuid.to_string(), value)
            })
            .collect();
        let ago = |at| duration(now.duration_since(at).unwrap_or_default());
        let errors = health.errors.iter().map(|problem| {
            let vm = problem.vm.map(|uuid| uuid.to_string());
            json!({"err": problem.reason, "vm": vm, "date": date(problem.at), "ago": ago(problem.at)})
        });
        let errors: Vec<Value> = errors.collect();
        let scans = health.listings.iter().map(|scan| {
            let (ended, changed) = (date(scan.at), scan.changed);
            json!({"ended": ended, "endedAgo": ago(scan.at), "vms": scan.vms, "vmChanges": changed})
        });
        let scans: Vec<Value> = scans.collect();
        let index = watching.get("index").and_then(Value::as_str);
        let status = summary(stale_vms, health.unreadable.len(), index);
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (kept, oldest) = {
            let events = self.cache.events();
            (events.bytes(), events.oldest())
        };
        let rendered: usize = snapshot.vms.iter().map(|(_, vm)| vm.memory()).sum();
        let counts = |messages: Vec<(&'static str, u64)>| -> Map<String, Value> {
            let counts = messages.into_iter();
            counts
                .map(|(name, count)| (name.to_owned(), Value::from(count)))
                .collect()
        };
        let messages = counts(numbers.map(Numbers::messages).unwrap_or_default());
        let read_only = numbers.and_then(Numbers::read_only).map(|mount| {
            json!({
                "inodesHeld": mount.inodes_held,
                "versionsKept": mount.versions_kept,
                "messages": counts(mount.messages),
            })
        });
        let document = json!({
            "pid": std::process::id(),
            "uptime": duration(self.began.0.elapsed()),
            "memory": {"rss": resident(), "vms": rendered, "events": kept},
            "state": if health.ready { "running" } else { "starting" },
            "status": status,
            "numVms": snapshot.vms.len(),
            "curDate": date(now),
            "curTime": since_epoch.as_millis() as u64,
            "queue": {
                "now": null,
                "paused": false,
                "idle": true,
                "vasync_queue": {"concurrency": 1, "npending": 0, "nqueued": 0, "pending": [], "queued": []},
            },
            "lastRefresh": health.last_refresh.map(date),
            "refreshErrors": errors,
            "eventsListeners": listeners,
            "refreshLog": scans,
            "fswatcher": watching,
            "version": env!("CARGO_PKG_VERSION"),
            "source": self.source.describe(),
            "started": date(self.began.1),
            "stale": stale,
            "unreadable": health.unreadable.iter()
                .map(|(uuid, reason)| (uuid.to_string(), Value::from(reason.as_str())))
                .collect::<Map<_, _>>(),
            "unplaced": unplaced,
            "missed": health.missed,
            "events": {"seq": snapshot.seq, "oldest": oldest, "settled": numbers.map(Numbers::settled)},
            "mount": {
                "inodesHeld": numbers.map(Numbers::inodes_held),
                "readersWaiting": numbers.map(Numbers::waiting),
                "writersWaiting": numbers.map(Numbers::writers_waiting),
                "messages": messages,
            },
            "readOnlyMount": read_only,
        });
        format!("{document:#}\n")
    }
}

/// All that is wrong, in a few words; `ok` if nothing is. `index` says why the list of VMs cannot
/// be trusted.
fn summary(stale: usize, unreadable: usize, index: Option<&str>) -> String {
    let counts = [(stale, "stale"), (unreadable, "unreadable")];
    let mut wrong: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} VMs {what}"))
        .collect();
    wrong.extend(index.map(|reason| format!("the list of VMs cannot be trusted: {reason}")));
    if wrong.is_empty() {
        "ok".to_owned()
    } else {
        wrong.join("; ")
    }
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A duration as vminfod shows it: seconds to the nanosecond, and in brackets the largest unit that
/// is at least 1, with at most two decimals: `54632.555733604s (15.18h)`.
fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    let units = [
        ("d", 86_400e9),
        ("h", 3_600e9),
        ("m", 60e9),
        ("s", 1e9),
        ("ms", 1e6),
        ("us", 1e3),
        ("ns", 1.0),
    ];
    let unit = units
        .iter()
        .find(|(_, size)| nanos >= *size)
        .unwrap_or(&("ns", 1.0));
    let rounded = format!("{:.2}", nanos / unit.1);
    let short = rounded.trim_end_matches('0').trim_end_matches('.');
    format!(
        "{}.{:09}s ({short}{})",
        duration.as_secs(),
        duration.subsec_nanos(),
        unit.0
    )
}

/// Bytes of memory in use, from `/proc/self/statm`; 0 if that cannot be read.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    pages.unwrap_or(0) * size.map_or(4096, |size| size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_all_that_is_wrong() {
        assert_eq!(summary(0, 0, None), "ok");
        assert_eq!(summary(300, 0, None), "300 VMs stale");
        assert_eq!(
            summary(1, 2, Some("/etc/zones/index: empty")),
            "1 VMs stale; 2 VMs unreadable; the list of VMs cannot be trusted: /etc/zones/index: empty"
        );
    }

    #[test]
    fn durations_are_shown_as_vminfod_shows_them() {
        assert_eq!(
            duration(Duration::new(54_632, 555_733_604)),
            "54632.555733604s (15.18h)"
        );
        assert_eq!(
            duration(Duration::from_millis(1_500)),
            "1.500000000s (1.5s)"
        );
        assert_eq!(duration(Duration::from_secs(120)), "120.000000000s (2m)");
        assert_eq!(duration(Duration::ZERO), "0.000000000s (0ns)");
    }
}
