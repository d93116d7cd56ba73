//! The event loop that libvirt's client is given. It has a loop of its own, but that is told of each call to libvirtd
//! by a dozen writes which wake its thread; this one is woken only if something is due earlier or was removed.
//!
//! ```text
//!   any thread: add, update, remove ──lock──▶ what is watched ◀──lock── thread `events`: wait ──▶ callbacks
//! ```
//!
//! - Callbacks run on the thread of [`Loop::turn`], and without the lock: they may add, update and remove.
//! - What was removed or disabled before a callback is looked up is not called any more.
//! - What a callback was given is freed on the same thread after its removal, so never while the callback runs.
//! - A handle is watched through a duplicate, as `epoll` knows each description of a file by one number only once and
//!   libvirt may add it twice. The duplicate is closed at the removal: it does not hold a connection open.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use virt::sys;

/// The kinds of events, as libvirt and as `epoll` call them.
const KINDS: [(u32, c_int); 4] = [
    (sys::VIR_EVENT_HANDLE_READABLE, libc::EPOLLIN),
    (sys::VIR_EVENT_HANDLE_WRITABLE, libc::EPOLLOUT),
    (sys::VIR_EVENT_HANDLE_ERROR, libc::EPOLLERR),
    (sys::VIR_EVENT_HANDLE_HANGUP, libc::EPOLLHUP),
];

/// For how long the loop sleeps if nothing is due.
const LONGEST: Duration = Duration::from_secs(3600);

/// How many handles are looked at in one turn; the others are in the next.
const TURN: usize = 16;

/// The number that stands for being woken; those of handles begin at 1.
const WOKEN: u64 = 0;

/// The one that libvirt was given: its functions are passed no other.
static LOOP: OnceLock<Loop> = OnceLock::new();

/// Gives libvirt this loop, which it takes once for all its connections. Somebody has to run its turns.
///
/// # Errors
/// Those of the kernel when it has no more file descriptors.
pub fn register() -> io::Result<&'static Loop> {
    if let Some(events) = LOOP.get() {
        return Ok(events);
    }
    let made = Loop::new()?;
    Ok(LOOP.get_or_init(|| {
        // SAFETY: all six are as libvirt wants them, and are called after this has returned, when `LOOP` is set.
        unsafe {
            sys::virEventRegisterImpl(
                Some(add_handle),
                Some(update_handle),
                Some(remove_handle),
                Some(add_timeout),
                Some(update_timeout),
                Some(remove_timeout),
            );
        }
        made
    }))
}

/// An event loop.
pub struct Loop {
    epoll: OwnedFd,
    alarm: OwnedFd,
    watched: Mutex<Watched>,
}

/// What is waited for.
#[derive(Default)]
struct Watched {
    /// The last number that was given, to a handle or to a timer.
    last: c_int,
    handles: HashMap<c_int, Handle>,
    timers: HashMap<c_int, Timer>,
    /// What was removed and is not freed.
    removed: Vec<Given>,
    /// Until when the loop sleeps; none while it is awake and will look by itself.
    asleep: Option<Instant>,
}

/// What a callback is given, and what frees it.
struct Given {
    opaque: *mut c_void,
    free: sys::virFreeCallback,
}

// SAFETY: libvirt passes it to a loop that may run on any thread, and only that one uses it.
unsafe impl Send for Given {}

struct Handle {
    /// As libvirt knows it.
    fd: c_int,
    duplicate: OwnedFd,
    /// In libvirt's terms; 0 is not watched.
    events: c_int,
    callback: sys::virEventHandleCallback,
    given: Given,
}

struct Timer {
    /// How long from one call to the next; none is disabled.
    every: Option<Duration>,
    due: Option<Instant>,
    callback: sys::virEventTimeoutCallback,
    given: Given,
}

impl Timer {
    /// Has it called every so many milliseconds from now on; never if that is less than 0.
    fn set(&mut self, milliseconds: c_int) {
        self.every = u64::try_from(milliseconds).ok().map(Duration::from_millis);
        self.due = self.every.map(|every| Instant::now() + every);
    }
}

