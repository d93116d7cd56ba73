//! What is written to files: from the kernel's requests to changes of VMs, and from their outcomes to
//! replies.
//!
//! What a write means depends on the file. Of a **one-line value** and of `ctl` each write(2) is one
//! whole value or verb. **Free text** is collected and applied as a whole when the file is closed. A
//! **document** is collected and applied in the write that completes it. Offsets and truncation mean
//! nothing: the bytes are the value.
//!
//! No thread waits for a change. The reply is parked ([`parked`]) and sent when the change has ended,
//! or when the caller has a signal; the change goes on then. Who repeats a write after EINTR, with the
//! same bytes on the same handle, waits for the same change or is told how it ended, so that nothing is
//! ever done twice.
//!
//! **A failure is recorded before it is told** ([`errors`]): the thread `settle` puts the kernel's
//! caches of `last_error` and `.errors` right, and then answers. It is done there because an
//! invalidation may have to wait for a directory's lock, and nobody may do that who owes an answer to
//! the one that has it.
//!
//! Lock order: a handle's state, then the parked writes, then the touches held back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fuser::{Errno, FileAttr, INodeNo, ReplyEmpty, ReplyWrite};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use super::errno::Refused;
use super::handle::Handle;
use super::inode::Node;
use super::touch::Touches;
use super::tree::Tree;
use super::wait::{self, Caller, Interrupts};
use crate::mutation::{Changes, Failure, Outcome, Wait, Wish};
use crate::vm::files::FileId;
use crate::vm::payload;
use crate::vm::verb;
use crate::vm::{Vm, name, property};

mod document;
pub mod errors;
mod parked;
mod target;

pub use errors::Errors;
use errors::Failed;
use parked::{Owed, ParkedWrites, Told};
pub use target::Writing;
use target::{Asked, Attempt, Collected, Refusal, State, What};

/// A change that failed and whose caller has not been told yet.
pub struct Untold {
    /// Who waits: the handle and its change; nobody if the caller was refused at once.
    waits: Option<(Arc<Handle>, u64)>,
    errno: Errno,
    /// The VM, if its `last_error` says so too.
    pub uuid: Option<Uuid>,
}

/// A file that is being created: what its attributes are made of while it is not there.
#[derive(Clone, Debug)]
struct Pending {
    handles: usize,
    uuid: Uuid,
    path: String,
    secret: bool,
    /// Whether it was to have another mode or owner: then nothing is written.
    spoilt: bool,
}

/// All writes of a mount.
pub struct Writes {
    tree: Arc<Tree>,
    changes: Arc<dyn Changes>,
    parked: ParkedWrites,
    untold: Mutex<Vec<Untold>>,
    /// Files that are open and not there yet, by inode number.
    pending: Mutex<HashMap<u64, Pending>>,
    attempts: AtomicU64,
    ended: AtomicBool,
}

