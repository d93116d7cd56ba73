//! Writing through the mount, with an engine that applies what the test lets it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vminfod::mutation::Failure;

mod support;

use support::fake::Written;
use support::inside::uuid;
use support::{Finished, Running, run, until};

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn write_only(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn shell(shell: &str, script: &str, at: &Path) -> Finished {
    run(Command::new(shell).args(["-c", script]).current_dir(at))
}

fn running(program: &str, script: &str, at: &Path) -> Running {
    let mut command = Command::new(program);
    command
        .args(["-c", script])
        .current_dir(at)
        .stdin(Stdio::null());
    Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped()))
}

fn python(script: &str, at: &Path) -> Finished {
    run(Command::new("python3").args(["-c", script]).current_dir(at))
}

fn stderr_of(running: &mut Running) -> String {
    let mut said = String::new();
    running
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    said
}

fn last_error(tree: &Written, number: usize) -> Value {
    serde_json::from_str(&tree.read(number, "last_error")).unwrap()
}

#[test]
fn a_value_that_was_written_is_read_by_everybody_at_once() {
    let tree = Written::new(1);
    for value in ["20", "5", "123456"] {
        fs::write(tree.file(0, "quota"), value).unwrap();
        assert_eq!(tree.read(0, "quota"), format!("{value}\n"));
        let size = fs::metadata(tree.file(0, "quota")).unwrap().len();
        assert_eq!(size, value.len() as u64 + 1);
    }
    for shell in ["bash", "dash"] {
        let done = self::shell(shell, "echo 30 > quota && cat quota", &tree.file(0, ""));
        assert_eq!(done.err, "");
        assert_eq!(done.succeeded(), "30\n");
    }
    // The offset and O_APPEND mean nothing.
    shell("bash", "echo 7 >> quota", &tree.file(0, "")).succeeded();
    assert_eq!(tree.read(0, "quota"), "7\n");
    write_only(&tree.file(0, "quota"))
        .write_all_at(b"8", 1000)
        .unwrap();
    assert_eq!(tree.read(0, "quota"), "8\n");
    assert_eq!(fs::metadata(tree.file(0, "quota")).unwrap().len(), 2);
    write_only(&tree.file(0, "nics/net0/ip"))
        .write_all(b"10.0.0.8\n")
        .unwrap();
    assert_eq!(tree.read(0, "nics/net0/ip"), "10.0.0.8\n");
}

#[test]
fn two_writes_on_one_handle_are_two_values() {
    let tree = Written::new(1);
    let script = "import os
fd = os.open('quota', os.O_WRONLY)
os.write(fd, b'11')
os.write(fd, b'11')
os.write(fd, b'12\\n')";
    python(script, &tree.file(0, "")).succeeded();
    assert_eq!(tree.fake.asked(), ["quota=11", "quota=11", "quota=12"]);
    assert_eq!(tree.read(0, "quota"), "12\n");
}

#[test]
fn the_newline_of_a_value_may_come_by_itself_and_is_none() {
    let tree = Written::new(1);
    let dir = tree.file(0, "");
    let script = "import os
fd = os.open('alias', os.O_WRONLY)
for part in [b'one', b'\\n', b'two\\n', b'thr', b'\\n', b'\\n']:
    os.write(fd, part)
os.close(fd)
fd = os.open('ctl', os.O_WRONLY)
os.write(fd, b'start')
os.write(fd, b'\\n')
os.close(fd)";
    python(&script.replace("\\\\", "\\"), &dir).succeeded();
    let asked = ["alias=one", "alias=two", "alias=thr", "alias=", "Start"];
    assert_eq!(tree.fake.asked(), asked);
    shell(
        "bash",
        "echo 7 | dd of=quota bs=1 conv=notrunc status=none",
        &dir,
    )
    .succeeded();
    assert_eq!(tree.read(0, "quota"), "7\n");
    shell("bash", "echo > hostname", &dir);
    assert_eq!(tree.fake.asked().last().unwrap(), "hostname=");
}

#[test]
fn a_name_that_is_too_long_for_any_file_says_so() {
    let tree = Written::new(1);
    let path = tree.file(0, &format!("tags/{}", "x".repeat(300)));
    assert_eq!(errno(File::create(&path)), Some(libc::ENAMETOOLONG));
    assert_eq!(errno(fs::metadata(&path)), Some(libc::ENAMETOOLONG));
    let longest = tree.file(0, &format!("tags/{}", "x".repeat(255)));
    fs::write(&longest, "value").unwrap();
    assert_eq!(fs::read_to_string(&longest).unwrap(), "value\n");
}

