//! How long a write takes from write(2) to its return, which is when every read shows the value; how long a
//! thousand writers on a thousand VMs take; and what reads cost while others write.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::mounts::{Daemon, Store};
use crate::report::{Report, Sample, millis};
use crate::{Failure, Size};

/// Writes a value and waits for its confirmation; milliseconds.
pub fn write(path: &PathBuf, value: u64) -> Result<f64, Failure> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let text = value.to_string();
    let began = Instant::now();
    file.write_all(text.as_bytes())?;
    Ok(millis(began.elapsed()))
}

/// Opens, reads and closes a file so often; how long one time takes.
fn read(path: &PathBuf, count: usize) -> Result<f64, Failure> {
    let began = Instant::now();
    let mut buffer = [0; 64];
    for _ in 0..count {
        let file = File::open(path)?;
        black_box(file.read_at(&mut buffer, 0)?);
    }
    Ok(millis(began.elapsed()) / count as f64)
}

/// Measures and reports, on a store of many VMs.
pub fn run(report: &mut Report, size: Size, store: &Store<'_>) -> Result<(), Failure> {
    let (rounds, count) = size.of((7, 300), (5, 40));
    let daemon = store.mount()?;
    let zones = daemon.zones()?;
    let file = |number: u64, name: &str| -> PathBuf {
        let zone = &zones[(number as usize * 7_919) % zones.len()];
        daemon.path(&format!("{}/{name}", zone.uuid))
    };
    let mut value = 1000;
    for (name, what) in [("quota", "a quota"), ("cpu_shares", "an rctl in the XML")] {
        report.section(format!(
            "write(2) of {what} until it is confirmed, {} VMs, file providers: {rounds} rounds of {count}, ms",
            store.vms
        ));
        let (mut all, mut medians) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut taken = Vec::new();
            for _ in 0..count {
                value += 1;
                taken.push(write(&file(value, name), value)?);
            }
            all.extend(&taken);
            medians.push(Sample::new(taken).median());
        }
        let all = Sample::new(all);
        report.line("medians of the rounds", Sample::new(medians).spread());
        let what = format!("write of {what}");
        report.at_most(3.0, " ms (median)", &what, all.median());
        report.at_most(10.0, " ms (p99)", &what, all.quantile(0.99));
    }
    at_once(report, &daemon)?;
    beside(report, size, &file)
}

/// A thousand writers on a thousand VMs.
fn at_once(report: &mut Report, daemon: &Daemon<'_>) -> Result<(), Failure> {
    let zones = daemon.zones()?;
    let files: Vec<PathBuf> = zones
        .iter()
        .take(1000)
        .map(|zone| daemon.path(&format!("{}/cpu_shares", zone.uuid)))
        .collect();
    let confirmed = AtomicU64::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        for path in &files {
            let confirmed = &confirmed;
            thread::Builder::new()
                .stack_size(64 << 10)
                .spawn_scoped(scope, move || {
                    if write(path, 777).is_ok() {
                        confirmed.fetch_add(1, Ordering::Relaxed);
                    }
                })?;
        }
        Ok::<(), std::io::Error>(())
    })?;
    let took = began.elapsed();
    let confirmed = confirmed.into_inner();
    report.section(format!("{} writers on as many VMs at once", files.len()));
    report.holds(
        "1,000 writers at once, all confirmed",
        confirmed == files.len() as u64,
        format!("{confirmed} in {:.2} s", took.as_secs_f64()),
    );
    Ok(())
}

/// Reads while another thread writes 500 values a second.
fn beside(
    report: &mut Report,
    size: Size,
    file: &(dyn Fn(u64, &str) -> PathBuf + Sync),
) -> Result<(), Failure> {
    const PERIOD: Duration = Duration::from_millis(2);
    let (rounds, count) = size.of((7, 2000), (5, 500));
    let path = file(0, "alias");
    read(&path, 100)?;
    let (mut idle, mut busy, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        idle.push(read(&path, count)?);
        let ended = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        let began = Instant::now();
        let taken = thread::scope(|scope| {
            // Several, since each waits for its confirmation.
            for writer in 0..4_u64 {
                let (ended, written) = (&ended, &written);
                scope.spawn(move || {
                    let mut next = Instant::now();
                    let mut number = round as u64 * 100_000 + writer * 10_000;
                    while !ended.load(Ordering::Relaxed) {
                        number += 1;
                        if write(&file(1 + number, "cpu_shares"), 1 + number % 1000).is_ok() {
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                        next += 4 * PERIOD;
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                });
            }
            let taken = read(&path, count);
            ended.store(true, Ordering::Relaxed);
            taken
        })?;
        busy.push(taken);
        rates.push(written.into_inner() as f64 / began.elapsed().as_secs_f64());
    }
    report.section("open+read+close while 500 values a second are written, ms");
    let (idle, busy) = (Sample::new(idle), Sample::new(busy));
    report.line("nobody writes", idle.spread());
    report.line("others write", busy.spread());
    report.line("values a second", Sample::new(rates).spread());
    report.at_most(
        1.3,
        " × idle",
        "open+read+close while 500 values a second are written",
        busy.median() / idle.median(),
    );
    Ok(())
}
