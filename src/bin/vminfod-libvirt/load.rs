//! Reading one domain, and the threads that do it.
//!
//! Each thread `load-N` takes one domain after the other. A call that hangs keeps its thread; the engine sees
//! how long each has taken, gives the domain up and calls [`Loaders::replace`].

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    pub connect: Connect,
    pub uuid: Uuid,
    /// As it was last asked; spares looking it up.
    pub domain: Option<Domain>,
    pub rebooted: Option<Rebooted>,
    /// What its statistics were.
    pub before: Option<Arc<Statistics>>,
    /// Whether they are asked for again though the XML is what it was.
    pub whole: bool,
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
    queue: Arc<Mutex<Receiver<Job>>>,
    context: Arc<Context>,
    inbox: Sender<Message>,
    /// How many threads there are beyond those that are wanted: those that hung go when they can.
    excess: Arc<AtomicUsize>,
}

impl Loaders {
    pub fn start(
        count: usize,
        context: Context,
        inbox: Sender<Message>,
    ) -> std::io::Result<Loaders> {
        let (jobs, queue) = mpsc::channel();
        let loaders = Loaders {
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            context: Arc::new(context),
            inbox,
            excess: Arc::default(),
        };
        for _ in 0..count {
            loaders.spawn()?;
        }
        Ok(loaders)
    }

    pub fn give(&self, job: Job) {
        // The other end is held here.
        let _ = self.jobs.send(job);
    }

    /// Starts another thread in the place of one that hangs.
    pub fn replace(&self) {
        match self.spawn() {
            Ok(()) => {
                self.excess.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => eprintln!("cannot start another thread to read domains: {error}"),
        }
    }

    fn spawn(&self) -> std::io::Result<()> {
        let (queue, inbox) = (self.queue.clone(), self.inbox.clone());
        let (context, excess) = (self.context.clone(), self.excess.clone());
        thread::Builder::new().name("load".into()).spawn(move || {
            loop {
                let next = queue.lock().recv();
                let Ok(job) = next else { return };
                let Job {
                    epoch,
                    connect,
                    uuid,
                    domain,
                    rebooted,
                    before,
                    whole,
                } = job;
                if inbox.send(Message::Started(epoch, uuid)).is_err() {
                    return;
                }
                let before = Before {
                    stats: before.as_deref(),
                    whole,
                    rebooted,
                };
                let read = || load(&connect, uuid, domain.clone(), before, &context);
                // A domain that one cannot read must not cost a thread.
                let outcome = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                    Outcome::Failed("vminfod-libvirt failed within itself".to_owned())
                });
                if inbox.send(Message::Loaded(epoch, uuid, outcome)).is_err() {
                    return;
                }
                let one_less = |count: usize| count.checked_sub(1);
                if (excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)).is_ok() {
                    return;
                }
            }
        })?;
        Ok(())
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

fn load(
    connect: &Connect,
    uuid: Uuid,
    domain: Option<Domain>,
    before: Before<'_>,
    context: &Context,
) -> Outcome {
    let observed = SystemTime::now();
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
    for attempt in 0.. {
        let mut stats = link::stats(domain)?;
        if !is_whole(&stats)
            && let Some(known) = known
        {
            fill(&mut stats, &known.stats);
        }
        let is_over = match context.busy {
            Busy::Skip => attempt >= ATTEMPTS,
            // Some disks have no capacity that is known, however often it is asked for.
            Busy::Wait => {
                Instant::now() >= until || attempt >= ATTEMPTS && link::waiting(domain) == 0
            }
        };
        if is_over || domain.id().is_none() || is_whole(&stats) {
            return Ok(stats);
        }
        thread::sleep(PAUSE);
    }
    link::stats(domain)
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
        if same_disks || !name.starts_with("block.") {
            stats.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Whether the capacity of each disk was told.
fn is_whole(stats: &Stats) -> bool {
    let lacks = |name: &String| {
        let block = name.strip_suffix(".path");
        block.is_some_and(|block| !stats.contains_key(&format!("{block}.capacity")))
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
    }
}
