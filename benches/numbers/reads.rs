//! What reading an attribute and asking for its size costs, beside other filesystems.
//!
//! One thread reads. All subjects take turns, round by round, so that whatever else the machine does
//! meets all of them; a ratio is taken within each round.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::mounts::{Cores, Daemon, Hello, Scratch, Store};
use crate::report::{Report, Sample, micros};
use crate::{Failure, Size};

/// A file, by its absolute path.
struct Subject {
    name: &'static str,
    path: CString,
}

impl Subject {
    fn new(name: &'static str, path: impl AsRef<Path>) -> Result<Subject, Failure> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
        Ok(Subject { name, path })
    }

    /// Opens, reads and closes it `count` times; microseconds for each.
    fn read(&self, count: usize) -> Result<f64, Failure> {
        let mut buffer = [0; 4096];
        let began = Instant::now();
        for _ in 0..count {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let fd = nix::fcntl::open(self.path.as_c_str(), flags, Mode::empty())?;
            if nix::unistd::read(&fd, &mut buffer)? == 0 {
                return Err(format!("{}: empty", self.name).into());
            }
        }
        Ok(micros(began.elapsed()) / count as f64)
    }

    /// Asks for its attributes `count` times; microseconds for each.
    fn stat(&self, count: usize) -> Result<f64, Failure> {
        let began = Instant::now();
        for _ in 0..count {
            nix::sys::stat::stat(self.path.as_c_str())?;
        }
        Ok(micros(began.elapsed()) / count as f64)
    }
}

/// What one subject took in each round.
struct Taken<'a> {
    name: &'a str,
    rounds: Vec<f64>,
}

/// Lets the subjects take turns.
fn rounds<'a>(
    subjects: &'a [Subject],
    rounds: usize,
    act: impl Fn(&Subject) -> Result<f64, Failure>,
) -> Result<Vec<Taken<'a>>, Failure> {
    let mut taken: Vec<Taken<'_>> = subjects
        .iter()
        .map(|subject| Taken {
            name: subject.name,
            rounds: Vec::new(),
        })
        .collect();
    for subject in subjects {
        act(subject)?;
    }
    for _ in 0..rounds {
        for (subject, taken) in subjects.iter().zip(&mut taken) {
            taken.rounds.push(act(subject)?);
        }
    }
    Ok(taken)
}

/// The ratio of two subjects in each round.
fn ratio(one: &Taken<'_>, other: &Taken<'_>) -> Sample {
    Sample::new(
        one.rounds
            .iter()
            .zip(&other.rounds)
            .map(|(one, other)| one / other),
    )
}

/// How many messages of each kind `act` has cost.
fn messages(
    daemon: &Daemon<'_>,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<Vec<(String, i64)>, Failure> {
    let counts = || -> Result<Vec<(String, i64)>, Failure> {
        // A RELEASE is sent without waiting for it: the counts are taken once all have come. The
        // handle of the document itself is still open then.
        loop {
            let status = daemon.status()?;
            let Value::Object(counts) = &status["mount"]["messages"] else {
                return Err(".status: no messages".into());
            };
            let count = |name: &str| counts.get(name).and_then(Value::as_i64);
            if count("open") == count("release").map(|released| released + 1) {
                let counts = counts
                    .iter()
                    .map(|(name, count)| (name.clone(), count.as_i64().unwrap_or(0)));
                return Ok(counts.collect());
            }
        }
    };
    counts()?;
    let before = counts()?;
    act()?;
    let after = counts()?;
    Ok(before
        .into_iter()
        .zip(after)
        .map(|((name, before), (_, after))| {
            // One more of each was the reading of the counts.
            let own = matches!(name.as_str(), "open" | "read" | "release");
            (name, after - before - i64::from(own))
        })
        .collect())
}

