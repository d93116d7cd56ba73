//! What `settle` does through the VFS, on the thread `announce`.
//!
//! The two are not one thread, since whoever goes through the door may have nothing else open
//! ([`super::door`]), and `settle` needs the way to the kernel. `settle` asks and waits.
//!
//! **Names come and go** by `mkdir` and `rmdir`, so that inotify hears of them; the server
//! recognises the thread's requests, and makes the name appear or vanish in the answer.
//!
//! **Changed files are looked at** by stat(2) before the kernel may keep their attributes again and
//! their change is told: [`super::settle`] says why.
//!
//! All of these may need a directory's lock, which a process that lists the directory may keep, if its
//! buffer is memory that is slow to come. So `settle` waits for [`PATIENCE`] only, and then shows
//! or hides the name itself. Such an announcement is *late*: it remains in the queue, and when it
//! gets through changes nothing any more, but makes the kernel drop a name that went.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::debug;
use uuid::Uuid;

use super::door;
use super::errno::Refused;
use super::tree::Tree;

/// How long `settle` waits for an errand. While one is late it waits for no other.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many files one errand looks at: far fewer than take as long as `settle` waits.
const AT_ONCE: usize = 1000;

/// What happens to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It appears.
    Come,
    /// It vanishes.
    Go,
}

/// How an errand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It was run, or could not be run.
    Done,
    /// It has not been run yet.
    Late,
}

/// What is to be done through the VFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A VM's name is to appear or vanish.
    Name {
        /// Which of them.
        change: Change,
        /// The VM's slot.
        slot: u64,
        /// The VM.
        uuid: Uuid,
    },
    /// Files are to be looked at: their paths below the mount.
    Look(Vec<String>),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(u64, Errand)>,
    /// The one that is being run.
    now: Option<(u64, Errand)>,
    /// The number of the last that was asked for.
    asked: u64,
    /// The number of the last that has been run, or could not be.
    done: u64,
    /// The number of the last for which nobody waits any more.
    late: u64,
    /// Why the last could not be run.
    failed: Option<io::Error>,
    ended: bool,
}

/// The errands of `settle`.
#[derive(Debug, Default)]
pub struct Announcing {
    /// The number of the announcing thread, by which its requests are known.
    thread: AtomicU32,
    state: Mutex<State>,
    asked: Condvar,
    done: Condvar,
}

impl Announcing {
    /// Has a name appear or vanish through the VFS.
    pub fn announce(&self, change: Change, slot: u64, uuid: Uuid) -> Announced {
        let mut state = self.state.lock();
        let announced = self.run_errand(&mut state, Errand::Name { change, slot, uuid });
        match (announced, state.failed.take()) {
            (Announced::Late, _) => debug!(vm = %uuid, "inotify on the root is told late"),
            (Announced::Done, Some(error)) => {
                debug!(vm = %uuid, %error, "inotify on the root was not told");
            }
            (Announced::Done, None) => {}
        }
        announced
    }

    /// Has files looked at, so that what the kernel shows of them is what they are now; none while
    /// the thread hangs.
    pub fn look(&self, mut paths: Vec<String>) {
        while !paths.is_empty() {
            let rest = paths.split_off(paths.len().min(AT_ONCE));
            let mut state = self.state.lock();
            if state.done < state.asked
                || self.run_errand(&mut state, Errand::Look(paths)) == Announced::Late
            {
                debug!("changed files are not looked at before their events");
                return;
            }
            paths = rest;
        }
    }

    fn run_errand(&self, state: &mut MutexGuard<'_, State>, errand: Errand) -> Announced {
        let behind = state.done < state.asked;
        state.asked += 1;
        let number = state.asked;
        state.queue.push_back((number, errand));
        self.asked.notify_one();
        if !behind {
            let deadline = Instant::now() + PATIENCE;
            while state.done < number
                && !state.ended
                && !self.done.wait_until(state, deadline).timed_out()
            {}
        }
        if state.done < number {
            state.late = number;
            return Announced::Late;
        }
        Announced::Done
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.asked.notify_one();
        self.done.notify_one();
    }