impl Loop {
    fn new() -> io::Result<Loop> {
        // SAFETY: it takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let alarm = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let events = Loop {
            epoll,
            alarm,
            watched: Mutex::default(),
        };
        events.control(libc::EPOLL_CTL_ADD, &events.alarm, libc::EPOLLIN, WOKEN)?;
        Ok(events)
    }

    /// Waits until something is due and calls those it is due for.
    ///
    /// # Errors
    /// Those of the kernel, when it cannot wait.
    pub fn turn(&self) -> io::Result<()> {
        // SAFETY: all zeros is a valid value of this plain struct.
        let mut ready: [libc::epoll_event; TURN] = unsafe { std::mem::zeroed() };
        let count = self.wait(&mut ready)?;
        self.run_timers();
        for event in &ready[..count] {
            let (number, flags) = (event.u64, event.events);
            match c_int::try_from(number) {
                Ok(number) if u64::from(number.unsigned_abs()) != WOKEN => {
                    self.run_handle(number, flags as c_int);
                }
                _ => self.calm(),
            }
        }
        let removed = std::mem::take(&mut self.watched.lock().removed);
        for given in removed {
            if let Some(free) = given.free {
                // SAFETY: it was removed, and what calls it is this thread, which does not do so now.
                unsafe { free(given.opaque) };
            }
        }
        Ok(())
    }

    /// Sleeps until a handle is ready, a timer is due or something was removed. How many handles are.
    fn wait(&self, ready: &mut [libc::epoll_event]) -> io::Result<usize> {
        let mut watched = self.watched.lock();
        let now = Instant::now();
        let due = watched.timers.values().filter_map(|timer| timer.due).min();
        let until = match watched.removed.is_empty() {
            true => due.unwrap_or(now + LONGEST).min(now + LONGEST),
            false => now,
        };
        watched.asleep = Some(until);
        drop(watched);
        // A timer is not called too early, so it is rounded up.
        let rest = until.saturating_duration_since(now).as_micros();
        let rest = c_int::try_from(rest.div_ceil(1000)).unwrap_or(c_int::MAX);
        let room = c_int::try_from(ready.len()).unwrap_or(c_int::MAX);
        // SAFETY: there is room for so many events.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), ready.as_mut_ptr(), room, rest) };
        let failed = io::Error::last_os_error();
        self.watched.lock().asleep = None;
        match usize::try_from(count) {
            Ok(count) => Ok(count),
            Err(_) if failed.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(_) => Err(failed),
        }
    }

    fn run_timers(&self) {
        let now = Instant::now();
        let is_due = |timer: &Timer| timer.due.is_some_and(|due| due <= now);
        let watched = self.watched.lock();
        let due = watched.timers.iter().filter(|(_, timer)| is_due(timer));
        let due: Vec<c_int> = due.map(|(number, _)| *number).collect();
        drop(watched);
        for number in due {
            let mut watched = self.watched.lock();
            // The one before may have removed it or put it off.
            let timer = watched.timers.get_mut(&number);
            let Some(timer) = timer.filter(|timer| is_due(timer)) else {
                continue;
            };
            timer.due = timer.every.map(|every| now + every);
            let (callback, opaque) = (timer.callback, timer.given.opaque);
            drop(watched);
            if let Some(callback) = callback {
                // SAFETY: what it is given is freed only by this thread, after it was removed.
                unsafe { callback(number, opaque) };
            }
        }
    }

    fn run_handle(&self, number: c_int, flags: c_int) {
        let watched = self.watched.lock();
        // The one before may have removed it or changed what it waits for.
        let Some(handle) = watched.handles.get(&number) else {
            return;
        };
        let always = (sys::VIR_EVENT_HANDLE_ERROR | sys::VIR_EVENT_HANDLE_HANGUP) as c_int;
        let wanted = match handle.events {
            0 => 0,
            events => events | always,
        };
        let happened = (KINDS.iter())
            .filter(|(_, flag)| flags & flag != 0)
            .fold(0, |all, (kind, _)| all | *kind as c_int);
        let (fd, callback, opaque) = (handle.fd, handle.callback, handle.given.opaque);
        drop(watched);
        if let Some(callback) = callback
            && happened & wanted != 0
        {
            // SAFETY: what it is given is freed only by this thread, after it was removed.
            unsafe { callback(number, fd, happened & wanted, opaque) };
        }
    }

    fn add_handle(
        &self,
        fd: c_int,
        events: c_int,
        callback: sys::virEventHandleCallback,
        given: Given,
    ) -> io::Result<c_int> {
        if fd < 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: libvirt says that it is open, and it stays so during the call.
        let duplicate = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let mut watched = self.watched.lock();
        watched.last += 1;
        let number = watched.last;
        let handle = Handle {
            fd,
            duplicate,
            events: 0,
            callback,
            given,
        };
        watched.handles.insert(number, handle);
        let changed = self.watch(&mut watched, number, events);
        if changed.is_err() {
            watched.handles.remove(&number);
        }
        changed.map(|()| number)
    }

    /// Has a handle watched for these events; for none, not at all: the kernel would tell of a hangup all the same.
    fn watch(&self, watched: &mut Watched, number: c_int, events: c_int) -> io::Result<()> {
        let Some(handle) = watched.handles.get_mut(&number) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let operation = match (handle.events, events) {
            (before, now) if before == now => return Ok(()),
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        let flags = (KINDS.iter())
            .filter(|(kind, _)| events & *kind as c_int != 0)
            .fold(0, |all, (_, flag)| all | flag);
        // It wakes the thread by itself if the handle is ready.
        self.control(
            operation,
            &handle.duplicate,
            flags,
            u64::from(number.unsigned_abs()),
        )?;
        handle.events = events;
        Ok(())
    }

    fn update_handle(&self, number: c_int, events: c_int) {
        // libvirt has no way to be told, and updates only what it has.
        let _ = self.watch(&mut self.watched.lock(), number, events);
    }

    fn remove_handle(&self, number: c_int) -> bool {
        let mut watched = self.watched.lock();
        // Closing the duplicate is not enough, as the file stays open.
        let _ = self.watch(&mut watched, number, 0);
        let Some(handle) = watched.handles.remove(&number) else {
            return false;
        };
        watched.removed.push(handle.given);
        self.wake(&mut watched, None);
        true
    }

    fn add_timeout(
        &self,
        milliseconds: c_int,
        callback: sys::virEventTimeoutCallback,
        given: Given,
    ) -> c_int {
        let mut watched = self.watched.lock();
        watched.last += 1;
        let number = watched.last;
        let timer = Timer {
            every: None,
            due: None,
            callback,
            given,
        };
        watched.timers.insert(number, timer);
        self.set_timeout(watched, number, milliseconds);
        number
    }

    fn update_timeout(&self, number: c_int, milliseconds: c_int) {
        self.set_timeout(self.watched.lock(), number, milliseconds);
    }

    fn set_timeout(
        &self,
        mut watched: MutexGuard<'_, Watched>,
        number: c_int,
        milliseconds: c_int,
    ) {
        let Some(timer) = watched.timers.get_mut(&number) else {
            return;
        };
        timer.set(milliseconds);
        if let Some(due) = timer.due {
            self.wake(&mut watched, Some(due));
        }
    }

    fn remove_timeout(&self, number: c_int) -> bool {
        let mut watched = self.watched.lock();
        let Some(timer) = watched.timers.remove(&number) else {
            return false;
        };
        watched.removed.push(timer.given);
        self.wake(&mut watched, None);
        true
    }

    /// Wakes the loop if it would sleep for longer than until then; none is now.
    fn wake(&self, watched: &mut Watched, due: Option<Instant>) {
        let sleeps = |until: &mut Instant| due.is_none_or(|due| due < *until);
        if watched.asleep.take_if(sleeps).is_some() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: it reads these 8 bytes. It fails only when the loop has been woken very often already.
            unsafe { libc::write(self.alarm.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// Takes back that the loop was woken.
    fn calm(&self) {
        let mut count = [0u8; 8];
        // SAFETY: it writes these 8 bytes, or nothing if it was not woken.
        unsafe {
            libc::read(
                self.alarm.as_raw_fd(),
                count.as_mut_ptr().cast(),
                count.len(),
            )
        };
    }

    fn control(&self, operation: c_int, fd: &OwnedFd, flags: c_int, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: flags as u32,
            u64: number,
        };
        let (epoll, fd) = (self.epoll.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both are open, and the kernel copies the event.
        match unsafe { libc::epoll_ctl(epoll, operation, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    match fd {
        // SAFETY: the kernel has just made it for us.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

unsafe extern "C" fn add_handle(
    fd: c_int,
    events: c_int,
    callback: sys::virEventHandleCallback,
    opaque: *mut c_void,
    free: sys::virFreeCallback,
) -> c_int {
    let given = Given { opaque, free };
    let added = (LOOP.get()).map(|it| it.add_handle(fd, events, callback, given));
    added.and_then(Result::ok).unwrap_or(-1)
}

unsafe extern "C" fn update_handle(number: c_int, events: c_int) {
    if let Some(it) = LOOP.get() {
        it.update_handle(number, events);
    }
}

unsafe extern "C" fn remove_handle(number: c_int) -> c_int {
    let removed = LOOP.get().is_some_and(|it| it.remove_handle(number));
    if removed { 0 } else { -1 }
}

unsafe extern "C" fn add_timeout(
    milliseconds: c_int,
    callback: sys::virEventTimeoutCallback,
    opaque: *mut c_void,
    free: sys::virFreeCallback,
) -> c_int {
    let given = Given { opaque, free };
    let added = (LOOP.get()).map(|it| it.add_timeout(milliseconds, callback, given));
    added.unwrap_or(-1)
}

unsafe extern "C" fn update_timeout(number: c_int, milliseconds: c_int) {
    if let Some(it) = LOOP.get() {
        it.update_timeout(number, milliseconds);
    }
}

unsafe extern "C" fn remove_timeout(number: c_int) -> c_int {
    let removed = LOOP.get().is_some_and(|it| it.remove_timeout(number));
    if removed { 0 } else { -1 }
}

#[cfg(test)]
mod tests;
