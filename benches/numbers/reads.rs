//! What reading an attribute and asking for its size costs, beside other filesystems: alone, with several readers,
//! and while changes arrive.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::changing::Changing;
use crate::messages::Messages;
use crate::mounts::{Cores, Daemon, READ_ONLY, Scratch, Store, WRITABLE};
use crate::report::{Report, micros};
use crate::rivals::Rival;
use crate::turns::{self, Subject, Turns};
use crate::{Failure, Size};

const DIRECT: &str = "hello, direct_io";
const CACHED: &str = "hello, kernel_cache";
const PASSTHROUGH: &str = "passthrough_ll";
const LXCFS: &str = "lxcfs";
const TMPFS: &str = "tmpfs";
const SYSFS: &str = "sysfs";
const PROCFS: &str = "procfs";
const RIVALS: [&str; 7] = [TMPFS, SYSFS, PROCFS, DIRECT, CACHED, PASSTHROUGH, LXCFS];

/// A file, by its absolute path.
#[derive(Clone, Debug)]
pub struct Target {
    name: &'static str,
    path: CString,
}

impl Target {
    /// Of the filesystem with this name.
    pub fn new(name: &'static str, path: impl AsRef<Path>) -> Result<Target, Failure> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
        Ok(Target { name, path })
    }

    fn open(&self) -> Result<OwnedFd, Failure> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open(
            self.path.as_c_str(),
            flags,
            Mode::empty(),
        )?)
    }

    /// Opens, reads and closes it so often; microseconds for each.
    pub fn read(&self, count: usize) -> Result<f64, Failure> {
        let mut buffer = [0; 4096];
        let began = Instant::now();
        for _ in 0..count {
            if nix::unistd::read(&self.open()?, &mut buffer)? == 0 {
                return Err(format!("{}: empty", self.name).into());
            }
        }
        Ok(micros(began.elapsed()) / count as f64)
    }

    /// Asks for its attributes so often; microseconds for each.
    pub fn stat(&self, count: usize) -> Result<f64, Failure> {
        let began = Instant::now();
        for _ in 0..count {
            nix::sys::stat::stat(self.path.as_c_str())?;
        }
        Ok(micros(began.elapsed()) / count as f64)
    }

    /// Opens it, and reads it from its beginning so often; microseconds for each.
    pub fn pread(&self, count: usize) -> Result<f64, Failure> {
        let file = self.open()?;
        let mut buffer = [0; 4096];
        let began = Instant::now();
        for _ in 0..count {
            nix::sys::uio::pread(&file, &mut buffer, 0)?;
        }
        Ok(micros(began.elapsed()) / count as f64)
    }
}

type Act = fn(&Target, usize) -> Result<f64, Failure>;

/// Lets targets take turns. `hello` with direct I/O and lxcfs are asked less often, as what costs messages is.
fn turns(targets: &[Target], rounds: usize, count: usize, act: Act) -> Result<Turns, Failure> {
    let subjects = targets
        .iter()
        .map(|target| Subject::new(target.name, move || act(target, count)));
    turns::take(rounds, subjects.collect())
}

/// Reports ours to each rival.
fn show(report: &mut Report, work: &str, turns: &Turns) {
    for ours in [WRITABLE, READ_ONLY] {
        for rival in RIVALS {
            turns.compare(report, work, ours, rival);
        }
    }
}