impl Writes {
    /// Nobody has written yet.
    pub fn new(
        tree: Arc<Tree>,
        changes: Arc<dyn Changes>,
        touches: Arc<Touches>,
        interrupts: Arc<Interrupts>,
    ) -> Writes {
        Writes {
            tree,
            changes,
            parked: ParkedWrites::new(touches, interrupts),
            untold: Mutex::default(),
            pending: Mutex::default(),
            attempts: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Who changes the VMs.
    pub fn changes(&self) -> &dyn Changes {
        &*self.changes
    }

    /// What writing to an existing file does.
    ///
    /// # Errors
    /// When it cannot be written, or is gone.
    pub fn open(&self, node: Node) -> Result<Writing, Refused> {
        match node {
            Node::Create(_) => Ok(Writing::new(None, "create".to_owned(), What::Create)),
            Node::Ctl(slot, _) => {
                let shown = self.tree.shown(slot).ok_or(Refused::NoEntry)?;
                // A VM that has just gone will be told of when something is written.
                let vm = self.tree.vm(slot);
                let verb = What::Verb(vm.map_or(verb::Kind::Zone, |vm| vm.kind()));
                Ok(Writing::new(Some(shown.uuid), "ctl".to_owned(), verb))
            }
            Node::File(slot, id) if id != FileId::DIR => {
                let vm = self.tree.vm(slot).ok_or(Refused::NoEntry)?;
                let file = vm.file(id).ok_or(Refused::NoEntry)?;
                if file.is_dir() || !file.settable {
                    return Err(Refused::NotPermitted);
                }
                let what = match file.is_document() {
                    true => What::Document,
                    false => What::of_property(vm.rendered.keys(id)),
                };
                Ok(Writing::new(Some(vm.uuid), vm.path(&file), what))
            }
            _ => Err(Refused::NotPermitted),
        }
    }

    /// Begins to create a file that is not there: what it will be, and what writing to it does. Nothing
    /// is there before something has been written and confirmed. Ends with [`Writes::close`].
    ///
    /// Whoever wants the file for himself, by a `mode` that is not his `umask`'s doing, wants a temporary
    /// file, which would become a tag of that name. Modes are fixed, so he is refused.
    ///
    /// # Errors
    /// When there is no such property, or it cannot be set.
    pub fn create(
        &self,
        dir: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<(Node, Writing), Errno> {
        let Node::File(slot, dir) = dir else {
            return Err(Refused::NotPermitted.into());
        };
        if name.len() > name::MAX {
            return Err(Refused::NameTooLong.into());
        }
        let vm = self.tree.vm(slot).ok_or(Refused::NoEntry)?;
        // Editors make such files for themselves.
        let name = name
            .to_str()
            .filter(|name| name::encode(&name::decode(name)).as_deref() == Some(*name))
            .ok_or(Refused::NotPermitted)?;
        let mut keys = vm.rendered.keys(dir);
        keys.push(name::decode(name).into_owned());
        payload::can_create(&vm.rendered.object(), &keys)
            .map_err(|invalid| Errno::from(invalid.kind))?;
        let id = vm.rendered.future(dir, name).ok_or(Refused::NoEntry)?;
        let path = path_in(&vm, dir, name);
        let node = Node::File(slot, id);
        let secret = property::is_secret(&keys);
        if !secret && mode & 0o077 == 0 && umask & 0o066 != 0o066 {
            self.refuse_to_replace(vm.uuid, path);
            return Err(Refused::NotPermitted.into());
        }
        let mut pending = self.pending.lock();
        let one = pending.entry(node.ino().0).or_insert(Pending {
            handles: 0,
            uuid: vm.uuid,
            path: path.clone(),
            secret,
            spoilt: false,
        });
        one.handles += 1;
        drop(pending);
        let writing = Writing::new(Some(vm.uuid), path, What::of_property(keys));
        Ok((node, writing.pending()))
    }

    /// The attributes of a file that is being created and is not there yet.
    pub fn pending(&self, ino: INodeNo) -> Option<FileAttr> {
        let secret = self.pending.lock().get(&ino.0)?.secret;
        Some(self.tree.attr_pending(Node::of(ino)?, secret))
    }

    /// A mode or owner was refused to a file that is not there yet. Whoever asks for one, as `sed -i` does
    /// for its temporary file, goes on writing all the same: what he writes is refused too.
    pub fn spoil(&self, ino: INodeNo) {
        let spoilt = match self.pending.lock().get_mut(&ino.0) {
            Some(pending) if !pending.spoilt => {
                pending.spoilt = true;
                pending.clone()
            }
            _ => return,
        };
        self.refuse_to_replace(spoilt.uuid, spoilt.path);
    }

    fn is_spoilt(&self, handle: &Handle) -> bool {
        let pending = self.pending.lock();
        let ino = handle.node.ino().0;
        pending.get(&ino).is_some_and(|pending| pending.spoilt)
            && handle.writing.as_ref().is_some_and(Writing::is_pending)
    }

    /// A handle has been closed for good.
    pub fn close(&self, handle: &Handle) {
        if !handle.writing.as_ref().is_some_and(Writing::is_pending) {
            return;
        }
        let ino = handle.node.ino().0;
        let mut pending = self.pending.lock();
        if let Some(one) = pending.get_mut(&ino) {
            one.handles -= 1;
            if one.handles == 0 {
                pending.remove(&ino);
            }
        }
    }

    /// Takes what one write(2), or a part of it, carries, from the thread `tid`.
    pub fn write(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        data: &[u8],
        wait: Wait,
        tid: u32,
        reply: ReplyWrite,
    ) {
        let Some(writing) = &handle.writing else {
            return reply.error(Refused::BadHandle.into());
        };
        if self.is_spoilt(handle) {
            return reply.error(Refused::NotPermitted.into());
        }
        let owed = Owed::Write(reply, data.len() as u32);
        let caller = Caller::of(tid);
        let mut state = writing.state.lock();
        state.wait = wait;
        if let Some(asked) = state.tried_again(data) {
            return self.begin(handle, state, data.to_vec(), Ok(asked), caller, owed);
        }
        let repeated = state
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.bytes == data);
        if repeated {
            return self.join(handle, state, caller, owed);
        }
        match writing.take(&mut state, data) {
            Collected::More => {
                drop(state);
                owed.pay(Ok(()));
            }
            Collected::Broken(errno) => {
                drop(state);
                owed.pay(Err(errno));
            }
            Collected::Whole(asked) => {
                self.begin(handle, state, data.to_vec(), asked, caller, owed);
            }
        }
    }

    /// The thread `tid` closes a handle, or one of its copies.
    pub fn flush(self: &Arc<Self>, handle: &Arc<Handle>, tid: u32, reply: ReplyEmpty) {
        let Some(writing) = &handle.writing else {
            return reply.ok();
        };
        if self.is_spoilt(handle) {
            return reply.error(Refused::NotPermitted.into());
        }
        let owed = Owed::Flush(reply);
        // Whoever was killed has not written to the end. Nothing is applied, and he need not wait.
        let was_killed = writing.state.lock().fresh && wait::was_killed(tid);
        if was_killed {
            return owed.pay(Err(Errno::EINTR));
        }
        let caller = Caller::of(tid);
        let mut state = writing.state.lock();
        // A close(2) cannot be tried again.
        if state.wait == Wait::AtOnce {
            state.wait = Wait::Applied;
        }
        match writing.finish(&mut state) {
            Some(asked) => self.begin(handle, state, Vec::new(), asked, caller, owed),
            None if state.attempt.is_some() && writing.what.is_text() => {
                self.join(handle, state, caller, owed);
            }
            None => {
                drop(state);
                owed.pay(Ok(()));
            }
        }
    }

    /// Waits for the change that the handle has asked for already, or tells how it ended. The reply is
    /// parked while the handle's state is locked, so that the end of the change does not fall between.
    fn join(&self, handle: &Handle, mut state: MutexGuard<'_, State>, caller: Caller, owed: Owed) {
        match state.attempt.take_if(|attempt| attempt.told.is_some()) {
            Some(attempt) => {
                drop(state);
                owed.pay(attempt.told.unwrap_or(Ok(())));
            }
            None => {
                let attempt = state.attempt.as_ref().map_or(0, |attempt| attempt.id);
                self.parked.park(attempt, caller, handle.node.ino(), owed);
                drop(state);
                self.answer_if_ended(attempt);
            }
        }
    }

    /// Answers a write that was parked when all others had been answered.
    fn answer_if_ended(&self, attempt: u64) {
        if self.ended.load(Ordering::Acquire) {
            self.parked.take(attempt).pay(Err(Errno::ETIMEDOUT));
        }
    }

    /// Asks for a change; `bytes` are those that would repeat it.
    fn begin(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        mut state: MutexGuard<'_, State>,
        bytes: Vec<u8>,
        asked: Result<Asked, Refusal>,
        caller: Caller,
        owed: Owed,
    ) {
        if self.ended.load(Ordering::Acquire) {
            drop(state);
            return owed.pay(Err(Errno::ETIMEDOUT));
        }
        let id = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        state.attempt = Some(Attempt {
            id,
            bytes,
            told: None,
            again: asked
                .as_ref()
                .ok()
                .filter(|_| state.wait == Wait::AtOnce)
                .cloned(),
        });
        let wait = state.wait;
        self.parked.park(id, caller, handle.node.ino(), owed);
        drop(state);
        self.answer_if_ended(id);
        let (writes, handle) = (self.clone(), handle.clone());
        match asked {
            Err(refusal) => writes.failed(handle, id, None, refusal, &[]),
            Ok(Asked::Change(uuid, wish)) => {
                let secrets = target::secrets(&wish);
                let done = move |outcome| writes.done(handle, id, None, outcome, &secrets);
                self.changes.change(uuid, wish, wait, Box::new(done));
            }
            Ok(Asked::Create(payload)) => {
                let secrets = target::secrets(&Wish::Document(payload.clone()));
                let done = move |uuid, outcome| writes.done(handle, id, uuid, outcome, &secrets);
                self.changes.create(payload, wait, Box::new(done));
            }
        }
    }

    /// A change has ended. `created` is the VM that a creation was about.
    fn done(
        &self,
        handle: Arc<Handle>,
        attempt: u64,
        created: Option<Uuid>,
        outcome: Outcome,
        secrets: &[String],
    ) {
        match outcome {
            Ok(_) => {
                if let (Some(uuid), Some(writing)) = (created, &handle.writing) {
                    writing.answer_with(&format!("{uuid}\n"));
                }
                self.tell(&handle, attempt, Ok(()));
            }
            // Nothing failed, and it may happen often: it is not recorded.
            Err(Failure::WouldBlock(_)) => self.tell(&handle, attempt, Err(Errno::EAGAIN)),
            Err(failure) => self.failed(handle, attempt, created, failure.into(), secrets),
        }
    }

    fn failed(
        &self,
        handle: Arc<Handle>,
        attempt: u64,
        created: Option<Uuid>,
        refusal: Refusal,
        secrets: &[String],
    ) {
        let Some(writing) = &handle.writing else {
            return;
        };
        let errno = refusal.errno;
        let failed = Failed {
            uuid: writing.uuid.or(created),
            file: writing.path.clone(),
            errno,
            message: target::without(&refusal.message, secrets),
            applied: refusal.applied,
        };
        let line = self.tree.errors.record(&failed);
        if matches!(writing.what, What::Create) {
            writing.answer_with(&line);
        }
        if self.ended.load(Ordering::Acquire) {
            return self.tell(&handle, attempt, Err(errno));
        }
        self.untold.lock().push(Untold {
            waits: Some((handle, attempt)),
            errno,
            uuid: failed.uuid,
        });
        self.tree.cache.wake();
    }

    /// Somebody is refused to rename a file.
    pub fn refuse_rename(&self, dir: Node, name: &OsStr) {
        let Node::File(slot, dir) = dir else {
            return;
        };
        if let Some(vm) = self.tree.vm(slot) {
            let file = path_in(&vm, dir, &name.to_string_lossy());
            self.refuse_to_replace(vm.uuid, file);
        }
    }

    /// Records that somebody was refused to make or rename a file, as programs do that write a new file
    /// and put it in the place of the old one. He is not kept waiting: he has the directory's lock.
    fn refuse_to_replace(&self, uuid: Uuid, file: String) {
        let message = format!(
            "{file}: no file is made for later, renamed or replaced here; write in place, as in: \
             sed s/old/new/ FILE > /tmp/new && cat /tmp/new > FILE"
        );
        let errno = Refused::NotPermitted.into();
        self.tree.errors.record(&Failed {
            uuid: Some(uuid),
            file,
            errno,
            message,
            applied: Vec::new(),
        });
        self.untold.lock().push(Untold {
            waits: None,
            errno,
            uuid: Some(uuid),
        });
        self.tree.cache.wake();
    }

    /// Whether somebody is to be told of a failure.
    pub fn has_untold(&self) -> bool {
        !self.untold.lock().is_empty()
    }

    /// The failures that are recorded, and whose callers have not been told.
    pub fn untold(&self) -> Vec<Untold> {
        std::mem::take(&mut *self.untold.lock())
    }

    /// Tells the caller: the kernel's caches of what is recorded are right.
    pub fn tell_of(&self, untold: &Untold) {
        if let Some((handle, attempt)) = &untold.waits {
            self.tell(handle, *attempt, Err(untold.errno));
        }
    }

    /// Answers those who wait for a change. If nobody does, since the caller was interrupted, it is kept
    /// for the caller who repeats the write.
    fn tell(&self, handle: &Handle, attempt: u64, told: Told) {
        let Some(writing) = &handle.writing else {
            return;
        };
        let mut state = writing.state.lock();
        let due = self.parked.take(attempt);
        if let Some(mine) = state.attempt.as_mut().filter(|mine| mine.id == attempt) {
            mine.told = Some(told);
            if !due.is_empty() && told != Err(Errno::EAGAIN) {
                state.attempt = None;
            }
            writing.ended(&mut state, told);
        }
        drop(state);
        due.pay(told);
    }

    /// Lets go of callers that have a signal; whether anybody still waits.
    pub fn interrupt(&self) -> bool {
        self.parked.interrupt()
    }

    /// How many writers wait.
    pub fn waiting(&self) -> usize {
        self.parked.len()
    }

    /// Nobody is to wait any more: from now on failures are told at once and writes are refused.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Answers all who still wait.
    pub fn answer_all(&self) {
        for untold in self.untold() {
            self.tell_of(&untold);
        }
        self.parked.take_all().pay(Err(Errno::ETIMEDOUT));
    }
}

/// The path of a name in a directory of a VM.
fn path_in(vm: &Vm, dir: FileId, name: &str) -> String {
    match vm.file(dir) {
        Some(dir) => format!("{}/{name}", vm.path(&dir)),
        None => name.to_owned(),
    }
}
