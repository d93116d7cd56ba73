//! Starting and stopping a zone, by whoever runs the zones of this store.
//!
//! With the file provider nothing is booted: what would be so is recorded in `var/run/zones/`. A program
//! that is given instead is called with the verb and the uuid (and, for `kill`, the signal, for a stop
//! or reboot without asking, `force`), and what it leaves in those files is the truth.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::session::{Session, left, now, pretty};
use super::zfs;
use super::{Applier, Runtimes, failed, place};
use crate::source::zones::command::{Finished, Runner};
use crate::source::zones::config;
use crate::source::zones::load::JSON_LIMIT;
use crate::source::{Failed, FailedKind};
use crate::vm::Object;
use crate::vm::verb::Verb;

/// How long a guest may take to shut down, unless that was said.
const SHUTDOWN: Duration = Duration::from_secs(60);

/// Whether a zone is asked to end or just ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It may shut down for this many seconds, if that was said.
    Asked(Option<u64>),
    /// At once.
    Forced,
}

impl Manner {
    pub(super) fn of(verb: &Verb) -> Manner {
        match verb {
            Verb::Stop { force: true, .. } | Verb::Reboot { force: true } => Manner::Forced,
            Verb::Stop { timeout, .. } => Manner::Asked(*timeout),
            _ => Manner::Asked(None),
        }
    }
}

/// Boots a zone that is down.
pub(super) fn start(session: &Session<'_>) -> Result<(), Failed> {
    match &session.applier.runtime {
        Runtimes::Files => boot_record(session),
        Runtimes::Program(program) => call(session, program, &["start"], None),
        Runtimes::Zoneadm(_) => zoneadm(session, &["boot"], left(session.deadline)),
    }
}

/// Ends a zone that runs.
pub(super) fn stop(session: &Session<'_>, manner: Manner) -> Result<(), Failed> {
    match &session.applier.runtime {
        Runtimes::Files => {
            let status = match manner {
                Manner::Asked(_) => 0,
                Manner::Forced => 9,
            };
            stop_record(session, status)
        }
        Runtimes::Program(program) => call(session, program, &["stop"], Some(manner)),
        Runtimes::Zoneadm(_) => {
            if let Manner::Asked(timeout) = manner {
                let patience = timeout.map_or(SHUTDOWN, Duration::from_secs);
                // Some time is left for halting it.
                let patience = patience.min(left(session.deadline) / 4 * 3);
                if zoneadm(session, &["shutdown"], patience).is_ok() {
                    return Ok(());
                }
            }
            zoneadm(session, &["halt"], left(session.deadline))
        }
    }
}

/// Ends a zone and boots it again.
pub(super) fn reboot(session: &Session<'_>, manner: Manner) -> Result<(), Failed> {
    let time = left(session.deadline);
    match (&session.applier.runtime, manner) {
        (Runtimes::Files, _) => boot_record(session),
        (Runtimes::Program(program), _) => call(session, program, &["reboot"], Some(manner)),
        (Runtimes::Zoneadm(_), Manner::Asked(_)) => zoneadm(session, &["shutdown", "-r"], time),
        (Runtimes::Zoneadm(_), Manner::Forced) => zoneadm(session, &["reboot"], time),
    }
}

/// Sends its init a signal.
pub(super) fn signal(session: &Session<'_>, name: &str) -> Result<(), Failed> {
    let signal: Signal = format!("SIG{name}").parse().map_err(|_| {
        let reason = format!("kill: this host has no signal {name}");
        failed(FailedKind::Invalid, &reason)
    })?;
    match &session.applier.runtime {
        Runtimes::Files => {
            let vm = session.vm();
            let is_zone = vm.get("hvm") != Some(&Value::Bool(true));
            if is_zone && vm.get("restart_init") != Some(&Value::Bool(false)) {
                let restarts = vm.get("init_restarts").and_then(Value::as_u64).unwrap_or(0);
                return record(session, [("init_restarts", json!(restarts + 1))]);
            }
            stop_record(session, signal as i32)
        }
        Runtimes::Program(program) => call(session, program, &["kill", name], None),
        Runtimes::Zoneadm(_) => {
            let pid = session.vm().get("pid").and_then(Value::as_i64);
            let pid = pid
                .and_then(|pid| i32::try_from(pid).ok())
                .filter(|&pid| pid > 1);
            let Some(pid) = pid else {
                let reason = "kill: the pid of its init is not known; kstat says none";
                return Err(failed(FailedKind::Source, &reason));
            };
            kill(Pid::from_raw(pid), signal).map_err(|errno| {
                let reason = format!("kill: SIG{name} to its init ({pid}): {}", errno.desc());
                failed(FailedKind::Source, &reason)
            })
        }
    }
}

