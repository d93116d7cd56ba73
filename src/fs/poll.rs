//! poll(2) on open files: who is to be woken when something changes.
//!
//! The kernel asks once whether a file is ready and, if somebody waits, gives a handle by which
//! it is told to ask again. Handles are kept until the file is closed, so that no wake-up can fall
//! between two questions.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{FileHandle, PollEvents, PollNotifier};
use parking_lot::Mutex;

use super::handle::{Content, Handle};
use super::inode::Node;
use super::tree::Tree;

/// Everybody who polls, by open file.
#[derive(Debug, Default)]
pub struct Polls(Mutex<HashMap<u64, Poller>>);

#[derive(Debug)]
struct Poller {
    node: Node,
    notifier: PollNotifier,
}

impl Polls {
    /// Remembers whom to wake for an open file.
    pub fn add(&self, number: FileHandle, node: Node, notifier: PollNotifier) {
        self.0.lock().insert(number.0, Poller { node, notifier });
    }

    /// Forgets an open file.
    pub fn remove(&self, number: FileHandle) {
        self.0.lock().remove(&number.0);
    }

    /// Wakes those who poll files of the VMs in these slots and, if there are new events, those
    /// who poll what every event changes.
    pub fn wake(&self, slots: impl Iterator<Item = u64>, events: bool) {
        let polls = self.0.lock();
        if polls.is_empty() {
            return;
        }
        let slots: std::collections::HashSet<u64> = slots.collect();
        let woken: Vec<PollNotifier> = polls
            .values()
            .filter(|poller| match poller.node {
                Node::File(slot, _) | Node::Ctl(slot, _) | Node::LastError(slot) => {
                    slots.contains(&slot)
                }
                _ => events,
            })
            .map(|poller| poller.notifier.clone())
            .collect();
        drop(polls);
        for notifier in woken {
            // A file that was closed meanwhile has nobody to wake.
            let _ = notifier.notify();
        }
    }
}

/// What poll(2) says of an open file. A stream is readable when there is something to read. An
/// attribute is always readable, as in sysfs, and has an exceptional condition when it changed
/// since it was last read.
pub fn ready(tree: &Tree, handle: &Arc<Handle>) -> PollEvents {
    if let Content::Stream(stream) = &mut *handle.content.lock() {
        return if stream.is_readable(tree) {
            PollEvents::POLLIN | PollEvents::POLLRDNORM
        } else {
            PollEvents::empty()
        };
    }
    let always =
        PollEvents::POLLIN | PollEvents::POLLRDNORM | PollEvents::POLLOUT | PollEvents::POLLWRNORM;
    if tree.mtime(handle.node) == *handle.shown.lock() {
        always
    } else {
        always | PollEvents::POLLERR | PollEvents::POLLPRI
    }
}
