//! Races between writers, watchers and others, each forced by a fault switch or by the order in which the
//! test acts.
//!
//! `mount-scripts/torture` runs them with more rounds (`VMINFOD_ROUNDS` multiplies them) and longer delays
//! (`VMINFOD_DELAY_MS`).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vminfod::mutation::Timeouts;

mod support;

use support::direct::Hosted;
use support::{Running, Store, run, until};

const IMAGE: &str = "01b2c898-945f-11e1-a523-af1afbe22822";

fn rounds(in_ci: usize) -> usize {
    let times = std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse().unwrap());
    in_ci * times
}

fn delay() -> Duration {
    let longest = std::env::var("VMINFOD_DELAY_MS").map_or(50, |ms| ms.parse().unwrap());
    Duration::from_millis(longest)
}

/// The uuids of a hosted store's VMs.
fn uuids(hosted: &Hosted) -> Vec<String> {
    let now = hosted.cache.now();
    now.vms.iter().map(|(_, vm)| vm.uuid.to_string()).collect()
}

/// Another process that writes the value 55 to a file, and waits.
fn write_shares(file: &Path) -> Running {
    let mut command = Command::new("dd");
    command.arg(format!("of={}", file.display()));
    command.args(["conv=notrunc", "status=none"]);
    let mut writer = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::null()));
    writer.0.stdin.take().unwrap().write_all(b"55").unwrap();
    writer
}

fn errno(result: std::io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_write_whose_event_is_lost_succeeds_and_is_shown() {
    let hosted = Hosted::new(3);
    let uuid = uuids(&hosted).swap_remove(0);
    hosted.faults.deaf.store(true, Ordering::SeqCst);
    for quota in 1..=20 {
        fs::write(hosted.path(format!("{uuid}/quota")), quota.to_string()).unwrap();
        assert_eq!(hosted.read(format!("{uuid}/quota")), format!("{quota}\n"));
    }
}

#[test]
fn a_write_that_nobody_can_confirm_ends_at_its_deadline_and_names_who_was_silent() {
    let short = Duration::from_millis(200);
    let hosted = Hosted::with(
        3,
        Timeouts {
            change: short,
            life: short,
        },
    );
    let uuid = uuids(&hosted).swap_remove(0);
    let zone = hosted
        .cache
        .vm(&uuid.parse().unwrap())
        .unwrap()
        .zonename
        .to_string();
    let before = hosted.read(format!("{uuid}/cpu_shares"));
    hosted.faults.hang(&[&zone]);
    let written = fs::write(hosted.path(format!("{uuid}/cpu_shares")), "77");
    assert_eq!(errno(written), libc::ETIMEDOUT);
    // What was not read back is not shown.
    assert_eq!(hosted.read(format!("{uuid}/cpu_shares")), before);
    let error: Value = serde_json::from_str(&hosted.read(format!("{uuid}/last_error"))).unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("cpu_shares") && message.contains("etc/zones"),
        "{message}"
    );
    hosted.faults.hang(&[]);
    until("the value is shown in the end", || {
        (hosted.read(format!("{uuid}/cpu_shares")) == "77\n").then_some(())
    });
}

#[test]
fn resizing_and_reverting_in_turn_leaves_nobody_waiting_and_nothing_wrong() {
    let hosted = Hosted::new(5);
    hosted.faults.delay(delay());
    let all = uuids(&hosted);
    thread::scope(|scope| {
        for uuid in &all {
            let hosted = &hosted;
            scope.spawn(move || {
                let quota = hosted.path(format!("{uuid}/quota"));
                let ctl = hosted.path(format!("{uuid}/ctl"));
                fs::write(&quota, "11").unwrap();
                for round in 0..rounds(20) {
                    let size = 12 + round;
                    fs::write(&quota, size.to_string()).unwrap();
                    assert_eq!(fs::read_to_string(&quota).unwrap(), format!("{size}\n"));
                    fs::write(&ctl, "revert").unwrap();
                    assert_eq!(fs::read_to_string(&quota).unwrap(), "11\n");
                }
                assert_eq!(hosted.read(format!("{uuid}/last_error")), "");
            });
        }
    });
    hosted.faults.delay(Duration::ZERO);
}