#[test]
fn truncating_changes_nothing_and_no_stat_beside_a_writer_sees_an_empty_file() {
    let tree = Written::new(1);
    let path = tree.file(0, "quota");
    shell("bash", ": > quota; truncate -s 0 alias", &tree.file(0, "")).succeeded();
    assert_eq!(tree.read(0, "quota"), "10\n");
    assert_eq!(tree.read(0, "alias"), "vm0\n");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(fs::metadata(&path).unwrap().len(), 3);
            }
        });
        let script = "for i in $(seq 10 99); do echo $i > quota; done";
        shell("bash", script, &tree.file(0, "")).succeeded();
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(tree.read(0, "quota"), "99\n");
}

#[test]
fn room_that_is_asked_for_in_advance_does_not_become_a_value() {
    let tree = Written::new(1);
    let script = "import os
fd = os.open('tags/text', os.O_WRONLY | os.O_CREAT)
try:
    os.posix_fallocate(fd, 0, 10)
except OSError as error:
    print(error.errno)
os.write(fd, b'hello')
os.close(fd)";
    let asked = python(script, &tree.file(0, ""));
    assert_eq!(asked.out, format!("{}\n", libc::EPERM));
    assert_eq!(tree.read(0, "tags/text"), "hello\n");
}

#[test]
fn free_text_arrives_whole_whoever_writes_it() {
    let tree = Written::new(1);
    let dir = tree.file(0, "");
    let line = "a line of text with é and \"quotes\"";
    for lines in [1, 50, 250, 30_000] {
        let text = (0..lines)
            .map(|number| format!("{number} {line}\n"))
            .collect::<String>();
        assert!(text.len() < 1_400_000);
        let text = text[..text.len().min(1 << 20)].to_owned();
        let text = text.trim_end_matches('\n').to_owned() + "\n";
        let file = tree.dir().join("text");
        fs::write(&file, &text).unwrap();
        let file = file.display();
        for (program, script) in [
            (
                "bash",
                format!("lines=$(cat {file}); echo \"$lines\" > customer_metadata/script"),
            ),
            (
                "dash",
                format!("lines=$(cat {file}); echo \"$lines\" > customer_metadata/script"),
            ),
            ("bash", format!("cat {file} > customer_metadata/script")),
            ("bash", format!("(cat {file}) > customer_metadata/script")),
            ("bash", format!("cp {file} customer_metadata/script")),
            (
                "bash",
                format!("dd if={file} of=customer_metadata/script bs=999 status=none"),
            ),
            (
                "python3",
                format!("open('customer_metadata/script', 'w').write(open('{file}').read())"),
            ),
        ] {
            fs::write(tree.file(0, "customer_metadata/script"), "before").unwrap();
            let done = run(Command::new(program)
                .args(["-c", &script])
                .current_dir(&dir));
            assert_eq!(done.code, Some(0), "{lines} lines: {script}: {done:?}");
            assert_eq!(done.err, "", "{script}");
            let read = tree.read(0, "customer_metadata/script");
            assert!(
                read == text,
                "{lines} lines: {script}: {} bytes",
                read.len()
            );
        }
    }
    let error = fs::write(tree.file(0, "tags/role"), "x".repeat(2 << 20));
    assert_eq!(errno(error), Some(libc::EFBIG));
    assert_eq!(tree.read(0, "tags/role"), "web\n");
    assert_eq!(last_error(&tree, 0)["errno"], "EFBIG");
}

#[test]
fn a_handle_that_several_processes_close_is_applied_whole_and_not_for_nothing() {
    let tree = Written::new(1);
    let dir = tree.file(0, "");
    shell(
        "bash",
        "{ echo a; (echo b); /bin/echo c; echo d; } > tags/role",
        &dir,
    )
    .succeeded();
    assert_eq!(tree.read(0, "tags/role"), "a\nb\nc\nd\n");
    assert_eq!(tree.fake.asked().last().unwrap(), "tags/role=a\nb\nc\nd");
    let before = tree.fake.asked().len();
    shell(
        "bash",
        ": > tags/role; : >> tags/role; touch tags/role",
        &dir,
    )
    .succeeded();
    shell(
        "bash",
        "exec 3> tags/role; exec 4>&3; exec 3>&-; exec 4>&-",
        &dir,
    )
    .succeeded();
    assert_eq!(tree.fake.asked().len(), before, "{:?}", tree.fake.asked());
    assert_eq!(tree.read(0, "tags/role"), "a\nb\nc\nd\n");
}

