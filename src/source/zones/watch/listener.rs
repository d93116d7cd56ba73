//! The thread `watch`: reads both queues and says what their events mean.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent};
use parking_lot::Mutex;

use super::fanotify::Fanotify;
use super::{Event, Id, Notice, Records, Signal};
use crate::source::zones::faults::Faults;

/// A queue holds 16,384 events unless the host is told otherwise, and a read takes at least a dozen:
/// an end, so that a storm of events cannot keep a scan from its end.
const MOST_READS: usize = 2048;

/// What the thread `watch` owns.
pub(super) struct Listener<T> {
    pub(super) inotify: Option<Arc<Inotify>>,
    pub(super) fanotify: Option<Arc<Fanotify>>,
    pub(super) records: Arc<Mutex<Records>>,
    pub(super) faults: Arc<Faults>,
    pub(super) tell: T,
    pub(super) wake: PipeReader,
}

impl<T: Fn(Notice)> Listener<T> {
    /// Runs until the other end of the pipe is closed.
    pub(super) fn run(mut self) {
        loop {
            let mut ready = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            let inotify = self.inotify.as_ref().map(|inotify| inotify.as_fd());
            let fanotify = self.fanotify.as_ref().map(|fanotify| fanotify.as_fd());
            let announcing = [inotify, fanotify].into_iter().flatten();
            ready.extend(announcing.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    let reason = format!("events cannot be waited for: {}", error.desc());
                    (self.tell)(Notice::Signals(vec![Signal::Lost(reason)]));
                    return;
                }
            }
            let woken = ready[0].any() == Some(true);
            let mut requests = 0;
            if woken {
                requests = self.wake.read(&mut [0; 64]).unwrap_or(0);
                if requests == 0 {
                    return;
                }
            }
            self.faults.pass("inotify");
            self.read_inotify();
            self.read_fanotify();
            (0..requests).for_each(|_| (self.tell)(Notice::Drained));
        }
    }

    /// Reads what inotify's queue holds now.
    fn read_inotify(&self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        for _ in 0..MOST_READS {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let mut signals = Vec::new();
            let mut records = self.records.lock();
            for InotifyEvent { wd, mask, name, .. } in &events {
                if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    signals.push(Signal::Lost("the inotify queue overflowed".to_owned()));
                    continue;
                }
                let event = Event {
                    watch: Id::Inotify(*wd),
                    mask: *mask,
                    name: name.as_deref().and_then(|name| name.to_str()),
                };
                records.translate(&event, &mut signals);
            }
            drop(records);
            self.say(signals);
        }
    }

    /// Reads what fanotify's queue holds now.
    fn read_fanotify(&self) {
        let Some(fanotify) = &self.fanotify else {
            return;
        };
        let mut buffer = [0; 16 << 10];
        for _ in 0..MOST_READS {
            let mut signals = Vec::new();
            let mut records = self.records.lock();
            let read = fanotify.read(&mut buffer, |event| match event.folder {
                Some(folder) => {
                    let (mask, name) = (event.mask, event.name);
                    let watch = Id::Fanotify(folder);
                    records.translate(&Event { watch, mask, name }, &mut signals);
                }
                None if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) => {
                    signals.push(Signal::Lost("the fanotify queue overflowed".to_owned()));
                }
                None => {}
            });
            drop(records);
            self.say(signals);
            match read {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn say(&self, mut signals: Vec<Signal>) {
        signals.dedup();
        if !signals.is_empty() && !self.faults.deaf.load(Ordering::Relaxed) {
            (self.tell)(Notice::Signals(signals));
        }
    }
}
