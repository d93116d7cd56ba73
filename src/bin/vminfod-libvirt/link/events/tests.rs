//! On loops of their own, which libvirt does not know.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::*;

const READABLE: c_int = sys::VIR_EVENT_HANDLE_READABLE as c_int;
const HANGUP: c_int = sys::VIR_EVENT_HANDLE_HANGUP as c_int;

/// What a callback was called with: its number and the events; `FREED` for both when it was freed.
type Called = (c_int, c_int);
const FREED: Called = (-1, -1);

type Act = Box<dyn FnMut(c_int, c_int) + Send>;

unsafe extern "C" fn on_handle(number: c_int, _: c_int, events: c_int, opaque: *mut c_void) {
    // SAFETY: it is what `given` made, and is not freed.
    (unsafe { &mut (*opaque.cast::<Told>()).act })(number, events);
}

unsafe extern "C" fn on_timer(number: c_int, opaque: *mut c_void) {
    // SAFETY: as above.
    (unsafe { &mut (*opaque.cast::<Told>()).act })(number, 0);
}

unsafe extern "C" fn on_free(opaque: *mut c_void) {
    // SAFETY: `given` made it, and it is freed once.
    let told = unsafe { Box::from_raw(opaque.cast::<Told>()) };
    let _ = told.freed.send(FREED);
}

struct Told {
    act: Act,
    freed: Sender<Called>,
}

fn given(freed: &Sender<Called>, act: impl FnMut(c_int, c_int) + Send + 'static) -> Given {
    let told = Told {
        act: Box::new(act),
        freed: freed.clone(),
    };
    Given {
        opaque: Box::into_raw(Box::new(told)).cast(),
        free: Some(on_free),
    }
}

/// A callback that only tells.
fn tells(calls: &Sender<Called>) -> Given {
    let told = calls.clone();
    given(calls, move |number, events| {
        let _ = told.send((number, events));
    })
}

fn channel() -> (Sender<Called>, Receiver<Called>) {
    mpsc::channel()
}

/// Has a loop run its turn once without sleeping for long.
fn turn(events: &Loop) {
    events.alarm();
    events.turn().unwrap();
}

impl Loop {
    /// Has the next turn not sleep.
    fn alarm(&self) {
        let mut watched = self.watched.lock();
        watched.asleep = Some(Instant::now());
        watched.asleep = watched.asleep.map(|now| now + LONGEST);
        self.wake(&mut watched, None);
    }

    fn add(&self, stream: &UnixStream, events: c_int, given: Given) -> c_int {
        let added = self.add_handle(stream.as_raw_fd(), events, Some(on_handle), given);
        added.unwrap()
    }
}

#[test]
fn a_handle_is_called_while_it_is_ready_and_enabled() {
    let events = Loop::new().unwrap();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let (calls, called) = channel();
    let number = events.add(&near, READABLE, tells(&calls));
    turn(&events);
    assert!(called.try_recv().is_err());
    far.write_all(b"x").unwrap();
    turn(&events);
    turn(&events);
    assert_eq!(
        called.try_iter().collect::<Vec<_>>(),
        [(number, READABLE); 2]
    );
    events.update_handle(number, 0);
    turn(&events);
    assert!(called.try_recv().is_err());
    events.update_handle(number, READABLE);
    turn(&events);
    assert_eq!(called.try_recv(), Ok((number, READABLE)));
    near.read_exact(&mut [0]).unwrap();
    turn(&events);
    assert!(called.try_recv().is_err());
}

#[test]
fn the_end_of_a_peer_is_told_only_to_a_handle_that_is_enabled() {
    let events = Loop::new().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let (calls, called) = channel();
    let number = events.add(&near, 0, tells(&calls));
    drop(far);
    turn(&events);
    assert!(called.try_recv().is_err());
    events.update_handle(number, READABLE);
    turn(&events);
    assert_eq!(called.try_recv(), Ok((number, READABLE | HANGUP)));
}

#[test]
fn one_descriptor_may_be_added_twice() {
    let events = Loop::new().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (calls, called) = channel();
    let first = events.add(&near, READABLE, tells(&calls));
    let second = events.add(&near, READABLE, tells(&calls));
    far.write_all(b"x").unwrap();
    turn(&events);
    let mut both: Vec<Called> = called.try_iter().collect();
    both.sort_unstable();
    assert_eq!(both, [(first, READABLE), (second, READABLE)]);
    assert!(events.remove_handle(first));
    turn(&events);
    let after: Vec<Called> = called.try_iter().collect();
    assert!(
        after.contains(&FREED) && after.contains(&(second, READABLE)),
        "{after:?}"
    );
    assert!(!after.contains(&(first, READABLE)), "{after:?}");
}

#[test]
fn what_one_callback_removes_is_not_called_in_the_same_turn() {
    static EVENTS: OnceLock<Loop> = OnceLock::new();
    let events = EVENTS.get_or_init(|| Loop::new().unwrap());
    let (near, mut far) = UnixStream::pair().unwrap();
    let (calls, called) = channel();
    for _ in 0..2 {
        let told = calls.clone();
        // Whichever is called first removes both.
        let act = move |number, flags| {
            let _ = told.send((number, flags));
            assert!(events.remove_handle(1) && events.remove_handle(2));
            assert!(!events.remove_handle(1));
        };
        events.add(&near, READABLE, given(&calls, act));
    }
    far.write_all(b"x").unwrap();
    turn(events);
    turn(events);
    let all: Vec<Called> = called.try_iter().collect();
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(all[1..], [FREED; 2]);
}

#[test]
fn a_removed_handle_holds_no_connection_open() {
    let events = Loop::new().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (calls, _called) = channel();
    let number = events.add(&near, READABLE, tells(&calls));
    assert!(events.remove_handle(number));
    drop(near);
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    turn(&events);
}

#[test]
fn a_timer_is_called_until_it_is_disabled_or_removed() {
    let events = Loop::new().unwrap();
    let (calls, called) = channel();
    let number = events.add_timeout(-1, Some(on_timer), tells(&calls));
    turn(&events);
    assert!(called.try_recv().is_err());
    events.update_timeout(number, 0);
    events.turn().unwrap();
    events.turn().unwrap();
    assert_eq!(called.try_iter().collect::<Vec<_>>(), [(number, 0); 2]);
    events.update_timeout(number, -1);
    turn(&events);
    assert!(called.try_recv().is_err());
    events.update_timeout(number, 0);
    assert!(events.remove_timeout(number));
    turn(&events);
    assert_eq!(called.try_iter().collect::<Vec<_>>(), [FREED]);
    assert!(!events.remove_timeout(number));
}

#[test]
fn a_loop_that_sleeps_is_woken_by_what_is_due_earlier() {
    static EVENTS: OnceLock<Loop> = OnceLock::new();
    let events = EVENTS.get_or_init(|| Loop::new().unwrap());
    thread::spawn(|| {
        loop {
            events.turn().unwrap();
        }
    });
    let asleep = || {
        while events.watched.lock().asleep.is_none() {
            thread::yield_now();
        }
    };
    let (calls, called) = channel();
    asleep();
    let number = events.add_timeout(1, Some(on_timer), tells(&calls));
    assert_eq!(called.recv(), Ok((number, 0)));
    events.update_timeout(number, -1);
    let (near, mut far) = UnixStream::pair().unwrap();
    let number = events.add(&near, 0, tells(&calls));
    far.write_all(b"x").unwrap();
    asleep();
    events.update_handle(number, READABLE);
    while called.recv() != Ok((number, READABLE)) {}
    asleep();
    assert!(events.remove_handle(number));
    while called.recv() != Ok(FREED) {}
}
