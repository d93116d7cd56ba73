//! Runtime state of zones from `zoneadm list -pc` and, where it exists, `kstat`.
//!
//! Owns one table, from zonename to [`Runtime`], read again by the thread "zoneadm" at a fixed
//! interval, since zoneadm announces nothing. When it cannot be read, the last good table is kept
//! with the reason. A zone that `zoneadm` lists has an entry, whatever its state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::command::{self, Lifeline, Runner, lifeline};
use super::runtime::Runtime;

/// The zones by zonename.
pub type Runtimes = HashMap<String, Runtime>;

/// Which commands are run, and how often.
#[derive(Clone, Debug)]
pub struct ZoneadmOptions {
    /// The `zoneadm` program.
    pub zoneadm: PathBuf,
    /// The `kstat` program; without it no zone has a pid or a boot time.
    pub kstat: PathBuf,
    /// The pause between two polls.
    pub poll: Duration,
    /// How long a command may take.
    pub deadline: Duration,
}

impl Default for ZoneadmOptions {
    fn default() -> ZoneadmOptions {
        ZoneadmOptions {
            zoneadm: "zoneadm".into(),
            kstat: "kstat".into(),
            poll: Duration::from_secs(1),
            deadline: Duration::from_secs(10),
        }
    }
}

/// What has changed, as the callback of [`Zoneadm::start`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These zones came, went or do something else. The table shows it already.
    Zones(BTreeSet<String>),
    /// The state cannot be read; the table stays as it was. Sent again when the reason changes.
    Failed {
        /// Why, naming the command.
        reason: String,
    },
    /// It can be read again.
    Healed,
}

