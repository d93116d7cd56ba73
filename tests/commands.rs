//! The commands as a user runs them: `vminfod mount`, `umount` and `sample`, mount(8) with its
//! helper, umount(8), and `vminfo` on a real mount.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{
    Finished, Mounted, PATIENCE, Running, Store, VMINFO, VMINFOD, is_running, mount_entry, run,
    until,
};
use vminfod::sample::change;

/// A daemon that `vminfod mount` has left in the background. It and its mount end with the test.
struct Background<'a> {
    store: &'a Store,
    pid: u64,
}

impl<'a> Background<'a> {
    #[track_caller]
    fn mount(store: &'a Store, args: &[&str]) -> Background<'a> {
        let mut mount = Command::new(VMINFOD);
        mount
            .args(["mount", "--zones-root"])
            .arg(store.root())
            .args(args)
            .arg(store.mountpoint());
        // Not pipes: to wait for their end would be to wait for a daemon that keeps them open.
        let said = store.dir().join("said");
        let file = File::create(&said).unwrap();
        mount
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let status = mount.status().unwrap();
        let mut background = Background { store, pid: 0 };
        let said = fs::read_to_string(said).unwrap();
        assert_eq!((status.code(), &*said), (Some(0), ""));
        background.pid = background.json(".status")["pid"].as_u64().unwrap();
        background
    }

    fn path(&self, below: &str) -> PathBuf {
        self.store.mountpoint().join(below)
    }

    fn json(&self, below: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(below)).unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid).unwrap()), signal).unwrap();
    }

    /// Waits until the mount has gone from the mount table and the daemon has ended.
    #[track_caller]
    fn gone(&self) {
        until("nothing is mounted", || {
            mount_entry(&self.store.mountpoint())
                .is_none()
                .then_some(())
        });
        until("the daemon ends", || (!is_running(self.pid)).then_some(()));
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        while nix::mount::umount2(&self.store.mountpoint(), nix::mount::MntFlags::MNT_DETACH)
            .is_ok()
        {}
        if self.pid != 0 && is_running(self.pid) {
            self.signal(Signal::SIGTERM);
        }
    }
}

/// `cat events`, blocked, and a process that sits in a VM's directory.
struct Users {
    cat: Running,
    _sitting: Running,
}

