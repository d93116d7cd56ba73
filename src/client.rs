//! What the command-line tools share: a thin client of a mounted tree.
//!
//! Everything is read through the filesystem, so the tools need no protocol, no port and no rights
//! of their own: who may read a file may use the command that reads it. This module finds the
//! mount, reads its documents and says in one line what is wrong when that fails. [`stream`]
//! follows the events and [`wait`] waits on them, [`select`] reads many VMs, and [`change`] writes:
//! the only one that does. Pure are [`event`], [`status`], [`list`] and [`lookup`], which turn what
//! was read into text, [`path`], [`expression`] and [`fields`], the language of `k=v` filters, and
//! [`validate`]. [`input`] reads payloads, [`output`] prints, [`usage`] answers wrong usage.
//!
//! It never sees the cache, a source, or a daemon's memory.

use std::convert::Infallible;
use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;
use uuid::Uuid;

use crate::vm::Object;

pub mod change;
pub mod event;
pub mod expression;
pub mod fields;
pub mod input;
pub mod list;
pub mod lookup;
pub mod output;
pub mod path;
pub mod select;
pub mod status;
pub mod stream;
pub mod usage;
pub mod validate;
pub mod wait;

/// Where a host's VMs are mounted unless somebody says otherwise.
pub const DEFAULT_MOUNT: &str = "/vms";

/// The variable that names the mount when no option does.
pub const MOUNT_VARIABLE: &str = "VMINFOD_MOUNT";

/// A mounted tree, by its path. Nothing is opened until something is asked of it.
#[derive(Clone, Debug)]
pub struct Mount {
    root: PathBuf,
}

/// How a user names a VM: by its uuid or by its zonename.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName {
    text: String,
    uuid: Option<Uuid>,
}

