//! Event streams: a cursor for each open file, and the readers that wait.
//!
//! A read returns as many whole lines as fit, or, of a line longer than the buffer, what fits; the
//! next read goes on there. A read that finds nothing is *parked*: its reply is put aside, no
//! thread waits with it, and the thread `streams` answers it when there is something to read. The
//! thread `interrupts` answers it when its caller has a signal (see [`super::wait`]).
//!
//! A stream goes as far as the tree tells (see [`Tree::told`]). Lock order: the parked readers, then a handle's
//! content, then the event ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use fuser::{Errno, ReplyData};
use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::handle::{Content, Handle};
use super::tree::Tree;
use super::wait::{Caller, Interrupts};
use crate::cache::events::{self, Event, Ring};
use crate::vm::nanos;

/// A cursor in the events.
#[derive(Debug)]
pub struct Stream {
    /// Only events of this VM.
    only: Option<Uuid>,
    /// The number of the next event to look at.
    next: u64,
    /// What has been begun: a line that did not fit, or one of the stream's own.
    begun: Vec<u8>,
    /// How much of it has been read.
    read: usize,
    /// A stream that was asked to start at a number this daemon has not given out: from before a
    /// restart, most likely. What happened since, nobody knows.
    foreign: bool,
}

impl Stream {
    /// A stream that starts now, or after event `after`; it begins with a `ready` line.
    pub fn new(tree: &Tree, listener: Uuid, after: Option<u64>, only: Option<Uuid>) -> Stream {
        let newest = tree.told();
        let base = tree.cache.events().base();
        let after = after.unwrap_or(newest);
        let ready = events::ready(nanos(SystemTime::now()), listener, after);
        let start = after.min(newest).max(base);
        Stream {
            only,
            next: start + 1,
            begun: ready.into_bytes(),
            read: 0,
            foreign: start != after,
        }
    }

    /// Whether a read would return something.
    pub fn is_readable(&mut self, tree: &Tree) -> bool {
        self.read < self.begun.len() || self.find(tree.told(), &tree.cache.events()).is_some()
    }

    /// The next line of this stream, after skipping what is about other VMs.
    fn find<'a>(&mut self, told: u64, ring: &'a Ring) -> Option<Line<'a>> {
        let oldest = ring.oldest();
        // A publication that is larger than the ring pushes out events that are not told yet. A
        // reader that heard of the gap now would read the files again as they were before those
        // events, and go on behind them: it hears of it when the files are right.
        if oldest > told + 1 {
            return None;
        }
        if self.foreign {
            return Some(Line::Gap {
                seq: self.next.max(oldest),
                missed: None,
            });
        }
        if self.next < oldest {
            return Some(Line::Gap {
                seq: oldest,
                missed: Some(oldest - self.next),
            });
        }
        let next = ring
            .from(self.next)
            .take_while(|kept| kept.event.seq <= told)
            .find(|kept| self.only.is_none_or(|only| kept.event.uuid == only));
        self.next = next.map_or(self.next.max(told + 1), |kept| kept.event.seq);
        next.map(|kept| Line::Event(&kept.event))
    }

    /// Appends what can be read now, at most `size` bytes; nothing when there is nothing.
    pub fn fill(&mut self, tree: &Tree, size: usize, out: &mut Vec<u8>) {
        loop {
            if self.read < self.begun.len() {
                let rest = &self.begun[self.read..];
                // A line that does not fit behind others waits for the next read.
                if !out.is_empty() && rest.len() > size - out.len() {
                    return;
                }
                let len = rest.len().min(size - out.len());
                out.extend_from_slice(&rest[..len]);
                self.read += len;
                if self.read < self.begun.len() {
                    return;
                }
            }
            self.begun.clear();
            self.read = 0;
            if !self.begin_next(tree) {
                // A stream that once carried a long line should not keep its buffer.
                self.begun.shrink_to(4096);
                return;
            }
        }
    }

    /// Puts the next line into `begun`; whether there is one.
    fn begin_next(&mut self, tree: &Tree) -> bool {
        let told = tree.told();
        let ring = tree.cache.events();
        match self.find(told, &ring) {
            None => return false,
            Some(Line::Gap { seq, missed }) => {
                let gap = events::gap(seq, missed);
                self.begun.extend_from_slice(gap.as_bytes());
                self.next = seq;
                self.foreign = false;
            }
            Some(Line::Event(event)) => {
                event.write(0, &mut self.begun);
                self.next += 1;
            }
        }
        true
    }
}

