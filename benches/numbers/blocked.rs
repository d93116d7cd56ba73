//! Writers that are blocked on VMs which will never confirm: what they cost others, how soon they go when they have a
//! signal, and how soon an unmount is rid of them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mounts::{Daemon, PATIENCE, Store, Zone};
use crate::reads::Target;
use crate::report::{Report, Sample, micros, millis};
use crate::turns::{self, Subject};
use crate::writes::write;
use crate::{Failure, Size, serve};

/// How many writers are blocked.
const BLOCKED: usize = 64;

/// What the first of them write; those after them write one more each time, since a value that already holds is
/// confirmed at once.
const FIRST: u64 = 50_000;

/// A shell that writes; it ends with the value that stands for it.
struct Writer(Child);

impl Writer {
    fn start(file: &Path, value: u64) -> Result<Writer, Failure> {
        let child = Command::new("sh")
            .args(["-c", &format!("echo {value} > \"$0\"")])
            .arg(file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Writer(child))
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Blocks one writer of this value on each of these zones, for good; when what writers of an earlier one have written
/// has been confirmed.
fn block(
    daemon: &Daemon<'_>,
    zones: &[Zone],
    value: u64,
    switch: &mut impl Write,
) -> Result<Vec<Writer>, Failure> {
    let file = |zone: &Zone| daemon.path(&format!("{}/cpu_shares", zone.uuid));
    let deadline = Instant::now() + PATIENCE;
    let until = |what: &str, is: &dyn Fn() -> Result<bool, Failure>| {
        while !is()? {
            if Instant::now() > deadline {
                return Err(format!("still waiting: {what}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok::<(), Failure>(())
    };
    if value > FIRST {
        writeln!(switch)?;
        let before = format!("{}\n", value - 1);
        for zone in zones {
            until("what was written before is shown", &|| {
                Ok(fs::read_to_string(file(zone))? == before)
            })?;
        }
    }
    let names: Vec<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
    writeln!(switch, "{}", names.join(" "))?;
    let writers = zones
        .iter()
        .map(|zone| Writer::start(&file(zone), value))
        .collect::<Result<Vec<_>, Failure>>()?;
    until("the writers block", &|| {
        Ok(daemon.status()?["mount"]["writersWaiting"] == writers.len())
    })?;
    Ok(writers)
}

/// Measures and reports.
pub fn run(
    report: &mut Report,
    size: Size,
    blocked: &Store<'_>,
    free: &Store<'_>,
) -> Result<(), Failure> {
    let (rounds, count) = size.of((21, 200), (7, 50));
    let (daemon, mut switch) = serve::start(blocked)?;
    let (idle, _switch) = serve::start(free)?;
    let mut zones = daemon.zones()?;
    let others = zones.split_off(BLOCKED.min(zones.len().saturating_sub(1)));
    let writers = block(&daemon, &zones, FIRST, &mut switch)?;
    // Of two stores with the same VMs, so the same VM in each.
    let other = others
        .first()
        .ok_or("the sample has too few ordinary VMs")?;
    report.section(format!(
        "{BLOCKED} writers blocked for good, beside the same without: {rounds} rounds of {count}, µs"
    ));
    type Act<'a> = &'a dyn Fn(&Daemon<'_>, u64) -> Result<f64, Failure>;
    let read: Act<'_> = &|daemon, _| {
        Target::new("vminfod", daemon.path(&format!("{}/state", other.uuid)))?.read(count)
    };
    // Read of a VM that waits itself.
    let read_blocked: Act<'_> = &|daemon, _| {
        Target::new(
            "vminfod",
            daemon.path(&format!("{}/cpu_shares", zones[0].uuid)),
        )?
        .read(count)
    };
    let list: Act<'_> = &|daemon, _| {
        let began = Instant::now();
        for _ in 0..count / 10 {
            fs::read_dir(daemon.path(&zones[0].uuid))?.for_each(drop);
        }
        Ok(micros(began.elapsed()) / (count / 10) as f64)
    };
    let written: Act<'_> = &|daemon, round| {
        let path = daemon.path(&format!("{}/cpu_shares", other.uuid));
        let mut taken = 0.0;
        for number in 0..count as u64 / 10 {
            taken += write(&path, 1 + round * 1_000 + number)? * 1e3;
        }
        Ok(taken / (count / 10) as f64)
    };
    for (what, act) in [
        ("open+read+close", read),
        ("open+read+close of a blocked VM", read_blocked),
        ("listing of a blocked VM", list),
        ("write to another VM", written),
    ] {
        // A value that already holds would be confirmed at once.
        let (mut here, mut there) = (0, 0);
        let subjects = vec![
            Subject::new("blocked", || {
                here += 1;
                act(&daemon, here)
            }),
            Subject::new("nobody blocked", || {
                there += 1;
                act(&idle, there)
            }),
        ];
        let taken = turns::take(rounds, subjects)?;
        taken.compare(report, what, "blocked", "nobody blocked");
        let what = format!("{what} beside {BLOCKED} blocked writers");
        let ratio = taken.median("blocked", "nobody blocked");
        report.at_most(1.3, " × without", &what, ratio);
    }
    drop(writers);

    signals(report, &daemon, &zones, &mut switch)?;
    ended(report, daemon, &zones, &mut switch)
}

/// How soon a blocked writer is gone that has a signal.
fn signals(
    report: &mut Report,
    daemon: &Daemon<'_>,
    zones: &[Zone],
    switch: &mut impl Write,
) -> Result<(), Failure> {
    let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL];
    let mut taken = Vec::new();
    let writers = block(daemon, zones, FIRST + 1, switch)?;
    for (mut writer, signal) in writers.into_iter().zip(all.into_iter().cycle()) {
        if let Some(status) = writer.0.try_wait()? {
            return Err(format!("a writer that was to be blocked has ended: {status}").into());
        }
        let began = Instant::now();
        writer.signal(signal)?;
        writer.0.wait()?;
        taken.push(millis(began.elapsed()));
    }
    let taken = Sample::new(taken);
    report.section(format!(
        "A signal to a blocked writer until it is gone, ms: {BLOCKED} of them; TERM, INT and KILL in turn"
    ));
    report.line("median, and smallest to largest", taken.spread());
    let what = "a blocked writer is gone after a signal";
    report.at_most(100.0, " ms (median)", what, taken.median());
    report.at_most(100.0, " ms (longest)", what, taken.quantile(1.0));
    Ok(())
}

/// How soon an unmount has got rid of blocked writers.
fn ended(
    report: &mut Report,
    mut daemon: Daemon<'_>,
    zones: &[Zone],
    switch: &mut impl Write,
) -> Result<(), Failure> {
    let mut writers = block(&daemon, zones, FIRST + 2, switch)?;
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_vminfod"))
        .arg("umount")
        .arg(daemon.path(""))
        .status()?;
    let unmounted = began.elapsed();
    for writer in &mut writers {
        writer.0.wait()?;
    }
    let answered = began.elapsed();
    daemon.ended()?;
    let ended = began.elapsed();
    report.section(format!("vminfod umount with {BLOCKED} blocked writers, s"));
    report.line(
        "umount has returned",
        format!("{:.3}", unmounted.as_secs_f64()),
    );
    report.line(
        "all writers are gone",
        format!("{:.3}", answered.as_secs_f64()),
    );
    report.line(
        "the daemon has ended",
        format!("{:.3}", ended.as_secs_f64()),
    );
    let what = format!("vminfod umount with {BLOCKED} blocked writers");
    report.holds("it unmounts", status.success(), status);
    let longest = unmounted.max(answered).max(ended);
    report.at_most(2.0, " s", &what, longest.as_secs_f64());
    Ok(())
}
