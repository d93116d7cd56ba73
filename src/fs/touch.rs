//! Raises IN_MODIFY for files that changed, on the threads `touch-N`.
//!
//! Files are touched after the kernel's caches have been put right, each at most once however often
//! it changed meanwhile, and only if the kernel holds them or their directory: nobody can watch
//! what it does not hold.
//!
//! A touch waits while somebody holds a lease on the file (45 s, unless he gives it back), or its
//! lock, which is why nobody waits for a touch. Files are touched one after the other, but when
//! one takes longer than [`LATE`] another thread goes on with the others. A file keeps one thread
//! waiting, never two. Only when as many files as there are threads cannot be touched do the
//! others wait.
//!
//! A writer that waits for its change holds its file's lock, perhaps for minutes. Such a file is *held
//! back*: it is touched when its writers have been answered. A writer who comes while the file is being
//! touched may still be in front of the touch, which then waits as for a lease.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use parking_lot::{Condvar, Mutex};

/// How many threads touch files.
pub const THREADS: usize = 4;

/// How long a touch may take before the next is begun beside it.
const LATE: Duration = Duration::from_millis(100);

/// A file to touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Touch {
    /// Its path below the mount.
    pub path: String,
    /// Its inode number.
    pub ino: INodeNo,
    /// Its size.
    pub size: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Paths to touch, in this order, each once: those of `files` that are not being touched nor held
    /// back.
    queue: VecDeque<String>,
    /// The inodes and sizes of the files that were asked for.
    files: HashMap<String, (INodeNo, u64)>,
    /// How many writers wait for a change, by the inode they keep locked.
    locked: HashMap<u64, usize>,
    /// Files of `files` that are held back, by inode.
    held_back: HashMap<u64, Vec<String>>,
    /// The files that are being touched, since when.
    busy: HashMap<String, Instant>,
    ended: bool,
}

/// Files that wait to be touched.
#[derive(Debug, Default)]
pub struct Touches {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Touches {
    /// Asks for files to be touched.
    pub fn add(&self, touches: impl IntoIterator<Item = Touch>) {
        let mut waiting = self.waiting.lock();
        for Touch { path, ino, size } in touches {
            let new = waiting.files.insert(path.clone(), (ino, size)).is_none();
            if new && !waiting.busy.contains_key(&path) {
                waiting.queue.push_back(path);
            }
        }
        if !waiting.queue.is_empty() {
            self.wake.notify_all();
        }
    }

    /// A writer keeps this inode locked: it is not to be touched.
    pub fn hold_back(&self, ino: INodeNo) {
        *self.waiting.lock().locked.entry(ino.0).or_default() += 1;
    }

    /// A writer has been answered and lets the inode go.
    pub fn let_go(&self, ino: INodeNo) {
        let mut waiting = self.waiting.lock();
        if let Some(writers) = waiting.locked.get_mut(&ino.0) {
            *writers -= 1;
            if *writers == 0 {
                waiting.locked.remove(&ino.0);
                let paths = waiting.held_back.remove(&ino.0).unwrap_or_default();
                waiting.queue.extend(paths);
                if !waiting.queue.is_empty() {
                    self.wake.notify_all();
                }
            }
        }
    }

    /// Ends the threads.
    pub fn end(&self) {
        self.waiting.lock().ended = true;
        self.wake.notify_all();
    }

    /// Touches what is asked for until ended: each of the threads `touch-N`.
    pub fn run(&self, mut touch: impl FnMut(&Touch)) {
        while let Some(next) = self.next() {
            touch(&next);
            self.done(next.path);
        }
    }

    fn next(&self) -> Option<Touch> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.ended {
                return None;
            }
            let last = waiting.busy.values().max().copied();
            match last.map(|began| began + LATE) {
                _ if waiting.queue.is_empty() => self.wake.wait(&mut waiting),
                Some(late) if Instant::now() < late => {
                    self.wake.wait_until(&mut waiting, late);
                }
                _ => {
                    let path = waiting.queue.pop_front()?;
                    // A change from here on is another change.
                    let (ino, size) = waiting.files.remove(&path)?;
                    if waiting.locked.contains_key(&ino.0) {
                        waiting.files.insert(path.clone(), (ino, size));
                        waiting.held_back.entry(ino.0).or_default().push(path);
                        continue;
                    }
                    waiting.busy.insert(path.clone(), Instant::now());
                    return Some(Touch { path, ino, size });
                }
            }
        }
    }

    fn done(&self, path: String) {
        let mut waiting = self.waiting.lock();
        waiting.busy.remove(&path);
        if waiting.files.contains_key(&path) {
            waiting.queue.push_back(path);
        }
        if !waiting.queue.is_empty() {
            self.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn touch(path: &str) -> Touch {
        Touch {
            path: path.to_owned(),
            ino: INodeNo(path.len() as u64),
            size: 1,
        }
    }

    #[test]
    fn a_file_that_cannot_be_touched_holds_up_no_other_and_keeps_one_thread() {
        let touches = Touches::default();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let (tell, told) = mpsc::channel();
        let act = |touch: &Touch| {
            if touch.path == "stuck" {
                released.lock().recv().unwrap();
            }
            tell.send(touch.path.clone()).unwrap();
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| touches.run(act));
            }
            touches.add([touch("stuck"), touch("one")]);
            assert_eq!(told.recv().unwrap(), "one");
            touches.add([touch("stuck"), touch("two")]);
            assert_eq!(told.recv().unwrap(), "two");
            // It changed again while it was being touched: that is told of as well.
            release.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), "stuck");
            release.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), "stuck");
            touches.end();
        });
    }

    #[test]
    fn a_file_whose_writer_waits_is_touched_when_he_has_been_answered() {
        let touches = Touches::default();
        let locked = touch("locked");
        touches.hold_back(locked.ino);
        touches.hold_back(locked.ino);
        touches.add([locked.clone(), touch("a")]);
        let mut seen = Vec::new();
        touches.run(|touch| {
            seen.push(touch.path.clone());
            match touch.path.as_str() {
                "a" => {
                    touches.add([locked.clone(), self::touch("bb")]);
                    touches.let_go(locked.ino);
                }
                "bb" => touches.let_go(locked.ino),
                _ => touches.end(),
            }
        });
        assert_eq!(seen, ["a", "bb", "locked"]);
    }

    #[test]
    fn a_file_that_changes_often_before_its_turn_is_touched_once_with_its_last_size() {
        let touches = Touches::default();
        for size in 1..=3 {
            touches.add([Touch { size, ..touch("a") }]);
        }
        touches.add([touch("b")]);
        let mut seen = Vec::new();
        touches.run(|touch| {
            seen.push((touch.path.clone(), touch.size));
            if touch.path == "b" {
                touches.end();
            }
        });
        assert_eq!(seen, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
    }
}
