//! Makes VMs' names come and go through the VFS, on the thread `announce`, so that inotify hears.
//!
//! `settle` asks for `mkdir` and `rmdir` and waits; the server recognises the thread's requests,
//! and makes the name appear or vanish in the answer. The two are not one thread, since whoever
//! goes through the door may have nothing else open ([`super::door`]), and `settle` needs the way to
//! the kernel.
//!
//! Both calls need the root's lock, which a process that reads the root may keep, if its
//! buffer is memory that is slow to come. So `settle` waits for [`PATIENCE`] only, and then shows
//! or hides the name itself. Such an announcement is *late*: it remains in the queue, and when it
//! gets through changes nothing any more, but makes the kernel drop a name that went.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::debug;
use uuid::Uuid;

use super::errno::Refused;
use super::tree::Tree;

/// How long `settle` waits for an announcement. While one is late it waits for no other.
const PATIENCE: Duration = Duration::from_secs(1);

/// What happens to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It appears.
    Come,
    /// It vanishes.
    Go,
}

/// How an announcement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It was made, or could not be made.
    Done,
    /// It has not been made yet.
    Late,
}

#[derive(Clone, Copy, Debug)]
struct Announcement {
    number: u64,
    change: Change,
    slot: u64,
    uuid: Uuid,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Announcement>,
    /// The one that is being made.
    now: Option<Announcement>,
    /// The number of the last that was asked for.
    asked: u64,
    /// The number of the last that has been made, or could not be.
    done: u64,
    /// The number of the last for which nobody waits any more.
    late: u64,
    /// Why the last could not be made.
    failed: Option<io::Error>,
    ended: bool,
}

/// Names that are to come and go.
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
        let behind = state.done < state.asked;
        state.asked += 1;
        let number = state.asked;
        state.queue.push_back(Announcement {
            number,
            change,
            slot,
            uuid,
        });
        self.asked.notify_one();
        if !behind {
            let deadline = Instant::now() + PATIENCE;
            while state.done < number
                && !state.ended
                && !self.done.wait_until(&mut state, deadline).timed_out()
            {}
        }
        if state.done < number {
            state.late = number;
            debug!(vm = %uuid, "inotify on the root is told late");
            return Announced::Late;
        }
        if let Some(error) = state.failed.take() {
            debug!(vm = %uuid, %error, "inotify on the root was not told");
        }
        Announced::Done
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.asked.notify_one();
        self.done.notify_one();
    }

    /// Makes announcements until ended: the thread `announce`.
    pub fn run(&self, mut make: impl FnMut(Change, &str) -> io::Result<()>) {
        let thread = nix::unistd::gettid().as_raw() as u32;
        self.thread.store(thread, Ordering::Release);
        while let Some(announcement) = self.next() {
            let made = make(announcement.change, &announcement.uuid.to_string());
            let mut state = self.state.lock();
            state.now = None;
            state.done = announcement.number;
            state.failed = made.err();
            self.done.notify_one();
        }
    }

    fn next(&self) -> Option<Announcement> {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.ended {
            self.asked.wait(&mut state);
        }
        if state.ended {
            return None;
        }
        state.now = state.queue.pop_front();
        state.now
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
        let own = state
            .now
            .filter(|now| now.change == change && name.to_str() == Some(&now.uuid.to_string()));
        let Some(Announcement {
            number, slot, uuid, ..
        }) = own
        else {
            return Err(Refused::NotPermitted);
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
                announcing.run(|change, _| {
                    released.recv().map_err(io::Error::other)?;
                    made.lock().push(change);
                    Ok(())
                });
            });
            assert_eq!(announcing.announce(Change::Come, 1, uuid), Announced::Late);
            for _ in 0..100 {
                assert_eq!(announcing.announce(Change::Go, 1, uuid), Announced::Late);
            }
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
        assert_eq!(made.lock()[0], Change::Come);
    }

    #[test]
    fn an_announcement_that_fails_is_over() {
        let announcing = Announcing::default();
        thread::scope(|scope| {
            scope.spawn(|| announcing.run(|_, _| Err(io::ErrorKind::NotFound.into())));
            let uuid = Uuid::from_u128(1);
            assert_eq!(announcing.announce(Change::Come, 1, uuid), Announced::Done);
            announcing.end();
        });
    }
}
