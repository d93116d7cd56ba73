//! The domains of a libvirt: beside virsh, which is a process for each question, and beside libvirt-python, which asks
//! over a connection that stays open.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::events::Events;
use crate::libvirtd::{Host, Listener, Python};
use crate::mounts::{Daemon, READ_ONLY, Scratch, Store, WRITABLE, cpu};
use crate::report::{Report, Sample};
use crate::turns::{self, Subject, seconds};
use crate::{Failure, Size};

const VIRSH: &str = "virsh";
const PYTHON: &str = "libvirt-python";

/// How many domains there are.
const DOMAINS: usize = 1_000;

/// How many of them run.
const RUNNING: usize = 8;

/// How often what is a process for each domain is called in a round.
const CALLS: usize = 50;

/// Between two changes, so that each meets all at rest.
const REST: Duration = Duration::from_millis(50);

/// Measures and reports.
pub fn run(report: &mut Report, size: Size, scratch: &Scratch) -> Result<(), Failure> {
    let (rounds, _) = size.of((7, 0), (3, 0));
    let domains = DOMAINS;
    let host = Host::start(scratch)?;
    let mut python = Python::start(&host)?;
    python.ask(&format!("define {domains}"))?;
    python.ask(&format!("start {RUNNING}"))?;
    let store = Store::empty(scratch, "domains")?;
    start(report, size, domains, &host, &store, &mut python)?;
    let daemon = mount(&host, &store, domains)?;
    let mut uuids = vec![String::new(); domains];
    for vm in daemon.vms()? {
        let text = |name: &str| vm[name].as_str().unwrap_or_default().to_owned();
        let number = text("zonename").trim_start_matches("vm").parse::<usize>()?;
        *uuids.get_mut(number).ok_or("a domain of nobody")? = text("uuid");
    }
    states(report, rounds, &uuids, &daemon, &host, &mut python)?;
    lists(report, rounds, domains, &daemon, &host, &mut python)?;
    events(report, size, &uuids, &daemon, &host)?;
    idle(report, size, domains, daemon, &host)
}

/// Mounts the domains; all are there when it returns.
fn mount<'a>(host: &Host, store: &'a Store<'a>, domains: usize) -> Result<Daemon<'a>, Failure> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vminfod"));
    command
        .args(["mount", "--foreground", "--source"])
        .arg(format!("libvirt:{}", host.uri()))
        .args(["-o", &format!("libvirt_root={}", host.root().display())])
        .args(["-o", &format!("ro_mount={}", store.read_only().display())])
        .arg(store.mountpoint())
        .stdin(Stdio::null());
    let daemon = store.start(command)?;
    match daemon.status()?["numVms"].as_u64() {
        Some(shown) if shown == domains as u64 => Ok(daemon),
        shown => Err(format!("{shown:?} of {domains} domains are there at the start").into()),
    }
}

fn start(
    report: &mut Report,
    size: Size,
    domains: usize,
    host: &Host,
    store: &Store<'_>,
    python: &mut Python,
) -> Result<(), Failure> {
    let (rounds, _) = size.of((5, 0), (2, 0));
    let (mut ours, mut rival, mut virsh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(mount(host, store, domains)?.took.as_secs_f64());
        rival.push(python.ask("whole")?);
        let calls = CALLS.min(domains);
        let took = seconds(|| each(calls, |name| host.virsh(&["dumpxml", name])))?;
        virsh.push(took / calls as f64 * domains as f64);
    }
    report.section(format!(
        "libvirt: {domains} domains, {RUNNING} of them run, start to mounted: {rounds} rounds, s"
    ));
    let ours = Sample::new(ours);
    report.line("vminfod mount", ours.spread());
    let what = "libvirt-python, one call after the other for all that is shown";
    report.line(what, Sample::new(rival).spread());
    let what = format!("virsh dumpxml of each, from {CALLS} of them");
    report.line(what, Sample::new(virsh).spread());
    let what = format!("start with {domains} domains of libvirt");
    report.at_most(3.0, " s", &what, ours.median());
    Ok(())
}

/// Does something with the names of some domains.
fn each(count: usize, act: impl Fn(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    // Those that run are the first ones; a state costs the same whether a domain runs or not.
    (0..count).try_for_each(|number| act(&format!("vm{number:04}")))
}

/// Runs a tool to its end, without its output.
fn tool(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {status}").into()),
    }
}