/// Measures and reports.
pub fn run(
    report: &mut Report,
    size: Size,
    scratch: &Scratch,
    store: &Store<'_>,
    programs: &Path,
) -> Result<(), Failure> {
    let daemon = store.mount()?;
    // On the tmpfs that holds the mount point too, so that the paths are equally long.
    let memory = store.beside("mem");
    let zones = daemon.zones()?;
    let zone = zones.first().ok_or("the sample has no ordinary VM")?;
    fs::create_dir_all(memory.join(&zone.uuid))?;
    // A read makes the next stat ask the daemon: each has a file of its own.
    let [state, brand, name] =
        ["state", "brand", "zonename"].map(|file| format!("{}/{file}", zone.uuid));
    for file in [&state, &brand, &name] {
        fs::copy(daemon.path(file), memory.join(file))?;
    }
    let hello = Rival::hello(scratch, programs, "hello_direct")?;
    let cached = Rival::hello(scratch, programs, "hello_cache")?;
    let passthrough = Rival::passthrough(scratch, programs, &memory, &state)?;
    let lxcfs = Rival::lxcfs(scratch)?;
    let pids = [&hello, &cached, &passthrough, &lxcfs].map(Rival::pid);
    let pids = [&[daemon.pid()], &pids[..]].concat();
    let targets = |file: &str| -> Result<Vec<Target>, Failure> {
        let mut targets = Vec::new();
        for (name, path) in daemon.mounts() {
            targets.push(Target::new(name, path.join(file))?);
        }
        targets.extend([
            Target::new(TMPFS, memory.join(file))?,
            Target::new(SYSFS, "/sys/devices/system/cpu/online")?,
            Target::new(PROCFS, "/proc/uptime")?,
            Target::new(DIRECT, hello.path("hello"))?,
            Target::new(CACHED, cached.path("hello"))?,
            Target::new(PASSTHROUGH, passthrough.path(file))?,
            Target::new(LXCFS, lxcfs.path("proc/uptime"))?,
        ]);
        Ok(targets)
    };

    let work = "open+read+close";
    let (rounds, count) = size.of((41, 300), (5, 50));
    report.section(format!(
        "Open, read and close an attribute: {rounds} rounds of {count}, µs"
    ));
    let opened = targets(&state)?;
    Cores::All.restrict(&pids)?;
    let all = turns(&opened, rounds, count, Target::read)?;
    show(report, &format!("{work}, all cores"), &all);
    Cores::One.restrict(&pids)?;
    let one = turns(&opened, rounds, count, Target::read)?;
    Cores::All.restrict(&pids)?;
    show(report, &format!("{work}, one core"), &one);
    report.at_most(
        1.0,
        " × sysfs",
        "open+read+close, read-only mount",
        all.median(READ_ONLY, SYSFS),
    );
    report.at_most(
        1.7,
        " × tmpfs",
        "open+read+close, read-only mount",
        all.median(READ_ONLY, TMPFS),
    );
    // On all cores the ratio says which of the two was put on the reader's core more often, and not what they do
    // there.
    report.at_most(
        1.05,
        " × hello with direct_io",
        "open+read+close, writable mount, one core",
        one.median(WRITABLE, DIRECT),
    );
    one.picture(report, work, WRITABLE, DIRECT);
    one.picture(report, work, WRITABLE, PASSTHROUGH);
    one.picture(report, work, WRITABLE, LXCFS);
    for rival in [SYSFS, TMPFS, CACHED] {
        all.picture(report, work, READ_ONLY, rival);
    }
    let sent = Messages::of(&daemon, || opened[0].read(1_000).map(drop))?;
    report.holds(
        "messages of 1000 open+read+close, writable mount",
        sent.are(1_000, &["open", "read", "release"]),
        sent,
    );

    let (rounds, count) = size.of((31, 5_000), (5, 500));
    report.section(format!(
        "Ask for attributes: {rounds} rounds of {count} stat, µs"
    ));
    let asked = targets(&brand)?;
    let stat = turns(&asked, rounds, count, Target::stat)?;
    show(report, "stat", &stat);
    for ours in [WRITABLE, READ_ONLY] {
        let what = format!("stat, {ours} mount");
        report.at_most(1.1, " × tmpfs", &what, stat.median(ours, TMPFS));
        stat.picture(report, "stat", ours, TMPFS);
    }
    let sent = Messages::of(&daemon, || asked[0].stat(1_000).map(drop))?;
    report.holds(
        "messages of 1000 stat, writable mount",
        sent.are(0, &[]),
        sent,
    );

    let (rounds, count) = size.of((31, 500), (5, 100));
    report.section(format!(
        "Read an open file again: {rounds} rounds of {count} pread, µs; one core"
    ));
    let held = targets(&name)?;
    Cores::One.restrict(&pids)?;
    let pread = turns(&held, rounds, count, Target::pread)?;
    Cores::All.restrict(&pids)?;
    show(report, "pread", &pread);
    report.at_most(
        1.1,
        " × tmpfs",
        "pread, read-only mount",
        pread.median(READ_ONLY, TMPFS),
    );
    pread.picture(report, "pread", WRITABLE, DIRECT);
    pread.picture(report, "pread", READ_ONLY, TMPFS);

    at_once(report, size, &opened)?;
    beside_changes(report, size, &daemon, &[opened, asked, held])
}

/// Several readers at once.
fn at_once(report: &mut Report, size: Size, targets: &[Target]) -> Result<(), Failure> {
    let (rounds, count) = size.of((9, 300), (5, 50));
    report.section(format!(
        "Readers at once, each opens, reads and closes: {rounds} rounds of {count} each, all cores, µs for one"
    ));
    for readers in [1, 2, 8] {
        let subjects = targets.iter().map(|target| {
            Subject::new(target.name, move || {
                let began = Instant::now();
                thread::scope(|scope| {
                    let started: Vec<_> = (0..readers)
                        .map(|_| {
                            scope.spawn(|| target.read(count).map_err(|error| error.to_string()))
                        })
                        .collect();
                    started
                        .into_iter()
                        .try_for_each(|reader| match reader.join() {
                            Ok(read) => read.map(drop),
                            Err(_) => Err("a reader panicked".to_owned()),
                        })
                })?;
                Ok(micros(began.elapsed()) / (readers * count) as f64)
            })
        });
        let taken = turns::take(rounds, subjects.collect())?;
        for (ours, rival) in [
            (WRITABLE, DIRECT),
            (WRITABLE, PASSTHROUGH),
            (WRITABLE, LXCFS),
            (READ_ONLY, SYSFS),
            (READ_ONLY, TMPFS),
        ] {
            taken.compare(report, &format!("{readers} readers"), ours, rival);
        }
    }
    Ok(())
}

/// The same while 500 changes a second arrive.
fn beside_changes(
    report: &mut Report,
    size: Size,
    daemon: &Daemon<'_>,
    targets: &[Vec<Target>; 3],
) -> Result<(), Failure> {
    let (rounds, count) = size.of((15, 300), (5, 50));
    report.section(format!(
        "While 500 changes a second arrive: {rounds} rounds of {count}, all cores, µs"
    ));
    // The VM that is read changes too.
    let changing = Changing::start(daemon.zones()?)?;
    let works: [(&str, Act); 3] = [
        ("open+read+close", Target::read),
        ("stat", Target::stat),
        ("pread", Target::pread),
    ];
    for ((work, act), targets) in works.into_iter().zip(targets) {
        let taken = turns(targets, rounds, count, act)?;
        for (ours, rival) in [
            (WRITABLE, DIRECT),
            (WRITABLE, TMPFS),
            (READ_ONLY, SYSFS),
            (READ_ONLY, TMPFS),
        ] {
            taken.compare(report, work, ours, rival);
        }
    }
    report.line("changes a second", format!("{:.0}", changing.rate()));
    Ok(())
}
