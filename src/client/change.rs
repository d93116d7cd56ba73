//! Changing VMs: what is written to the mount, and what is said of it.
//!
//! A change is one write(2) to a file of the tree, which returns when every read shows it; there is
//! nothing to poll and nothing to repeat. What errno says in a word, `last_error` says in a sentence,
//! and that is what the operator reads. A signal that ends the program, such as Ctrl-C, ends the
//! wait; the change may still take effect then.
//!
//! The words are those of SmartOS's tool.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use serde_json::Value;
use uuid::Uuid;

use super::{Error, Mount, VmName, garbled, parse_object, printable};
use crate::vm::Object;

/// More than `create` ever answers.
const ANSWER: usize = 64 * 1024;

/// What is done to a whole VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Boot it.
    Start,
    /// Shut it down.
    Stop(Stop),
    /// Stop and start it.
    Reboot(Stop),
    /// Send its init a signal, named as the user named it.
    Kill(String),
    /// Remove it with its datasets.
    Delete,
    /// Take a snapshot of this name.
    Snapshot(String),
    /// Go back to a snapshot.
    Rollback(String),
    /// Remove a snapshot.
    DeleteSnapshot(String),
}

/// How a guest is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is asked to shut down.
    Asked,
    /// It is asked, and halted if it is not down after so many seconds.
    Within(u64),
    /// It is halted at once.
    Forced,
}

/// How an action ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was done.
    Now,
    /// There was nothing to do.
    Already,
}

impl Mount {
    /// The VM as it is now.
    ///
    /// # Errors
    /// When there is none of that name, or the mount cannot be read.
    pub fn existing(&self, name: &VmName) -> Result<Object, Error> {
        let vm = self.vm(name)?;
        vm.ok_or_else(|| Error::NoSuchZone(name.to_string()))
    }

    /// Does something to a VM and waits until it is done.
    ///
    /// # Errors
    /// When it was not done, or there is no such VM.
    pub fn act(&self, name: &VmName, action: &Action) -> Result<Done, Error> {
        let vm = self.existing(name)?;
        let state = vm.get("state").and_then(Value::as_str);
        if action.result().is_some() && action.result() == state {
            return Ok(Done::Already);
        }
        self.write(name, &vm, "ctl", action.verb().as_bytes())?;
        Ok(Done::Now)
    }

    /// Changes a VM by a payload and waits until every read shows it.
    ///
    /// # Errors
    /// When it was refused or could not be applied, or there is no such VM.
    pub fn update(&self, name: &VmName, payload: &Object) -> Result<(), Error> {
        let vm = self.existing(name)?;
        let document = Value::Object(payload.clone()).to_string();
        self.write(name, &vm, "vm.json", document.as_bytes())
    }

    /// Makes a VM, waits until it is there and returns its uuid.
    ///
    /// # Errors
    /// When the payload was refused, or the VM could not be made.
    pub fn create(&self, payload: &Object) -> Result<Uuid, Error> {
        let file = self.root.join("create");
        let mut options = OpenOptions::new();
        let open = options.read(true).write(true).open(&file);
        let mut open = open.map_err(|error| self.unwritable(&file, error))?;
        let document = Value::Object(payload.clone()).to_string();
        let written = open.write_all(document.as_bytes());
        // The same handle then has the VM's uuid or, after a failure, what went wrong.
        let answer = answer(&mut open);
        match written {
            Ok(()) => {
                let answer = answer.map_err(|error| self.explain(&file, error))?;
                let uuid = answer.trim_ascii();
                Uuid::try_parse_ascii(uuid).map_err(|error| garbled(&file, error))
            }
            Err(error) => {
                let failure = answer
                    .ok()
                    .and_then(|line| serde_json::from_slice(&line).ok());
                Err(self.failed(&file, error, failure))
            }
        }
    }

    /// Writes to a file of a VM. Many bytes may take many writes; the one that completes them waits.
    fn write(&self, name: &VmName, vm: &Object, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let directory = self.root.join(self.uuid(vm)?.to_string());
        let path = directory.join(file);
        let mut open = match OpenOptions::new().write(true).open(&path) {
            Ok(open) => open,
            // It went after it was looked at.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => {
                return Err(Error::NoSuchZone(name.to_string()));
            }
            Err(error) => return Err(self.unwritable(&path, error)),
        };
        // This repeats a write after EINTR, as when the program was stopped and goes on: vminfod
        // takes the same bytes on the same handle for the same change.
        open.write_all(bytes).map_err(|error| {
            let failure = last_error(&directory.join("last_error"));
            let ours = failure.filter(|failure| text(failure, "file") == Some(file));
            self.failed(&path, error, ours)
        })
    }

    /// Why a file could not be opened for writing. A mount that only shows has no `ctl` and no
    /// `create`.
    fn unwritable(&self, file: &Path, error: io::Error) -> Error {
        let shown = || self.root.join("vms.json").exists();
        match error.raw_os_error() {
            Some(libc::EROFS) => {}
            Some(libc::ENOENT) if shown() => {}
            _ => return self.explain(file, error),
        }
        Error::ReadOnly {
            mount: self.root.clone(),
        }
    }

    /// Why a write failed: what vminfod has recorded of it, if that is of this failure.
    fn failed(&self, file: &Path, error: io::Error, recorded: Option<Object>) -> Error {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
        let recorded = recorded.filter(|record| text(record, "errno") == Some(&errno_name(errno)));
        match recorded.as_ref().and_then(|record| text(record, "message")) {
            Some(message) => Error::Refused(printable(message)),
            None => match errno {
                Errno::ENOTCONN | Errno::ECONNABORTED => self.explain(file, error),
                _ => Error::Write {
                    file: file.to_owned(),
                    error,
                },
            },
        }
    }

    /// The uuid that names the VM's directory.
    fn uuid(&self, vm: &Object) -> Result<Uuid, Error> {
        let uuid = text(vm, "uuid").and_then(|uuid| uuid.parse().ok());
        uuid.ok_or_else(|| garbled(&self.root.join("vms.json"), "a VM has no uuid"))
    }
}

