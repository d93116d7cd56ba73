//! The daemon's side, with a shell script in the place of the program.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use uuid::Uuid;

use super::wire::Line;
use super::*;
use crate::source::{Listing, Loaded, Report, Via};
use crate::vm::files::Rendered;
use crate::vm::{Object, system_time};

const PATIENCE: Duration = Duration::from_secs(30);
const WEB: Uuid = Uuid::from_u128(1);
const DB: Uuid = Uuid::from_u128(2);

/// A source whose program is a script.
struct Scripted {
    _dir: TempDir,
    source: Libvirt,
    reports: Receiver<Report>,
}

impl Scripted {
    /// `folder` in the script stands for a folder of its own.
    fn start(deadline: Duration, script: &str) -> Scripted {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        let folder = dir.path().to_str().unwrap();
        let script = format!("#!/bin/sh\nfolder={folder}\n{script}");
        // Another process writes it: a file that ours has open for writing while another test forks
        // cannot be executed.
        let mut writer = Command::new("sh");
        writer
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&program);
        let mut writer = writer.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = writer.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        assert!(writer.wait().unwrap().success());
        let mut options = LibvirtOptions::new("test:///default");
        (options.program, options.deadline) = (program, deadline);
        let source = Libvirt::new(options);
        let (send, reports) = mpsc::channel();
        source.start(send).unwrap();
        Scripted {
            _dir: dir,
            source,
            reports,
        }
    }

    #[track_caller]
    fn next(&self) -> Report {
        self.reports.recv_timeout(PATIENCE).expect("a report")
    }

    #[track_caller]
    fn listing(&self) -> Listing {
        match self.next() {
            Report::Listing(listing) => listing,
            other => panic!("no listing: {other:?}"),
        }
    }
}

fn vm(uuid: Uuid, alias: &str) -> Loaded {
    let object = Object::from_iter([("alias".to_owned(), alias.into())]);
    Loaded {
        uuid,
        zonename: alias.to_owned(),
        vm: Rendered::new(&object),
        failed: Vec::new(),
        via: Via::Scan,
        observed: system_time(7),
    }
}

/// A script that says these lines and then listens until it is ended.
fn says(lines: &[Line]) -> String {
    let lines: String = lines.iter().map(Line::encode).collect();
    format!("cat <<'END'\n{lines}END\nexec cat >/dev/null\n")
}

fn end() -> Line {
    Line::Listing {
        silent: Vec::new(),
        unplaced: Vec::new(),
    }
}

fn aliases(vms: &[Loaded]) -> Vec<String> {
    let mut all: Vec<String> = vms.iter().map(|vm| vm.vm.text("alias").unwrap()).collect();
    all.sort();
    all
}

#[test]
fn a_listing_is_reported_when_it_is_whole() {
    let lines = [
        Line::Begin,
        Line::Listed(vm(WEB, "web")),
        Line::Same(DB, system_time(9)),
        end(),
        Line::Gone(DB),
    ];
    let scripted = Scripted::start(PATIENCE, &says(&lines));
    let listing = scripted.listing();
    assert_eq!(aliases(&listing.vms), ["web"]);
    assert_eq!(listing.same, [(DB, system_time(9))]);
    assert_eq!(listing.incomplete, None);
    assert!(matches!(scripted.next(), Report::Gone(DB)));
    assert_eq!(scripted.source.status()["index"], Value::Null);
}