fn states(
    report: &mut Report,
    rounds: usize,
    uuids: &[String],
    daemon: &Daemon<'_>,
    host: &Host,
    python: &mut Python,
) -> Result<(), Failure> {
    const CAT: &str = "one cat of all";
    const CAT_READ_ONLY: &str = "one cat of all, read-only";
    const CAT_EACH: &str = "a cat of each";
    let paths = |root: &Path| -> Vec<PathBuf> {
        let path = |uuid: &String| root.join(uuid).join("state");
        uuids.iter().map(path).collect()
    };
    let count = uuids.len();
    let calls = CALLS.min(count);
    let files = paths(&daemon.path(""));
    let others: Vec<PathBuf> = (daemon.mounts().iter())
        .filter(|(name, _)| *name == READ_ONLY)
        .flat_map(|(_, root)| paths(root))
        .collect();
    let mut subjects = Vec::new();
    for (name, root) in daemon.mounts() {
        let files = paths(&root);
        subjects.push(Subject::new(name, move || {
            let took = seconds(|| {
                for file in &files {
                    fs::read(file)?;
                }
                Ok(())
            });
            Ok(took? * 1e6 / count as f64)
        }));
    }
    for (name, files) in [(CAT, &files), (CAT_READ_ONLY, &others)] {
        subjects.push(Subject::new(name, move || {
            Ok(seconds(|| tool(Command::new("cat").args(files)))? * 1e6 / count as f64)
        }));
    }
    subjects.push(Subject::new(CAT_EACH, || {
        let cat = |file| tool(Command::new("cat").arg(file));
        Ok(seconds(|| files.iter().take(calls).try_for_each(cat))? * 1e6 / calls as f64)
    }));
    subjects.push(Subject::new(VIRSH, || {
        let took = seconds(|| each(calls, |name| host.virsh(&["domstate", name])))?;
        Ok(took * 1e6 / calls as f64)
    }));
    subjects.push(Subject::new(PYTHON, || {
        Ok(python.ask("state")? * 1e6 / count as f64)
    }));
    let taken = turns::take(rounds, subjects)?;
    report.section(format!(
        "libvirt: the state of each of {count} domains, µs a domain: {rounds} rounds"
    ));
    for ours in [WRITABLE, READ_ONLY, CAT, CAT_READ_ONLY, CAT_EACH] {
        taken.compare(report, "state", ours, VIRSH);
        taken.compare(report, "state", ours, PYTHON);
    }
    taken.picture(report, "state of a domain", WRITABLE, PYTHON);
    // A cat of the writable mount is a figure without a bar: README.md says what it waits for.
    for ours in [WRITABLE, CAT_READ_ONLY] {
        let faster = taken.median(VIRSH, ours).unwrap_or(0.0);
        let what = format!("virsh domstate of each domain / its state, {ours}");
        report.at_least(200.0, " ×", &what, faster);
    }
    Ok(())
}

fn lists(
    report: &mut Report,
    rounds: usize,
    domains: usize,
    daemon: &Daemon<'_>,
    host: &Host,
    python: &mut Python,
) -> Result<(), Failure> {
    let mut subjects = Vec::new();
    for (name, root) in daemon.mounts() {
        subjects.push(Subject::new(name, move || {
            seconds(|| tool(Command::new("ls").arg(&root)))
        }));
    }
    subjects.push(Subject::new(VIRSH, || {
        seconds(|| host.virsh(&["list", "--all"]))
    }));
    subjects.push(Subject::new(PYTHON, || python.ask("list")));
    let taken = turns::take(rounds, subjects)?;
    report.section(format!(
        "libvirt: a list of {domains} domains, s: {rounds} rounds"
    ));
    for ours in [WRITABLE, READ_ONLY] {
        taken.compare(report, "ls", ours, VIRSH);
        taken.compare(report, "ls", ours, PYTHON);
        let faster = taken.median(VIRSH, ours).unwrap_or(0.0);
        report.at_least(
            20.0,
            " ×",
            &format!("virsh list --all / ls, {ours}"),
            faster,
        );
    }
    taken.picture(report, "list of domains", WRITABLE, VIRSH);
    Ok(())
}

/// The clock that other processes have too.
fn monotonic() -> Result<u64, Failure> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// A change by virsh.
struct Change<'a> {
    uuid: &'a str,
    args: Vec<String>,
    /// What its line on `events` holds.
    shows: String,
}

/// How long after another time the line of a change was read, in ms.
struct Latency<'a> {
    host: &'a Host,
    lines: Events,
    listener: Listener,
    epoch: (Instant, u64),
}

impl Latency<'_> {
    /// Makes a change. When its line was read, in ns of CLOCK_MONOTONIC, and when virsh had ended.
    fn change(&self, change: &Change<'_>) -> Result<(u64, u64), Failure> {
        thread::sleep(REST);
        self.listener.forget();
        let args: Vec<&str> = change.args.iter().map(String::as_str).collect();
        self.host.virsh(&args)?;
        let ended = monotonic()?;
        loop {
            let line = self.lines.next()?;
            if line.text.contains(change.uuid) && line.text.contains(&change.shows) {
                let (instant, time) = self.epoch;
                let since = line.arrived.saturating_duration_since(instant);
                return Ok((time + since.as_nanos() as u64, ended));
            }
        }
    }

    /// How long after libvirt's event reached libvirt-python.
    fn after_event(&self, change: &Change<'_>) -> Result<f64, Failure> {
        let (line, _) = self.change(change)?;
        Ok(between(self.listener.next(change.uuid)?, line))
    }

    /// How long after the end of virsh.
    fn after_virsh(&self, change: &Change<'_>) -> Result<f64, Failure> {
        let (line, ended) = self.change(change)?;
        Ok(between(ended, line))
    }
}

