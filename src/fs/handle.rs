//! Open files: what each handle has read so far.
//!
//! A handle's first read takes a snapshot of what the file is then, and so does a later read at
//! offset 0; other reads go on in that snapshot, so that what one reader sees from the first byte
//! to the last is one version. Nothing in a handle is needed to find its file again: all of it can
//! be rebuilt from the inode number.

use std::sync::Arc;
use std::time::SystemTime;

use fuser::FileHandle;
use parking_lot::{Mutex, RwLock};
use slab::Slab;
use uuid::Uuid;

use super::inode::{Fixed, Node};
use super::stream::Stream;
use super::tree::{self, Tree};
use super::writing::Writing;
use crate::cache::Snapshot;
use crate::cache::events::{self, Event};
use crate::vm::{Nanos, verb};

/// Why a read fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The file, or its VM, no longer exists.
    Gone,
    /// It is a directory.
    Directory,
}

/// Who reads a stream.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The uuid in its `ready` line.
    pub uuid: Uuid,
    /// When it opened the stream.
    pub since: SystemTime,
    /// The name of its program.
    pub program: String,
}

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// What was opened.
    pub node: Node,
    /// Who reads it, of a stream.
    pub listener: Option<Listener>,
    /// What writing to it does, if it is open for that.
    pub writing: Option<Writing>,
    /// What was read so far.
    pub content: Mutex<Content>,
    /// The modification time that poll(2) has last shown to the reader: a newer one wakes it.
    pub shown: Mutex<Nanos>,
}

/// What a handle has read so far.
#[derive(Debug)]
pub enum Content {
    /// A small text.
    Text(Option<Vec<u8>>),
    /// `vms.json`.
    Vms(Option<Arc<Snapshot>>),
    /// `.history`.
    History(History),
    /// `events` and its like.
    Stream(Stream),
}

/// What a handle of `.history` holds: what the file is from byte `base` to byte `end`, as far as
/// it was read. Past its end nothing is held, so that no handle keeps old events from being freed.
#[derive(Debug, Default)]
pub struct History {
    /// The line that comes first when events are missing before `lines`.
    gap: String,
    lines: Vec<Arc<Event>>,
    base: u64,
    end: u64,
    /// The number of the last event taken.
    newest: u64,
    taken: bool,
}

impl Handle {
    /// Opens a file for the thread `tid`; `None` for what does not exist any more.
    pub fn open(tree: &Tree, node: Node, tid: u32) -> Option<Handle> {
        let stream = match node {
            Node::Fixed(Fixed::Events) => Some((None, None)),
            Node::EventsAfter(seq) => Some((Some(seq), None)),
            Node::EventsOf(slot) => Some((None, Some(tree.shown(slot)?.uuid))),
            _ => None,
        };
        if let Some((after, only)) = stream {
            let listener = Listener::of(tid);
            let content = Content::Stream(Stream::new(tree, listener.uuid, after, only));
            let shown = Mutex::new(0);
            return Some(Handle {
                node,
                listener: Some(listener),
                writing: None,
                content: Mutex::new(content),
                shown,
            });
        }
        let content = match node {
            Node::Fixed(Fixed::Vms) => Content::Vms(None),
            Node::Fixed(Fixed::History) => Content::History(History::default()),
            _ => Content::Text(None),
        };
        let shown = tree.mtime(node);
        Some(Handle {
            node,
            listener: None,
            writing: None,
            content: Mutex::new(content),
            shown: Mutex::new(shown),
        })
    }

    /// The same file, open for writing.
    pub fn writing(self, writing: Writing) -> Handle {
        Handle {
            writing: Some(writing),
            ..self
        }
    }

    /// Whether the file was not there when it was opened.
    fn is_pending(&self) -> bool {
        self.writing.as_ref().is_some_and(Writing::is_pending)
    }

    /// Whether this is a stream, whose reads may block.
    pub fn is_stream(&self) -> bool {
        self.listener.is_some()
    }

    /// Reads up to `size` bytes at `offset` into `out`. Not for streams.
    ///
    /// # Errors
    /// When a new snapshot is needed and the file no longer exists.
    pub fn read(
        &self,
        tree: &Tree,
        offset: u64,
        size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if let (Node::Create(_), Some(writing)) = (self.node, &self.writing) {
            writing.read_answer(offset, size, out);
            return Ok(());
        }
        match &mut *self.content.lock() {
            Content::Text(text) => {
                if offset == 0 || text.is_none() {
                    // The time first: a change between the two then wakes a poll once too often,
                    // never once too seldom.
                    *self.shown.lock() = tree.mtime(self.node);
                    let mut fresh = text.take().unwrap_or_default();
                    fresh.clear();
                    match write_text(tree, self.node, &mut fresh) {
                        // It is being created.
                        Err(ReadError::Gone) if self.is_pending() => {}
                        result => result?,
                    }
                    *text = Some(fresh);
                }
                let text = text.as_deref().unwrap_or_default();
                let begin = (offset as usize).min(text.len());
                out.extend_from_slice(&text[begin..text.len().min(begin.saturating_add(size))]);
            }
            Content::Vms(taken) => {
                if offset == 0 || taken.is_none() {
                    *self.shown.lock() = tree.mtime(self.node);
                    *taken = Some(tree.settled());
                }
                if let Some(snapshot) = taken {
                    tree::vms::read(snapshot, offset, size, out);
                }
            }
            Content::History(history) => {
                *self.shown.lock() = tree.mtime(self.node);
                history.read(tree, offset, size, out);
            }
            Content::Stream(_) => {}
        }
        Ok(())
    }
}