#[test]
fn what_an_event_says_during_a_listing_is_newer_than_the_listing() {
    let lines = [
        Line::Begin,
        end(),
        Line::Begin,
        Line::Listed(vm(WEB, "old")),
        Line::Listed(vm(DB, "db")),
        Line::Vm(vm(WEB, "new")),
        Line::Gone(DB),
        end(),
    ];
    let scripted = Scripted::start(PATIENCE, &says(&lines));
    assert!(scripted.listing().vms.is_empty());
    match scripted.next() {
        Report::Changed(vms) => assert_eq!(aliases(&vms), ["new"]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(scripted.next(), Report::Gone(DB)));
    let listing = scripted.listing();
    assert!(listing.vms.is_empty(), "{:?}", listing.vms);
    assert_eq!(listing.same, [(WEB, system_time(7))]);
}

#[test]
fn the_first_report_is_a_listing_also_when_an_event_came_before() {
    let lines = [
        Line::Begin,
        Line::Listed(vm(DB, "db")),
        Line::Vm(vm(WEB, "web")),
        end(),
    ];
    let scripted = Scripted::start(PATIENCE, &says(&lines));
    assert_eq!(aliases(&scripted.listing().vms), ["db", "web"]);
}

#[test]
fn a_silent_domain_is_in_the_listing_as_silent_and_nothing_else() {
    let lines = [
        Line::Begin,
        Line::Listed(vm(WEB, "web")),
        Line::Listing {
            silent: vec![(WEB, "hangs".to_owned())],
            unplaced: vec![("odd".to_owned(), "broken".to_owned())],
        },
    ];
    let scripted = Scripted::start(PATIENCE, &says(&lines));
    let listing = scripted.listing();
    assert!(listing.vms.is_empty());
    assert_eq!(listing.silent, [(WEB, "hangs".to_owned())]);
    assert_eq!(scripted.source.status()["unplaced"][0]["zonename"], "odd");
}

#[test]
fn a_program_that_ends_deletes_nothing_and_is_started_again() {
    let whole: String = [Line::Begin, Line::Listed(vm(WEB, "web")), end()]
        .iter()
        .map(Line::encode)
        .collect();
    // The first time it ends in the middle of a second listing.
    let script = format!(
        "cat <<'END'\n{whole}END\n\
         if [ -e $folder/again ]; then exec cat >/dev/null; fi\n\
         touch $folder/again\n\
         echo '{{\"report\":\"begin\"}}'\nexit 3\n"
    );
    let scripted = Scripted::start(PATIENCE, &script);
    assert_eq!(aliases(&scripted.listing().vms), ["web"]);
    let reason = scripted.listing().incomplete.expect("a reason");
    assert!(reason.contains("exit status: 3"), "{reason}");
    let listing = scripted.listing();
    assert_eq!(
        (aliases(&listing.vms), listing.incomplete),
        (vec!["web".to_owned()], None)
    );
    assert_eq!(scripted.source.status()["program"]["starts"], 2);
}

#[test]
fn a_program_that_does_not_answer_is_ended_and_started_again() {
    let script = "echo $$ >>$folder/pids\nexec sleep 1000\n";
    let scripted = Scripted::start(Duration::from_millis(50), script);
    let reason = scripted.listing().incomplete.expect("a reason");
    assert!(reason.contains("has not answered"), "{reason}");
    scripted.listing();
    let pids = fs::read_to_string(scripted._dir.path().join("pids")).unwrap();
    let first = pids.lines().next().unwrap();
    assert!(!std::path::Path::new("/proc").join(first).exists());
}

#[test]
fn a_libvirt_that_cannot_be_reached_is_told_and_deletes_nothing() {
    let lines = [
        Line::Begin,
        Line::Listed(vm(WEB, "web")),
        Line::Unreachable("no socket".to_owned()),
    ];
    let scripted = Scripted::start(PATIENCE, &says(&lines));
    let listing = scripted.listing();
    assert_eq!(listing.incomplete.as_deref(), Some("no socket"));
    assert!(listing.vms.is_empty());
    assert_eq!(scripted.source.status()["index"], "no socket");
}

#[test]
fn a_program_that_is_missing_is_told_at_the_start() {
    let mut options = LibvirtOptions::new("test:///default");
    options.program = "/nonexistent/vminfod-libvirt".into();
    let (send, _reports) = mpsc::channel();
    let error = Libvirt::new(options).start(send).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/vminfod-libvirt"), "{error}");
}

#[test]
fn the_program_is_asked_what_the_daemon_asks() {
    let script = "head -n 2 >$folder/asked; mv $folder/asked $folder/done; exec cat >/dev/null";
    let scripted = Scripted::start(PATIENCE, script);
    scripted.source.rescan();
    scripted.source.reload(WEB);
    let deadline = SystemTime::now() + PATIENCE;
    let done = scripted._dir.path().join("done");
    while !done.exists() {
        assert!(SystemTime::now() < deadline, "nothing was asked");
        std::thread::sleep(Duration::from_millis(2));
    }
    let asked = fs::read_to_string(done).unwrap();
    let asked: Vec<_> = asked.lines().map(wire::Request::decode).collect();
    assert_eq!(
        asked,
        [Some(wire::Request::List), Some(wire::Request::Reload(WEB))]
    );
}
