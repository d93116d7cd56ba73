//! Reading one domain, and the threads that do it.
//!
//! Each thread `load` takes one domain after the other. A call that hangs keeps its thread; the engine sees how long
//! each has taken, and gives up the domain and its thread: [`Loaders::give_up`].

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use vminfod::source::libvirt::domain::{self, Facts, Whose};
use vminfod::source::{Loaded, Via};
use vminfod::vm::Object;
use vminfod::vm::files::Rendered;

use crate::engine::Message;
use crate::link::{self, Stats};
use crate::poll::{digest, hash, matters};

/// How soon a domain that was busy is asked again, and how often if nobody waits for it.
const PAUSE: Duration = Duration::from_millis(20);
const ATTEMPTS: u32 = 3;

/// A domain to read.
pub struct Job {
    /// Which connection this is about.
    pub epoch: u64,
    pub uuid: Uuid,
    /// As it was last asked; spares looking it up.
    pub domain: Option<Domain>,
    pub rebooted: Option<Rebooted>,
    /// What its statistics were.
    pub before: Option<Arc<Statistics>>,
    /// Whether they are asked for again though the XML is what it was.
    pub whole: bool,
    pub end: End,
}

/// Who was first: the thread that has read a domain, or the engine, which has given it up.
#[derive(Clone, Debug, Default)]
pub struct End(Arc<AtomicBool>);

impl End {
    fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// What the statistics of a domain were, as far as they tell more than what merely counts.
pub struct Statistics {
    /// The XML that it had then, as a number.
    xml: u64,
    stats: Stats,
    /// What tells whether they have changed since.
    pub digest: u64,
}

/// That a reboot was heard of. A domain keeps its process in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebooted {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The number that libvirt gave the domain at its start: it is another at the next.
    pub run: u32,
}

/// Whether a domain that is busy is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// It is, for as long as the deadline: all is told.
    Wait,
    /// It is not, and tells less.
    Skip,
}

/// What came of it.
pub enum Outcome {
    /// Read.
    Loaded(Box<Loaded>, Traits),
    /// libvirt says that there is no such domain.
    Gone,
    /// It cannot be shown: its name, and why.
    Unplaced(String, String),
    /// It does not answer, or libvirt does not.
    Failed(String),
}

/// What the engine keeps of a domain that was read.
pub struct Traits {
    pub stats: Statistics,
    /// The number of this run of it; none if it does not run.
    pub run: Option<u32>,
    /// What it is asked by.
    pub domain: Domain,
}

/// A domain as it was read.
pub enum Seen {
    /// By its name.
    Vm(String, Object, Traits),
    /// It cannot be shown: its name, and why.
    Unplaced(String, String),
    /// Its process does not answer libvirt: why it was not read.
    Hangs(String),
}

/// Where to look beside libvirt, and how long to wait for a domain.
#[derive(Clone, Debug)]
pub struct Context {
    /// The folder that holds the definitions.
    pub config: Option<PathBuf>,
    /// The folder in which the hypervisor's processes leave their numbers.
    pub run: Option<PathBuf>,
    pub deadline: Duration,
    /// Whether one that is busy is waited for, to be read wholly.
    pub busy: Busy,
}

/// The threads.
pub struct Loaders {
    jobs: Sender<Job>,
    /// How many threads have to be started in the places of those that hang.
    missing: usize,
    common: Arc<Common>,
}

/// What the threads have in common.
struct Common {
    queue: Mutex<Receiver<Job>>,
    /// What domains are read by, and its epoch.
    reader: Mutex<Option<(u64, Connect)>>,
    context: Context,
    inbox: Sender<Message>,
}

impl Loaders {
    pub fn start(
        count: usize,
        context: Context,
        inbox: Sender<Message>,
    ) -> std::io::Result<Loaders> {
        let (jobs, queue) = mpsc::channel();
        let common = Common {
            queue: Mutex::new(queue),
            reader: Mutex::default(),
            context,
            inbox,
        };
        let loaders = Loaders {
            jobs,
            missing: 0,
            common: Arc::new(common),
        };
        for _ in 0..count {
            loaders.spawn()?;
        }
        Ok(loaders)
    }

    /// Reads by this connection from now on; without one nothing is read.
    pub fn read_by(&self, reader: Option<(u64, Connect)>) {
        let before = std::mem::replace(&mut *self.common.reader.lock(), reader);
        // Closing it may take a while.
        drop(before);
    }

    /// Whether what is read by is connected.
    pub fn is_connected(&self) -> bool {
        let reader = self.common.reader.lock();
        (reader.as_ref()).is_some_and(|(_, reader)| reader.is_alive().unwrap_or(false))
    }

