//! How long a change of a config file takes to become readable on `events`: from just before the
//! rename(2) that makes it until the reader's read(2) has returned with the line.

use std::thread;
use std::time::{Duration, Instant};

use crate::events::{Events, shown};
use crate::mounts::{Daemon, Store, Zone};
use crate::report::{Report, Sample, millis};
use crate::{Failure, Size};

/// Between two changes, so that each meets a daemon at rest, as most changes do.
const REST: Duration = Duration::from_millis(2);

/// When a round ends early: where folders are polled, a change takes seconds.
const AT_MOST: Duration = Duration::from_secs(5);

/// A mount whose changes are timed.
struct Subject<'a> {
    vms: usize,
    zones: Vec<Zone>,
    events: Events,
    /// Kept for its mount.
    _daemon: Daemon<'a>,
    rounds: Vec<Sample>,
    all: Vec<f64>,
    changes: u64,
}

impl<'a> Subject<'a> {
    fn new(store: &'a Store<'a>) -> Result<Subject<'a>, Failure> {
        let daemon = store.mount()?;
        let (zones, events) = (daemon.zones()?, Events::open(&daemon)?);
        let (rounds, all) = (Vec::new(), Vec::new());
        Ok(Subject {
            vms: store.vms,
            zones,
            events,
            _daemon: daemon,
            rounds,
            all,
            changes: 0,
        })
    }

    /// One change; how long it took.
    fn change(&mut self) -> Result<f64, Failure> {
        self.changes += 1;
        // Far apart in the index, and each VM in its turn.
        let zone = &self.zones[(self.changes as usize * 7_919) % self.zones.len()];
        let prepared = zone.prepare(self.changes)?;
        thread::sleep(REST);
        let began = Instant::now();
        prepared.commit()?;
        let line = self.events.find(&shown(self.changes))?;
        Ok(millis(line.arrived.duration_since(began)))
    }

    fn round(&mut self, count: usize) -> Result<(), Failure> {
        let began = Instant::now();
        let mut taken = Vec::new();
        while taken.len() < count && began.elapsed() < AT_MOST {
            taken.push(self.change()?);
        }
        self.all.extend(&taken);
        self.rounds.push(Sample::new(taken));
        Ok(())
    }
}

/// Measures and reports, on stores of different sizes that take turns.
pub fn run(report: &mut Report, size: Size, stores: &[&Store<'_>]) -> Result<(), Failure> {
    let (turns, changes) = size.of((7, 200), (5, 40));
    let mut subjects = stores
        .iter()
        .map(|store| Subject::new(store))
        .collect::<Result<Vec<_>, Failure>>()?;
    for subject in &mut subjects {
        subject.change()?;
    }
    for _ in 0..turns {
        for subject in &mut subjects {
            subject.round(changes)?;
        }
    }
    report.section(format!(
        "A rename of tags.json until its line was read from events: {turns} rounds of {changes}, ms"
    ));
    let mut first: Option<(usize, Sample)> = None;
    for subject in subjects {
        let (vms, all) = (subject.vms, Sample::new(subject.all));
        let medians = Sample::new(subject.rounds.iter().map(Sample::median));
        report.line(
            format!("{vms} VMs, medians of the rounds"),
            medians.spread(),
        );
        report.line(
            format!("{vms} VMs, longest"),
            format!("{:.2}", all.quantile(1.0)),
        );
        let what = format!("file change until its event, {vms} VMs");
        report.at_most(1.0, " ms (median)", &what, all.median());
        report.at_most(5.0, " ms (p99)", &what, all.quantile(0.99));
        if let Some((few, first)) = &first {
            let limited = format!(" × that at {few}");
            report.at_most(1.5, &limited, &what, all.median() / first.median());
        }
        first.get_or_insert((vms, all));
    }
    Ok(())
}