/// Why a command could not do its work. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount point itself does not exist.
    #[error(
        "{}: no such directory; mount the VMs there with `vminfod mount`, or say with --mount or \
         {MOUNT_VARIABLE} where they are",
        mount.display()
    )]
    NoDirectory {
        /// Where the mount was looked for.
        mount: PathBuf,
    },
    /// The directory is there, but what should be in it is not.
    #[error(
        "{}: not a vminfod mount, as it has no {file}; start one with `vminfod mount`, or say \
         with --mount or {MOUNT_VARIABLE} where it is",
        mount.display()
    )]
    NotVminfod {
        /// Where the mount was looked for.
        mount: PathBuf,
        /// The file that every such mount has.
        file: String,
    },
    /// It is a read-only mount that has no writable one beside it.
    #[error(
        "{}: a read-only mount without {file}; mount with `vminfod mount -o ro_mount=DIR` to have both, and say with \
         --mount or {MOUNT_VARIABLE} where the writable one is",
        mount.display()
    )]
    NoEvents {
        /// The mount.
        mount: PathBuf,
        /// What only the writable one has.
        file: String,
    },
    /// The kernel still has the mount, but nobody serves it.
    #[error(
        "{0}: the vminfod of this mount is dead; clean up with `vminfod umount {0}` or \
         `umount -l {0}`, then mount again",
        mount.display()
    )]
    Dead {
        /// The mount that is left.
        mount: PathBuf,
    },
    /// The file's mode keeps this user out.
    #[error(
        "{}: permission denied; VMs carry passwords, so be root, or of the group given to \
         `vminfod mount -o group=`",
        file.display()
    )]
    Denied {
        /// The file that could not be opened.
        file: PathBuf,
    },
    /// A file holds something else than vminfod writes.
    #[error("{}: not what vminfod writes there: {problem}", file.display())]
    Garbled {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No VM has that uuid or zonename. The words are those of vminfod's HTTP answer.
    #[error("VM Not Found: {0}")]
    VmNotFound(String),
    /// A stream of events has an end only when its daemon has one.
    #[error("{}: the stream has ended: vminfod was stopped or its mount removed", file.display())]
    StreamEnded {
        /// The file that was followed.
        file: PathBuf,
    },
    /// Any other failure to read.
    #[error("{}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// No VM has that uuid or zonename. The words are those of SmartOS's zoneadm, which scripts
    /// around `vmadm` look for.
    #[error("zoneadm: {0}: No such zone configured")]
    NoSuchZone(String),
    /// The mount is one that only shows.
    #[error(
        "{}: VMs cannot be changed through this mount; say with --mount or {MOUNT_VARIABLE} where \
         the writable one is",
        mount.display()
    )]
    ReadOnly {
        /// The mount.
        mount: PathBuf,
    },
    /// A change was refused or failed, in vminfod's own words.
    #[error("{0}")]
    Refused(String),
    /// A change failed, and vminfod has not recorded why.
    #[error("{}: {error}", file.display())]
    Write {
        /// The file that was written.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A filter, column or sort field is none.
    #[error(transparent)]
    Key(#[from] fields::BadKey),
    /// A lookup has no result.
    #[error(transparent)]
    Lookup(#[from] lookup::LookupError),
    /// There is no payload.
    #[error(transparent)]
    Input(#[from] input::InputError),
    /// What was found could not be written out.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
}

impl Mount {
    /// The mount at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Mount {
        Mount { root: root.into() }
    }

    /// The mount that the user means: the option, else the environment, else the usual place.
    pub fn find(option: Option<PathBuf>) -> Mount {
        let from_environment = || env::var_os(MOUNT_VARIABLE).filter(|path| !path.is_empty());
        Mount::new(
            option
                .or_else(|| from_environment().map(PathBuf::from))
                .unwrap_or_else(|| PathBuf::from(DEFAULT_MOUNT)),
        )
    }

    /// The daemon's health: the whole document of `.status`.
    ///
    /// # Errors
    /// When there is no living vminfod behind the mount.
    pub fn status(&self) -> Result<Object, Error> {
        let file = self.root.join(".status");
        let status = parse_object(&file, &self.read(&file)?)?;
        // Other programs keep a `.status` too; the daemon's own always says which process it is.
        match status.get("pid") {
            Some(Value::Number(_)) => Ok(status),
            _ => Err(garbled(&file, "it names no pid")),
        }
    }

    /// All VMs, as one consistent snapshot.
    ///
    /// # Errors
    /// When `vms.json` cannot be read.
    pub fn vms(&self) -> Result<Vec<Object>, Error> {
        let file = self.root.join("vms.json");
        serde_json::from_slice(&self.read(&file)?).map_err(|error| garbled(&file, error))
    }

    /// The VM as it is now, or `None` if there is none of that name.
    ///
    /// # Errors
    /// When the mount cannot be read, which says nothing about the VM.
    pub fn vm(&self, name: &VmName) -> Result<Option<Object>, Error> {
        // Only a uuid ever becomes part of a path, so no name can lead out of the mount.
        if let Some(uuid) = name.uuid {
            let file = self.root.join(uuid.to_string()).join("vm.json");
            match fs::read(&file) {
                Ok(bytes) => return parse_object(&file, &bytes).map(Some),
                // It may still be the zonename of a VM that has another uuid.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.explain(&file, error)),
            }
        }
        Ok(self.vms()?.into_iter().find(|vm| name.names(vm)))
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, Error> {
        fs::read(file).map_err(|error| self.explain(file, error))
    }

    /// What it means that a file of the mount gave this error.
    fn explain(&self, file: &Path, error: io::Error) -> Error {
        let mount = self.root.clone();
        match error.raw_os_error() {
            // ENOTCONN is what a mount answers whose daemon has died; ECONNABORTED is what it
            // answers to those who were being served at that moment.
            Some(libc::ENOTCONN | libc::ECONNABORTED) => Error::Dead { mount },
            Some(libc::ENOENT | libc::ENOTDIR) if !mount.is_dir() => Error::NoDirectory { mount },
            Some(libc::ENOENT) => {
                let below = file.strip_prefix(&mount).unwrap_or(file);
                let file = below.display().to_string();
                match fs::symlink_metadata(mount.join(".all")) {
                    Ok(_) => Error::NoEvents { mount, file },
                    Err(_) => Error::NotVminfod { mount, file },
                }
            }
            Some(libc::EACCES) => Error::Denied {
                file: file.to_owned(),
            },
            _ => Error::Read {
                file: file.to_owned(),
                error,
            },
        }
    }
}

impl VmName {
    /// Takes what the user wrote. A uuid may be in capitals.
    pub fn new(text: impl Into<String>) -> VmName {
        let text = text.into();
        // The crate also reads uuids without dashes, in braces or as URNs; those are zonenames.
        let dashed = text.len() == 36;
        let uuid = dashed.then(|| Uuid::try_parse(&text).ok()).flatten();
        VmName { text, uuid }
    }

    /// Whether it is a uuid: then it may also name a VM that is yet to come. Any other word that
    /// names no VM is more likely a mistake.
    pub fn is_uuid(&self) -> bool {
        self.uuid.is_some()
    }

    /// Whether this VM object, or this event, is of the VM meant.
    pub fn names(&self, object: &Object) -> bool {
        let member = |key| object.get(key).and_then(Value::as_str);
        let same_uuid = |uuid: Uuid| member("uuid").and_then(|it| it.parse().ok()) == Some(uuid);
        member("zonename") == Some(&self.text) || self.uuid.is_some_and(same_uuid)
    }
}

impl FromStr for VmName {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<VmName, Infallible> {
        Ok(VmName::new(text))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// A value as its file in the tree would show it: strings raw, all else as JSON, and null as
/// nothing, since a null has no file.
fn raw_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The text with its control characters escaped, so that no value can break a line in two or send
/// commands to the terminal.
fn printable(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn parse_object(file: &Path, bytes: &[u8]) -> Result<Object, Error> {
    serde_json::from_slice(bytes).map_err(|error| garbled(file, error))
}

fn garbled(file: &Path, problem: impl ToString) -> Error {
    Error::Garbled {
        file: file.to_owned(),
        problem: problem.to_string(),
    }
}

/// Whether a file was not there, or its VM went while it was read.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(file: &str, errno: i32) -> String {
        let mount = Mount::new("/");
        let error = io::Error::from_raw_os_error(errno);
        mount.explain(&mount.root.join(file), error).to_string()
    }

    #[test]
    fn each_failure_says_what_to_do() {
        assert!(message("vms.json", libc::EACCES).starts_with("/vms.json: permission denied; "));
        assert!(message(".status", libc::ENOTCONN).contains("clean up with `vminfod umount /`"));
        assert!(message(".status", libc::ENOENT).contains("as it has no .status; start one"));
        assert!(message("vms.json", libc::EIO).starts_with("/vms.json: Input/output error"));
    }

    #[test]
    fn a_vm_that_goes_while_it_is_read_is_not_there() {
        assert!(is_gone(&io::Error::from_raw_os_error(libc::ENODEV)));
        assert!(is_gone(&io::Error::from_raw_os_error(libc::ENOENT)));
        assert!(!is_gone(&io::Error::from_raw_os_error(libc::ENOTCONN)));
    }

    #[test]
    fn only_the_dashed_form_is_a_uuid() {
        let dashed = "c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e";
        assert!(VmName::new(dashed).is_uuid());
        assert!(VmName::new(dashed.to_uppercase()).is_uuid());
        assert!(!VmName::new(dashed.replace('-', "")).is_uuid());
        assert!(!VmName::new("../../../../../../../../../../../../etc").is_uuid());
        assert!(!VmName::new("").is_uuid());
    }

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(printable("größer"), "größer");
    }
}
