//! The loop of the zones source, on the thread `zones`.
//!
//! It owns the list of zones, the [`Schedule`] and the scan in progress. It takes signals and
//! answers from one channel, in order, and sends [`Report`]s. It reads no file: whatever may block
//! is a task of the loaders.
//!
//! - The host (the index and `.sysinfo.json`) is read like a zone. A zone goes only when an index
//!   that can be trusted does not name it, and when that index did not just happen to be caught
//!   while it was written: nobody was heard to write and not to close it, and it was announced as
//!   closed or two readings in a row agree.
//! - A file that vanishes or makes no sense may be between two states. A part of a zone that fails
//!   and did not fail before is read again, [`RETRY`] apart, for [`GRACE`] before that is reported.
//!
//! The list of zones is the business of [`host`], the full scan that of [`scan`].

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ZonesOptions;
use super::health::Health;
use super::index::{Entry, Index};
use super::loaders::{Loaders, Priority, Task};
use super::owners::{Owners, with_parents};
use super::providers::News;
use super::read::{Answer, Key, Reader};
use super::schedule::{Causes, Load, Schedule, Start, Ticket, Verdict};
use super::watch::{Coverage, Name, Notice, Signal, Urgency};
use crate::source::{Loaded, Report, Via};
use crate::vm::Object;
use crate::vm::property::Part;
use scan::{Found, Phase, Scan};

mod host;
mod scan;

/// How long closing a file that is being written is waited for.
const SOON: Duration = Duration::from_millis(20);
/// How long a file may be between two states, and how often it is looked at meanwhile.
const GRACE: Duration = Duration::from_millis(150);
const RETRY: Duration = Duration::from_millis(50);
/// How often an index that cannot be trusted is read again, and what is not watched is looked at.
const POLL: Duration = Duration::from_secs(2);
/// The least pause for each zone that is not watched: looking at it takes some 20 µs.
const POLL_EACH: Duration = Duration::from_millis(1);
/// The time from scan to scan, unless another was asked for.
const RESCAN: Duration = Duration::from_secs(300);
/// The least of it for each zone: with many zones scans would otherwise cost more than half a percent of a core.
const SCAN_EACH: Duration = Duration::from_millis(8);
/// How often running loads are looked after.
const TEND: Duration = Duration::from_millis(20);

/// How long answers are gathered during a scan.
const GATHER: Duration = Duration::from_millis(1);

const FAULT: &str = "panicked; that is a fault of vminfod, and its log says where";

/// What the loop hears.
pub(super) enum Message {
    /// A change of a file, or the end of the announced ones.
    Watch(Notice),
    /// A task has ended.
    Answer(Key, Ticket, Answer),
    /// A provider knows something new.
    Provider(News),
    /// Scan everything.
    Rescan,
    /// Read this VM again, also for these causes.
    Reload(Uuid, Causes),
    /// End.
    Stop,
}

/// A zone that the index names.
struct Zone {
    entry: Arc<Entry>,
    /// The parts that failed when it was last reported.
    failed: Vec<Part>,
    /// It has been reported, so ingest may know it.
    reported: bool,
    coverage: Coverage,
    /// What its files looked like when it was last read, if that tells a change.
    looks: Option<u64>,
}

/// The loop and all its state.
pub(super) struct Engine {
    reader: Arc<Reader>,
    loaders: Arc<Loaders<(Key, Ticket)>>,
    inbox: Sender<Message>,
    reports: Sender<Report>,
    rescan: Option<Duration>,
    deadline: Duration,
    schedule: Schedule<Key>,
    zones: HashMap<Name, Zone>,
    names: HashMap<Uuid, Name>,
    owners: Owners,
    sysinfo: Arc<Result<Object, String>>,
    /// A file of the host was modified and has not been closed yet.
    is_written: bool,
    /// An index that would remove zones, until a second reading agrees.
    doubted: Option<Index>,
    incomplete: Option<String>,
    host_coverage: Coverage,
    scan: Option<Scan>,
    /// A reason for another scan came while one was in progress.
    scan_again: bool,
    /// The next reading of the host is followed by one of all zones.
    replaced: bool,
    listed: bool,
    next_scan: Instant,
    next_poll: Instant,
    hint: Option<String>,
    /// What is to be sent, in order.
    outgoing: Vec<Report>,
    health: Arc<Mutex<Health>>,
}