#[test]
fn a_document_is_applied_in_the_write_that_completes_it() {
    let tree = Written::new(1);
    let mut file = write_only(&tree.file(0, "vm.json"));
    file.write_all(b" {\"quota\": 2").unwrap();
    file.write_all(b"1, \"alias\": \"a}\\\"").unwrap();
    assert!(tree.fake.asked().is_empty());
    file.write_all(b"\"}\n").unwrap();
    assert_eq!(tree.read(0, "quota"), "21\n");
    assert_eq!(tree.read(0, "alias"), "a}\"\n");
    file.write_all(b"\n \t").unwrap();
    assert_eq!(errno(file.write_all(b"{}")), Some(libc::EINVAL));
    drop(file);
    assert_eq!(tree.fake.asked().len(), 1);
    assert!(
        last_error(&tree, 0)["message"]
            .as_str()
            .unwrap()
            .contains("vm.json")
    );

    shell("bash", "jq .quota=22 vm.json > vm.json", &tree.file(0, "")).succeeded();
    assert_eq!(tree.read(0, "quota"), "22\n");
    // A document of many pages, as stdio splits it.
    let large = json!({"alias": "x".repeat(300_000)});
    fs::write(tree.dir().join("large"), large.to_string()).unwrap();
    let script = "sed s/x/y/ ../../large > vm.json";
    shell("bash", script, &tree.file(0, "")).succeeded();
    assert!(tree.read(0, "alias").starts_with("yxx"));
}

#[test]
fn the_rest_of_a_document_that_failed_fails_alike_and_is_recorded_once() {
    let tree = Written::new(1);
    tree.fake
        .fail(Some(Failure::Busy("vm: locked by vmadm".to_owned())));
    // The kernel sends this in two parts.
    let script = "import os
text = b'{\"alias\": \"' + b'x' * (3 << 19) + b'\"}'
fd = os.open('vm.json', os.O_WRONLY)
written = 0
try:
    while written < len(text):
        written += os.write(fd, text[written:])
except OSError as error:
    print(error.errno)";
    let out = python(script, &tree.file(0, "")).succeeded();
    assert_eq!(out.trim(), libc::EBUSY.to_string());
    assert_eq!(last_error(&tree, 0)["errno"], "EBUSY");
    assert_eq!(
        fs::read_to_string(tree.path(".errors"))
            .unwrap()
            .lines()
            .count(),
        1
    );
    assert_eq!(tree.fake.asked().len(), 1);
}

#[test]
fn a_document_that_is_wrong_or_cut_short_changes_nothing_and_says_where() {
    let tree = Written::new(1);
    let path = tree.file(0, "vm.json");
    for wrong in ["20", "[1]", "hello", "{]", "{\"quota\": }", "{\"a\": 1} x"] {
        let mut file = write_only(&path);
        assert_eq!(
            errno(file.write_all(wrong.as_bytes())),
            Some(libc::EINVAL),
            "{wrong}"
        );
        // What is left of it is refused as well, for the same reason.
        let before = tree.read(0, "last_error");
        assert_eq!(errno(file.write_all(b"{\"quota\": 3}")), Some(libc::EINVAL));
        assert_eq!(tree.read(0, "last_error"), before);
    }
    let error = fs::write(&path, "{\n  \"quota\": oops\n}");
    assert_eq!(errno(error), Some(libc::EINVAL));
    let message = last_error(&tree, 0)["message"].to_string();
    assert!(message.contains("line 2 column"), "{message}");

    let script = "import os
fd = os.open('vm.json', os.O_WRONLY)
os.write(fd, b'{\"quota\": 3')
try:
    os.close(fd)
except OSError as error:
    print(error.errno)";
    let out = python(script, &tree.file(0, "")).succeeded();
    assert_eq!(out.trim(), libc::EINVAL.to_string());
    assert_eq!(last_error(&tree, 0)["file"], "vm.json");
    assert!(tree.fake.asked().is_empty());
    assert_eq!(tree.read(0, "quota"), "10\n");
}

