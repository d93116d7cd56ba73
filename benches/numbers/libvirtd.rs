//! A libvirtd of the bench's own with domains of QEMU, and who else asks it: virsh, and libvirt-python. Each ends with
//! the value that stands for it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failure;
use crate::mounts::{PATIENCE, Scratch};

/// A libvirtd.
pub struct Host {
    dir: PathBuf,
    child: Child,
}

impl Host {
    /// Starts it, in a mount namespace and folders of its own, and waits until it answers.
    pub fn start(scratch: &Scratch) -> Result<Host, Failure> {
        let dir = scratch.path("host");
        let folders = ["etc", "run", "var/lib", "var/cache", "var/log"];
        for folder in folders {
            fs::create_dir_all(dir.join(folder).join("libvirt"))?;
        }
        let config = |name: &str| dir.join("etc/libvirt").join(name);
        let qemu = include_str!("../../tests/support/qemu.conf");
        fs::write(config("qemu.conf"), qemu)?;
        let log = dir.join("libvirtd.log");
        let log = format!("log_outputs = \"3:file:{}\"\n", log.display());
        fs::write(config("libvirtd.conf"), log)?;
        let output = fs::File::create(dir.join("libvirtd.out"))?;
        let script = include_str!("../../tests/support/libvirtd.sh");
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .args(["bash", "-c", script, "bash"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut host = Host { dir, child };
        let began = Instant::now();
        while UnixStream::connect(host.socket()).is_err() {
            if host.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                let said = fs::read_to_string(host.dir.join("libvirtd.out"))?;
                return Err(format!("libvirtd does not answer: {}", said.trim()).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(host)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/libvirt/libvirt-sock")
    }

    /// The folder in which its own are.
    pub fn root(&self) -> PathBuf {
        self.dir.clone()
    }

    /// How it is reached.
    pub fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.socket().display())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs virsh to its end.
    pub fn virsh(&self, args: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &self.uri()]).args(args);
        let output = command.stdin(Stdio::null()).output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    }

    fn python(&self, what: &str) -> Command {
        // Debian's libvirt-python belongs to Debian's Python, whatever else is in the PATH.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", include_str!("libvirt.py")]);
        command.args([&self.uri(), what]).stdout(Stdio::piped());
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What ended by itself is no matter; nor is what the namespaces of the bench end with them.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let run = self.dir.join("run/libvirt/qemu");
        for entry in fs::read_dir(run).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "pid")
                && let Ok(pid) = fs::read_to_string(&path)
                && let Ok(pid) = pid.trim().parse()
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// libvirt-python, which asks what it is told to.
pub struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    /// Starts it.
    pub fn start(host: &Host) -> Result<Python, Failure> {
        let mut child = host.python("ask").stdin(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        Ok(Python {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Has it ask; how many seconds that took, by its own clock.
    pub fn ask(&mut self, what: &str) -> Result<f64, Failure> {
        writeln!(self.input, "{what}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let took = line.trim().parse();
        Ok(took.map_err(|_| format!("libvirt-python did not do {what}"))?)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// libvirt-python, to which libvirt tells all events.
pub struct Listener {
    child: Child,
    events: Receiver<(u64, String)>,
}

impl Listener {
    /// Starts it and waits until it hears.
    pub fn start(host: &Host) -> Result<Listener, Failure> {
        let mut child = host.python("events").stdin(Stdio::null()).spawn()?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let (told, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((time, uuid)) = line.split_once(' ')
                    && let Ok(time) = time.parse()
                    && told.send((time, uuid.to_owned())).is_err()
                {
                    return;
                }
            }
        });
        let listener = Listener { child, events };
        listener.next("ready")?;
        Ok(listener)
    }

    /// Forgets what was heard.
    pub fn forget(&self) {
        while self.events.try_recv().is_ok() {}
    }

    /// When the next event of a domain arrived, in ns of CLOCK_MONOTONIC.
    pub fn next(&self, uuid: &str) -> Result<u64, Failure> {
        loop {
            let heard = self.events.recv_timeout(PATIENCE);
            let (time, of) = heard.map_err(|_| "an event of libvirt did not come")?;
            if of == uuid {
                return Ok(time);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