impl Users {
    #[track_caller]
    fn of(background: &Background<'_>) -> Users {
        let uuid = background.json("vms.json")[0]["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        let mut cat = Command::new("cat");
        cat.arg(background.path("events")).stdout(Stdio::null());
        let mut sitting = Command::new("sleep");
        sitting.arg("infinity").current_dir(background.path(&uuid));
        let users = Users {
            cat: Running::start(&mut cat),
            _sitting: Running::start(&mut sitting),
        };
        until("cat waits for an event", || {
            (background.json(".status")["mount"]["readersWaiting"] == 1).then_some(())
        });
        users
    }

    /// Asserts that the blocked reader reads the end of the file.
    #[track_caller]
    fn read_to_the_end(&mut self) {
        let status = until("cat ends", || self.cat.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

fn vminfod(args: &[&str]) -> Finished {
    run(Command::new(VMINFOD).args(args))
}

#[test]
fn mount_returns_when_the_tree_is_complete_and_readable() {
    let store = Store::new(40);
    let background = Background::mount(&store, &[]);
    let vms = background.json("vms.json");
    assert_eq!(vms.as_array().unwrap().len(), 40);
    for vm in vms.as_array().unwrap() {
        let document = background.json(&format!("{}/vm.json", vm["uuid"].as_str().unwrap()));
        assert_eq!(document, *vm);
    }
}

#[test]
fn the_daemon_has_no_terminal_no_folder_and_no_output() {
    let store = Store::new(1);
    let background = Background::mount(&store, &[]);
    let proc = PathBuf::from(format!("/proc/{}", background.pid));
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (session, terminal) = (fields[3], fields[4]);
    assert_eq!(session, background.pid.to_string());
    assert_eq!(terminal, "0");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    for descriptor in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(
            fs::read_link(proc.join(descriptor)).unwrap(),
            Path::new("/dev/null"),
            "{descriptor}"
        );
    }
}

#[test]
fn the_mount_table_says_what_is_mounted_and_for_whom() {
    for (options, open) in [("rw", true), ("private", false)] {
        let store = Store::new(1);
        let _background = Background::mount(&store, &["-o", options]);
        let entry = mount_entry(&store.mountpoint()).unwrap();
        let [kind, source, given] = &entry[entry.len() - 3..] else {
            panic!("{entry:?}")
        };
        assert_eq!((&**kind, &**source), ("fuse.vminfod", "zones"));
        let given: Vec<&str> = given.split(',').collect();
        assert!(given.contains(&"default_permissions"), "{given:?}");
        assert_eq!(given.contains(&"allow_other"), open, "{given:?}");
    }
}

#[test]
fn a_relative_root_is_the_callers() {
    let store = Store::new(2);
    let mut mount = Command::new(VMINFOD);
    mount
        .args(["mount", "--zones-root", "store", "vms"])
        .current_dir(store.dir());
    assert_eq!(run(&mut mount).succeeded(), "");
    let status = fs::read_to_string(store.mountpoint().join(".status")).unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let background = Background {
        store: &store,
        pid: status["pid"].as_u64().unwrap(),
    };
    assert_eq!(background.json("vms.json").as_array().unwrap().len(), 2);
    // It is followed also after the daemon has left the caller's folder.
    change::set_tag(&store.root(), &store.zones()[0], "role", &json!("followed")).unwrap();
    until("the change is seen", || {
        let vms = background.json("vms.json");
        vms.as_array()
            .unwrap()
            .iter()
            .any(|vm| vm["tags"]["role"] == "followed")
            .then_some(())
    });
    run(Command::new(VMINFOD)
        .args(["umount", "vms"])
        .current_dir(store.dir()))
    .succeeded();
    background.gone();
}

#[test]
fn wrong_usage_exits_2_and_names_what_is_wrong() {
    for option in [
        "nosuch",
        "nosuch=1",
        "zones_root=",
        "rescan=soon",
        "watch=always",
        "rescan=0",
        "zfs_poll=-1",
        "datasets=maybe",
        "runtime=zfs",
        "history=1X",
        "group=no-such-group-here",
        "private=yes",
        "ro=yes",
        "ro_mount=",
    ] {
        let finished = vminfod(&["mount", "-o", option, "/nowhere"]);
        finished.failed_with(2, &[&format!("-o {option}: ")]);
    }
    vminfod(&["mount", "--source", "nosuch", "/nowhere"]).failed_with(2, &["--source nosuch: "]);
    for (arguments, named) in [
        (
            &["mount", "--no-such-option", "/nowhere"][..],
            "--no-such-option",
        ),
        (
            &["mount", "--log-format", "xml", "/nowhere"],
            "--log-format",
        ),
        (&["mount"], "<MOUNTPOINT>"),
        (&["umount"], "<MOUNTPOINT>"),
        (&["sample", "/nowhere"], "--vms"),
        (&["sample", "/nowhere", "--vms", "many"], "--vms"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let finished = vminfod(arguments);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.err.contains(named), "{finished:?}");
    }
}

#[test]
fn in_the_foreground_it_stays_until_a_signal_and_then_succeeds() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let store = Store::new(1);
        let mut mounted = store.mount();
        assert!(mounted.daemon.try_wait().unwrap().is_none());
        mounted.signal(signal);
        assert!(mounted.ended().success());
        assert_eq!(mount_entry(&store.mountpoint()), None);
        // What was hidden by the mount can be used again.
        fs::remove_dir(store.mountpoint()).unwrap();
    }
}

/// Mounts in the foreground and gives what was logged until the end, to standard error.
fn log(store: &Store, level: &str, arguments: &[&str]) -> String {
    let log = store.dir().join("stderr");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(r#"log=$1; shift; exec "$@" 2>"$log""#)
        .arg("sh")
        .arg(&log);
    command
        .arg(VMINFOD)
        .args(["mount", "--foreground", "--tell-ready", "--zones-root"]);
    command
        .arg(store.root())
        .args(arguments)
        .arg(store.mountpoint())
        .env("RUST_LOG", level);
    let mut mounted = Mounted::start(store, command);
    mounted.signal(Signal::SIGTERM);
    assert!(mounted.ended().success());
    fs::read_to_string(log).unwrap()
}

#[test]
fn rust_log_chooses_what_is_logged() {
    let store = Store::new(1);
    assert_eq!(log(&store, "error", &[]), "");
    let said = log(&store, "vminfod=info", &[]);
    assert!(
        said.contains("mounted") && !said.contains('\x1b'),
        "no colours in a file: {said}"
    );
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let store = Store::new(2);
    // Something to warn of.
    fs::write(
        store.path(format!("zones/{}/config/tags.json", store.zones()[0])),
        "{",
    )
    .unwrap();
    let file = store.dir().join("log");
    let to_file = ["--log-format", "json", "--log-file", file.to_str().unwrap()];
    for (arguments, to_stderr) in [(&to_file[..2], true), (&to_file, false)] {
        let said = log(&store, "vminfod=trace", arguments);
        let logged = if to_stderr {
            said
        } else {
            assert_eq!(said, "");
            fs::read_to_string(&file).unwrap()
        };
        let lines: Vec<Value> = logged
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let levels: Vec<&Value> = lines.iter().map(|line| &line["level"]).collect();
        assert!(
            levels.contains(&&json!("INFO")) && levels.contains(&&json!("WARN")),
            "{logged}"
        );
    }
}

#[test]
fn a_log_file_that_cannot_be_written_is_named() {
    let store = Store::new(1);
    let log = store.dir().join("none/log");
    let mut mount = Command::new(VMINFOD);
    mount
        .args(["mount", "--log-file"])
        .arg(&log)
        .arg("--zones-root")
        .arg(store.root());
    run(mount.arg(store.mountpoint())).failed_with(1, &["log file", log.to_str().unwrap()]);
}

#[test]
fn umount_ends_streams_and_the_daemon_though_somebody_sits_inside() {
    let store = Store::new(2);
    let background = Background::mount(&store, &[]);
    let mut users = Users::of(&background);
    assert_eq!(
        run(Command::new(VMINFOD).arg("umount").arg(store.mountpoint())).succeeded(),
        ""
    );
    assert_eq!(mount_entry(&store.mountpoint()), None);
    background.gone();
    users.read_to_the_end();
}

#[test]
fn a_sigterm_ends_streams_the_mount_and_the_daemon_though_somebody_sits_inside() {
    let store = Store::new(2);
    let background = Background::mount(&store, &[]);
    let mut users = Users::of(&background);
    background.signal(Signal::SIGTERM);
    background.gone();
    users.read_to_the_end();
}

#[test]
fn the_systems_umount_ends_the_daemon() {
    let store = Store::new(2);
    let background = Background::mount(&store, &[]);
    // A child that another test has just forked holds for a moment what this process had open.
    until("umount succeeds", || {
        let umount = run(Command::new("umount").arg(store.mountpoint()));
        (umount.code == Some(0)).then_some(())
    });
    background.gone();
    // The next one has it to itself.
    Background::mount(&store, &[]);
}

#[test]
fn a_mount_in_use_is_kept_by_umount_and_ended_by_a_lazy_one() {
    let store = Store::new(2);
    let background = Background::mount(&store, &[]);
    let mut users = Users::of(&background);
    let busy = run(Command::new("umount").arg(store.mountpoint()));
    assert_ne!(busy.code, Some(0), "{busy:?}");
    assert_eq!(background.json("vms.json").as_array().unwrap().len(), 2);
    assert_eq!(
        run(Command::new("umount").arg("-l").arg(store.mountpoint())).succeeded(),
        ""
    );
    background.gone();
    users.read_to_the_end();
}

#[test]
fn umount_leaves_alone_what_is_not_ours() {
    let store = Store::new(1);
    for path in [
        store.mountpoint(),
        PathBuf::from("/proc"),
        store.dir().join("none"),
    ] {
        let shown = path.to_str().unwrap();
        vminfod(&["umount", shown]).failed_with(1, &[shown, "no vminfod is mounted here"]);
    }
    assert!(Path::new("/proc/self").exists());
}

#[test]
fn umount_clears_away_a_mount_whose_daemon_has_died() {
    let store = Store::new(1);
    let background = Background::mount(&store, &[]);
    background.signal(Signal::SIGKILL);
    until("the daemon is dead", || {
        (!is_running(background.pid)).then_some(())
    });
    assert!(mount_entry(&store.mountpoint()).is_some());
    run(Command::new(VMINFOD).arg("umount").arg(store.mountpoint())).succeeded();
    background.gone();
}

/// A shell in a mount namespace of its own, in which `/sbin` holds the mount helper and vminfod and
/// nothing else. What it leaves mounted goes with it. Its first argument is the folder of the store.
fn shell_with_helper(store: &Store, script: &str) -> Command {
    let sbin = store.dir().join("sbin");
    if !sbin.exists() {
        let helper = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/mount-scripts/mount.fuse.vminfod"
        );
        fs::create_dir(&sbin).unwrap();
        symlink(helper, sbin.join("mount.fuse.vminfod")).unwrap();
        symlink(VMINFOD, sbin.join("vminfod")).unwrap();
    }
    let script = format!("set -e; mount --bind \"$1/sbin\" /sbin; cd \"$1\"; {script}");
    let mut shell = Command::new("unshare");
    shell
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(store.dir());
    shell
}

#[test]
fn mount_calls_the_helper_and_returns_when_the_tree_is_complete() {
    let store = Store::new(3);
    let script = r#"
        mount -t fuse.vminfod zones "$1/vms" -o "zones_root=$1/store,nofail,noatime"
        stat --file-system --format=%T "$1/vms" >&2
        grep -F " $1/vms " /proc/self/mountinfo | sed 's/.* - //; s/ rw,.*//'
        jq length vms/vms.json
        jq .pid vms/.status
        umount "$1/vms""#;
    let out = run(&mut shell_with_helper(&store, script)).succeeded();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["fuse.vminfod zones", "3"]);
    let pid = lines[2].parse().unwrap();
    until("the daemon ends", || (!is_running(pid)).then_some(()));
}