    /// Runs errands until ended: the thread `announce`.
    pub fn run(&self, mut run: impl FnMut(&Errand) -> io::Result<()>) {
        let thread = nix::unistd::gettid().as_raw() as u32;
        self.thread.store(thread, Ordering::Release);
        while let Some((number, errand)) = self.next() {
            let result = run(&errand);
            let mut state = self.state.lock();
            state.now = None;
            state.done = number;
            state.failed = result.err();
            self.done.notify_one();
        }
    }

    fn next(&self) -> Option<(u64, Errand)> {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.ended {
            self.asked.wait(&mut state);
        }
        if state.ended {
            return None;
        }
        state.now = state.queue.pop_front();
        state.now.clone()
    }

    /// Answers the announcing thread's own request: makes the name appear or vanish, and says in
    /// which slot. The name of a late announcement is as it should be already.
    ///
    /// # Errors
    /// When it is somebody else's request, or comes too late.
    pub fn answer(
        &self,
        tid: u32,
        name: &OsStr,
        change: Change,
        tree: &Tree,
    ) -> Result<u64, Refused> {
        if tid == 0 || tid != self.thread.load(Ordering::Acquire) {
            return Err(Refused::NotPermitted);
        }
        // Kept until the name is changed: it becomes late before that or after it.
        let state = self.state.lock();
        let (number, slot, uuid) = match state.now {
            Some((
                number,
                Errand::Name {
                    change: asked,
                    slot,
                    uuid,
                },
            )) if asked == change && name.to_str() == Some(&uuid.to_string()) => {
                (number, slot, uuid)
            }
            _ => return Err(Refused::NotPermitted),
        };
        let late = number <= state.late;
        match change {
            Change::Come if late => return Err(Refused::NotPermitted),
            Change::Come => drop(tree.show(slot, uuid)),
            // It has come back. For this error too the kernel drops the name, and asks anew.
            Change::Go if late && tree.slot_of(&uuid).is_some() => return Err(Refused::NoEntry),
            Change::Go if late => {}
            Change::Go => tree.hide(slot),
        }
        Ok(slot)
    }
}

/// Starts the thread that runs the errands in the filesystem mounted at `path`.
///
/// # Errors
/// Those of [`door::spawn`].
pub fn spawn(
    name: &str,
    path: &Path,
    device: u64,
    announcing: Arc<Announcing>,
) -> io::Result<JoinHandle<()>> {
    door::spawn(name, path, device, move |door| {
        announcing.run(|errand| match errand {
            Errand::Name { change, uuid, .. } => match change {
                Change::Come => door.mkdir(&uuid.to_string()),
                Change::Go => door.rmdir(&uuid.to_string()),
            },
            // One that is gone needs no look.
            Errand::Look(paths) => {
                paths.iter().for_each(|path| drop(door.stat(path)));
                Ok(())
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn an_announcement_that_hangs_is_given_up_and_those_behind_it_are_not_waited_for() {
        let announcing = Announcing::default();
        let uuid = Uuid::from_u128(1);
        let (release, released) = mpsc::channel::<()>();
        let made = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let (announcing, made) = (&announcing, &made);
            scope.spawn(move || {
                announcing.run(|errand| {
                    released.recv().map_err(io::Error::other)?;
                    made.lock().push(errand.clone());
                    Ok(())
                });
            });
            assert_eq!(announcing.announce(Change::Come, 1, uuid), Announced::Late);
            for _ in 0..100 {
                assert_eq!(announcing.announce(Change::Go, 1, uuid), Announced::Late);
            }
            // Nor does looking wait, or pile up.
            announcing.look(vec!["alias".to_owned()]);
            for _ in 0..101 {
                release.send(()).unwrap();
            }
            while announcing.state.lock().done < 101 {
                thread::yield_now();
            }
            release.send(()).unwrap();
            assert_eq!(announcing.announce(Change::Come, 1, uuid), Announced::Done);
            announcing.end();
        });
        assert_eq!(made.lock().len(), 102);
        let change = Change::Come;
        assert_eq!(
            made.lock()[0],
            Errand::Name {
                change,
                slot: 1,
                uuid
            }
        );
    }

    #[test]
    fn an_announcement_that_fails_is_over() {
        let announcing = Announcing::default();
        thread::scope(|scope| {
            scope.spawn(|| announcing.run(|_| Err(io::ErrorKind::NotFound.into())));
            let uuid = Uuid::from_u128(1);
            assert_eq!(announcing.announce(Change::Come, 1, uuid), Announced::Done);
            announcing.end();
        });
    }
}
