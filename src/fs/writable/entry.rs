//! What a name leads to: the answers to lookups, listings, and to those who make a name.
//!
//! Each lookup that is answered is counted ([`super::super::held`]); the kernel takes it back by FORGET.

use std::ffi::OsStr;
use std::time::Duration;

use fuser::{Errno, FileAttr, Generation, INodeNo, Request};

use super::Writable;
use crate::fs::announce;
use crate::fs::errno::Refused;
use crate::fs::handle::Handle;
use crate::fs::inode::Node;
use crate::fs::messages::Message;
use crate::vm::name;

/// What the answer to a lookup says.
pub struct Entered {
    /// The attributes of what was found.
    pub attr: FileAttr,
    /// Its generation.
    pub generation: Generation,
    /// How long the kernel may keep the name and the attributes.
    pub keep: Duration,
}

impl Writable {
    /// What an inode number names.
    pub fn node(&self, ino: INodeNo) -> Result<Node, Refused> {
        Node::of(ino).ok_or(Refused::NoEntry)
    }

    /// Looks a name up and counts the lookup. The attributes are read after it has been counted:
    /// a change that is published in between either sees the count or is in the attributes.
    pub fn enter(&self, dir: INodeNo, name: &OsStr) -> Result<Entered, Refused> {
        // The kernel asks for longer ones too.
        if name.len() > name::MAX {
            return Err(Refused::NameTooLong);
        }
        let node = self
            .tree
            .lookup(self.node(dir)?, name)
            .ok_or(Refused::NoEntry)?;
        self.enter_node(node)
    }

    /// The same, of what a name is known to name.
    pub fn enter_node(&self, node: Node) -> Result<Entered, Refused> {
        self.held.hold(node.ino());
        match self.tree.entry(node) {
            Some((attr, lasts)) => Ok(Entered {
                attr,
                generation: Generation(self.tree.generation(node)),
                keep: lasts.ttl(),
            }),
            None => {
                self.held.forget(node.ino(), 1);
                Err(Refused::NoEntry)
            }
        }
    }

    /// What a listing says of `.` and `..`, of which the kernel takes nothing.
    pub fn dots(&self, node: Node) -> Result<Entered, Refused> {
        Ok(Entered {
            attr: self.tree.attr(node).ok_or(Refused::NoEntry)?,
            generation: Generation(0),
            keep: Duration::ZERO,
        })
    }

    /// A node's attributes, and how long the kernel may keep them.
    pub fn attributes(&self, ino: INodeNo) -> Result<(FileAttr, Duration), Refused> {
        let node = self.node(ino)?;
        let lasts = self.tree.lasts(node);
        match self.tree.attr(node) {
            // Who looks at one twice, as cp(1) does, is to see one file.
            Some(attr) => Ok((
                FileAttr {
                    ino: node.listed().ino(),
                    ..attr
                },
                lasts.ttl(),
            )),
            // One that is being created exists for who has it open.
            None => {
                let attr = self.writes.pending(ino).ok_or(Refused::NoEntry)?;
                Ok((attr, Duration::ZERO))
            }
        }
    }

    /// Makes a name come or go, if it is the daemon itself that asks; counts anybody else.
    pub fn announced(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        change: announce::Change,
    ) -> Result<u64, Refused> {
        let answer = match parent {
            INodeNo::ROOT => self
                .announcing
                .answer(request.pid(), name, change, &self.tree),
            _ => Err(Refused::NotPermitted),
        };
        if answer.is_err() {
            self.messages.count(Message::Change);
        }
        answer
    }

    /// Opens a file that was not there a moment ago.
    pub fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> Result<(Entered, Handle), Errno> {
        let dir = self.node(parent)?;
        // Another caller may have been quicker.
        let (node, writing) = match self.tree.lookup(dir, name) {
            Some(_) if flags & libc::O_EXCL != 0 => return Err(Refused::Exists.into()),
            Some(node) => (node, self.writes.open(node)?),
            None => self.writes.create(dir, name, mode, umask)?,
        };
        self.held.hold(node.ino());
        // The number of a node, not the one that stat(2) shows.
        let attr = self
            .tree
            .attr(node)
            .or_else(|| self.writes.pending(node.ino()));
        let opened = Handle::open(&self.tree, node, request.pid()).zip(attr);
        let Some((handle, attr)) = opened else {
            self.held.forget(node.ino(), 1);
            return Err(Refused::NoEntry.into());
        };
        // Nobody else is to find it before it is there.
        let entered = Entered {
            attr,
            generation: Generation(self.tree.generation(node)),
            keep: Duration::ZERO,
        };
        Ok((entered, handle.writing(writing)))
    }
}