/// Measures and reports.
pub fn run(
    report: &mut Report,
    size: Size,
    scratch: &Scratch,
    hello: &Path,
) -> Result<(), Failure> {
    let store = Store::new(scratch, "reads", 100)?;
    let daemon = store.mount()?;
    let hello = Hello::mount(scratch, hello)?;
    // On the tmpfs that holds the mount point too, so that the paths are equally long.
    let memory = store.beside("mem");
    let zones = daemon.zones()?;
    let zone = zones.first().ok_or("the sample has no ordinary VM")?;
    fs::create_dir_all(memory.join(&zone.uuid))?;
    // A read makes the next stat ask the daemon: each has a file of its own.
    let [state, brand] = ["state", "brand"].map(|file| format!("{}/{file}", zone.uuid));
    for file in [&state, &brand] {
        fs::write(memory.join(file), "running\n")?;
    }
    let opened = [
        Subject::new("vminfod", daemon.path(&state))?,
        Subject::new("hello", hello.path().join("hello"))?,
        Subject::new("tmpfs", memory.join(&state))?,
        Subject::new("sysfs", "/sys/devices/system/cpu/online")?,
    ];
    let pids = [daemon.pid(), hello.pid()];
    Cores::All.restrict(&pids)?;
    opens(report, size, "on all cores", &opened)?;
    Cores::One.restrict(&pids)?;
    let ratio = opens(report, size, "all on one core", &opened)?;
    // On all cores the ratio is, from one run to the next, anything between 0.6 and 1.6: it says
    // which of the two was put on the reader's core more often, and not what they do there.
    report.at_most(1.1, "", "vminfod / hello, median", ratio);
    Cores::All.restrict(&pids)?;
    let sent = messages(&daemon, || opened[0].read(1_000).map(drop))?;
    let met = sent.iter().all(|(name, count)| match name.as_str() {
        "open" | "read" | "release" => *count == 1_000,
        _ => *count == 0,
    });
    report.holds("messages of 1000 open+read+close", met, listed(&sent));

    let asked = [
        Subject::new("vminfod", daemon.path(&brand))?,
        Subject::new("tmpfs", memory.join(&brand))?,
    ];
    stats(report, size, &asked)?;
    let sent = messages(&daemon, || asked[0].stat(1_000).map(drop))?;
    let met = sent.iter().all(|(_, count)| *count == 0);
    report.holds("messages of 1000 stat", met, listed(&sent));
    Ok(())
}

/// Opens, reads and closes `vminfod`, `hello` and others; the ratio of the first two.
fn opens(
    report: &mut Report,
    size: Size,
    place: &str,
    subjects: &[Subject],
) -> Result<f64, Failure> {
    let (turns, count) = match size {
        Size::Full => (101, 400),
        Size::Quick => (11, 100),
    };
    report.section(format!(
        "open+read+close of an attribute, {place}: {turns} rounds of {count}, µs"
    ));
    let taken = rounds(subjects, turns, |subject| subject.read(count))?;
    show(report, &taken);
    let to_hello = ratio(&taken[0], &taken[1]);
    report.line("vminfod / hello", to_hello.spread(2));
    Ok(to_hello.median())
}

/// Asks for the attributes of `vminfod` and `tmpfs`.
fn stats(report: &mut Report, size: Size, subjects: &[Subject]) -> Result<(), Failure> {
    let (turns, count) = match size {
        Size::Full => (51, 10_000),
        Size::Quick => (11, 2_000),
    };
    report.section(format!(
        "repeated stat of an attribute: {turns} rounds of {count}, µs"
    ));
    let taken = rounds(subjects, turns, |subject| subject.stat(count))?;
    show(report, &taken);
    let to_tmpfs = ratio(&taken[0], &taken[1]);
    report.line("vminfod / tmpfs", to_tmpfs.spread(2));
    report.at_most(1.2, "", "vminfod / tmpfs, median", to_tmpfs.median());
    Ok(())
}

fn show(report: &Report, taken: &[Taken<'_>]) {
    for one in taken {
        let rounds = Sample::new(one.rounds.iter().copied());
        report.line(one.name, rounds.spread(2));
    }
}

/// The kinds of messages of which some came.
fn listed(sent: &[(String, i64)]) -> String {
    let some = sent.iter().filter(|(_, count)| *count != 0);
    let some: Vec<String> = some
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if some.is_empty() {
        "none".to_owned()
    } else {
        some.join(", ")
    }
}