impl Engine {
    pub(super) fn new(
        options: &ZonesOptions,
        reader: Arc<Reader>,
        loaders: Arc<Loaders<(Key, Ticket)>>,
        inbox: Sender<Message>,
        reports: Sender<Report>,
    ) -> Engine {
        let now = Instant::now();
        let mut schedule = Schedule::new();
        schedule.insert(Key::Host);
        Engine {
            reader,
            loaders,
            inbox,
            reports,
            rescan: options.rescan,
            deadline: options.load_deadline,
            schedule,
            zones: HashMap::new(),
            names: HashMap::new(),
            owners: Owners::default(),
            sysinfo: Arc::new(Ok(Object::new())),
            is_written: false,
            doubted: None,
            incomplete: None,
            host_coverage: Coverage::Watched,
            scan: None,
            scan_again: false,
            replaced: false,
            listed: false,
            next_scan: now,
            next_poll: now + POLL,
            hint: None,
            outgoing: Vec::new(),
            health: Arc::default(),
        }
    }

    /// What gives `.status`, at any time and on any thread.
    pub(super) fn status(&self) -> impl Fn() -> Value + Send + 'static {
        let (reader, loaders) = (Arc::clone(&self.reader), Arc::clone(&self.loaders));
        let health = Arc::clone(&self.health);
        move || {
            let mut status = health.lock().describe();
            status["watches"] = reader.watch.status();
            status["loaders"] = json!(loaders.threads());
            status["providers"] = reader.providers.status();
            status
        }
    }

    /// Runs until it is told to stop or nobody takes its reports.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let now = Instant::now();
            self.on_time(now);
            if !self.send() {
                return;
            }
            let first = match messages.recv_timeout(self.next_time().saturating_duration_since(now))
            {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Each time that this thread wakes for the answer of one zone it takes a core from those
            // who read the next.
            if (self.scan.as_ref()).is_some_and(|scan| scan.phase == Phase::Zones) {
                thread::sleep(GATHER);
            }
            // What has come in the meantime is reported together; not all of it at once, so that a
            // storm is reported while it lasts.
            let now = Instant::now();
            for message in std::iter::once(first).chain(messages.try_iter()).take(256) {
                if let Message::Stop = message {
                    return;
                }
                self.hear(message, now);
            }
        }
    }

    fn hear(&mut self, message: Message, now: Instant) {
        match message {
            Message::Watch(Notice::Signals(signals)) => {
                for signal in signals {
                    self.signal(signal, now);
                }
            }
            Message::Watch(Notice::Drained) => self.end_scan(now),
            Message::Answer(key, ticket, answer) => self.answer(key, ticket, answer, now),
            Message::Provider(news) => self.news(news, now),
            Message::Rescan => self.begin_scan(now),
            Message::Reload(uuid, causes) => {
                // A zone that is not known may just have been made.
                let key = match self.names.get(&uuid) {
                    Some(name) => Key::Zone(Arc::clone(name)),
                    None => Key::Host,
                };
                self.want(&key, Causes::EVENT | causes, now, now);
            }
            Message::Stop => {}
        }
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        let (key, urgency) = match signal {
            Signal::Zone(name, urgency) => (Key::Zone(name), urgency),
            Signal::Host(urgency) => {
                self.is_written = urgency == Urgency::Soon;
                (Key::Host, urgency)
            }
            Signal::Everything => {
                self.replaced = true;
                (Key::Host, Urgency::Now)
            }
            Signal::Lost(reason) => {
                tracing::warn!("zones: {reason}; scanning everything");
                self.health.lock().overflows += 1;
                self.is_written = false;
                self.begin_scan(now);
                return;
            }
        };
        match urgency {
            Urgency::Whole => self.want(&key, Causes::EVENT | Causes::WHOLE, now, now),
            Urgency::Now => self.want(&key, Causes::EVENT, now, now),
            Urgency::Soon => self.want(&key, Causes::EVENT, now + SOON, now),
        }
    }

    fn news(&mut self, news: News, now: Instant) {
        match news {
            News::Datasets(names, via) => {
                let causes = match via {
                    Via::Scan => Causes::SCAN | Causes::NEWS,
                    Via::Event | Via::Write => Causes::EVENT,
                };
                let zones: HashSet<Name> =
                    names.iter().filter_map(|name| self.owner(name)).collect();
                for zone in zones {
                    self.want(&Key::Zone(zone), causes, now, now);
                }
            }
            News::Runtime(names) => {
                for name in names {
                    self.want(&Key::Zone(name.into()), Causes::EVENT, now, now);
                }
            }
            News::Health => self.want_all(now),
        }
    }

    /// The zone that a dataset or snapshot belongs to: by its name, or as it was when the zone was
    /// last read, or since it, or one above it, is now mounted where the zone is.
    fn owner(&self, dataset: &str) -> Option<Name> {
        let by_name = |name: &str| Some(Arc::clone(self.zones.get_key_value(name)?.0));
        self.owners.of(dataset, by_name).or_else(|| {
            let path =
                with_parents(dataset).find_map(|name| self.reader.providers.mountpoint(name))?;
            let zone = self
                .zones
                .iter()
                .find(|(_, zone)| zone.entry.zonepath == path)?;
            Some(Arc::clone(zone.0))
        })
    }

    /// Does what is due.
    fn on_time(&mut self, now: Instant) {
        if now >= self.next_scan {
            self.begin_scan(now);
        }
        let due = self.schedule.due(now);
        self.begin(due);
        if now >= self.next_poll {
            self.next_poll = now + POLL.max(POLL_EACH * self.reader.watch.polled() as u32);
            self.poll(now);
        }
        if self.schedule.is_loading() {
            for (key, ticket) in self.loaders.tend(now, self.deadline) {
                self.give_up(&key, ticket, now);
            }
        }
        self.advance_scan();
    }

    fn next_time(&self) -> Instant {
        let mut next = self.next_scan.min(self.next_poll);
        if let Some(due) = self.schedule.next_due() {
            next = next.min(due);
        }
        if self.schedule.is_loading() {
            next = next.min(Instant::now() + TEND);
        }
        next
    }

    /// Looks at what is not watched.
    fn poll(&mut self, now: Instant) {
        if self.incomplete.is_some() || self.host_coverage == Coverage::Polled {
            self.want(&Key::Host, Causes::POLL, now, now);
        }
        if self.reader.watch.polled() == 0 {
            return;
        }
        let polled: Vec<Name> = (self.zones.iter())
            .filter(|(_, zone)| zone.coverage == Coverage::Polled)
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in polled {
            self.want(&Key::Zone(name), Causes::POLL, now, now);
        }
    }

    fn want(&mut self, key: &Key, causes: Causes, due: Instant, now: Instant) {
        let start = self.schedule.want(key, causes, due, now);
        self.begin(start);
    }

    fn want_all(&mut self, now: Instant) {
        let names: Vec<Name> = self.zones.keys().cloned().collect();
        for name in names {
            self.want(&Key::Zone(name), Causes::EVENT, now, now);
        }
    }

    /// Hands loads to the loaders.
    fn begin(&mut self, starts: impl IntoIterator<Item = Start<Key>>) {
        for Start {
            key,
            ticket,
            causes,
        } in starts
        {
            let reader = Arc::clone(&self.reader);
            let read: Box<dyn FnOnce() -> Answer + Send> = match &key {
                Key::Host => Box::new(move || reader.host()),
                Key::Zone(name) => {
                    let Some(zone) = self.zones.get(name) else {
                        continue;
                    };
                    let (name, entry) = (Arc::clone(name), Arc::clone(&zone.entry));
                    let (sysinfo, looks) = (Arc::clone(&self.sysinfo), zone.looks);
                    Box::new(move || reader.zone(&name, &entry, &sysinfo, causes, looks))
                }
            };
            let priority = match causes.contains(Causes::EVENT) || key == Key::Host {
                true => Priority::Urgent,
                false => Priority::Background,
            };
            let inbox = self.inbox.clone();
            let label = (key.clone(), ticket);
            let run = Box::new(move || {
                let answer = catch_unwind(AssertUnwindSafe(read)).unwrap_or(Answer::Broken);
                // Nobody hears it when the source is being dropped.
                let _ = inbox.send(Message::Answer(key, ticket, answer));
            });
            self.loaders.push(priority, Task { label, run });
        }
    }

    fn answer(&mut self, key: Key, ticket: Ticket, answer: Answer, now: Instant) {
        let Some(load) = self.schedule.load(&key, ticket) else {
            // The zone went while it was read, and reading it may have set its watches again.
            if let Key::Zone(name) = &key
                && !self.schedule.contains(&key)
            {
                self.reader.watch.forget(name);
            }
            return;
        };
        let verdict = match (&key, answer) {
            (Key::Host, Answer::Host(host, coverage)) => {
                self.host_coverage = coverage;
                self.host_read(*host, load, now)
            }
            (Key::Zone(name), Answer::Zone(loaded, looks, coverage)) => {
                if let Some(zone) = self.zones.get_mut(name) {
                    (zone.looks, zone.coverage) = (looks, coverage);
                }
                self.zone_read(name, loaded, load, now)
            }
            (Key::Zone(name), Answer::Same(at, coverage)) => {
                if let Some(zone) = self.zones.get_mut(name) {
                    zone.coverage = coverage;
                }
                // It had been given up, so it must be heard now.
                if self.health.lock().silent.contains_key(name) {
                    let again = self.schedule.want(&key, Causes::EVENT, now, now);
                    self.begin(again);
                } else if let Some(scan) = &mut self.scan
                    && scan.phase != Phase::Host
                {
                    // What was read during the scan says more.
                    let found = scan.found.entry(Arc::clone(name));
                    found.or_insert(Found::Same(at));
                }
                Verdict::Done
            }
            (Key::Zone(name), Answer::Broken) => {
                self.silence(name, format!("reading it {FAULT}"));
                Verdict::Done
            }
            (Key::Host, Answer::Broken) => {
                self.host_silent(format!("etc/zones/index: reading it {FAULT}"), now);
                Verdict::Done
            }
            _ => Verdict::Done,
        };
        let next = self.schedule.answered(&key, ticket, verdict, now);
        self.begin(next);
    }

    fn zone_read(
        &mut self,
        name: &Name,
        mut loaded: Box<Loaded>,
        load: Load,
        now: Instant,
    ) -> Verdict {
        let Some(zone) = self.zones.get_mut(name) else {
            return Verdict::Done;
        };
        let is_new = |part: Part| is_file(part) && !zone.failed.contains(&part);
        if has_grace(load, now) && loaded.failed.iter().any(|failure| is_new(failure.part)) {
            return Verdict::Again(now + RETRY);
        }
        zone.failed = loaded.failed.iter().map(|failure| failure.part).collect();
        zone.reported = true;
        // Who asked for it may have deleted it, and only the index says so.
        let is_doubtful = zone.failed.contains(&Part::Zone) && load.causes.contains(Causes::ASKED);
        self.owners.learn(name, &loaded.vm);
        let healed = self.health.lock().silent.remove(name).is_some();
        let by_scan = load.causes.contains(Causes::SCAN) && !load.causes.contains(Causes::EVENT);
        loaded.via = if by_scan { Via::Scan } else { Via::Event };
        let scanned = match &mut self.scan {
            Some(scan) if scan.phase != Phase::Host => {
                scan.found
                    .insert(Arc::clone(name), Found::Read(loaded.clone()));
                true
            }
            _ => false,
        };
        // Before the first listing nobody waits for single VMs.
        if self.listed && (healed || !by_scan || !scanned) {
            self.report_changed(*loaded);
        }
        if is_doubtful {
            self.want(&Key::Host, Causes::EVENT, now, now);
        }
        Verdict::Done
    }

    fn report_changed(&mut self, loaded: Loaded) {
        match self.outgoing.last_mut() {
            Some(Report::Changed(vms)) => vms.push(loaded),
            _ => self.outgoing.push(Report::Changed(vec![loaded])),
        }
    }

    /// Stops waiting for a load that takes too long.
    fn give_up(&mut self, key: &Key, ticket: Ticket, now: Instant) {
        if self.schedule.give_up(key, ticket).is_none() {
            return;
        }
        let patience = humantime::format_duration(self.deadline);
        match key {
            Key::Zone(name) => {
                let reason = format!("the files of zone {name} give no answer within {patience}");
                self.silence(name, reason);
            }
            Key::Host => {
                self.host_silent(format!("etc/zones/index: no answer within {patience}"), now);
            }
        }
    }

    fn silence(&mut self, name: &Name, reason: String) {
        let Some(zone) = self.zones.get_mut(name) else {
            return;
        };
        zone.reported = true;
        let uuid = zone.entry.uuid;
        tracing::warn!("zone {name}: {reason}");
        self.health
            .lock()
            .silent
            .insert(Arc::clone(name), reason.clone());
        if self.listed {
            self.outgoing.push(Report::Silent { uuid, reason });
        }
    }

    /// Sends what there is to report. False if nobody takes it any more.
    fn send(&mut self) -> bool {
        self.outgoing
            .drain(..)
            .all(|report| self.reports.send(report).is_ok())
    }
}

/// Whether what this load found may still be a file between two states.
fn has_grace(load: Load, now: Instant) -> bool {
    let since = load.doubted.unwrap_or(now);
    now.saturating_duration_since(since) < GRACE
}

/// Whether a part is read from a file that somebody may just be replacing.
fn is_file(part: Part) -> bool {
    match part {
        Part::Zone | Part::Metadata | Part::Tags | Part::Routes | Part::LastExited => true,
        Part::Datasets | Part::Runtime | Part::Sysinfo => false,
    }
}
