//! The other filesystems in userspace that ours is compared with. Each ends with the value that stands for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::mounts::{PATIENCE, Scratch, end};

/// A mounted rival.
pub struct Rival<'a> {
    path: PathBuf,
    child: Child,
    _scratch: &'a Scratch,
}

impl<'a> Rival<'a> {
    /// Starts it in the foreground on a folder of its own, and waits until a file in it can be read.
    fn mount(
        scratch: &'a Scratch,
        name: &str,
        mut command: Command,
        file: &str,
    ) -> Result<Rival<'a>, Failure> {
        let path = scratch.path(name);
        fs::create_dir(&path)?;
        // libfuse warns of a number of threads that it has chosen itself.
        command
            .args(["-f".as_ref(), path.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let mut rival = Rival {
            path,
            child,
            _scratch: scratch,
        };
        let deadline = Instant::now() + PATIENCE;
        while fs::read(rival.path(file)).is_err() {
            if rival.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("{command:?}: did not mount").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(rival)
    }

    /// One of libfuse3's two `hello`, by its program.
    pub fn hello(scratch: &'a Scratch, programs: &Path, name: &str) -> Result<Rival<'a>, Failure> {
        Rival::mount(scratch, name, Command::new(programs.join(name)), "hello")
    }

    /// libfuse3's `passthrough_ll` over a folder, with a file that is there.
    pub fn passthrough(
        scratch: &'a Scratch,
        programs: &Path,
        source: &Path,
        file: &str,
    ) -> Result<Rival<'a>, Failure> {
        let mut command = Command::new(programs.join("passthrough_ll"));
        command
            .arg("-o")
            .arg(format!("source={}", source.display()));
        Rival::mount(scratch, "passthrough_ll", command, file)
    }

    /// lxcfs.
    pub fn lxcfs(scratch: &'a Scratch) -> Result<Rival<'a>, Failure> {
        let mut command = Command::new("lxcfs");
        command.arg("-p").arg(scratch.path("lxcfs.pid"));
        Rival::mount(scratch, "lxcfs", command, "proc/uptime")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }
}

impl Drop for Rival<'_> {
    fn drop(&mut self) {
        end(&mut self.child, &self.path);
    }
}