impl Action {
    /// What is written to `ctl`.
    fn verb(&self) -> String {
        match self {
            Action::Start => "start".to_owned(),
            Action::Stop(how) => format!("stop{}", how.argument()),
            Action::Reboot(how) => format!("reboot{}", how.argument()),
            Action::Kill(signal) => {
                format!("kill {}", signal.strip_prefix("SIG").unwrap_or(signal))
            }
            Action::Delete => "delete".to_owned(),
            Action::Snapshot(snapshot) => format!("snapshot {snapshot}"),
            Action::Rollback(snapshot) => format!("rollback {snapshot}"),
            Action::DeleteSnapshot(snapshot) => format!("delete-snapshot {snapshot}"),
        }
    }

    /// The state in which there is nothing to do.
    fn result(&self) -> Option<&'static str> {
        match self {
            Action::Start => Some("running"),
            Action::Stop(_) => Some("stopped"),
            _ => None,
        }
    }

    /// What is said when it ended well.
    pub fn success(&self, name: &VmName, done: Done) -> String {
        if let (Done::Already, Some(state)) = (done, self.result()) {
            return format!("VM {name} is already '{state}'");
        }
        match self {
            Action::Start => format!("Successfully started VM {name}"),
            Action::Stop(_) => format!("Successfully completed stop for VM {name}"),
            Action::Reboot(_) => format!("Successfully completed reboot for VM {name}"),
            Action::Kill(signal) => {
                format!("Sent signal {signal:?} to init process for VM {name}")
            }
            Action::Delete => format!("Successfully deleted VM {name}"),
            Action::Snapshot(snapshot) => format!("Created snapshot {snapshot} for VM {name}"),
            Action::Rollback(snapshot) => {
                format!("Rolled back snapshot {snapshot} for VM {name}")
            }
            Action::DeleteSnapshot(snapshot) => {
                format!("Deleted snapshot {snapshot} for VM {name}")
            }
        }
    }

    /// What is said when it did not.
    pub fn failure(&self, name: &VmName, error: &Error) -> String {
        match self {
            Action::Start => format!("Unable to start VM {name}: {error}"),
            Action::Delete => format!("Failed to delete VM {name}: {error}"),
            _ => error.to_string(),
        }
    }
}

impl Stop {
    fn argument(self) -> String {
        match self {
            Stop::Asked => String::new(),
            Stop::Within(seconds) => format!(" {seconds}"),
            Stop::Forced => " force".to_owned(),
        }
    }
}

/// What a handle of `create` answers after a write: one read has all of it.
fn answer(open: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; ANSWER];
    loop {
        match open.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(length) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
        }
    }
}

fn last_error(file: &Path) -> Option<Object> {
    let bytes = fs::read(file).ok()?;
    parse_object(file, &bytes).ok()
}

/// The name as `last_error` has it: `EINVAL`.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