/// Records that a zone was just booted.
fn boot_record(session: &Session<'_>) -> Result<(), Failed> {
    let zoneid = session.applier.next_zoneid();
    record(
        session,
        [
            ("zoneid", json!(zoneid)),
            ("state", json!("running")),
            ("init_pid", Value::Null),
            ("init_restarts", json!(0)),
            ("boot_time", json!(now())),
        ],
    )
}

/// Records that a zone has just ended, with this wait status.
fn stop_record(session: &Session<'_>, status: i32) -> Result<(), Failed> {
    let zonename = &session.entry().zonename;
    // First: while the zone runs nobody looks at it.
    let lastexited = format!("{} {status}\n", now());
    let path = session.applier.store.lastexited(zonename);
    place::replace(&path, lastexited.as_bytes(), 0o644)?;
    record(
        session,
        [
            ("zoneid", Value::Null),
            ("state", json!("installed")),
            ("init_pid", Value::Null),
            ("init_restarts", Value::Null),
            ("boot_time", Value::Null),
        ],
    )
}

/// Changes members of the zone's file in `var/run/zones/` and keeps the others.
fn record<const N: usize>(
    session: &Session<'_>,
    members: [(&str, Value); N],
) -> Result<(), Failed> {
    let store = &session.applier.store;
    let path = store.runtime(&session.entry().zonename);
    let file = store.read(&path, JSON_LIMIT, config::object);
    let file = file.map_err(|reason| failed(FailedKind::Source, &reason))?;
    let mut file = file.map(|(_, file)| file).unwrap_or_default();
    for (member, value) in members {
        file.insert(member.to_owned(), value);
    }
    Ok(place::replace(&path, &pretty(file), 0o644)?)
}

impl Applier {
    /// A zoneid that no zone has had, as far as the files tell.
    fn next_zoneid(&self) -> u64 {
        let last = self.zoneids.get_or_init(|| {
            let ids = fs::read_dir(self.store.root().join("var/run/zones"));
            let files = ids.into_iter().flatten().flatten();
            let largest = files.filter_map(|file| zoneid(self, &file.path())).max();
            AtomicU64::new(largest.unwrap_or(0))
        });
        last.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn zoneid(applier: &Applier, path: &Path) -> Option<u64> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return None;
    }
    let (_, file): (_, Object) = applier
        .store
        .read(path, JSON_LIMIT, config::object)
        .ok()??;
    file.get("zoneid")?.as_u64()
}

/// Calls the program that runs zones here.
fn call(
    session: &Session<'_>,
    program: &Path,
    verb: &[&str],
    manner: Option<Manner>,
) -> Result<(), Failed> {
    let time = left(session.deadline);
    let runner = Runner::new(program, time, &session.applier.cancel).of_scripts();
    let uuid = session.uuid.to_string();
    let mut arguments = vec![verb[0], &uuid];
    arguments.extend(&verb[1..]);
    if manner == Some(Manner::Forced) {
        arguments.push("force");
    }
    done(runner.run(&arguments).and_then(Finished::success))
}

fn zoneadm(session: &Session<'_>, verb: &[&str], time: Duration) -> Result<(), Failed> {
    let Runtimes::Zoneadm(options) = &session.applier.runtime else {
        return Ok(());
    };
    let runner = Runner::new(&options.zoneadm, time, &session.applier.cancel);
    let mut arguments = vec!["-z", session.entry().zonename.as_str()];
    arguments.extend(verb);
    let until = std::time::Instant::now() + time;
    done(zfs::run(&runner, until, &arguments).and_then(Finished::success))
}