impl Listener {
    fn of(tid: u32) -> Listener {
        let program = std::fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        Listener {
            uuid: Uuid::new_v4(),
            since: SystemTime::now(),
            program: program.trim_end().to_owned(),
        }
    }
}

fn write_text(tree: &Tree, node: Node, out: &mut Vec<u8>) -> Result<(), ReadError> {
    match node {
        Node::Fixed(Fixed::Status) => out.extend_from_slice(tree.status().as_bytes()),
        Node::Fixed(Fixed::Errors) => tree.errors.write(out),
        Node::LastError(slot) => {
            let shown = tree.shown(slot).ok_or(ReadError::Gone)?;
            tree.errors.write_last(&shown.uuid, out);
        }
        Node::Ctl(slot, _) => {
            let vm = tree.vm(slot).ok_or(ReadError::Gone)?;
            for verb in verb::accepted(&vm.rendered.object()) {
                out.extend_from_slice(verb.as_bytes());
                out.push(b'\n');
            }
        }
        // Whoever only reads it has created nothing.
        Node::Create(_) => {}
        Node::File(slot, id) => {
            let vm = tree.vm(slot).ok_or(ReadError::Gone)?;
            let file = vm.file(id).ok_or(ReadError::Gone)?;
            if file.is_dir() {
                return Err(ReadError::Directory);
            }
            out.reserve(file.size as usize);
            file.text(vm.json(), out);
        }
        _ => return Err(ReadError::Directory),
    }
    Ok(())
}

impl History {
    /// Reads at `offset`. At the end of what was taken the file may have grown: then the new
    /// lines follow, which is what `tail -f` waits for.
    fn read(&mut self, tree: &Tree, offset: u64, size: usize, out: &mut Vec<u8>) {
        if offset == 0 || offset < self.base || !self.taken {
            self.take(tree, None, 0);
        }
        if offset == self.end {
            self.take(tree, Some(self.newest), offset);
        }
        let gap = self.gap.as_bytes();
        let skip = usize::try_from(offset - self.base).unwrap_or(usize::MAX);
        out.extend_from_slice(gap.get(skip..).unwrap_or_default());
        let mut begin = self.base + gap.len() as u64;
        for line in &self.lines {
            let end = begin + line.len() as u64;
            if end > offset {
                line.write(offset.saturating_sub(begin) as usize, out);
                if out.len() >= size {
                    break;
                }
            }
            begin = end;
        }
        out.truncate(size);
    }

    /// Takes what is settled now, or what came after an event, as the file from byte `base` on.
    fn take(&mut self, tree: &Tree, after: Option<u64>, base: u64) {
        // What is settled first: the ring has it all, but for what fell off.
        let settled = tree.settled().seq;
        let kept = tree.cache.events();
        let oldest = kept.oldest();
        let first = after.map_or(oldest, |after| after + 1);
        self.gap = String::new();
        self.lines = Vec::new();
        self.newest = first - 1;
        // A gap is told as streams tell it: when what is missing is settled.
        if first <= settled && oldest <= settled + 1 {
            if first < oldest {
                self.gap = events::gap(oldest, Some(oldest - first));
            }
            let lines = kept.from(first).map(|kept| &kept.event);
            let lines = lines.take_while(|event| event.seq <= settled);
            self.lines = lines.cloned().collect();
            self.newest = settled;
        }
        let lines: u64 = self.lines.iter().map(|line| line.len() as u64).sum();
        self.base = base;
        self.end = base + self.gap.len() as u64 + lines;
        self.taken = true;
    }
}

/// All open files. The lock is held only to find or put one.
#[derive(Debug, Default)]
pub struct Handles(RwLock<Slab<Arc<Handle>>>);

impl Handles {
    /// Keeps an open file and gives it its number.
    pub fn add(&self, handle: Handle) -> FileHandle {
        FileHandle(self.0.write().insert(Arc::new(handle)) as u64)
    }

    /// The open file with this number.
    pub fn get(&self, number: FileHandle) -> Option<Arc<Handle>> {
        self.0.read().get(usize::try_from(number.0).ok()?).cloned()
    }

    /// Closes a file.
    pub fn remove(&self, number: FileHandle) -> Option<Arc<Handle>> {
        self.0.write().try_remove(usize::try_from(number.0).ok()?)
    }

    /// Everybody who has a stream open.
    pub fn listeners(&self) -> Vec<Listener> {
        self.0
            .read()
            .iter()
            .filter_map(|(_, handle)| handle.listener.clone())
            .collect()
    }
}