    pub fn give(&self, job: Job) {
        // The other end is held here.
        let _ = self.jobs.send(job);
    }

    /// Does not wait for a thread that hangs; it goes when it can.
    pub fn give_up(&mut self, end: &End) {
        if end.is_first() {
            self.missing += 1;
        }
    }

    /// Starts threads in the places of those that hang.
    pub fn refill(&mut self) {
        for _ in 0..std::mem::take(&mut self.missing) {
            if let Err(error) = self.spawn() {
                eprintln!("cannot start another thread to read domains: {error}");
            }
        }
    }

    fn spawn(&self) -> std::io::Result<()> {
        let common = self.common.clone();
        thread::Builder::new()
            .name("load".into())
            .spawn(move || common.work())?;
        Ok(())
    }
}

impl Common {
    /// Reads one domain after the other, until one of them has taken so long that this thread was given up.
    fn work(&self) {
        loop {
            let next = self.queue.lock().recv();
            let Ok(job) = next else { return };
            let (epoch, uuid, end) = (job.epoch, job.uuid, job.end.clone());
            if self.inbox.send(Message::Started(epoch, uuid)).is_err() {
                return;
            }
            let reader = self.reader.lock().clone();
            // A connection that is gone is not asked: nobody waits for that answer.
            if let Some((_, reader)) = reader.filter(|(of, _)| *of == epoch) {
                // A domain that one cannot read must not cost a thread.
                let read = AssertUnwindSafe(|| load(&reader, job, &self.context));
                let outcome = catch_unwind(read).unwrap_or_else(|_| {
                    Outcome::Failed("vminfod-libvirt failed within itself".to_owned())
                });
                let told = self.inbox.send(Message::Loaded(epoch, uuid, outcome));
                if told.is_err() {
                    return;
                }
            }
            if !end.is_first() {
                return;
            }
        }
    }
}

/// What is known of a domain before it is read.
#[derive(Clone, Copy, Default)]
pub struct Before<'a> {
    pub stats: Option<&'a Statistics>,
    /// Whether statistics are asked for again though the XML is what it was.
    pub whole: bool,
    pub rebooted: Option<Rebooted>,
}

fn load(connect: &Connect, job: Job, context: &Context) -> Outcome {
    let observed = SystemTime::now();
    let uuid = job.uuid;
    let before = Before {
        stats: job.before.as_deref(),
        whole: job.whole,
        rebooted: job.rebooted,
    };
    // A connection that was left may have more to do than it can.
    let domain = (job.domain).filter(|domain| link::is_of(domain, connect));
    let seen = match domain {
        Some(domain) => look_at(connect, uuid, domain, before, context),
        None => look(connect, uuid, before, context),
    };
    match seen {
        Ok(Seen::Vm(zonename, vm, traits)) => {
            let loaded = Loaded {
                uuid,
                zonename,
                vm: Rendered::new(&vm),
                failed: Vec::new(),
                via: Via::Event,
                observed,
            };
            Outcome::Loaded(Box::new(loaded), traits)
        }
        Ok(Seen::Unplaced(name, reason)) => Outcome::Unplaced(name, reason),
        Ok(Seen::Hangs(reason)) => Outcome::Failed(reason),
        Err(error) if is(&error, ErrorNumber::NoDomain) => Outcome::Gone,
        Err(error) => Outcome::Failed(error.message().to_owned()),
    }
}

pub fn is(error: &Error, number: ErrorNumber) -> bool {
    matches!(error.code(), Enum::Known(known) if known == number)
}

/// Reads a domain. One that already keeps somebody waiting for longer than the deadline is not asked.
///
/// # Errors
/// Those of libvirt; `NoDomain` when there is none.
pub fn look(
    connect: &Connect,
    uuid: Uuid,
    before: Before<'_>,
    context: &Context,
) -> Result<Seen, Error> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    look_at(connect, uuid, domain, before, context)
}