#[test]
fn a_failure_is_recorded_before_the_caller_is_told() {
    let tree = Written::new(2);
    let dir = tree.file(0, "");
    let last = tree.file(0, "last_error");
    assert_eq!(fs::read_to_string(&last).unwrap(), "");
    assert_eq!(
        fs::metadata(&last).unwrap().permissions().mode() & 0o7777,
        0o400
    );
    for round in 0..20 {
        let script = format!("echo x{round} > quota || cat last_error; stat -c %s last_error");
        let done = shell("bash", &script, &dir);
        let lines: Vec<&str> = done.out.lines().collect();
        let error: Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(error["errno"], "EINVAL");
        assert_eq!(error["file"], "quota");
        assert_eq!(error["uuid"], uuid(0).to_string());
        assert_eq!(error["message"], format!("quota: not a number: x{round}"));
        assert_eq!(lines[1], (lines[0].len() + 1).to_string());
        let all = tree.path(".errors");
        let text = fs::read_to_string(&all).unwrap();
        assert_eq!(text.lines().count(), round + 1);
        assert_eq!(fs::metadata(&all).unwrap().len(), text.len() as u64);
    }
    assert_eq!(tree.read(1, "last_error"), "");
    let source = Failure::Source {
        reason: "zfs: no".to_owned(),
        applied: vec!["tags".to_owned()],
    };
    tree.fake.fail(Some(source));
    assert_eq!(
        errno(fs::write(tree.file(1, "nics/net0/ip"), "1")),
        Some(libc::EIO)
    );
    assert_eq!(last_error(&tree, 1)["applied"], json!(["tags"]));
    assert_eq!(last_error(&tree, 1)["file"], "nics/net0/ip");
    // No secret is told.
    let refused = |text: &str| Failure::Exists(format!("internal_metadata: {text} is taken"));
    tree.fake.fail(Some(refused("hunter2")));
    let written = fs::write(tree.file(1, "internal_metadata/secret"), "hunter2");
    assert_eq!(errno(written.and_then(|()| fs::metadata(last))), None);
    until("the close has failed", || {
        (last_error(&tree, 1)["errno"] == "EEXIST").then_some(())
    });
    assert!(!tree.read(1, "last_error").contains("hunter2"));
    let document = r#"{"set_internal_metadata": {"a": "hunter2"}}"#;
    assert_eq!(
        errno(fs::write(tree.file(1, "vm.json"), document)),
        Some(libc::EEXIST)
    );
    assert!(!tree.read(1, "last_error").contains("hunter2"));
}

#[test]
fn a_value_that_was_only_asked_for_is_never_shown() {
    let tree = Written::new(1);
    tree.fake.hold();
    let before = fs::read_to_string(tree.path("vms.json")).unwrap();
    let files = ["quota", "alias", "tags/role", "tags/new"];
    let sizes = || files.map(|file| fs::metadata(tree.file(0, file)).map(|file| file.len()).ok());
    let sizes_before = sizes();
    let mut writers: Vec<Running> = files
        .iter()
        .map(|file| running("bash", &format!("echo 4711 > {file}"), &tree.file(0, "")))
        .collect();
    tree.until_waiting(files.len());
    assert_eq!(sizes(), sizes_before);
    assert_eq!(fs::read_to_string(tree.path("vms.json")).unwrap(), before);
    tree.fake.fail(Some(Failure::Busy(
        "another operation has the VM".to_owned(),
    )));
    tree.fake.let_go();
    for writer in &mut writers {
        writer.ended();
    }
    assert_eq!(sizes(), sizes_before);
    assert_eq!(fs::read_to_string(tree.path("vms.json")).unwrap(), before);
}

#[test]
fn every_failure_has_its_errno() {
    let tree = Written::new(1);
    let text = String::new;
    for (failure, expected) in [
        (Failure::Moved(text()), libc::ESTALE),
        (Failure::Exists(text()), libc::EEXIST),
        (Failure::Busy(text()), libc::EBUSY),
        (Failure::Gone(text()), libc::ENOENT),
        (Failure::Unconfirmed(text()), libc::ETIMEDOUT),
        (Failure::Overtaken(text()), libc::ESTALE),
        (Failure::Ended(text()), libc::ETIMEDOUT),
    ] {
        tree.fake.fail(Some(failure));
        assert_eq!(errno(fs::write(tree.file(0, "quota"), "1")), Some(expected));
    }
}