#[test]
fn a_line_of_fstab_is_enough() {
    let store = Store::new(3);
    let dir = store.dir().display();
    let line = format!(
        "zones {dir}/vms fuse.vminfod zones_root={dir}/store,private,noauto,user,x-ours 0 0\n"
    );
    fs::write(store.dir().join("fstab"), line).unwrap();
    let script = r#"mount --fstab fstab "$1/vms"; jq length vms/vms.json; umount "$1/vms""#;
    assert_eq!(
        run(&mut shell_with_helper(&store, script)).succeeded(),
        "3\n"
    );
}

#[test]
fn mount_shows_why_vminfod_refuses() {
    let store = Store::new(1);
    for (options, said) in [
        ("zones_root=/nowhere/at/all", "/nowhere/at/all: "),
        ("no_such_option=1", "-o no_such_option=1: "),
    ] {
        let script = format!("mount -t fuse.vminfod zones \"$1/vms\" -o {options}");
        let finished = run(&mut shell_with_helper(&store, &script));
        assert_ne!(finished.code, Some(0), "{finished:?}");
        assert!(finished.err.contains(said), "{finished:?}");
    }
}

fn vminfo(mounted: &Mounted<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new(VMINFO);
    command.args(arguments).env("VMINFOD_MOUNT", &mounted.at);
    command
}