/// Reads a domain that was looked up, perhaps long ago: by now it may have another name and another number.
fn look_at(
    connect: &Connect,
    uuid: Uuid,
    mut domain: Domain,
    before: Before<'_>,
    context: &Context,
) -> Result<Seen, Error> {
    let (mut facts, whose) = facts(&domain)?;
    let Whose { name, run } = whose;
    if domain.id() != run {
        // What asks whether it runs goes by that number.
        domain = connect.lookup_domain_by_uuid(uuid)?;
    }
    beside(&mut facts, &domain, &name, run.is_some(), context);
    facts.rebooted = (before.rebooted)
        .filter(|it| Some(it.run) == run)
        .map(|it| it.at)
        // The numbers begin anew with libvirtd: who heard of it before this process started heard of another.
        .filter(|at| facts.booted.is_none_or(|booted| booted <= *at));
    let xml = hash(&facts.xml);
    facts.stats = match before.stats.filter(|it| it.xml == xml && !before.whole) {
        Some(before) => {
            let mut stats = before.stats.clone();
            stats.insert("state.state".to_owned(), facts.state.0.into());
            stats.insert("state.reason".to_owned(), facts.state.1.into());
            stats
        }
        None => {
            if let Some(reason) = hangs(&domain, &name, context) {
                return Ok(Seen::Hangs(reason));
            }
            match stats(&domain, before.stats, context) {
                Err(error) if is(&error, ErrorNumber::NoSupport) => Stats::new(),
                stats => stats?,
            }
        }
    };
    if context.busy == Busy::Wait
        && let Some(reason) = hangs(&domain, &name, context)
    {
        return Ok(Seen::Hangs(reason));
    }
    let vm = match domain::object(&facts) {
        Ok(vm) => vm,
        Err(reason) => return Ok(Seen::Unplaced(name, reason)),
    };
    let mut stats = facts.stats;
    stats.retain(|name, _| matters(name));
    let digest = digest(&stats);
    let stats = Statistics { xml, stats, digest };
    let traits = Traits { stats, run, domain };
    Ok(Seen::Vm(name, vm, traits))
}

/// Why a domain is not asked, if its process has kept libvirt waiting for longer than the deadline.
pub fn hangs(domain: &Domain, name: &str, context: &Context) -> Option<String> {
    // Only a domain that runs, which has a number, can do so.
    domain.id()?;
    let waiting = Duration::from_millis(link::waiting(domain));
    (waiting > context.deadline)
        .then(|| format!("domain {name}: its hypervisor process does not answer libvirt"))
}

/// Asks libvirt for what is cheap.
fn facts(domain: &Domain) -> Result<(Facts, Whose), Error> {
    let Described {
        state,
        xml,
        config,
        whose,
    } = described(domain)?;
    // What a hypervisor does not have at all is no reason not to show the rest.
    let known = |answer: Result<bool, Error>| match answer {
        Err(error) if is(&error, ErrorNumber::NoSupport) => Ok(false),
        answer => answer,
    };
    let persistent = known(domain.is_persistent())?;
    // A domain that is not defined has no other configuration than the one it runs with.
    let config = config.filter(|_| persistent);
    let facts = Facts {
        state,
        xml,
        config,
        autostart: known(domain.autostart())?,
        persistent,
        managed_save: known(domain.has_managed_save(0))?,
        snapshots: snapshots(domain)?,
        ..Facts::default()
    };
    Ok((facts, whose))
}

/// Adds what is found beside libvirt's description of a domain.
fn beside(facts: &mut Facts, domain: &Domain, name: &str, runs: bool, context: &Context) {
    if runs {
        // Only libvirt's own networks give addresses that it knows of.
        if facts.xml.contains("<interface type='network'") {
            facts.addresses = link::addresses(domain);
        }
        let process = context.run.as_ref().and_then(|run| process(run, name));
        (facts.pid, facts.booted) = process.unzip();
    }
    facts.modified = context.config.as_ref().and_then(|config| {
        let written = fs::metadata(config.join(format!("{name}.xml")))
            .ok()?
            .modified()
            .ok()?;
        Some(
            written
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()?
                .as_secs(),
        )
    });
}

/// What is said of a domain at one moment.
struct Described {
    state: (i32, i32),
    xml: String,
    /// The XML for its next start, if it runs.
    config: Option<String>,
    whose: Whose,
}

/// Describes a domain. Its state is asked for last; if it started or stopped meanwhile, all is asked for again. Of one
/// that never rests the last description is taken, and what it does is announced.
fn described(domain: &Domain) -> Result<Described, Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let xml = domain.xml_desc(0)?;
        let whose = match domain::whose(&xml) {
            Some(whose) => whose,
            // It cannot be shown, and who finds that out names it.
            None => Whose {
                name: domain.name()?,
                run: domain.id(),
            },
        };
        let flags = (whose.run.is_some()).then_some(virt::sys::VIR_DOMAIN_XML_INACTIVE);
        let config = flags.map(|flags| domain.xml_desc(flags)).transpose()?;
        let state = link::state(domain)?;
        let runs = state.0 != virt::sys::VIR_DOMAIN_SHUTOFF as i32;
        if runs == whose.run.is_some() || attempts.next().is_none() {
            return Ok(Described {
                state,
                xml,
                config,
                whose,
            });
        }
    }
}

