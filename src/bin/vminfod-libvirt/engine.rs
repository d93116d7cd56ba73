//! The loop of the program: it owns the connection, decides what is read when, and says what was found.
//!
//! ```text
//!   stdin ───────────────┐                   ┌─▶ load ─┐
//!   domain events, close ┼──▶ engine ──jobs──┤         ├──▶ engine ──lines──▶ stdout
//!   inotify, poll, timer ┘   (main thread)   └─▶ …     ┘
//! ```
//!
//! - Of one connection, at most one of these threads reads a domain; what is announced meanwhile has it read again. So
//!   what is said of a domain is in the order in which it was read.
//! - Who reads takes long at most once: then the domain is given up until its reading ends, and the next ones are read
//!   by another thread and another connection.
//! - Events are asked for before the first listing, so that nothing falls between the two.
//! - Whatever comes of a connection carries its number, the *epoch*; what belongs to an earlier one is dropped.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use vminfod::source::libvirt::wire::{Answer, Line, Request};
use vminfod::source::{Failed, FailedKind, Loaded, Via};

use crate::change::Changes;
use crate::known::{ANNOUNCED, ASKED, Known, Purpose};
use crate::link::{self, Heard, Stats};
use crate::load::{End, Job, Loaders, Outcome, Rebooted, Traits};
use crate::poll::{digest, hash};
use crate::watch::Watch;

mod connection;
mod listing;

use connection::{Link, RETRY};
pub use connection::{is_not_allowed, is_within_this_process};

/// How long a domain rests that was announced while it was being read. libvirt announces most changes twice, by a file
/// and an event; what was read after the first is passed on meanwhile.
const REST: Duration = Duration::from_millis(5);

/// What arrives at the engine.
pub enum Message {
    /// The daemon asks.
    Request(Request),
    /// The connection says something by itself.
    Heard(u64, Heard),
    /// A domain is being read from now on.
    Started(u64, Uuid),
    /// A domain was read.
    Loaded(u64, Uuid, Outcome),
    /// What is to be answered to a request, by its number, and the domain that it has changed, if any.
    Answered(u64, Option<Uuid>, Result<Answer, Failed>),
    /// Another connection to read by was opened.
    Reader(u64, Result<Connect, Error>),
    /// Statistics were polled.
    Stats(u64, Result<Vec<(Uuid, Stats)>, Error>),
    /// A file of the domain of this name changed.
    File(String),
    /// A folder that may be one to watch has come, with whatever is in it.
    Folder,
    /// Announcements were lost.
    Lost,
}

/// What the engine goes by.
#[derive(Clone, Debug)]
pub struct Options {
    pub uri: String,
    pub rescan: Duration,
    pub poll: Duration,
    pub deadline: Duration,
}

/// The loop and all its state.
pub struct Engine<W> {
    options: Options,
    out: W,
    inbox: Sender<Message>,
    loaders: Loaders,
    changes: Changes,
    watch: Option<Watch>,
    link: Option<Link>,
    epoch: u64,
    known: HashMap<Uuid, Known>,
    /// The domains that rest, and until when.
    resting: VecDeque<(Instant, Uuid)>,
    /// The domains of the listing in progress that have not been read.
    scan: Option<HashSet<Uuid>>,
    /// Another reason for a listing came while one was in progress.
    scan_again: bool,
    unplaced: BTreeMap<Uuid, (String, String)>,
    /// When the next thing is due by itself.
    next_scan: Instant,
    retry: Instant,
    pause: Duration,
    unreachable: Option<String>,
    /// When statistics last came.
    polled: Instant,
    counts: BTreeMap<&'static str, u64>,
}

impl<W: Write> Engine<W> {
    pub fn new(
        options: Options,
        out: W,
        inbox: Sender<Message>,
        loaders: Loaders,
        changes: Changes,
        watch: Option<Watch>,
    ) -> Engine<W> {
        let now = Instant::now();
        Engine {
            options,
            out,
            inbox,
            loaders,
            changes,
            watch,
            link: None,
            epoch: 0,
            known: HashMap::new(),
            resting: VecDeque::new(),
            scan: None,
            scan_again: false,
            unplaced: BTreeMap::new(),
            next_scan: now,
            retry: now,
            pause: RETRY.0,
            unreachable: None,
            polled: now,
            counts: BTreeMap::new(),
        }
    }