#[test]
fn ctl_takes_one_verb_a_write_and_its_callers_do_not_meet() {
    let tree = Written::new(1);
    let ctl = tree.file(0, "ctl");
    let metadata = fs::metadata(&ctl).unwrap();
    assert_eq!(
        (metadata.len(), metadata.permissions().mode() & 0o7777),
        (0, 0o600)
    );
    // To who looks twice it is one file.
    assert_eq!(fs::metadata(&ctl).unwrap().ino(), metadata.ino());
    assert!(!tree.read(0, "ctl").is_empty());
    tree.fake.hold();
    let mut blocked = running("sh", "echo reboot > ctl", &tree.file(0, ""));
    tree.until_waiting(1);
    let mut other = running("sh", "echo stop > ctl", &tree.file(0, ""));
    tree.until_waiting(2);
    assert_eq!(tree.fake.asked().len(), 2);
    tree.fake.let_go();
    assert!(blocked.ended().success() && other.ended().success());
    let wrong = fs::write(&ctl, "explode");
    assert_eq!(errno(wrong), Some(libc::EINVAL));
    assert_eq!(last_error(&tree, 0)["file"], "ctl");
    let names: Vec<_> = fs::read_dir(tree.file(0, ""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["ctl", "last_error"] {
        assert_eq!(names.iter().filter(|listed| *listed == name).count(), 1);
    }
}

#[test]
fn create_answers_on_the_same_handle() {
    let tree = Written::new(1);
    let path = tree.path("create");
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut said = String::new();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    file.write_all(b"{\"alias\":").unwrap();
    file.write_all(b" \"new\"}\n").unwrap();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("{}\n", uuid(1001)));
    file.seek(SeekFrom::Start(0)).unwrap();
    said.clear();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("{}\n", uuid(1001)));
    assert_eq!(tree.read(1001, "alias"), "new\n");

    let script =
        "exec 3<> create; echo '{\"alias\": \"two\"}' >&3; read -r uuid <&3; cat $uuid/alias";
    assert_eq!(shell("bash", script, &tree.at()).succeeded(), "two\n");

    tree.fake
        .fail(Some(Failure::Exists("uuid: there is one".to_owned())));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    assert_eq!(errno(file.write_all(b"{}")), Some(libc::EEXIST));
    said.clear();
    file.read_to_string(&mut said).unwrap();
    let error: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&error["errno"], &error["file"]),
        (&json!("EEXIST"), &json!("create"))
    );
    let all = fs::read_to_string(tree.path(".errors")).unwrap();
    assert_eq!(all, said);
}

#[test]
fn a_missing_file_can_be_created_and_is_not_there_before_it_is_confirmed() {
    let tree = Written::new(1);
    let dir = tree.file(0, "");
    tree.fake.hold();
    let path = tree.file(0, "tags/new");
    let file = File::create(&path).unwrap();
    (&file).write_all(b"value\n").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.set_len(0).unwrap();
    assert!(!path.exists());
    let ino = file.metadata().unwrap().ino();
    let closing = std::thread::spawn(move || drop(file));
    tree.until_waiting(1);
    assert!(!path.exists());
    assert!(
        !fs::read_dir(tree.file(0, "tags"))
            .unwrap()
            .any(|entry| entry.unwrap().file_name() == "new")
    );
    tree.fake.let_go();
    support::fake::joined(closing);
    assert_eq!(tree.read(0, "tags/new"), "value\n");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.ino(), metadata.len()), (ino, 6));

    let before = tree.fake.asked().len();
    shell("bash", "touch tags/none; : > hostname", &dir).succeeded();
    assert_eq!(tree.fake.asked().len(), before);
    assert!(!tree.file(0, "tags/none").exists() && !tree.file(0, "hostname").exists());
    let scripts = [
        "echo one > hostname; cat hostname",
        "echo 10.0.0.1 > nics/net0/gateway; cat nics/net0/gateway",
        "echo x > customer_metadata/a%2Fb; cat customer_metadata/a%2Fb",
        "set -C; echo x > tags/excl; cat tags/excl",
    ];
    for script in scripts {
        let done = shell("bash", script, &dir);
        assert_eq!(done.err, "", "{script}");
        assert_eq!(done.out.lines().count(), 1, "{script}");
    }
    let secret = File::create(tree.file(0, "customer_metadata/root_pw")).unwrap();
    assert_eq!(
        secret.metadata().unwrap().permissions().mode() & 0o7777,
        0o600
    );
    drop(secret);
    for (below, expected) in [
        ("nonsense", libc::ENOENT),
        ("zoneid", libc::EPERM),
        ("nics/net0/nonsense", libc::ENOENT),
        ("nics/new", libc::ENOENT),
        ("tags/.hidden.swp", libc::EPERM),
    ] {
        assert_eq!(
            errno(File::create(tree.file(0, below))),
            Some(expected),
            "{below}"
        );
    }
    assert_eq!(errno(File::create(tree.path("new"))), Some(libc::EPERM));
    assert_eq!(
        errno(File::create_new(tree.file(0, "alias"))),
        Some(libc::EEXIST)
    );
}