/// From one time to another, in ms; less than 0 if it was before.
fn between(from: u64, to: u64) -> f64 {
    (to as f64 - from as f64) / 1e6
}

fn events(
    report: &mut Report,
    size: Size,
    uuids: &[String],
    daemon: &Daemon<'_>,
    host: &Host,
) -> Result<(), Failure> {
    let (states, configs) = size.of((200, 100), (64, 16));
    let latency = Latency {
        host,
        lines: Events::open(daemon)?,
        listener: Listener::start(host)?,
        epoch: (Instant::now(), monotonic()?),
    };
    let of = |number: usize| (format!("vm{number:04}"), uuids[number].as_str());
    let state = |number: usize| {
        let (name, uuid) = of(number % RUNNING);
        let (verb, state) = [("suspend", "paused"), ("resume", "running")][number / RUNNING % 2];
        Change {
            uuid,
            args: vec![verb.to_owned(), name],
            shows: format!(r#""newValue":"{state}""#),
        }
    };
    // The stopped ones follow those that run.
    let stopped = |number: usize| of(RUNNING + number % (uuids.len() - RUNNING));
    let title = |number: usize| {
        let (name, uuid) = stopped(number);
        let title = format!("title-{number}");
        Change {
            uuid,
            shows: format!(r#""newValue":"{title}""#),
            args: ["desc", &name, "--config", "--title", &title]
                .map(str::to_owned)
                .to_vec(),
        }
    };
    let memory = |number: usize| {
        let (name, uuid) = stopped(number);
        let mib = 32 + number % 8;
        Change {
            uuid,
            shows: format!(r#""newValue":{mib}"#),
            args: ["setmem", &name, &format!("{mib}M"), "--config"]
                .map(str::to_owned)
                .to_vec(),
        }
    };
    latency.after_event(&state(0))?;
    let states = (1..=states).map(|number| latency.after_event(&state(number)));
    let states = Sample::new(states.collect::<Result<Vec<_>, _>>()?);
    let titles = (0..configs).map(|number| latency.after_event(&title(number)));
    let titles = Sample::new(titles.collect::<Result<Vec<_>, _>>()?);
    let memories = (0..configs).map(|number| latency.after_virsh(&memory(number)));
    let memories = Sample::new(memories.collect::<Result<Vec<_>, _>>()?);

    report.section("libvirt: a change by virsh until its line was read from events, ms");
    let from = "after the event reached libvirt-python";
    for (what, from, sample) in [
        ("suspend, resume", from, &states),
        ("desc --title --config, stopped", from, &titles),
        (
            "setmem --config, stopped",
            "after virsh ended: libvirt has no event",
            &memories,
        ),
    ] {
        let p99 = sample.quantile(0.99);
        report.line(
            format!("{what}: {from}"),
            format!("{}, p99 {p99:.1}", sample.spread()),
        );
    }
    for (what, sample) in [("suspend, resume", &states), ("title", &titles)] {
        let what = format!("{what} by virsh: its line after libvirt's own event");
        report.at_most(5.0, " ms (median)", &what, sample.median());
    }
    Ok(())
}

fn idle(
    report: &mut Report,
    size: Size,
    domains: usize,
    daemon: Daemon<'_>,
    host: &Host,
) -> Result<(), Failure> {
    let (time, _) = size.of((20, 0), (5, 0));
    let time = time as u64;
    let (ours, reader, libvirtd) = (daemon.pid(), child_of(daemon.pid())?, host.pid());
    let [ours, reader, with] = used(time, [ours, reader, libvirtd])?;
    drop(daemon);
    let [without] = used(time, [libvirtd])?;
    report.section(format!(
        "libvirt: CPU with {domains} domains while nothing changes, % of a core over {time} s"
    ));
    for (what, used) in [
        ("vminfod", ours),
        ("vminfod-libvirt", reader),
        ("libvirtd", with),
        ("libvirtd without us", without),
    ] {
        report.line(what, format!("{used:.2}"));
    }
    let what = format!("idle CPU of vminfod and vminfod-libvirt, {domains} domains");
    report.at_most(1.0, " % of a core", &what, ours + reader);
    Ok(())
}

/// What processes use over so many seconds, in percent of a core.
fn used<const N: usize>(time: u64, pids: [u32; N]) -> Result<[f64; N], Failure> {
    // What came before settles first.
    thread::sleep(Duration::from_secs(1));
    let mut used = [0.0; N];
    for (used, pid) in used.iter_mut().zip(pids) {
        *used = -cpu(pid)?;
    }
    thread::sleep(Duration::from_secs(time));
    for (used, pid) in used.iter_mut().zip(pids) {
        *used = (*used + cpu(pid)?) * 100.0 / time as f64;
    }
    Ok(used)
}

/// The process that the daemon has started.
fn child_of(pid: u32) -> Result<u32, Failure> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
    Err("vminfod has no process beside it".into())
}
