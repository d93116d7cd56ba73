//! `vminfo` as a program, over a directory that looks like the mount. The streams are pipes with a
//! name, so that a test decides what the program sees and when.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;

const FOO: &str = "c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e";
const BAR: &str = "0b5e2f11-8c7d-4d2a-b6a1-3e9f70c2d844";

const READY: &str = r#"{"type":"ready","date":"2018-04-11T17:19:00.000Z","uuid":"5f0cbd5e-0000-4000-8000-000000000001","seq":41}"#;

/// A directory with the files of a mount that the program reads.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new(vms: &[Value]) -> Tree {
        let tree = Tree {
            directory: TempDir::new().unwrap(),
        };
        let lines: Vec<String> = vms.iter().map(Value::to_string).collect();
        fs::create_dir(tree.path(".events")).unwrap();
        fs::write(tree.path(".status"), status().to_string()).unwrap();
        fs::write(
            tree.path("vms.json"),
            format!("[\n{}\n]\n", lines.join(",\n")),
        )
        .unwrap();
        for vm in vms {
            let directory = tree.path(vm["uuid"].as_str().unwrap());
            fs::create_dir(&directory).unwrap();
            let pretty = serde_json::to_string_pretty(vm).unwrap();
            fs::write(directory.join("vm.json"), pretty + "\n").unwrap();
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn vminfo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vminfo"));
        command
            .args(arguments)
            .env("VMINFOD_MOUNT", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        self.vminfo(arguments).output().unwrap().into()
    }

    /// A stream that holds these lines and ends only when what is returned is dropped.
    fn stream(&self, name: &str, lines: &[&str]) -> File {
        let path = self.path(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        // Opened for both, so that it waits for nobody.
        let mut stream = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        for line in lines {
            writeln!(stream, "{line}").unwrap();
        }
        stream
    }
}

/// How a run of the program ended.
#[derive(Debug, PartialEq)]
struct Finished {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Finished {
        Finished {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// Asserts a failure that is one line and prints nothing else.
    fn failed_with(&self, code: i32, message: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.contains(message), "{self:?}");
    }
}

fn finish(child: Child) -> Finished {
    child.wait_with_output().unwrap().into()
}

/// Opens a named pipe for writing as soon as the child has opened it for reading.
fn meet(child: &mut Child, path: &Path) -> File {
    loop {
        let open = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        match open {
            Ok(file) => return file,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                assert_eq!(child.try_wait().unwrap(), None, "ended without reading it");
                std::thread::yield_now();
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

fn status() -> Value {
    json!({
        "pid": 77, "uptime": "3s (3s)", "memory": {"rss": 4096}, "state": "running",
        "status": "ok", "numVms": 2, "refreshErrors": [], "eventsListeners": {},
        "refreshLog": [], "fswatcher": {"running": true},
    })
}

fn foo(state: &str) -> Value {
    json!({"zonename": FOO, "uuid": FOO, "state": state, "alias": "foo", "quota": 10})
}

fn bar() -> Value {
    json!({"zonename": "barzone", "uuid": BAR, "state": "stopped", "nics": [], "tags": {}})
}

fn create(vm: &Value) -> String {
    json!({"type": "create", "date": "2018-04-11T17:20:01.000Z", "zonename": vm["zonename"],
        "uuid": vm["uuid"], "vm": vm, "seq": 42, "via": "event"})
    .to_string()
}

fn modify(vm: &Value) -> String {
    json!({"type": "modify", "date": "2018-04-11T17:20:09.634Z", "zonename": vm["zonename"],
        "uuid": vm["uuid"], "vm": vm, "changes": [{"prettyPath": "quota", "path": ["quota"],
        "action": "changed", "oldValue": 10, "newValue": 20}], "seq": 43, "via": "event"})
    .to_string()
}

fn delete(vm: &Value) -> String {
    json!({"type": "delete", "date": "2018-04-11T17:20:10.001Z", "zonename": vm["zonename"],
        "uuid": vm["uuid"], "seq": 44, "via": "event"})
    .to_string()
}

#[test]
fn ping_answers_pong() {
    let pinged = Tree::new(&[]).run(&["ping"]);
    assert_eq!(pinged.out, "pong\n");
    assert_eq!(pinged.code, Some(0));
}

#[test]
fn ping_says_what_is_wrong_with_the_mount() {
    let tree = Tree::new(&[]);
    let missing = tree.path("missing");
    let missing = missing.to_str().unwrap();
    tree.run(&["ping", "--mount", missing])
        .failed_with(1, "missing: no such directory; ");

    let events = tree.path(".events");
    tree.run(&["--mount", events.to_str().unwrap(), "ping"])
        .failed_with(1, ".events: not a vminfod mount, as it has no .status; ");

    fs::write(tree.path(".status"), "[]").unwrap();
    tree.run(&["ping"])
        .failed_with(1, ".status: not what vminfod writes there: ");

    fs::write(tree.path(".status"), "{}").unwrap();
    tree.run(&["ping"])
        .failed_with(1, ".status: not what vminfod writes there: it names no pid");
}

/// A mount whose daemon has died. Unmounted when dropped.
struct DeadMount(TempDir);

impl DeadMount {
    fn new() -> DeadMount {
        let directory = TempDir::new().unwrap();
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("vminfo-test"),
            directory.path(),
            Some("fuse"),
            flags,
            Some(options.as_str()),
        )
        .unwrap();
        // Nobody holds the device any more: that is what the death of a daemon comes to.
        drop(device);
        DeadMount(directory)
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn every_command_says_how_to_clean_up_a_dead_mount() {
    let dead = DeadMount::new();
    let path = dead.0.path().to_str().unwrap();
    let tree = Tree::new(&[]);
    let cleanup = format!("clean up with `vminfod umount {path}`");
    for command in [
        ["ping"].as_slice(),
        &["status"],
        &["vms"],
        &["vm", FOO],
        &["events"],
    ] {
        tree.run(&[command, &["--mount", path]].concat())
            .failed_with(1, &cleanup);
    }
    tree.run(&["wait", FOO, "deleted", "--mount", path])
        .failed_with(2, &cleanup);
}

#[test]
fn the_option_names_the_mount_before_the_environment_does() {
    let one = Tree::new(&[]);
    let other = Tree::new(&[bar()]);
    let path = other.directory.path().to_str().unwrap();
    assert_eq!(one.run(&["vms"]).out, "[]\n");
    assert_eq!(one.run(&["vms", "--mount", path]), other.run(&["vms"]));
}

#[test]
fn status_is_the_short_document_unless_all_of_it_is_wanted() {
    let tree = Tree::new(&[]);
    let json = |arguments| -> Value { serde_json::from_str(&tree.run(arguments).out).unwrap() };
    assert_eq!(json(&["status", "-jf"]), status());

    let mut short = status();
    short.as_object_mut().unwrap().remove("refreshLog");
    short.as_object_mut().unwrap().remove("fswatcher");
    assert_eq!(json(&["status", "-j"]), short);
}

#[test]
fn status_is_lines_of_text_for_people() {
    let tree = Tree::new(&[]);
    let full = tree.run(&["status", "-f"]).out;
    assert!(full.contains("rss: 0.00mb\n"), "{full}");
    assert!(full.contains("fswatcher\n  running: true\n"), "{full}");
    assert!(!tree.run(&["status"]).out.contains("fswatcher"));
}

#[test]
fn vms_and_vm_keep_the_order_of_members() {
    let tree = Tree::new(&[foo("running"), bar()]);
    let pretty = |value: Value| serde_json::to_string_pretty(&value).unwrap() + "\n";
    assert_eq!(
        tree.run(&["vms"]).out,
        pretty(json!([foo("running"), bar()]))
    );
    assert_eq!(tree.run(&["vm", FOO]).out, pretty(foo("running")));
    assert!(
        pretty(foo("running")).starts_with(&format!("{{\n  \"zonename\": \"{FOO}\",\n  \"uuid\""))
    );
}

#[test]
fn a_vm_is_found_by_uuid_in_any_case_and_by_zonename() {
    let tree = Tree::new(&[foo("running"), bar()]);
    let by_uuid = tree.run(&["vm", BAR]);
    assert_eq!(by_uuid.code, Some(0));
    assert_eq!(tree.run(&["vm", &BAR.to_uppercase()]), by_uuid);
    assert_eq!(tree.run(&["vm", "barzone"]), by_uuid);
}

#[test]
fn an_unknown_vm_is_not_found() {
    let tree = Tree::new(&[bar()]);
    // The last two lead to a vm.json if a name is ever used as a path.
    for name in [FOO, "foo", ".", &format!("../{BAR}"), &format!("./{BAR}")] {
        let found = tree.run(&["vm", name]);
        assert_eq!(found.err, format!("VM Not Found: {name}\n"));
        assert_eq!((found.code, found.out.as_str()), (Some(1), ""));
    }
}

#[test]
fn events_are_printed_as_they_come() {
    let tree = Tree::new(&[foo("running")]);
    let mut stream = tree.stream("events", &[READY, &create(&foo("running"))]);
    let mut child = tree.vminfo(&["events"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "[17:20:01.000Z] c4103a37 foo create");
    writeln!(stream, "{}", modify(&foo("running"))).unwrap();
    assert_eq!(
        next(),
        "[17:20:09.634Z] c4103a37 foo modify: quota changed :: 10 -> 20"
    );
    writeln!(stream, r#"{{"type":"gap","seq":90,"missed":4}}"#).unwrap();
    assert_eq!(next(), "[-] - - gap: missed 4");
    writeln!(stream, "{}", delete(&foo("running"))).unwrap();
    assert_eq!(next(), "[17:20:10.001Z] c4103a37 - delete");
    drop(stream);
    finish(child).failed_with(1, "events: the stream has ended");
}

/// The first line that the program prints of an endless stream. Its reader then goes away, and
/// that ends it although nothing more happens.
fn first_line(tree: &Tree, arguments: &[&str]) -> String {
    let mut child = tree.vminfo(arguments).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    let finished = finish(child);
    assert_eq!((finished.code, finished.err.as_str()), (Some(0), ""));
    line
}

#[test]
fn events_end_quietly_when_their_reader_has_gone() {
    let tree = Tree::new(&[]);
    let _stream = tree.stream("events", &[READY, &create(&bar())]);
    assert_eq!(
        first_line(&tree, &["events"]),
        "[17:20:01.000Z] 0b5e2f11 - create\n"
    );
}

#[test]
fn ready_is_printed_when_asked_for() {
    for (options, line) in [
        ("-r", "[17:19:00.000Z] ready"),
        (
            "-rf",
            "[2018-04-11T17:19:00.000Z] ready (uuid 5f0cbd5e-0000-4000-8000-000000000001)",
        ),
        ("-rj", READY),
        ("-j", &create(&bar())),
        ("-f", &format!("[2018-04-11T17:20:01.000Z] {BAR} - create")),
    ] {
        let tree = Tree::new(&[]);
        let _stream = tree.stream("events", &[READY, &create(&bar())]);
        assert_eq!(first_line(&tree, &["events", options]), format!("{line}\n"));
    }
}

#[test]
fn the_events_of_one_vm_come_from_its_own_stream() {
    let tree = Tree::new(&[foo("running"), bar()]);
    let _own = tree.stream(&format!(".events/{FOO}"), &[READY, &delete(&foo("x"))]);
    assert_eq!(
        first_line(&tree, &["events", FOO]),
        "[17:20:10.001Z] c4103a37 - delete\n"
    );
}

#[test]
fn the_events_of_a_zonename_and_of_a_vm_to_come_are_picked_from_all() {
    let all = [READY, &create(&foo("running")), &delete(&bar())];
    for (vms, name) in [(vec![bar()], "barzone"), (vec![], BAR)] {
        let tree = Tree::new(&vms);
        let _stream = tree.stream("events", &all);
        assert_eq!(
            first_line(&tree, &["events", name]),
            "[17:20:10.001Z] 0b5e2f11 - delete\n"
        );
    }
}

#[test]
fn the_events_since_a_number_may_be_of_a_vm_that_is_gone() {
    let past = [READY, &create(&foo("running")), &delete(&bar())];
    for name in [BAR, "barzone"] {
        let tree = Tree::new(&[]);
        let _stream = tree.stream(".events/40", &past);
        assert_eq!(
            first_line(&tree, &["events", "--since", "40", name]),
            "[17:20:10.001Z] 0b5e2f11 - delete\n"
        );
    }
}

#[test]
fn the_events_of_a_name_that_is_no_vm_are_refused() {
    let tree = Tree::new(&[foo("running")]);
    let _stream = tree.stream("events", &[READY]);
    tree.run(&["events", "foo"])
        .failed_with(1, "VM Not Found: foo");
}

#[test]
fn a_line_that_is_no_event_is_reported_with_its_file() {
    let tree = Tree::new(&[]);
    let _stream = tree.stream("events", &[READY, "what?"]);
    tree.run(&["events"])
        .failed_with(1, "events: not what vminfod writes there: ");
}

#[test]
fn a_wait_for_what_is_true_already_ends_at_once() {
    let tree = Tree::new(&[foo("running"), bar()]);
    let own = format!(".events/{FOO}");
    for expressions in [
        ["state=running", "quota=10"],
        ["state!=stopped", "alias=~^FO"],
        ["billing_id=", "-t0"],
    ] {
        let _stream = tree.stream(&own, &[READY]);
        let waited = tree.run(&[&["wait", FOO], expressions.as_slice()].concat());
        assert_eq!(
            (waited.code, waited.out.as_str()),
            (Some(0), ""),
            "{waited:?}"
        );
        fs::remove_file(tree.path(&own)).unwrap();
    }
    let _stream = tree.stream("events", &[READY]);
    assert_eq!(
        tree.run(&["wait", "barzone", "state=stopped"]).code,
        Some(0)
    );
}

#[test]
fn a_wait_ends_with_the_event_that_makes_it_true() {
    let tree = Tree::new(&[foo("stopped")]);
    let other = json!({"zonename": BAR, "uuid": BAR, "state": "running"});
    let _stream = tree.stream(
        &format!(".events/{FOO}"),
        &[
            READY,
            &modify(&other),
            &modify(&foo("ready")),
            &modify(&foo("running")),
        ],
    );
    assert_eq!(tree.run(&["wait", FOO, "state=running"]).code, Some(0));
}

#[test]
fn a_change_between_the_look_and_the_wait_is_not_lost() {
    let tree = Tree::new(&[foo("stopped")]);
    let object = tree.path(FOO).join("vm.json");
    fs::remove_file(&object).unwrap();
    mkfifo(&object, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut stream = tree.stream(&format!(".events/{FOO}"), &[READY]);
    let mut child = tree
        .vminfo(&["wait", FOO, "state=running"])
        .spawn()
        .unwrap();

    // The program is about to read the VM. It changes, and only then the old VM is read.
    let mut look = meet(&mut child, &object);
    writeln!(stream, "{}", modify(&foo("running"))).unwrap();
    write!(look, "{}", foo("stopped")).unwrap();
    drop(look);
    assert_eq!(finish(child).code, Some(0));
}

#[test]
fn after_a_gap_the_vm_is_read_again() {
    let tree = Tree::new(&[foo("running")]);
    let object = tree.path(FOO).join("vm.json");
    let now = tree.path("now");
    fs::rename(&object, &now).unwrap();
    mkfifo(&object, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let gap = r#"{"type":"gap","seq":99,"missed":7}"#;
    let _stream = tree.stream(&format!(".events/{FOO}"), &[READY, gap]);
    let mut child = tree
        .vminfo(&["wait", FOO, "state=running"])
        .spawn()
        .unwrap();

    let mut look = meet(&mut child, &object);
    fs::rename(&now, &object).unwrap();
    write!(look, "{}", foo("stopped")).unwrap();
    drop(look);
    assert_eq!(finish(child).code, Some(0));
}

#[test]
fn a_vm_that_does_not_exist_is_waited_for() {
    for name in [BAR, "barzone"] {
        let tree = Tree::new(&[foo("stopped")]);
        let events = [READY, &create(&foo("stopped")), &create(&bar())];
        let _stream = tree.stream("events", &events);
        assert_eq!(tree.run(&["wait", name, "state=stopped"]).code, Some(0));
    }
}

#[test]
fn a_wait_for_deletion_ends_when_the_vm_is_gone() {
    let tree = Tree::new(&[foo("running")]);
    let _own = tree.stream(&format!(".events/{FOO}"), &[READY, &delete(&foo("x"))]);
    assert_eq!(tree.run(&["wait", FOO, "deleted"]).code, Some(0));

    // This one never was there.
    let _all = tree.stream("events", &[READY]);
    assert_eq!(tree.run(&["wait", BAR, "deleted"]).code, Some(0));
}

#[test]
fn a_wait_that_is_not_met_in_time_says_so_by_its_exit_code_alone() {
    for timeout in ["0", "0.01"] {
        let tree = Tree::new(&[foo("stopped")]);
        let _stream = tree.stream(&format!(".events/{FOO}"), &[READY]);
        let waited = tree.run(&["wait", "-t", timeout, FOO, "state=running"]);
        assert_eq!(waited.code, Some(1));
        assert_eq!((waited.out.as_str(), waited.err.as_str()), ("", ""));
    }
}

#[test]
fn a_wait_of_no_time_looks_once_and_not_at_what_follows() {
    let tree = Tree::new(&[foo("stopped")]);
    let events = [READY, &modify(&foo("running"))];
    let _stream = tree.stream(&format!(".events/{FOO}"), &events);
    let waited = tree.run(&["wait", "-t", "0", FOO, "state=running"]);
    assert_eq!(waited.code, Some(1));
}

#[test]
fn a_wait_that_cannot_ask_does_not_look_like_a_timeout() {
    let tree = Tree::new(&[foo("stopped")]);
    let missing = tree.path("missing");
    tree.run(&["wait", FOO, "deleted", "--mount", missing.to_str().unwrap()])
        .failed_with(2, "no such directory");
}

#[test]
fn wrong_usage_is_answered_with_the_usage_on_standard_output() {
    let tree = Tree::new(&[]);
    for (arguments, code) in [
        ([].as_slice(), 1),
        (&["frobnicate"], 1),
        (&["ping", "now"], 1),
        (&["status", "-x"], 1),
        (&["vm"], 1),
        (&["events", "--since", "yesterday"], 1),
        (&["wait"], 2),
        (&["wait", FOO], 2),
        (&["wait", FOO, "running"], 2),
        (&["wait", FOO, "alias=~("], 2),
        (&["wait", FOO, "deleted", "state=running"], 2),
        (&["wait", FOO, "deleted", "-t", "-1"], 2),
        (&["wait", FOO, "deleted", "-t", "soon"], 2),
        (&["--mount", "/nowhere", "wait", "-x"], 2),
        (&["wait", FOO, "deleted", "-x"], 2),
    ] {
        let refused = tree.run(arguments);
        assert_eq!(refused.code, Some(code), "{arguments:?} {refused:?}");
        assert!(
            refused.out.contains("Usage: vminfo"),
            "{arguments:?} {refused:?}"
        );
        assert_eq!(refused.err, "", "{arguments:?}");
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let tree = Tree::new(&[]);
    let help = tree.run(&["help"]);
    assert_eq!(help.code, Some(0));
    assert_eq!(tree.run(&["--help"]), help);
    for command in ["ping", "status", "vms", "vm", "events", "wait"] {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command}");
        let explained = tree.run(&[command, "--help"]);
        assert_eq!(explained.code, Some(0));
        assert_eq!(explained.err, "");
        assert!(explained.out.contains("Example"), "{command}");
        assert!(explained.out.contains(&format!("vminfo {command}")));
    }
}