fn done(result: Result<Vec<u8>, crate::source::zones::command::Error>) -> Result<(), Failed> {
    result
        .map(|_| ())
        .map_err(|error| failed(FailedKind::Source, &error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;
    use crate::source::zones::ZonesOptions;
    use crate::source::zones::providers::Choice;
    use crate::source::zones::zoneadm::ZoneadmOptions;
    use crate::source::{Apply, Locked};
    use crate::vm::property::Part;

    const ZONE: &str = "aaaaaaaa-0000-4000-8000-000000000001";

    /// A store of one zone, whose `zoneadm` says of it what is in `line` and otherwise does this.
    struct Host {
        dir: tempfile::TempDir,
        applier: Applier,
    }

    impl Host {
        fn new(does: &str) -> Host {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            fs::create_dir_all(root.join("etc/zones")).unwrap();
            let index = format!("global:installed:/\nz:installed:/zones/z:{ZONE}\n");
            fs::write(root.join("etc/zones/index"), index).unwrap();
            let xml = "<zone name=\"z\" brand=\"joyent\"></zone>";
            fs::write(root.join("etc/zones/z.xml"), xml).unwrap();
            let (source, program) = (root.join("source"), root.join("zoneadm"));
            let text = format!(
                "#!/bin/sh\ncd {}\n[ \"$3\" != list ] || exec cat line\n\
                 echo \"$@\" >> calls\n{does}\n",
                root.display()
            );
            fs::write(&source, text).unwrap();
            // Another process writes it: a descriptor of ours that a fork still holds open for
            // writing would make the kernel refuse to execute it.
            let mut install = std::process::Command::new("install");
            install.arg("-m755").arg(&source).arg(&program);
            assert!(install.status().unwrap().success());
            let choice = Choice {
                zfs: false,
                zoneadm: true,
            };
            let mut applier = Applier::new(&ZonesOptions::new(root), choice, Default::default());
            applier.runtime = Runtimes::Zoneadm(ZoneadmOptions {
                zoneadm: program,
                kstat: "/nonexistent/kstat".into(),
                ..ZoneadmOptions::default()
            });
            let host = Host { dir, applier };
            host.says(&format!("-:z:installed:/zones/z:{ZONE}:joyent:excl:1"));
            host
        }

        fn says(&self, line: &str) {
            fs::write(self.dir.path().join("line"), format!("{line}\n")).unwrap();
        }

        fn runs(&self) {
            self.says(&format!("7:z:running:/zones/z:{ZONE}:joyent:excl:1"));
        }

        fn lock(&self) -> Box<dyn Locked + '_> {
            let uuid: Uuid = ZONE.parse().unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            self.applier.lock(uuid, deadline).unwrap()
        }

        fn calls(&self) -> Vec<String> {
            let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            calls.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn zoneadm_is_called_for_each_verb_and_asked_again_afterwards() {
        let line = format!("7:z:running:/zones/z:{ZONE}:joyent:excl:1");
        let host = Host::new(&format!("[ $3 != boot ] || echo {line} > line"));
        let mut locked = host.lock();
        assert_eq!(locked.vm()["state"], "stopped");
        locked.run(&Verb::Start).unwrap();
        assert_eq!(
            (&locked.vm()["state"], &locked.vm()["zoneid"]),
            (&json!("running"), &json!(7))
        );
        locked.run(&Verb::Reboot { force: false }).unwrap();
        locked.run(&Verb::Reboot { force: true }).unwrap();
        let stop = |force| Verb::Stop {
            force,
            timeout: None,
        };
        locked.run(&stop(false)).unwrap();
        locked.run(&stop(true)).unwrap();
        let verbs = ["boot", "shutdown -r", "reboot", "shutdown", "halt"];
        assert_eq!(host.calls(), verbs.map(|verb| format!("-z z {verb}")));
        let error = locked.run(&Verb::Kill("TERM")).unwrap_err();
        assert!(
            error.reason.contains("pid of its init is not known"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_that_does_not_shut_down_is_halted() {
        for does in ["[ $3 != shutdown ]", "[ $3 != shutdown ] || exec sleep 600"] {
            let host = Host::new(does);
            host.runs();
            let stop = Verb::Stop {
                force: false,
                timeout: Some(1),
            };
            host.lock().run(&stop).unwrap();
            assert_eq!(host.calls(), ["-z z shutdown", "-z z halt"]);
        }
    }

    #[test]
    fn what_zoneadm_refuses_is_told() {
        let host = Host::new("echo zone 'z': not ready >&2; exit 1");
        let error = host.lock().run(&Verb::Start).unwrap_err();
        assert_eq!(error.kind, FailedKind::Source);
        assert!(
            error.reason.ends_with("exit status: 1: zone z: not ready"),
            "{error}"
        );
        host.says("garbage");
        let uuid: Uuid = ZONE.parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let error = host.applier.lock(uuid, deadline).err().unwrap();
        assert!(error.reason.contains("is no zone"), "{error}");
        let applier: Arc<dyn Apply> = Arc::new(host.applier);
        assert_eq!(applier.watcher(Part::Runtime), "zoneadm list every 1s");
    }
}
