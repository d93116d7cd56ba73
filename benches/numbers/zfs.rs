//! What a write adds to `zfs set` on a real pool, and how much of that is the commands by which the source
//! is read before and after it.
//!
//! A pool on a file in the tmpfs, served by `zfs-fuse` unless this host has a ZFS that answers.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::mounts::Store;
use crate::report::{Report, Sample, micros};
use crate::{Failure, Size};

/// How long `zfs-fuse` may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The layer may add so much to `zfs set`, in ms.
const BAR: f64 = 2.0;

/// What one reading asks for, which costs what it costs to start the command.
const PROPERTIES: &str = "type,mountpoint,quota,refquota,compression,recordsize,creation,userrefs,\
    volsize,volblocksize,refreservation,usedbysnapshots,used";

/// A pool, destroyed in the end, and the daemon if it is ours.
struct Pool {
    name: String,
    daemon: Option<Child>,
}

impl Pool {
    fn create(file: &Path) -> Result<Pool, Failure> {
        let mut pool = Pool {
            name: format!("vmbench-{}", std::process::id()),
            daemon: None,
        };
        if !pool.answers() {
            let mut daemon = Command::new("zfs-fuse");
            daemon.args(["--no-daemon", "--no-kstat-mount"]);
            daemon.stdout(Stdio::null()).stderr(Stdio::null());
            pool.daemon = Some(daemon.stdin(Stdio::null()).spawn()?);
            let until = Instant::now() + PATIENCE;
            while !pool.answers() {
                if Instant::now() > until {
                    return Err("zfs-fuse does not answer".into());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        File::create(file)?.set_len(256 << 20)?;
        let mut create = Command::new("zpool");
        create.args(["create", "-o", "cachefile=none", "-m", "none", &pool.name]);
        took(create.arg(file))?;
        Ok(pool)
    }

    fn answers(&self) -> bool {
        let mut list = Command::new("zpool");
        list.args(["list", "-H"]).stdout(Stdio::null());
        list.stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // What fails here is seen, since its text goes to standard error; nothing can be done about it.
        let _ = Command::new("zpool")
            .args(["destroy", "-f", &self.name])
            .status();
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Runs a command to its end; how long that took, in ms.
fn took(command: &mut Command) -> Result<f64, Failure> {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = micros(began.elapsed()) / 1e3;
    match output.status.success() {
        true => Ok(took),
        false => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into()),
    }
}

/// Writes a value and waits for its confirmation; how long that took, in ms.
fn write(path: &PathBuf, value: u64) -> Result<f64, Failure> {
    let mut file = File::options().write(true).open(path)?;
    let text = value.to_string();
    let began = Instant::now();
    file.write_all(text.as_bytes())
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(micros(began.elapsed()) / 1e3)
}

/// Measures and reports, on the first VM of a store that has ordinary quotas.
pub fn run(report: &mut Report, size: Size, store: &Store<'_>) -> Result<(), Failure> {
    let (rounds, count) = match size {
        Size::Full => (7, 30),
        Size::Short => (3, 20),
    };
    let pool = Pool::create(&store.beside("pool"))?;
    let zone = store.zone_of("joyent")?;
    let dataset = format!("{}/{zone}", pool.name);
    let mountpoint = format!("mountpoint=/zones/{zone}");
    let mut create = Command::new("zfs");
    create.args(["create", "-o", "canmount=off", "-o", &mountpoint, &dataset]);
    took(&mut create)?;
    let daemon = store.mount_with("datasets=zfs,runtime=files")?;
    let vms = daemon.vms()?;
    let vm = vms.iter().find(|vm| vm["zonename"] == zone.as_str());
    let uuid = vm.and_then(|vm| vm["uuid"].as_str());
    let uuid = uuid.ok_or("the VM on ZFS is not shown")?;
    let [quota, shares] =
        ["quota", "cpu_shares"].map(|name| daemon.path(&format!("{uuid}/{name}")));

    let names = [
        "write(2) of a quota",
        "zfs set of a quota",
        "zfs get of the dataset",
        "a process that does nothing",
        "write(2) of an rctl, which needs no ZFS",
    ];
    let mut medians: [Vec<f64>; 5] = Default::default();
    let (mut added, mut remains) = (Vec::new(), Vec::new());
    let mut value = 100;
    for _ in 0..rounds {
        let mut taken: [Vec<f64>; 5] = Default::default();
        for _ in 0..count {
            value += 1;
            let set = format!("quota={}G", value + 100_000);
            let get = ["get", "-Hp", "-r", "-o", "name,property,value", PROPERTIES];
            taken[0].push(write(&quota, value)?);
            taken[1].push(took(Command::new("zfs").args(["set", &set, &dataset]))?);
            taken[2].push(took(Command::new("zfs").args(get).arg(&dataset))?);
            taken[3].push(took(&mut Command::new("true"))?);
            taken[4].push(write(&shares, value)?);
        }
        let median = taken.map(|taken| Sample::new(taken).median());
        for (medians, median) in medians.iter_mut().zip(median) {
            medians.push(median);
        }
        let [write, set, get, ..] = median;
        added.push(write - set);
        remains.push(write - set - 2.0 * get);
    }
    report.section(format!(
        "a write on real ZFS: {rounds} rounds of {count}, ms"
    ));
    for (name, medians) in names.into_iter().zip(medians) {
        report.line(name, Sample::new(medians).spread());
    }
    let (added, remains) = (Sample::new(added), Sample::new(remains));
    report.line("the layer adds to zfs set", added.spread());
    report.line(
        "of it without its two readings by zfs get",
        remains.spread(),
    );
    let what = "a write on real ZFS beyond zfs set";
    report.at_most(BAR, " ms", what, added.median());
    let what = "the same without its two readings by zfs get";
    report.at_most(BAR, " ms", what, remains.median());
    Ok(())
}