/// Why the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ZoneadmError {
    /// A command failed.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// A line that is not one of `zoneadm list -pc`.
    #[error("{command}: line {line} is no zone: {text:?}")]
    Garbage {
        /// The command line.
        command: String,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A thread or a pipe could not be made.
    #[error("{what}: {error}")]
    Setup {
        /// What was being made.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

/// Whether this host has `zoneadm` and it answers.
pub fn available(options: &ZoneadmOptions) -> bool {
    let Ok((_lifeline, cancel)) = lifeline() else {
        return false;
    };
    let zoneadm = Runner::new(&options.zoneadm, options.deadline, &cancel);
    zoneadm
        .run(&["list", "-pc"])
        .and_then(|finished| finished.success())
        .is_ok()
}

/// The runtime state of all zones. See the module's text.
pub struct Zoneadm {
    view: Arc<Mutex<View>>,
    lifeline: Option<Lifeline>,
    asks: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is known.
#[derive(Default)]
struct View {
    runtimes: Arc<Runtimes>,
    failing: Option<String>,
    reads: u64,
}

impl Zoneadm {
    /// Reads the state, then starts watching it; `changed` is called for what happens from then
    /// on, on the thread "zoneadm", and must not block.
    ///
    /// # Errors
    /// When `zoneadm` does not answer, or a thread cannot be made.
    pub fn start(
        options: &ZoneadmOptions,
        changed: impl Fn(Changed) + Send + 'static,
    ) -> Result<Zoneadm, ZoneadmError> {
        let setup = |what: &str| {
            let what = what.to_owned();
            move |error| ZoneadmError::Setup { what, error }
        };
        let (lifeline, cancel) = lifeline().map_err(setup("pipe"))?;
        let reader = Reader {
            zoneadm: Runner::new(&options.zoneadm, options.deadline, &cancel),
            kstat: Runner::new(&options.kstat, options.deadline, &cancel),
        };
        let view = Arc::new(Mutex::new(View {
            runtimes: Arc::new(reader.read()?),
            failing: None,
            reads: 1,
        }));
        let (asks, asked) = mpsc::channel();
        let (seen, poll) = (Arc::clone(&view), options.poll);
        let thread = thread::Builder::new()
            .name("zoneadm".to_owned())
            .spawn(move || reader.keep_reading(&seen, &asked, poll, changed))
            .map_err(setup("thread zoneadm"))?;
        Ok(Zoneadm {
            view,
            lifeline: Some(lifeline),
            asks: Some(asks),
            thread: Some(thread),
        })
    }

    /// The zones as they were last read.
    ///
    /// # Errors
    /// Why they could not be read again.
    pub fn table(&self) -> Result<Arc<Runtimes>, String> {
        let view = self.view.lock();
        match &view.failing {
            None => Ok(Arc::clone(&view.runtimes)),
            Some(reason) => Err(reason.clone()),
        }
    }

    /// Asks to read the state again, now.
    pub fn refresh(&self) {
        if let Some(asks) = &self.asks {
            // The thread that listens ends only when this is dropped.
            let _ = asks.send(());
        }
    }

    /// How it fares, for `.status`.
    pub fn status(&self) -> Value {
        let view = self.view.lock();
        json!({
            "provider": "zoneadm",
            "zones": view.runtimes.len(),
            "reads": view.reads,
            "failing": view.failing,
        })
    }
}

impl Drop for Zoneadm {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        drop(self.asks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The two commands.
struct Reader {
    zoneadm: Runner,
    kstat: Runner,
}

impl Reader {
    /// The thread "zoneadm".
    fn keep_reading(
        &self,
        view: &Mutex<View>,
        asked: &Receiver<()>,
        poll: Duration,
        changed: impl Fn(Changed),
    ) {
        while let Ok(()) | Err(RecvTimeoutError::Timeout) = asked.recv_timeout(poll) {
            match self.read() {
                Ok(runtimes) => {
                    let (names, healed) = {
                        let mut view = view.lock();
                        let names = difference(&view.runtimes, &runtimes);
                        if !names.is_empty() {
                            view.runtimes = Arc::new(runtimes);
                        }
                        view.reads += 1;
                        (names, view.failing.take().is_some())
                    };
                    if !names.is_empty() {
                        changed(Changed::Zones(names));
                    }
                    if healed {
                        tracing::info!("the state of zones can be read again");
                        changed(Changed::Healed);
                    }
                }
                Err(ZoneadmError::Command(command::Error::Cancelled)) => return,
                Err(error) => {
                    let reason = error.to_string();
                    let before = view.lock().failing.replace(reason.clone());
                    if before.as_ref() != Some(&reason) {
                        tracing::warn!("the state of zones cannot be read: {reason}");
                        changed(Changed::Failed { reason });
                    }
                }
            }
        }
    }

    fn read(&self) -> Result<Runtimes, ZoneadmError> {
        let listed = self.zoneadm.run(&["list", "-pc"])?.success()?;
        let mut runtimes = parse_list(&String::from_utf8_lossy(&listed))?;
        ask_kstat(&mut runtimes, self.kstat.run(KSTAT))?;
        Ok(runtimes)
    }
}

const KSTAT: &[&str] = &["-p", "-c", "zone_misc"];

/// Adds what `kstat` says to what `zoneadm` said.
fn ask_kstat(
    runtimes: &mut Runtimes,
    answer: Result<command::Finished, command::Error>,
) -> Result<(), ZoneadmError> {
    match answer {
        Ok(finished) => {
            let kstats = finished.success()?;
            add_kstats(runtimes, &String::from_utf8_lossy(&kstats));
            Ok(())
        }
        // A host without it has no such facts.
        Err(command::Error::Start { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks for one zone, now; `None` if `zoneadm` does not know it.
pub(super) fn read_one(
    zoneadm: &Runner,
    kstat: &Runner,
    deadline: Duration,
    zonename: &str,
) -> Result<Option<Runtime>, ZoneadmError> {
    let until = Instant::now() + deadline;
    let finished = zoneadm.run_within(deadline, &["-z", zonename, "list", "-p"])?;
    let message = String::from_utf8_lossy(&finished.stderr);
    if !finished.status.success() && message.contains("No such zone configured") {
        return Ok(None);
    }
    let mut runtimes = parse_list(&String::from_utf8_lossy(&finished.success()?))?;
    let left = until.saturating_duration_since(Instant::now());
    ask_kstat(&mut runtimes, kstat.run_within(left, KSTAT))?;
    Ok(runtimes.remove(zonename))
}

/// The names of zones that differ.
fn difference(old: &Runtimes, new: &Runtimes) -> BTreeSet<String> {
    let changed = new
        .iter()
        .filter(|(name, runtime)| old.get(*name) != Some(runtime));
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    changed.chain(gone).map(|(name, _)| name.clone()).collect()
}

/// Reads `zoneadm list -pc`: `id:name:state:path:uuid:brand:iptype:did`, the id of a zone that
/// does not run being `-`. The global zone is not a VM and left out.
fn parse_list(text: &str) -> Result<Runtimes, ZoneadmError> {
    let mut runtimes = Runtimes::new();
    for (number, line) in text.lines().enumerate() {
        let zone = parse_zone(line).ok_or_else(|| ZoneadmError::Garbage {
            command: "zoneadm list -pc".to_owned(),
            line: number + 1,
            text: line.chars().take(200).collect(),
        })?;
        if zone.0 != "global" {
            runtimes.extend([zone]);
        }
    }
    Ok(runtimes)
}

fn parse_zone(line: &str) -> Option<(String, Runtime)> {
    let fields = split_fields(line);
    let [id, name, state, _path, ..] = fields.as_slice() else {
        return None;
    };
    let zoneid = match id.as_str() {
        "-" => None,
        number => Some(number.parse().ok()?),
    };
    if name.is_empty() || state.is_empty() {
        return None;
    }
    let runtime = Runtime {
        zoneid,
        state: state.clone(),
        pid: None,
        init_restarts: None,
        boot_time: None,
    };
    Some((name.clone(), runtime))
}

/// Splits at colons; `\:` is a colon within a field, as in a path.
fn split_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut rest = line.chars();
    while let Some(character) = rest.next() {
        match character {
            ':' => fields.push(String::new()),
            '\\' => fields
                .last_mut()
                .into_iter()
                .for_each(|field| field.extend(rest.next())),
            other => fields
                .last_mut()
                .into_iter()
                .for_each(|field| field.push(other)),
        }
    }
    fields
}

/// Adds what `kstat -p -c zone_misc` says: `zones:<zoneid>:<name>:<statistic>\t<value>`. The name
/// is cut off at 30 characters, so zones are told by their ids; lines about anything else, and
/// statistics that are no number, are passed over.
fn add_kstats(runtimes: &mut Runtimes, text: &str) {
    let mut by_id: BTreeMap<u64, &mut Runtime> = runtimes
        .values_mut()
        .filter_map(|runtime| Some((runtime.zoneid?, runtime)))
        .collect();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('\t') else {
            continue;
        };
        let (Some(id), Some((_, statistic))) = (key.split(':').nth(1), key.rsplit_once(':')) else {
            continue;
        };
        let Some(runtime) = id.parse().ok().and_then(|id: u64| by_id.get_mut(&id)) else {
            continue;
        };
        let value = value.trim().parse().ok();
        match statistic {
            "init_pid" => runtime.pid = value,
            "init_restarts" => runtime.init_restarts = value,
            "boot_time" => runtime.boot_time = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

    const LIST: &str = include_str!("../../../tests/data/zoneadm-list.txt");
    const KSTAT: &str = include_str!("../../../tests/data/kstat-zone-misc.txt");
    const RUNNING: &str = "c4103a37-1b1f-4ac2-9f0c-2c5f3f4d8a11";
    const STOPPED: &str = "7d6b1d3a-6f0e-4c8b-8a35-0b7a7c1f2e90";
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_list_gives_ids_and_states_without_the_global_zone() {
        let runtimes = parse_list(LIST).unwrap();
        assert_eq!(runtimes.len(), 3);
        assert_eq!(runtimes[RUNNING].zoneid, Some(12));
        assert_eq!(runtimes[RUNNING].state, "running");
        assert_eq!(runtimes[STOPPED].zoneid, None);
        assert_eq!(runtimes[STOPPED].state, "installed");
        assert_eq!(runtimes["with:colon"].state, "configured");
    }

    #[test]
    fn kstats_are_matched_by_zone_id() {
        let mut runtimes = parse_list(LIST).unwrap();
        add_kstats(&mut runtimes, KSTAT);
        let runtime = &runtimes[RUNNING];
        assert_eq!(runtime.pid, Some(4711));
        assert_eq!(runtime.init_restarts, Some(0));
        assert_eq!(runtime.boot_time, Some(1_523_467_148));
        assert_eq!(runtimes[STOPPED].pid, None);
    }

    #[test]
    fn a_line_that_is_no_zone_is_refused_with_its_number() {
        let error = parse_list("0:global:running:/\nwhat\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "zoneadm list -pc: line 2 is no zone: \"what\""
        );
        assert!(parse_list("x:zone:running:/\n").is_err());
        assert!(parse_list("1::running:/\n").is_err());
    }

    proptest! {
        #[test]
        fn no_output_makes_the_parsers_panic(list in any::<String>(), kstat in any::<String>()) {
            let _ = parse_list(&list);
            add_kstats(&mut parse_list(LIST).unwrap(), &kstat);
        }

        #[test]
        fn escaped_fields_come_back_as_they_were(
            fields in proptest::collection::vec("[a:\\\\é]{0,6}", 1..6),
        ) {
            let escape = |field: &String| field.replace('\\', "\\\\").replace(':', "\\:");
            let line = fields.iter().map(escape).collect::<Vec<_>>().join(":");
            prop_assert_eq!(split_fields(&line), fields);
        }
    }

    /// Options whose `zoneadm` and `kstat` print what is in the files of these names.
    fn playing(dir: &Path) -> ZoneadmOptions {
        let player = |name: &str, text: &str| {
            set(dir, name, text);
            let (source, path) = (dir.join("source"), dir.join(format!("{name}.sh")));
            fs::write(
                &source,
                format!("#!/bin/sh\n. {}\n", dir.join(name).display()),
            )
            .unwrap();
            // Written by a child: a descriptor that one of our own forks still held open for
            // writing would make the kernel refuse to execute it.
            let mut install = std::process::Command::new("install");
            let installed = install
                .arg("-m755")
                .args([&source, &path])
                .status()
                .unwrap();
            assert!(installed.success());
            path
        };
        ZoneadmOptions {
            zoneadm: player("zoneadm", &print(LIST)),
            kstat: player("kstat", &print(KSTAT)),
            poll: Duration::from_millis(10),
            deadline: Duration::from_millis(500),
        }
    }

    fn print(text: &str) -> String {
        format!("cat <<'END'\n{text}END\n")
    }

    fn set(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }

    #[test]
    fn a_zone_that_stops_or_goes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, changes) = mpsc::channel();
        let told = move |changed| drop(sender.send(changed));
        let zoneadm = Zoneadm::start(&playing(dir.path()), told).unwrap();
        assert_eq!(zoneadm.table().unwrap()[RUNNING].pid, Some(4711));

        let stopped = LIST
            .replace("12:", "-:")
            .replace("running:/zones", "installed:/zones");
        let without = |line: &&str| !line.contains("with");
        let list: Vec<&str> = stopped.lines().filter(without).collect();
        set(dir.path(), "zoneadm", &print(&(list.join("\n") + "\n")));
        let names = BTreeSet::from([RUNNING.to_owned(), "with:colon".to_owned()]);
        assert_eq!(
            changes.recv_timeout(PATIENCE).unwrap(),
            Changed::Zones(names)
        );
        let table = zoneadm.table().unwrap();
        assert_eq!(table[RUNNING].zoneid, None);
        assert_eq!(table[RUNNING].pid, None);
        assert!(!table.contains_key("with:colon"));
    }

    #[test]
    fn a_command_that_hangs_or_prints_garbage_is_the_reason_until_it_heals() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, changes) = mpsc::channel();
        let told = move |changed| drop(sender.send(changed));
        let zoneadm = Zoneadm::start(&playing(dir.path()), told).unwrap();
        for (command, part) in [
            ("exec sleep 600", "no answer within 500ms"),
            ("echo garbage", "line 1 is no zone"),
            ("echo no privilege >&2; exit 1", "no privilege"),
        ] {
            set(dir.path(), "zoneadm", command);
            loop {
                match changes.recv_timeout(PATIENCE).unwrap() {
                    Changed::Failed { reason } if reason.contains(part) => break,
                    Changed::Failed { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            assert!(zoneadm.table().unwrap_err().contains(part));
        }
        set(dir.path(), "zoneadm", &print(LIST));
        assert_eq!(changes.recv_timeout(PATIENCE).unwrap(), Changed::Healed);
        assert_eq!(zoneadm.table().unwrap().len(), 3);
    }

    #[test]
    fn a_host_without_kstat_has_no_pids_and_one_without_zoneadm_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = ZoneadmOptions {
            kstat: "/nonexistent/kstat".into(),
            ..playing(dir.path())
        };
        assert!(available(&options));
        let zoneadm = Zoneadm::start(&options, |_| {}).unwrap();
        assert_eq!(zoneadm.table().unwrap()[RUNNING].pid, None);
        let none = ZoneadmOptions {
            zoneadm: "/nonexistent/zoneadm".into(),
            ..options
        };
        assert!(!available(&none));
        assert!(Zoneadm::start(&none, |_| {}).is_err());
    }
}