fn text<'a>(object: &'a Object, member: &str) -> Option<&'a str> {
    object.get(member)?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    const UUID: &str = "c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e";

    fn all() -> [Action; 10] {
        [
            Action::Start,
            Action::Stop(Stop::Asked),
            Action::Stop(Stop::Within(60)),
            Action::Stop(Stop::Forced),
            Action::Reboot(Stop::Forced),
            Action::Kill("SIGHUP".to_owned()),
            Action::Delete,
            Action::Snapshot("a".to_owned()),
            Action::Rollback("a".to_owned()),
            Action::DeleteSnapshot("a".to_owned()),
        ]
    }

    #[test]
    fn each_action_is_a_verb_of_ctl() {
        let verbs = all().map(|action| action.verb());
        let expected = [
            "start",
            "stop",
            "stop 60",
            "stop force",
            "reboot force",
            "kill HUP",
            "delete",
            "snapshot a",
            "rollback a",
            "delete-snapshot a",
        ];
        assert_eq!(verbs, expected);
    }

    #[test]
    fn success_is_told_in_the_words_of_smartos() {
        let said = all().map(|action| action.success(&VmName::new("U"), Done::Now));
        let expected = [
            "Successfully started VM U",
            "Successfully completed stop for VM U",
            "Successfully completed stop for VM U",
            "Successfully completed stop for VM U",
            "Successfully completed reboot for VM U",
            "Sent signal \"SIGHUP\" to init process for VM U",
            "Successfully deleted VM U",
            "Created snapshot a for VM U",
            "Rolled back snapshot a for VM U",
            "Deleted snapshot a for VM U",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn failure_is_told_in_the_words_of_smartos() {
        let said =
            |action: Action| action.failure(&VmName::new("U"), &Error::NoSuchZone("U".to_owned()));
        assert_eq!(
            said(Action::Start),
            "Unable to start VM U: zoneadm: U: No such zone configured"
        );
        assert_eq!(
            said(Action::Delete),
            "Failed to delete VM U: zoneadm: U: No such zone configured"
        );
        assert_eq!(
            said(Action::Stop(Stop::Asked)),
            "zoneadm: U: No such zone configured"
        );
    }

    /// A directory that looks like a mount with one VM.
    fn tree(state: &str) -> TempDir {
        let tree = TempDir::new().unwrap();
        let vm = json!({"zonename": "web", "uuid": UUID, "state": state});
        let directory = tree.path().join(UUID);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("vm.json"), vm.to_string()).unwrap();
        fs::write(directory.join("ctl"), "").unwrap();
        fs::write(directory.join("last_error"), "").unwrap();
        fs::write(tree.path().join("vms.json"), format!("[\n{vm}\n]\n")).unwrap();
        tree
    }

    #[test]
    fn a_verb_is_written_to_the_vm_that_is_named_by_uuid_or_zonename() {
        for name in [UUID, &UUID.to_uppercase(), "web"] {
            let tree = tree("stopped");
            let mount = Mount::new(tree.path());
            let done = mount.act(&VmName::new(name), &Action::Start).unwrap();
            assert_eq!(done, Done::Now);
            let ctl = fs::read_to_string(tree.path().join(UUID).join("ctl")).unwrap();
            assert_eq!(ctl, "start");
        }
    }

    #[test]
    fn nothing_is_written_when_there_is_nothing_to_do() {
        let cases = [
            ("running", Action::Start, "VM web is already 'running'"),
            (
                "stopped",
                Action::Stop(Stop::Forced),
                "VM web is already 'stopped'",
            ),
        ];
        for (state, action, said) in cases {
            let tree = tree(state);
            let name = VmName::new("web");
            let done = Mount::new(tree.path()).act(&name, &action).unwrap();
            assert_eq!(action.success(&name, done), said);
            let ctl = fs::read_to_string(tree.path().join(UUID).join("ctl")).unwrap();
            assert_eq!(ctl, "");
        }
    }

    #[test]
    fn a_vm_that_is_not_there_is_no_zone() {
        let tree = tree("running");
        let mount = Mount::new(tree.path());
        let error = mount.act(&VmName::new("db"), &Action::Delete).unwrap_err();
        assert_eq!(error.to_string(), "zoneadm: db: No such zone configured");
    }

    #[test]
    fn a_mount_that_only_shows_is_named() {
        let tree = tree("stopped");
        fs::remove_file(tree.path().join(UUID).join("ctl")).unwrap();
        let mount = Mount::new(tree.path());
        let started = mount.act(&VmName::new(UUID), &Action::Start);
        let created = mount.create(&Object::new());
        for error in [started.unwrap_err(), created.unwrap_err()] {
            assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
        }
        let nothing = Mount::new(tree.path().join("nothing"));
        let error = nothing.create(&Object::new()).unwrap_err();
        assert!(matches!(error, Error::NoDirectory { .. }), "{error}");
    }

    /// What is said of a write that failed with EINVAL.
    fn said(recorded: Option<Value>) -> String {
        let recorded = recorded.and_then(|record| record.as_object().cloned());
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let mount = Mount::new("/vms");
        mount
            .failed(Path::new("/vms/x/ctl"), error, recorded)
            .to_string()
    }

    #[test]
    fn a_failed_write_is_explained_by_what_was_recorded_of_it() {
        assert_eq!(
            said(Some(
                json!({"errno": "EINVAL", "message": "quota: not\na number"})
            )),
            "quota: not\\na number"
        );
    }

    #[test]
    fn a_record_of_another_failure_explains_nothing() {
        let plain = "/vms/x/ctl: Invalid argument (os error 22)";
        assert_eq!(
            said(Some(json!({"errno": "EIO", "message": "the disk broke"}))),
            plain
        );
        assert_eq!(said(Some(json!({"errno": "EINVAL"}))), plain);
        assert_eq!(said(None), plain);
    }

    #[test]
    fn a_daemon_that_dies_meanwhile_is_told_of() {
        let error = io::Error::from_raw_os_error(libc::ENOTCONN);
        let mount = Mount::new("/vms");
        let said = mount.failed(Path::new("/vms/create"), error, None);
        assert!(matches!(said, Error::Dead { .. }), "{said}");
    }
}