fn snapshots(domain: &Domain) -> Result<Vec<String>, Error> {
    match domain.list_all_snapshots(0) {
        // One that has been deleted since is announced by its file.
        Ok(snapshots) => Ok(snapshots
            .iter()
            .flat_map(|snapshot| snapshot.xml_desc(0))
            .collect()),
        Err(error) if is(&error, ErrorNumber::NoSupport) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The statistics of a domain. One that is busy tells less; libvirt itself would wait for it, but for half a minute if
/// it hangs. Who does not wait keeps what was told last, until the poll finds that it is another.
fn stats(domain: &Domain, before: Option<&Statistics>, context: &Context) -> Result<Stats, Error> {
    let until = Instant::now() + context.deadline + PAUSE;
    let known = before.filter(|_| context.busy == Busy::Skip);
    let mut attempts = 0;
    loop {
        let mut stats = link::stats(domain)?;
        if !is_whole(&stats)
            && let Some(known) = known
        {
            fill(&mut stats, &known.stats);
        }
        let is_over = match context.busy {
            Busy::Skip => attempts >= ATTEMPTS,
            // Some disks have no capacity that is known, however often it is asked for.
            Busy::Wait => {
                Instant::now() >= until || attempts >= ATTEMPTS && link::waiting(domain) == 0
            }
        };
        if is_over || domain.id().is_none() || is_whole(&stats) {
            return Ok(stats);
        }
        attempts += 1;
        thread::sleep(PAUSE);
    }
}

/// Adds what was known and is not told now. A disk that came or went has given the others new numbers, so of
/// disks nothing is added then.
fn fill(stats: &mut Stats, known: &Stats) {
    let names = |stats: &Stats| -> Vec<(String, Value)> {
        let is_name = |name: &str| name.starts_with("block.") && name.ends_with(".name");
        let names = stats.iter().filter(|(name, _)| is_name(name));
        names
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let same_disks = names(stats) == names(known);
    for (name, value) in known {
        let block = name.strip_suffix(".capacity");
        // A drive that QEMU was asked of has no medium.
        let has_none = block.is_some_and(|block| stats.contains_key(&format!("{block}.rd.reqs")));
        if !has_none && (same_disks || !name.starts_with("block.")) {
            stats.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Whether of each disk the capacity was told, or what QEMU counts: of a drive without a medium it has that alone.
fn is_whole(stats: &Stats) -> bool {
    let lacks = |name: &String| {
        name.strip_suffix(".path").is_some_and(|block| {
            let tells = |what| stats.contains_key(&format!("{block}.{what}"));
            !tells("capacity") && !tells("rd.reqs")
        })
    };
    !stats.keys().any(lacks)
}

/// The number of the process that runs a domain, and when it started in milliseconds since 1970.
fn process(run: &Path, name: &str) -> Option<(u64, u64)> {
    let pid: u64 = fs::read_to_string(run.join(format!("{name}.pid")))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets and may hold anything; the start is field 22.
    let started: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    let booted = kernel
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    // The kernel shows hundredths of a second to all programs, whatever it counts itself.
    Some((
        pid,
        booted.trim().parse::<u64>().ok()? * 1000 + started * 10,
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(all: &[(&str, Value)]) -> Stats {
        let all = all
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()));
        all.collect()
    }

    #[test]
    fn a_busy_domain_keeps_the_sizes_of_its_disks_unless_they_are_others() {
        let known = stats(&[
            ("balloon.current", json!(5)),
            ("block.0.name", json!("vda")),
            ("block.0.capacity", json!(1)),
            ("block.1.name", json!("vdb")),
            ("block.1.capacity", json!(2)),
        ]);
        let mut told = stats(&[
            ("block.0.name", json!("vda")),
            ("block.1.name", json!("vdb")),
        ]);
        fill(&mut told, &known);
        assert_eq!(told, known);
        let mut told = stats(&[("block.0.name", json!("vdb"))]);
        fill(&mut told, &known);
        let expected = [
            ("balloon.current", json!(5)),
            ("block.0.name", json!("vdb")),
        ];
        assert_eq!(told, stats(&expected));
        let mut told = stats(&[
            ("block.0.name", json!("vda")),
            ("block.0.rd.reqs", json!(0)),
            ("block.1.name", json!("vdb")),
        ]);
        fill(&mut told, &known);
        assert!(!told.contains_key("block.0.capacity"));
        assert_eq!(told["block.1.capacity"], json!(2));
    }
}
