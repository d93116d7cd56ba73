//! Write, then read back: from the same process, from another one, by the shell, by `vmadm`. Each round has
//! another value, and none may be stale.
//!
//! `mount-scripts/torture` runs the same with more rounds: `VMINFOD_ROUNDS` multiplies them.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

mod support;

use support::{Mounted, Store, VMADM, run};

fn rounds(in_ci: usize) -> usize {
    let times = std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse().unwrap());
    in_ci * times
}

/// Another process, which reads files when it is asked to.
struct Reader {
    child: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn new() -> Reader {
        let mut child = Command::new("sh")
            .args(["-c", "while read -r path; do cat \"$path\"; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Reader { child, answers }
    }

    fn read(&mut self, path: &Path) -> String {
        let asks = self.child.stdin.as_mut().unwrap();
        writeln!(asks, "{}", path.display()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn first(mounted: &Mounted<'_>) -> String {
    mounted.uuid(&mounted.store.zones()[0])
}

#[test]
fn a_scalar_that_was_written_is_read_back_everywhere() {
    let store = Store::new(20);
    let mounted = store.mount();
    let uuid = first(&mounted);
    let quota = mounted.path(format!("{uuid}/quota"));
    let held = File::open(&quota).unwrap();
    let mut other = Reader::new();
    for round in 0..rounds(5000) {
        // Of all lengths.
        let value = 1 + round * 7919 % 20_011;
        fs::write(&quota, value.to_string()).unwrap();
        let expected = format!("{value}\n");
        assert_eq!(fs::metadata(&quota).unwrap().len(), expected.len() as u64);
        assert_eq!(fs::read_to_string(&quota).unwrap(), expected);
        let mut buffer = [0; 64];
        let len = held.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[..len], expected.as_bytes());
        if round % 10 == 0 {
            assert_eq!(other.read(&quota), expected);
            assert_eq!(mounted.json(format!("{uuid}/vm.json"))["quota"], value);
            let vms = mounted.json("vms.json");
            let shown = vms
                .as_array()
                .unwrap()
                .iter()
                .find(|vm| vm["uuid"] == *uuid);
            assert_eq!(shown.unwrap()["quota"], value);
        }
    }
}

#[test]
fn what_the_shell_echoes_it_cats() {
    let store = Store::new(5);
    let mounted = store.mount();
    let uuid = first(&mounted);
    let script = format!(
        "cd {} && for i in $(seq 1 {}); do\n\
           echo web$i > alias || exit 1\n\
           [ \"$(cat alias)\" = web$i ] || {{ echo \"stale: $i $(cat alias)\"; exit 1; }}\n\
           [ -L ../.by/alias/web$i ] || {{ echo \"no link: $i\"; exit 1; }}\n\
           echo $i > tags/round || exit 1\n\
           [ \"$(cat tags/round)\" = $i ] || {{ echo \"stale tag: $i\"; exit 1; }}\n\
         done",
        mounted.path(&uuid).display(),
        rounds(500)
    );
    run(Command::new("sh").args(["-c", &script])).succeeded();
}

#[test]
fn what_vmadm_updates_it_gets() {
    let store = Store::new(5);
    let mounted = store.mount();
    let uuid = first(&mounted);
    let vmadm = |arguments: &[&str]| {
        let mut command = Command::new(VMADM);
        command.arg("--mount").arg(&mounted.at).args(arguments);
        run(&mut command).succeeded()
    };
    for round in 0..rounds(500) {
        let shares = 1 + round * 31 % 997;
        vmadm(&["update", &uuid, &format!("cpu_shares={shares}")]);
        let got: Value = serde_json::from_str(&vmadm(&["get", &uuid])).unwrap();
        assert_eq!(got["cpu_shares"], shares);
    }
}

#[test]
fn what_is_created_is_listed_and_what_is_deleted_is_not() {
    let store = Store::new(5);
    let mounted = store.mount();
    let payload = json!({"brand": "joyent", "image_uuid": "01b2c898-945f-11e1-a523-af1afbe22822",
        "alias": "made", "quota": 1, "autoboot": false});
    for _ in 0..rounds(500) {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(mounted.path("create"))
            .unwrap();
        file.write_all(payload.to_string().as_bytes()).unwrap();
        let mut buffer = [0; 64];
        let len = file.read_at(&mut buffer, 0).unwrap();
        let uuid = std::str::from_utf8(&buffer[..len])
            .unwrap()
            .trim_end()
            .to_owned();
        let names = || -> Vec<String> {
            let entries = fs::read_dir(&mounted.at).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        assert!(names().contains(&uuid), "{uuid} is not listed");
        assert_eq!(mounted.read(format!("{uuid}/alias")), "made\n");
        fs::write(mounted.path(format!("{uuid}/ctl")), "delete\n").unwrap();
        assert!(!names().contains(&uuid), "{uuid} is still listed");
        assert!(!mounted.path(&uuid).exists());
        assert!(!store.path(format!("etc/zones/{uuid}.xml")).exists());
    }
}