#[test]
fn what_cannot_be_set_cannot_be_opened_for_writing_and_nothing_can_be_removed() {
    let tree = Written::new(1);
    for path in [
        tree.file(0, "state"),
        tree.file(0, "uuid"),
        tree.file(0, "last_error"),
        tree.path("vms.json"),
        tree.path(".errors"),
        tree.path("events"),
    ] {
        let opened = OpenOptions::new().write(true).open(&path);
        assert_eq!(errno(opened), Some(libc::EPERM), "{}", path.display());
    }
    let before = tree.read(0, "vm.json");
    let rm = shell("sh", "rm -rf ./*", &tree.at());
    assert_ne!(rm.code, Some(0));
    assert!(rm.err.contains("Operation not permitted"));
    for path in ["ctl", "last_error", "alias", "tags/role"] {
        assert_eq!(
            errno(fs::remove_file(tree.file(0, path))),
            Some(libc::EPERM),
            "{path}"
        );
    }
    assert_eq!(
        errno(fs::remove_file(tree.path("create"))),
        Some(libc::EPERM)
    );
    // What an editor does: a swap file, a backup, the new text, and a rename.
    let swap = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(tree.file(0, "tags/.role.swp"));
    assert_eq!(errno(swap), Some(libc::EPERM));
    let renamed = fs::rename(tree.file(0, "tags/role"), tree.file(0, "tags/role~"));
    assert_eq!(errno(renamed), Some(libc::EPERM));
    let sed = shell(
        "bash",
        "umask 022; sed -i s/web/db/ tags/role",
        &tree.file(0, ""),
    );
    assert_ne!(sed.code, Some(0));
    let private = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(tree.file(0, "internal_metadata/new"));
    drop(private.unwrap());
    let temporary = tree.file(0, "tags/4913");
    drop(File::create_new(&temporary).unwrap());
    assert_eq!(errno(fs::remove_file(&temporary)), Some(libc::ENOENT));
    assert_eq!(tree.read(0, "vm.json"), before);
    assert!(tree.fake.asked().is_empty());
}