    /// Runs until the daemon cannot be told any more.
    pub fn run(mut self, messages: &Receiver<Message>) -> std::io::Result<()> {
        loop {
            self.tick()?;
            self.out.flush()?;
            match messages.recv_timeout(self.rest()) {
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while let Ok(message) = messages.try_recv() {
                self.take(message)?;
            }
        }
    }

    /// How long nothing is due.
    fn rest(&self) -> Duration {
        let now = Instant::now();
        let Some(_) = &self.link else {
            return self.retry.saturating_duration_since(now);
        };
        let deadline = self.options.deadline;
        let hung = (self.known.values())
            .filter_map(|known| known.hangs_at(deadline))
            .min();
        let rested = self.resting.front().map(|(until, _)| *until);
        let due = [Some(self.next_scan), Some(self.overdue()), hung, rested];
        let first = due.into_iter().flatten().min().unwrap_or(now);
        first.saturating_duration_since(now)
    }

    /// When statistics should have come.
    fn overdue(&self) -> Instant {
        self.polled + self.options.poll + self.options.deadline
    }

    /// Does what is due by itself.
    fn tick(&mut self) -> std::io::Result<()> {
        let now = Instant::now();
        if self.link.is_none() {
            return match now >= self.retry {
                true => self.connect(),
                false => Ok(()),
            };
        }
        while let Some(&(until, uuid)) = self.resting.front()
            && now >= until
        {
            self.resting.pop_front();
            self.rested(uuid);
        }
        if now >= self.next_scan {
            self.list()?;
        }
        if now >= self.overdue() {
            // A domain that hangs holds up the statistics of all: each is asked by itself.
            self.polled = now;
            self.count("polls_overdue");
            self.want_all();
        }
        let deadline = self.options.deadline;
        let hung: Vec<Uuid> = (self.known.iter())
            .filter(|(_, known)| known.hangs_at(deadline).is_some_and(|at| now >= at))
            .map(|(uuid, _)| *uuid)
            .collect();
        let is_more = !hung.is_empty();
        for uuid in hung {
            let Some(known) = self.known.get_mut(&uuid) else {
                continue;
            };
            known.given_up = true;
            self.loaders.give_up(&known.end);
            let reason = format!(
                "domain {}: libvirt has not answered for {}s",
                known.name,
                deadline.as_secs_f64()
            );
            self.silent(uuid, reason)?;
            self.listed(uuid)?;
        }
        if is_more {
            self.leave_reader();
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> std::io::Result<()> {
        let of = match &message {
            Message::Heard(epoch, _)
            | Message::Started(epoch, _)
            | Message::Loaded(epoch, ..)
            | Message::Reader(epoch, _)
            | Message::Stats(epoch, _) => *epoch,
            _ => self.epoch,
        };
        if of != self.epoch {
            return Ok(());
        }
        match message {
            Message::Request(Request::Ping(number)) => {
                self.health()?;
                self.say(&Line::Pong(number))
            }
            Message::Request(Request::List) | Message::Lost => self.list(),
            Message::Request(Request::Reload(uuid)) => {
                self.want(uuid, ASKED);
                Ok(())
            }
            Message::Request(Request::Change(number, uuid, change)) => {
                let Some(link) = &self.link else {
                    let reason = self.unreachable.as_deref().unwrap_or("not connected");
                    let failed = Failed {
                        kind: FailedKind::Source,
                        applied: Vec::new(),
                        reason: format!("{}: {reason}", self.options.uri),
                    };
                    return self.say(&Line::Answer(number, Err(failed)));
                };
                let rebooted = self.known.get(&uuid).and_then(|known| known.rebooted);
                self.changes
                    .start(number, uuid, change, &link.connect, rebooted);
                Ok(())
            }
            Message::Answered(number, changed, result) => {
                self.say(&Line::Answer(number, result))?;
                if let Some(uuid) = changed {
                    self.count("changes");
                    // Not all that changes is announced.
                    self.want(uuid, ASKED);
                }
                Ok(())
            }
            Message::Heard(_, Heard::Closed) => {
                self.unreachable("the connection to libvirt was lost".to_owned())
            }
            Message::Heard(_, Heard::Domain(uuid, event, run)) => {
                self.count(link::NAMES[event]);
                if let Some(watch) = &self.watch
                    && !self.known.contains_key(&uuid)
                {
                    // libvirt makes its folders when there is the first to go into them.
                    watch.refresh();
                }
                if link::NAMES[event] == "reboot"
                    && let Some(run) = run
                {
                    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                    let at = since.map_or(0, |since| since.as_millis() as u64);
                    let known = self.known.entry(uuid).or_default();
                    known.rebooted = Some(Rebooted { at, run });
                }
                self.want(uuid, ANNOUNCED);
                Ok(())
            }
            Message::Started(_, uuid) => {
                if let Some(known) = self.known.get_mut(&uuid) {
                    known.since = Some(Instant::now());
                }
                Ok(())
            }
            Message::Loaded(_, uuid, outcome) => self.loaded(uuid, outcome),
            Message::Reader(_, opened) => {
                self.read_by(opened);
                Ok(())
            }
            Message::Stats(_, Ok(all)) => {
                self.compare(all);
                Ok(())
            }
            Message::Stats(_, Err(error)) => self.check(&error),
            Message::Folder => {
                if let Some(watch) = &self.watch {
                    watch.refresh();
                }
                self.want_all();
                Ok(())
            }
            Message::File(name) => {
                self.count("files");
                let found = self.known.iter().find(|(_, known)| known.name == name);
                match found.map(|(uuid, _)| *uuid) {
                    Some(uuid) => self.want(uuid, ANNOUNCED),
                    // Whatever it is, libvirt has announced it if it is a domain; if not, the listing has it.
                    None => self.count("files_of_nobody"),
                }
                Ok(())
            }
        }
    }

    /// Has a domain read, now or when it is free.
    fn want(&mut self, uuid: Uuid, purpose: Purpose) {
        if self.link.is_none() {
            return;
        }
        let known = self.known.entry(uuid).or_default();
        known.note(purpose);
        if known.busy || (known.rests && !purpose.whole) {
            return;
        }
        let purpose = known.again.take().unwrap_or_default();
        (known.busy, known.rests) = (true, false);
        (known.purpose, known.end) = (purpose, End::default());
        self.loaders.give(Job {
            epoch: self.epoch,
            uuid,
            domain: known.domain.clone(),
            rebooted: known.rebooted,
            before: known.stats.clone(),
            whole: purpose.whole || known.silent.is_some(),
            end: known.end.clone(),
        });
    }

    /// Has a domain read that has rested, if it still has to be.
    fn rested(&mut self, uuid: Uuid) {
        if let Some(known) = self.known.get_mut(&uuid)
            && std::mem::take(&mut known.rests)
            && let Some(purpose) = known.again.take()
        {
            self.want(uuid, purpose);
        }
    }

    /// Has all domains read, as if each had announced a change.
    fn want_all(&mut self) {
        for uuid in self.known.keys().copied().collect::<Vec<_>>() {
            self.want(uuid, ASKED);
        }
    }

    fn loaded(&mut self, uuid: Uuid, outcome: Outcome) -> std::io::Result<()> {
        let Some(known) = self.known.get_mut(&uuid) else {
            return Ok(());
        };
        (known.busy, known.since, known.given_up) = (false, None, false);
        let (purpose, again) = (std::mem::take(&mut known.purpose), known.again.take());
        match outcome {
            Outcome::Loaded(loaded, traits) => {
                let Traits { stats, run, domain } = traits;
                known.domain = Some(domain);
                known.stats = Some(Arc::new(stats));
                // What was heard while it was read may be of a run that was not seen yet.
                if again.is_none() {
                    known.rebooted = known.rebooted.filter(|it| Some(it.run) == run);
                }
                self.unplaced.remove(&uuid);
                self.found(uuid, *loaded, purpose)?;
            }
            Outcome::Gone => {
                self.unplaced.remove(&uuid);
                self.known.remove(&uuid);
                self.say(&Line::Gone(uuid))?;
            }
            Outcome::Unplaced(name, reason) => {
                self.unplaced.insert(uuid, (name, reason.clone()));
                self.silent(uuid, reason)?;
            }
            Outcome::Failed(reason) => {
                if self.is_lost() {
                    return self.unreachable(reason);
                }
                self.silent(uuid, reason)?;
                if !self.loaders.is_connected() {
                    self.leave_reader();
                }
            }
        }
        if purpose.scan || !self.known.contains_key(&uuid) {
            self.listed(uuid)?;
        }
        match (again, self.known.get_mut(&uuid)) {
            (Some(purpose), Some(known)) if !purpose.whole => {
                (known.again, known.rests) = (again, true);
                self.resting.push_back((Instant::now() + REST, uuid));
            }
            (Some(purpose), _) => self.want(uuid, purpose),
            (None, _) => {}
        }
        Ok(())
    }

    /// Says what a domain is now, unless it is as it was last said.
    fn found(&mut self, uuid: Uuid, mut loaded: Loaded, purpose: Purpose) -> std::io::Result<()> {
        let Some(known) = self.known.get_mut(&uuid) else {
            return Ok(());
        };
        let said = hash(&loaded.vm.json());
        let same = known.said == Some(said) && known.silent.is_none();
        known.name.clone_from(&loaded.zonename);
        (known.said, known.silent) = (Some(said), None);
        let observed = loaded.observed;
        // A listing may have gone on without it.
        let listing = purpose.scan && (self.scan.as_ref()).is_some_and(|scan| scan.contains(&uuid));
        if listing && !purpose.event && !same {
            // What changed while there was no connection was not missed.
            if self.link.as_ref().is_some_and(|link| link.listed) {
                loaded.via = Via::Scan;
            }
            return self.say(&Line::Listed(loaded));
        }
        // Who asks waits for a reading, also for one that finds nothing new.
        if !same || (purpose.event && purpose.whole) {
            self.say(&Line::Vm(loaded))?;
        }
        match listing {
            true => self.say(&Line::Same(uuid, observed)),
            false => Ok(()),
        }
    }

    fn silent(&mut self, uuid: Uuid, reason: String) -> std::io::Result<()> {
        let Some(known) = self.known.get_mut(&uuid) else {
            return Ok(());
        };
        if known.silent.as_ref() == Some(&reason) {
            return Ok(());
        }
        known.silent = Some(reason.clone());
        self.say(&Line::Silent(uuid, reason))
    }

    /// Has those domains read whose statistics are not what they were when they were read, and those that gave no
    /// answer.
    fn compare(&mut self, all: Vec<(Uuid, Stats)>) {
        self.polled = Instant::now();
        self.count("polls");
        for (uuid, stats) in all {
            let stats = digest(&stats);
            // What is being read for the first time is no news.
            let is_news = self.known.get(&uuid).is_none_or(|known| {
                let before = known.stats.as_ref();
                known.silent.is_some() || before.is_some_and(|before| before.digest != stats)
            });
            if is_news {
                self.want(uuid, ASKED);
            }
        }
    }

    /// Says that the connection is lost, if that is what an error means.
    fn check(&mut self, error: &Error) -> std::io::Result<()> {
        self.polled = Instant::now();
        match self.is_lost() {
            true => self.unreachable(error.message().to_owned()),
            false => Ok(()),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn health(&mut self) -> std::io::Result<()> {
        let link = self.link.as_ref();
        let health = json!({
            "uri": self.options.uri,
            "connected": link.is_some(),
            "reads_only": link.map(|link| link.reads_only),
            "libvirt": link.and_then(|link| link.version.as_ref()),
            "domains": self.known.len(),
            "events_unknown_to_libvirt": link.map(|link| &link.listening.refused),
            "folders": self.watch.as_ref().map_or(Value::Null, Watch::status),
            "announced": self.counts,
        });
        self.say(&Line::Health(health))
    }

    fn say(&mut self, line: &Line) -> std::io::Result<()> {
        self.out.write_all(line.encode().as_bytes())
    }
}