/// What a stream has to say next.
enum Line<'a> {
    /// Events are missing before the one numbered `seq`.
    Gap { seq: u64, missed: Option<u64> },
    /// An event.
    Event(&'a Event),
}

/// A read that waits for something to read.
struct Parked {
    handle: Arc<Handle>,
    size: usize,
    caller: Caller,
    reply: ReplyData,
}

/// All readers that wait, and the thread that answers them.
pub struct Streams {
    parked: Mutex<Vec<Parked>>,
    interrupts: Arc<Interrupts>,
    wake: Condvar,
    /// Something may have become readable.
    pending: Mutex<bool>,
    ended: AtomicBool,
}

/// How a read of a stream must not end: blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// It may wait.
    Wait,
    /// `O_NONBLOCK`: it fails with EAGAIN instead.
    Fail,
}

impl Streams {
    /// Nobody reads yet.
    pub fn new(interrupts: Arc<Interrupts>) -> Streams {
        Streams {
            parked: Mutex::default(),
            interrupts,
            wake: Condvar::new(),
            pending: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// Answers a read of a stream, now or when there is something to read.
    pub fn read(
        &self,
        tree: &Tree,
        handle: Arc<Handle>,
        size: usize,
        blocking: Blocking,
        caller: impl FnOnce() -> Caller,
        reply: ReplyData,
    ) {
        let mut out = Vec::new();
        fill(tree, &handle, size, &mut out);
        if !out.is_empty() || size == 0 || self.ended.load(Ordering::Acquire) {
            reply.data(&out);
            return;
        }
        if blocking == Blocking::Fail {
            reply.error(Errno::EAGAIN);
            return;
        }
        let caller = caller();
        let mut parked = self.parked.lock();
        // What settled since the look above has already woken those who were parked then.
        fill(tree, &handle, size, &mut out);
        if !out.is_empty() || self.ended.load(Ordering::Acquire) {
            drop(parked);
            reply.data(&out);
        } else {
            parked.push(Parked {
                handle,
                size,
                caller,
                reply,
            });
            self.interrupts.ring();
        }
    }

    /// Says that something may have become readable.
    pub fn wake(&self) {
        *self.pending.lock() = true;
        self.wake.notify_one();
    }

    /// Ends all streams: readers get end of file, now and from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether streams have been ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Answers readers until the streams are ended: the thread `streams`.
    pub fn run(&self, tree: &Tree) {
        loop {
            let mut pending = self.pending.lock();
            while !*pending {
                self.wake.wait(&mut pending);
            }
            *pending = false;
            drop(pending);
            let ended = self.ended.load(Ordering::Acquire);
            self.answer(tree, ended);
            if ended {
                return;
            }
        }
    }

    fn answer(&self, tree: &Tree, ended: bool) {
        let mut ready = Vec::new();
        {
            let mut parked = self.parked.lock();
            let mut index = 0;
            while index < parked.len() {
                let mut out = Vec::new();
                fill(tree, &parked[index].handle, parked[index].size, &mut out);
                if out.is_empty() && !ended {
                    index += 1;
                } else {
                    ready.push((parked.swap_remove(index).reply, out));
                }
            }
        }
        for (reply, out) in ready {
            reply.data(&out);
        }
    }

    /// Answers EINTR to every reader whose caller is to be interrupted; whether anybody still waits.
    pub fn interrupt(&self) -> bool {
        // Looking at a caller is a read of /proc: not under the lock that publishing needs.
        let callers: Vec<Caller> = self
            .parked
            .lock()
            .iter()
            .map(|parked| parked.caller.clone())
            .collect();
        let interrupted: Vec<u64> = callers
            .iter()
            .filter(|caller| caller.is_interrupted())
            .map(|caller| caller.id)
            .collect();
        if interrupted.is_empty() {
            return !callers.is_empty();
        }
        let mut parked = self.parked.lock();
        let mut replies = Vec::new();
        let mut index = 0;
        while index < parked.len() {
            if interrupted.contains(&parked[index].caller.id) {
                replies.push(parked.swap_remove(index).reply);
            } else {
                index += 1;
            }
        }
        let any = !parked.is_empty();
        drop(parked);
        replies
            .into_iter()
            .for_each(|reply| reply.error(Errno::EINTR));
        any
    }

    /// How many readers wait.
    pub fn waiting(&self) -> usize {
        self.parked.lock().len()
    }
}

fn fill(tree: &Tree, handle: &Handle, size: usize, out: &mut Vec<u8>) {
    if let Content::Stream(stream) = &mut *handle.content.lock() {
        stream.fill(tree, size, out);
    }
}