/// A program whose lines are read while it runs.
struct Following {
    program: Running,
    lines: BufReader<ChildStdout>,
}

impl Following {
    fn start(mut command: Command) -> Following {
        let mut program = Running::start(command.stdout(Stdio::piped()));
        let lines = BufReader::new(program.0.stdout.take().unwrap());
        Following { program, lines }
    }

    /// The next line, for which it may block: the program ends with the test.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn child(&mut self) -> &mut Child {
        &mut self.program.0
    }
}

#[test]
fn ping_and_status_tell_of_the_daemon() {
    let store = Store::new(3);
    let mounted = store.mount();
    let pong = run(&mut vminfo(&mounted, &["ping"])).succeeded();
    assert_eq!(pong, "pong\n");

    let keys = |arguments: &[&str]| -> Vec<String> {
        let status = run(&mut vminfo(&mounted, arguments)).succeeded();
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["pid"], mounted.daemon.id());
        assert_eq!(status["numVms"], 3);
        assert_eq!(status["state"], "running");
        status.as_object().unwrap().keys().cloned().collect()
    };
    let short = [
        "pid",
        "uptime",
        "memory",
        "state",
        "status",
        "numVms",
        "curDate",
        "curTime",
        "queue",
        "lastRefresh",
        "refreshErrors",
        "eventsListeners",
    ];
    assert_eq!(keys(&["status", "-j"]), short);
    let full = keys(&["status", "-jf"]);
    assert_eq!(full[..12], short);
    assert_eq!(full[12..14], ["refreshLog", "fswatcher"]);

    let text = run(&mut vminfo(&mounted, &["status"])).succeeded();
    assert!(text.lines().any(|line| line == "numVms: 3"), "{text}");
}