#[test]
fn who_would_replace_a_file_is_told_to_write_it_in_place() {
    let tree = Written::new(1);
    let dir = tree.file(0, "");
    fs::write(tree.dir().join("private"), "db").unwrap();
    for (number, script) in [
        "umask 022; sed -i s/web/db/ tags/role",
        "mv tags/role tags/other",
        "umask 022; cp -p ../../private tags/new",
    ]
    .iter()
    .enumerate()
    {
        let done = shell("bash", script, &dir);
        assert_ne!(done.code, Some(0), "{script}");
        let error = last_error(&tree, 0);
        assert_eq!(error["errno"], "EPERM", "{script}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("tags/"), "{script}: {message}");
        assert!(message.contains("write in place"), "{script}: {message}");
        let all = fs::read_to_string(tree.path(".errors")).unwrap();
        assert_eq!(all.lines().count(), number + 1, "{script}");
    }
    assert!(tree.fake.asked().is_empty());
    let said = "sed s/web/db/ tags/role > ../../new && cat ../../new > tags/role";
    shell("bash", said, &dir).succeeded();
    assert_eq!(tree.read(0, "tags/role"), "db\n");
}

#[test]
fn a_signal_that_does_nothing_ends_no_wait() {
    let tree = Written::new(3);
    tree.fake.hold();
    fs::write(tree.dir().join("value"), "20").unwrap();
    // A shell takes notice of its children.
    let mut shell = running("bash", "trap : CHLD; echo 20 > quota", &tree.file(2, ""));
    tree.until_waiting(1);
    let script = "exec dd if=../../value of=quota conv=notrunc status=none";
    let mut writer = running("bash", script, &tree.file(0, ""));
    let mut reader = running("bash", "exec cat events", &tree.at());
    tree.until_waiting(2);
    until("the stream waits", || {
        (tree.numbers().waiting() == 1).then_some(())
    });
    shell.signal(Signal::SIGCHLD);
    for signal in [
        Signal::SIGWINCH,
        Signal::SIGCHLD,
        Signal::SIGURG,
        Signal::SIGCONT,
    ] {
        writer.signal(signal);
        reader.signal(signal);
    }
    // All who wait are looked at in turn: when this one has been let go, so would they have been.
    for _ in 0..2 {
        let mut other = running("bash", "echo 20 > quota", &tree.file(1, ""));
        tree.until_waiting(3);
        other.signal(Signal::SIGTERM);
        until("a writer with a signal ends", || {
            other.0.try_wait().unwrap()
        });
    }
    assert_eq!(writer.0.try_wait().unwrap(), None);
    assert_eq!(reader.0.try_wait().unwrap(), None);
    tree.fake.let_go();
    assert!(writer.ended().success());
    assert_eq!(stderr_of(&mut writer), "");
    assert!(shell.ended().success());
    assert_eq!(stderr_of(&mut shell), "");
    reader.signal(Signal::SIGTERM);
}

const STUBBORN: &str = "import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_WRONLY)
os.write(fd, sys.argv[2].encode())
print('done')";

#[test]
fn a_write_that_is_repeated_after_a_signal_is_done_once() {
    let tree = Written::new(1);
    let documents = r#"{"quota": 44}"#;
    for (file, text) in [
        ("ctl", "reboot"),
        ("quota", "33"),
        ("vm.json", documents),
        ("../create", "{}"),
    ] {
        let before = tree.fake.asked().len();
        tree.fake.hold();
        let path = tree.file(0, file);
        let mut command = Command::new("python3");
        command.args(["-c", STUBBORN]).arg(path).arg(text);
        let (mut writer, lines) = Running::printing(&mut command);
        tree.until_waiting(1);
        for _ in 0..2 {
            writer.signal(Signal::SIGUSR1);
            let status = format!("/proc/{}/status", writer.0.id());
            // The signal has been taken, and the write is there again.
            until("the signal is taken", || {
                let status = fs::read_to_string(&status).unwrap();
                let line = status
                    .lines()
                    .find(|line| line.starts_with("ShdPnd:"))
                    .unwrap();
                line.ends_with("0000000000000000").then_some(())
            });
            tree.until_waiting(1);
        }
        tree.fake.let_go();
        assert_eq!(lines.next(), "done");
        assert!(writer.ended().success());
        assert_eq!(tree.fake.asked().len(), before + 1, "{file}");
    }
    assert_eq!(tree.read(0, "quota"), "44\n");
}

#[test]
fn a_killed_writer_ends_and_what_it_asked_for_goes_on() {
    let tree = Written::new(1);
    tree.fake.hold();
    for (index, file) in ["quota", "tags/role", "ctl", "vm.json"]
        .into_iter()
        .enumerate()
    {
        let text = ["77", "killed", "reboot", "{\"ram\": 2048}"][index];
        let script = format!("printf '%s' '{text}' > {file}");
        let mut writer = running("bash", &script, &tree.file(0, ""));
        tree.until_waiting(1);
        writer.signal(Signal::SIGKILL);
        writer.ended();
        tree.until_waiting(0);
    }
    tree.fake.let_go();
    tree.settled();
    assert_eq!(tree.read(0, "quota"), "77\n");
    assert_eq!(tree.read(0, "tags/role"), "killed\n");
    assert_eq!(tree.read(0, "ram"), "2048\n");
}

#[test]
fn who_is_killed_before_it_has_written_all_changes_nothing() {
    let tree = Written::new(1);
    let script = "import os, signal
fd = os.open('tags/role', os.O_WRONLY)
os.write(fd, b'half of ')
os.kill(os.getpid(), signal.SIGKILL)";
    let mut writer = running("python3", script, &tree.file(0, ""));
    writer.ended();
    // A thread that ends its program while another has the file is no kill.
    let script = "import os, threading, time
fd = os.open('tags/env', os.O_WRONLY)
os.write(fd, b'whole')
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
os._exit(0)";
    assert_eq!(python(script, &tree.file(0, "")).code, Some(0));
    until("the text is applied", || {
        (tree.read(0, "tags/env") == "whole\n").then_some(())
    });
    assert_eq!(tree.fake.asked(), ["tags/env=whole"]);
    assert_eq!(tree.read(0, "tags/role"), "web\n");
}

#[test]
fn blocked_writers_block_nobody_else_and_end_with_the_mount() {
    const WRITERS: usize = 64;
    let mut tree = Written::new(WRITERS + 1);
    fs::read_dir(tree.file(0, "")).unwrap().for_each(drop);
    tree.fake.hold();
    let mut writers: Vec<Running> = (0..WRITERS)
        .map(|number| running("bash", "echo 66 > quota", &tree.file(number, "")))
        .collect();
    tree.until_waiting(WRITERS);
    for number in 0..=WRITERS {
        assert_eq!(tree.read(number, "quota"), "10\n");
        assert_eq!(fs::metadata(tree.file(number, "quota")).unwrap().len(), 3);
        assert!(fs::read_dir(tree.file(number, "")).unwrap().count() > 10);
    }
    // A file whose writer waits changes: readers see it, and it is touched when he has his answer.
    tree.fake.set(0, "quota", json!(55));
    tree.settled();
    assert_eq!(tree.read(0, "quota"), "55\n");
    let other = tree.file(WRITERS, "tags/role");
    let writing = std::thread::spawn(move || drop(File::create(other).unwrap()));
    support::fake::joined(writing);
    tree.stop();
    for writer in &mut writers {
        assert!(!writer.ended().success());
        assert!(stderr_of(writer).contains("timed out"));
    }
}

#[test]
fn a_watcher_hears_of_a_change_to_a_file_whose_writer_waits_when_he_is_answered() {
    let tree = Written::new(1);
    let path = tree.file(0, "quota");
    tree.fake.hold();
    let mut writer = running("bash", "echo 66 > quota", &tree.file(0, ""));
    tree.until_waiting(1);
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    inotify.add_watch(&path, AddWatchFlags::IN_MODIFY).unwrap();
    let heard = || inotify.read_events().map_or(0, |events| events.len());
    for number in 0..8 {
        tree.fake.set(0, "quota", json!(100 + number));
        tree.settled();
    }
    // Others are told at once: no thread hangs at the file.
    let alias = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    alias
        .add_watch(&tree.file(0, "alias"), AddWatchFlags::IN_MODIFY)
        .unwrap();
    tree.fake.set(0, "alias", json!("other"));
    until("the other file's watcher hears", || {
        alias.read_events().ok()
    });
    assert_eq!(heard(), 0);
    assert_eq!(tree.read(0, "quota"), "107\n");
    tree.fake.let_go();
    assert!(writer.ended().success());
    until("the watcher hears", || (heard() > 0).then_some(()));
    assert_eq!(tree.read(0, "quota"), "66\n");
}

#[test]
fn writers_of_one_attribute_queue() {
    let tree = Written::new(1);
    tree.fake.hold();
    let mut one = running("sh", "echo 71 > quota", &tree.file(0, ""));
    tree.fake.until_asked(1);
    let mut two = running("sh", "echo 72 > quota", &tree.file(0, ""));
    tree.until_waiting(1);
    tree.fake.let_one_go();
    assert!(one.ended().success());
    tree.fake.until_asked(2);
    tree.fake.let_go();
    assert!(two.ended().success());
    assert_eq!(tree.read(0, "quota"), "72\n");
}

#[test]
fn a_write_that_does_not_block_returns_when_it_is_applied() {
    let tree = Written::new(1);
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(tree.file(0, "quota")).unwrap();
    file.write_all(b"12").unwrap();
    tree.settled();
    assert_eq!(tree.read(0, "quota"), "12\n");
}

#[test]
fn a_write_that_would_block_says_so_and_may_be_tried_again() {
    let tree = Written::new(1);
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let busy = || Some(Failure::WouldBlock("alias: goes on".to_owned()));
    for (file, begin, rest) in [
        ("quota", "", "12"),
        ("ctl", "", "start"),
        ("vm.json", "{\"alias\":", "\"other\"}\n"),
    ] {
        let mut handle = options.open(tree.file(0, file)).unwrap();
        handle.write_all(begin.as_bytes()).unwrap();
        let before = tree.fake.asked().len();
        tree.fake.fail(busy());
        for _ in 0..2 {
            let refused = errno(handle.write_all(rest.as_bytes()));
            assert_eq!(refused, Some(libc::EAGAIN), "{file}");
        }
        tree.fake.fail(None);
        handle.write_all(rest.as_bytes()).unwrap();
        assert_eq!(tree.fake.asked().len(), before + 3, "{file}");
        tree.settled();
    }
    assert_eq!(tree.read(0, "quota"), "12\n");
    assert_eq!(tree.read(0, "alias"), "other\n");
    // It is no failure.
    assert_eq!(tree.read(0, "last_error"), "");
    // Text is applied by close(2), which cannot be tried again and so does not ask for that.
    let mut handle = options.open(tree.file(0, "tags/role")).unwrap();
    handle.write_all(b"db").unwrap();
    drop(handle);
    assert_eq!(tree.fake.asked().last().unwrap(), "tags/role=db");
}

#[test]
fn a_vm_that_goes_takes_its_last_error_with_it() {
    let tree = Written::new(2);
    assert_eq!(
        errno(fs::write(tree.file(0, "quota"), "x")),
        Some(libc::EINVAL)
    );
    let open = File::open(tree.file(0, "last_error")).unwrap();
    tree.fake.remove(0);
    tree.settled();
    assert!(!tree.file(0, "last_error").exists());
    let mut text = String::new();
    assert_eq!(errno((&open).read_to_string(&mut text)), Some(libc::ENODEV));
    assert_eq!(
        fs::read_to_string(tree.path(".errors"))
            .unwrap()
            .lines()
            .count(),
        1
    );
}
