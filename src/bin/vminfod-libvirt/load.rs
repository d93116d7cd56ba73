//! Reading one domain, and the threads that do it.
//!
//! Each thread `load-N` takes one domain after the other. A call that hangs keeps its thread; the engine sees
//! how long each has taken, gives the domain up and calls [`Loaders::replace`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use vminfod::source::libvirt::domain::{self, Facts};
use vminfod::source::{Loaded, Via};
use vminfod::vm::files::Rendered;

use crate::engine::Message;
use crate::link;
use crate::poll::digest;

/// A domain to read.
pub struct Job {
    /// Which connection this is about.
    pub epoch: u64,
    pub connect: Connect,
    pub uuid: Uuid,
}

/// What came of it.
pub enum Outcome {
    /// Read, and what tells whether its statistics have changed since.
    Loaded(Box<Loaded>, u64),
    /// libvirt says that there is no such domain.
    Gone,
    /// It cannot be shown: its name, and why.
    Unplaced(String, String),
    /// It does not answer, or libvirt does not.
    Failed(String),
}

/// Where to look beside libvirt, and how long to wait for a domain.
#[derive(Clone, Debug)]
pub struct Context {
    /// The folder that holds the definitions.
    pub config: Option<PathBuf>,
    /// The folder in which the hypervisor's processes leave their numbers.
    pub run: Option<PathBuf>,
    pub deadline: Duration,
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
                } = job;
                if inbox.send(Message::Started(epoch, uuid)).is_err() {
                    return;
                }
                let outcome = load(&connect, uuid, &context);
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

fn load(connect: &Connect, uuid: Uuid, context: &Context) -> Outcome {
    match read(connect, uuid, context) {
        Ok(outcome) => outcome,
        Err(error) if is(&error, ErrorNumber::NoDomain) => Outcome::Gone,
        Err(error) => Outcome::Failed(error.message().to_owned()),
    }
}

pub fn is(error: &Error, number: ErrorNumber) -> bool {
    matches!(error.code(), Enum::Known(known) if known == number)
}

fn read(connect: &Connect, uuid: Uuid, context: &Context) -> Result<Outcome, Error> {
    let observed = SystemTime::now();
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    let name = domain.name()?;
    if Duration::from_millis(link::waiting(&domain)) > context.deadline {
        return Ok(Outcome::Failed(format!(
            "domain {name}: its hypervisor process does not answer libvirt"
        )));
    }
    let facts = facts(&domain, &name, context)?;
    let vm = match domain::object(&facts) {
        Ok(vm) => vm,
        Err(reason) => return Ok(Outcome::Unplaced(name, reason)),
    };
    let loaded = Loaded {
        uuid,
        zonename: name,
        vm: Rendered::new(&vm),
        failed: Vec::new(),
        via: Via::Event,
        observed,
    };
    Ok(Outcome::Loaded(Box::new(loaded), digest(&facts.stats)))
}

fn facts(domain: &Domain, name: &str, context: &Context) -> Result<Facts, Error> {
    // What a hypervisor does not have at all is no reason not to show the rest.
    let known = |answer: Result<bool, Error>| match answer {
        Err(error) if is(&error, ErrorNumber::NoSupport) => Ok(false),
        answer => answer,
    };
    let mut facts = Facts {
        state: link::state(domain)?,
        xml: domain.xml_desc(0)?,
        autostart: known(domain.autostart())?,
        persistent: known(domain.is_persistent())?,
        managed_save: known(domain.has_managed_save(0))?,
        ..Facts::default()
    };
    match domain.list_all_snapshots(0) {
        Ok(snapshots) => {
            for snapshot in snapshots {
                // One that has been deleted since is announced by its file.
                facts.snapshots.extend(snapshot.xml_desc(0));
            }
        }
        Err(error) if is(&error, ErrorNumber::NoSupport) => {}
        Err(error) => return Err(error),
    }
    facts.stats = match link::stats(domain) {
        Err(error) if is(&error, ErrorNumber::NoSupport) => link::Stats::new(),
        stats => stats?,
    };
    // The number of a domain that runs came with its lookup.
    if domain.id().is_some() {
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
    Ok(facts)
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