#[test]
fn vms_and_vm_print_what_the_mount_has() {
    let store = Store::new(3);
    let mounted = store.mount();
    let vms = mounted.json("vms.json");
    let printed = run(&mut vminfo(&mounted, &["vms"])).succeeded();
    assert_eq!(printed, format!("{vms:#}\n"));
    for vm in vms.as_array().unwrap() {
        for name in [&vm["uuid"], &vm["zonename"]] {
            let printed = run(&mut vminfo(&mounted, &["vm", name.as_str().unwrap()])).succeeded();
            assert_eq!(printed, format!("{vm:#}\n"));
        }
    }
    let unknown = "00000000-0000-4000-8000-000000000000";
    run(&mut vminfo(&mounted, &["vm", unknown])).failed_with(1, &[unknown]);
}

#[test]
fn events_are_printed_in_each_format_as_they_happen() {
    let store = Store::new(2);
    let mounted = store.mount();
    let zone = store.zones()[0].clone();
    let uuid = mounted.uuid(&zone);
    let mut streams: Vec<Following> = [&["-r"][..], &["-rf"], &["-rj"], &["-rj", &uuid]]
        .into_iter()
        .map(|options| Following::start(vminfo(&mounted, &[&["events"], options].concat())))
        .collect();
    // Each is connected when it has said so.
    for stream in &mut streams {
        assert!(stream.line().contains("ready"));
    }
    change::set_tag(&store.root(), &store.zones()[1], "of", &json!("another")).unwrap();
    change::set_tag(&store.root(), &zone, "role", &json!("a \"b\"")).unwrap();
    let tag = |stream: &mut Following| loop {
        let line = stream.line();
        if line.contains("tags.role") {
            return line;
        }
    };
    let event: Value = serde_json::from_str(&tag(&mut streams[2])).unwrap();
    assert_eq!(event["type"], "modify");
    assert_eq!(event["vm"]["tags"]["role"], "a \"b\"");
    // The stream of one VM has nothing of the others.
    let own: Value = serde_json::from_str(&streams[3].line()).unwrap();
    assert_eq!(own, event);

    let date = event["date"].as_str().unwrap();
    let alias = event["vm"]["alias"].as_str().unwrap_or("-");
    let alias = match alias.char_indices().nth(27) {
        Some((at, _)) if alias.chars().count() > 30 => format!("{}...", &alias[..at]),
        _ => alias.to_owned(),
    };
    let change = event["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|change| change["prettyPath"] == "tags.role");
    let change = change.unwrap();
    let old = change
        .get("oldValue")
        .map_or("undefined".to_owned(), Value::to_string);
    let action = change["action"].as_str().unwrap();
    let rest = format!("{alias} modify: tags.role {action} :: {old} -> \"a \\\"b\\\"\"\n");
    assert_eq!(
        tag(&mut streams[0]),
        format!("[{}] {} {rest}", &date[11..], &uuid[..8])
    );
    assert_eq!(tag(&mut streams[1]), format!("[{date}] {uuid} {rest}"));

    // What has happened can be read again, from any point of it.
    let seq = event["seq"].as_u64().unwrap() - 1;
    let mut since = Following::start(vminfo(
        &mounted,
        &["events", "-j", "--since", &seq.to_string()],
    ));
    assert_eq!(serde_json::from_str::<Value>(&since.line()).unwrap(), event);

    // An interrupt ends it though nothing happens.
    kill(
        Pid::from_raw(i32::try_from(since.child().id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    until("vminfo ends", || since.child().try_wait().unwrap());
}

#[test]
fn wait_ends_when_its_condition_holds_its_time_is_up_or_the_vm_has_gone() {
    let store = Store::new(2);
    let mounted = store.mount();
    let zone = store.zones()[0].clone();
    let uuid = mounted.uuid(&zone);
    let already = ["wait", &uuid, &format!("uuid={uuid}"), "tags.role!=awaited"];
    run(&mut vminfo(&mounted, &already)).succeeded();
    let never = run(&mut vminfo(
        &mounted,
        &["wait", &uuid, "tags.role=awaited", "-t", "0.05"],
    ));
    assert_eq!(never.code, Some(1), "{never:?}");
    let wrong = run(&mut vminfo(&mounted, &["wait", &uuid, "tags.role"]));
    assert_eq!(wrong.code, Some(2), "{wrong:?}");

    let awaited = |terms: &[&str]| {
        let patience = PATIENCE.as_secs().to_string();
        let arguments = [&["wait", &uuid][..], terms, &["-t", &patience]].concat();
        let listeners = || {
            mounted.status()["eventsListeners"]
                .as_object()
                .unwrap()
                .len()
        };
        let before = listeners();
        let waiting = Running::start(&mut vminfo(&mounted, &arguments));
        until("vminfo waits", || (listeners() > before).then_some(()));
        waiting
    };
    let mut met = awaited(&["tags.role=awaited", "tags.role=~^AWAIT"]);
    change::set_tag(&store.root(), &zone, "role", &json!("awaited")).unwrap();
    assert_eq!(
        until("it is met", || met.0.try_wait().unwrap()).code(),
        Some(0)
    );

    let mut deleted = awaited(&["deleted"]);
    change::remove(&store.root(), &zone).unwrap();
    assert_eq!(
        until("the VM has gone", || deleted.0.try_wait().unwrap()).code(),
        Some(0)
    );
}

#[test]
fn a_sample_is_the_same_for_the_same_seed_and_mounts_whole() {
    let store = Store::new(1);
    let sample = |name: &str, arguments: &[&str]| -> (PathBuf, Finished) {
        let dir = store.dir().join(name);
        let finished = run(Command::new(VMINFOD)
            .arg("sample")
            .arg(&dir)
            .args(arguments));
        (dir, finished)
    };
    let (a, said) = sample("a", &["--vms", "30", "--seed", "7"]);
    assert!(said.succeeded().starts_with("wrote 30 VMs ("));
    let (b, said) = sample("b", &["--vms", "30", "--seed", "7"]);
    said.succeeded();
    let (c, said) = sample("c", &["--vms", "30", "--seed", "8"]);
    said.succeeded();
    let differ =
        |one: &Path, other: &Path| run(Command::new("diff").arg("-rq").arg(one).arg(other)).code;
    assert_eq!(differ(&a, &b), Some(0));
    assert_eq!(differ(&a, &c), Some(1));

    let mounted = store.mount_with(&["-o", &format!("zones_root={}", a.display())]);
    assert_eq!(
        mounted.json("vms.json").as_array().unwrap().len(),
        1,
        "--zones-root has the last word"
    );
    drop(mounted);

    let (_, said) = sample("a", &["--vms", "1"]);
    said.failed_with(1, &[a.to_str().unwrap()]);
    File::create(store.dir().join("file")).unwrap();
    let (file, said) = sample("file", &["--vms", "1"]);
    said.failed_with(1, &[file.to_str().unwrap()]);
}

#[test]
fn the_daemon_opens_as_many_files_as_it_is_allowed_to() {
    let store = Store::new(1);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -Sn 128; exec \"$@\"", "sh", VMINFOD])
        .args(["mount", "--foreground", "--tell-ready", "--zones-root"])
        .arg(store.root())
        .arg(store.mountpoint());
    let mounted = Mounted::start(&store, shell);
    let limits = fs::read_to_string(format!("/proc/{}/limits", mounted.daemon.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_ne!(words[3], "128");
    assert_eq!(words[3], words[4], "{line}");
}