#[test]
fn two_writers_of_one_property_both_succeed_one_after_the_other() {
    let hosted = Hosted::new(2);
    let uuid = uuids(&hosted).swap_remove(0);
    thread::scope(|scope| {
        for writer in 0..4_u64 {
            let (hosted, uuid) = (&hosted, &uuid);
            // By two files, or the kernel would let only one of them reach us.
            let file = if writer % 2 == 0 { "quota" } else { "vm.json" };
            scope.spawn(move || {
                for round in 0..50_u64 {
                    let value = 1 + writer * 1000 + round;
                    let text = match file {
                        "quota" => value.to_string(),
                        _ => json!({"quota": value}).to_string(),
                    };
                    fs::write(hosted.path(format!("{uuid}/{file}")), text).unwrap();
                }
            });
        }
    });
    let quota: u64 = hosted.read(format!("{uuid}/quota")).trim().parse().unwrap();
    assert_eq!(quota % 1000, 50);
}

#[test]
fn a_writer_whose_vm_is_deleted_is_told_so_and_hangs_nowhere() {
    let hosted = Hosted::new(30);
    let indestructible = |uuid: &String| {
        let vm = hosted.read(format!("{uuid}/vm.json"));
        vm.contains("\"indestructible_")
    };
    for uuid in uuids(&hosted) {
        if indestructible(&uuid) {
            continue;
        }
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for value in 1..10_000 {
                    let file = hosted.path(format!("{uuid}/cpu_shares"));
                    let written = OpenOptions::new()
                        .write(true)
                        .open(file)
                        .and_then(|mut file| file.write_all(value.to_string().as_bytes()));
                    if let Err(error) = written {
                        return error.raw_os_error().unwrap();
                    }
                }
                panic!("the VM was never deleted");
            });
            fs::write(hosted.path(format!("{uuid}/ctl")), "delete").unwrap();
            let errno = writer.join().unwrap();
            assert!([libc::ENOENT, libc::ENODEV].contains(&errno), "{errno}");
        });
        assert!(!hosted.path(&uuid).exists());
    }
}

#[test]
fn a_vm_is_deleted_while_three_processes_hold_its_files_open() {
    let hosted = Hosted::new(3);
    let uuid = uuids(&hosted).swap_remove(0);
    let holders: Vec<_> = ["vm.json", "quota", "ctl"]
        .iter()
        .map(|file| {
            let script = "exec 3<\"$1\"; echo open; read line; cat <&3";
            let mut command = Command::new("bash");
            let file = hosted.path(format!("{uuid}/{file}"));
            command.args(["-c", script, "bash"]).arg(file);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut holder = Running::start(command.stderr(Stdio::null()));
            let mut said = [0; 5];
            holder
                .0
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut said)
                .unwrap();
            holder
        })
        .collect();
    fs::write(hosted.path(format!("{uuid}/ctl")), "delete").unwrap();
    assert!(!hosted.path(&uuid).exists());
    for mut holder in holders {
        drop(holder.0.stdin.take());
        // It reads what it cannot read any more, or what it has read already, and ends.
        until("a holder ends", || holder.0.try_wait().unwrap());
    }
}

#[test]
fn one_uuid_is_created_and_deleted_in_a_loop() {
    let hosted = Hosted::new(1);
    let uuid = "77777777-1111-4222-8333-444444444444";
    let payload = json!({"uuid": uuid, "brand": "joyent", "image_uuid": IMAGE, "autoboot": false});
    for round in 0..rounds(50) {
        let mut payload = payload.clone();
        payload["alias"] = json!(format!("round{round}"));
        fs::write(hosted.path("create"), payload.to_string()).unwrap();
        assert_eq!(
            hosted.read(format!("{uuid}/alias")),
            format!("round{round}\n")
        );
        let again = fs::write(hosted.path("create"), payload.to_string());
        assert_eq!(errno(again), libc::EEXIST);
        fs::write(hosted.path(format!("{uuid}/ctl")), "delete").unwrap();
        assert!(!hosted.path(uuid).exists());
    }
}

#[test]
fn a_thousand_writers_on_a_thousand_vms_are_all_confirmed() {
    let hosted = Hosted::new(1000);
    let all = uuids(&hosted);
    assert_eq!(all.len(), 1000);
    thread::scope(|scope| {
        for uuid in &all {
            let hosted = &hosted;
            thread::Builder::new()
                .stack_size(128 << 10)
                .spawn_scoped(scope, move || {
                    fs::write(hosted.path(format!("{uuid}/cpu_shares")), "123").unwrap();
                    assert_eq!(hosted.read(format!("{uuid}/cpu_shares")), "123\n");
                })
                .unwrap();
        }
    });
}

