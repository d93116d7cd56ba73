//! The threads that read: `load-0`, `load-1`, …
//!
//! Whatever may block on a file happens here. A thread that is stuck (a hung pool, a dead NFS
//! server: uninterruptible, so it cannot be taken back) must not stop the reading of other zones:
//! when tasks wait and too few threads are moving, [`Loaders::tend`] starts more, up to
//! [`MAX_THREADS`], and the surplus ends when the stuck ones move again.
//!
//! It does not know what its tasks do; how their answers travel is theirs.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A host with more stuck threads than this has other worries; tasks then wait.
const MAX_THREADS: usize = 1024;

/// A thread that has been at one task for this long no longer counts as moving. Loads take
/// some 100 µs.
const STUCK: Duration = Duration::from_millis(50);

/// Which of the waiting tasks goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Something changed, and somebody may be waiting for it.
    Urgent,
    /// Part of a scan.
    Background,
}

/// Something to run, and the label by which it is recognised when it does not end.
pub(super) struct Task<L> {
    pub(super) label: L,
    pub(super) run: Box<dyn FnOnce() + Send>,
}

/// The pool. Dropping it lets its threads end after the task they are at, without waiting.
pub(super) struct Loaders<L> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    queue: Mutex<Queue<L>>,
    more: Condvar,
    base: usize,
}

struct Queue<L> {
    urgent: VecDeque<Task<L>>,
    background: VecDeque<Task<L>>,
    /// What each busy thread is at.
    running: HashMap<usize, Running<L>>,
    threads: usize,
    spawned: usize,
    closed: bool,
}

struct Running<L> {
    label: L,
    since: Instant,
    /// Has been at it for so long that another thread may stand in.
    stuck: bool,
}

impl<L: Clone + Send + 'static> Loaders<L> {
    /// Starts `base` threads.
    pub(super) fn start(base: usize) -> io::Result<Loaders<L>> {
        let loaders = Loaders {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    urgent: VecDeque::new(),
                    background: VecDeque::new(),
                    running: HashMap::new(),
                    threads: 0,
                    spawned: 0,
                    closed: false,
                }),
                more: Condvar::new(),
                base,
            }),
        };
        for _ in 0..base {
            loaders.shared.spawn()?;
        }
        Ok(loaders)
    }

    /// Queues a task.
    pub(super) fn push(&self, priority: Priority, task: Task<L>) {
        let mut queue = self.shared.queue.lock();
        match priority {
            Priority::Urgent => queue.urgent.push_back(task),
            Priority::Background => queue.background.push_back(task),
        }
        drop(queue);
        self.shared.more.notify_one();
    }

    /// Returns the labels of the tasks that have been running for longer than `deadline`, and
    /// starts threads if tasks wait for stuck ones. To be called every few milliseconds while
    /// something runs.
    pub(super) fn tend(&self, now: Instant, deadline: Duration) -> Vec<L> {
        let mut queue = self.shared.queue.lock();
        let mut late = Vec::new();
        for running in queue.running.values_mut() {
            let time = now.saturating_duration_since(running.since);
            running.stuck = time > STUCK;
            if time > deadline {
                late.push(running.label.clone());
            }
        }
        let wanted = (self.shared.base + queue.stuck()).min(MAX_THREADS);
        let missing = match queue.urgent.is_empty() && queue.background.is_empty() {
            true => 0,
            false => wanted.saturating_sub(queue.threads),
        };
        drop(queue);
        for _ in 0..missing {
            if let Err(error) = self.shared.spawn() {
                tracing::warn!(
                    "loader thread: cannot be started, so loads wait for stuck ones: {error}"
                );
                break;
            }
        }
        late
    }

    /// How many threads there are.
    pub(super) fn threads(&self) -> usize {
        self.shared.queue.lock().threads
    }
}

impl<L> Drop for Loaders<L> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        queue.urgent.clear();
        queue.background.clear();
        drop(queue);
        self.shared.more.notify_all();
    }
}

impl<L> Queue<L> {
    fn stuck(&self) -> usize {
        self.running
            .values()
            .filter(|running| running.stuck)
            .count()
    }
}

impl<L: Clone + Send + 'static> Shared<L> {
    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let number = {
            let mut queue = self.queue.lock();
            queue.threads += 1;
            queue.spawned += 1;
            queue.spawned - 1
        };
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || shared.work(number));
        if let Err(error) = spawned {
            self.queue.lock().threads -= 1;
            return Err(error);
        }
        Ok(())
    }

    fn work(&self, number: usize) {
        while let Some(run) = self.next(number) {
            run();
        }
    }

    /// Ends this thread's last task and waits for its next one; `None` when it is to end.
    fn next(&self, number: usize) -> Option<Box<dyn FnOnce() + Send>> {
        let mut queue = self.queue.lock();
        queue.running.remove(&number);
        loop {
            if queue.closed || queue.threads > self.base + queue.stuck() {
                queue.threads -= 1;
                return None;
            }
            let task = queue.urgent.pop_front();
            if let Some(task) = task.or_else(|| queue.background.pop_front()) {
                let running = Running {
                    label: task.label,
                    since: Instant::now(),
                    stuck: false,
                };
                queue.running.insert(number, running);
                return Some(task.run);
            }
            self.more.wait(&mut queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A task that says when it runs and ends when its sender is dropped.
    fn blocking(label: u32, running: &Sender<u32>) -> (Task<u32>, Sender<()>) {
        let (release, released): (Sender<()>, Receiver<()>) = channel();
        let running = running.clone();
        let run = Box::new(move || {
            running.send(label).unwrap();
            let _ = released.recv();
        });
        (Task { label, run }, release)
    }

    #[test]
    fn stuck_threads_do_not_stop_the_others() {
        let loaders = Loaders::start(2).unwrap();
        let (running, seen) = channel();
        let mut releases = Vec::new();
        for label in 0..3 {
            let (task, release) = blocking(label, &running);
            loaders.push(Priority::Urgent, task);
            releases.push(release);
        }
        let first = [seen.recv().unwrap(), seen.recv().unwrap()];
        assert_eq!(first.iter().sum::<u32>(), 1);
        // As seen from a later time, both threads are stuck, and the third task gets another.
        let later = Instant::now() + Duration::from_secs(10);
        let mut late = loaders.tend(later, Duration::from_secs(2));
        late.sort_unstable();
        assert_eq!(late, [0, 1]);
        assert_eq!(seen.recv().unwrap(), 2);
    }

    #[test]
    fn a_pool_that_is_dropped_drops_what_waits() {
        let loaders = Loaders::start(1).unwrap();
        let (running, seen) = channel();
        let (first, release) = blocking(0, &running);
        let (second, _unused) = blocking(1, &running);
        loaders.push(Priority::Background, first);
        assert_eq!(seen.recv().unwrap(), 0);
        loaders.push(Priority::Background, second);
        drop(loaders);
        drop(release);
        drop(running);
        assert!(seen.recv().is_err());
    }

    #[test]
    fn changes_go_before_scans() {
        let loaders = Loaders::start(1).unwrap();
        let (running, seen) = channel();
        let (first, release) = blocking(0, &running);
        loaders.push(Priority::Background, first);
        assert_eq!(seen.recv().unwrap(), 0);
        let (scan, _) = blocking(1, &running);
        let (change, _) = blocking(2, &running);
        loaders.push(Priority::Background, scan);
        loaders.push(Priority::Urgent, change);
        drop(release);
        assert_eq!(seen.recv().unwrap(), 2);
        assert_eq!(seen.recv().unwrap(), 1);
    }
}