#[test]
fn sixty_four_writers_that_are_never_confirmed_are_in_nobodys_way() {
    let hosted = Hosted::new(70);
    let mut all = uuids(&hosted);
    let free = all.split_off(64);
    let names: Vec<String> = all
        .iter()
        .map(|uuid| {
            hosted
                .cache
                .vm(&uuid.parse().unwrap())
                .unwrap()
                .zonename
                .to_string()
        })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    hosted.faults.hang(&names);
    let blocked: Vec<Running> = all
        .iter()
        .map(|uuid| write_shares(&hosted.path(format!("{uuid}/cpu_shares"))))
        .collect();
    until("all of them wait", || {
        (hosted.writers_waiting() == 64).then_some(())
    });
    for round in 0..50 {
        for uuid in &free {
            let shares = 1 + round;
            fs::write(
                hosted.path(format!("{uuid}/cpu_shares")),
                shares.to_string(),
            )
            .unwrap();
            assert_eq!(
                hosted.read(format!("{uuid}/cpu_shares")),
                format!("{shares}\n")
            );
        }
        for uuid in &all {
            assert_ne!(hosted.read(format!("{uuid}/cpu_shares")), "55\n");
        }
        run(Command::new("ls").arg("-l").arg(hosted.path(&all[0]))).succeeded();
    }
    // Each is gone as soon as it has a signal; what it wrote comes later.
    for mut writer in blocked {
        let pid = nix::unistd::Pid::from_raw(writer.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        until("a blocked writer ends", || writer.0.try_wait().unwrap());
    }
    hosted.faults.hang(&[]);
    until("what they wrote is shown", || {
        let shown = |uuid: &String| hosted.read(format!("{uuid}/cpu_shares")) == "55\n";
        all.iter().all(shown).then_some(())
    });
}

#[test]
fn who_does_not_want_to_wait_for_the_lock_of_another_tool_is_told_to_try_again() {
    let hosted = Hosted::new(1);
    let uuid = uuids(&hosted).swap_remove(0);
    let before = hosted.read(format!("{uuid}/cpu_shares"));
    fs::create_dir_all(hosted.store.path("var/run")).unwrap();
    let path: PathBuf = (hosted.store).path(format!("var/run/vm.{uuid}.config.lockfile"));
    let lock = File::create(path).unwrap();
    lock.lock().unwrap();
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let shares = hosted.path(format!("{uuid}/cpu_shares"));
    let mut file = options.open(shares).unwrap();
    for _ in 0..3 {
        assert_eq!(errno(file.write_all(b"77")), libc::EAGAIN);
    }
    assert_eq!(hosted.read(format!("{uuid}/cpu_shares")), before);
    assert_eq!(hosted.read(format!("{uuid}/last_error")), "");
    lock.unlock().unwrap();
    file.write_all(b"77").unwrap();
    until("it is shown", || {
        (hosted.read(format!("{uuid}/cpu_shares")) == "77\n").then_some(())
    });
}

#[test]
fn a_vm_whose_xml_is_broken_can_be_deleted() {
    let hosted = Hosted::new(3);
    let uuid = uuids(&hosted).swap_remove(0);
    let xml: PathBuf = hosted.store.path(format!("etc/zones/{uuid}.xml"));
    fs::write(&xml, "<zone").unwrap();
    let write = |file: &str, text: &str| fs::write(hosted.path(format!("{uuid}/{file}")), text);
    assert_eq!(errno(write("cpu_shares", "7")), libc::EIO);
    write("ctl", "delete").unwrap();
    assert!(!hosted.path(&uuid).exists());
    assert!(!xml.exists());
    assert_eq!(uuids(&hosted).len(), 2);
}

#[test]
fn stopping_answers_all_who_wait_and_unmounts() {
    let store = Store::new(8);
    let mut mounted = store.mount_with(&["-o", "load_deadline=60"]);
    let uuids: Vec<String> = store
        .zones()
        .iter()
        .map(|zone| mounted.uuid(zone))
        .collect();
    // A lock that another tool holds: nothing gets as far as being applied.
    fs::create_dir_all(store.path("var/run")).unwrap();
    let locks: Vec<nix::fcntl::Flock<File>> = uuids
        .iter()
        .map(|uuid| {
            let path: PathBuf = store.path(format!("var/run/vm.{uuid}.config.lockfile"));
            let file = File::create(path).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
                .map_err(|(_, errno)| errno)
                .unwrap()
        })
        .collect();
    let mut writers: Vec<Running> = uuids
        .iter()
        .map(|uuid| write_shares(&mounted.path(format!("{uuid}/cpu_shares"))))
        .collect();
    until("all of them wait", || {
        let waiting = mounted.status()["mount"]["writersWaiting"].as_u64();
        (waiting == Some(8)).then_some(())
    });
    let mut umount = Command::new(support::VMINFOD);
    run(umount.arg("umount").arg(&mounted.at)).succeeded();
    assert!(mounted.ended().success());
    for writer in &mut writers {
        let status = until("a writer ends", || writer.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
    }
    drop(locks);
}
