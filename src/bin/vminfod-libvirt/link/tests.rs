//! Against libvirt's test driver, which lives in this process.

use std::collections::HashSet;
use std::sync::{Once, mpsc};
use std::thread;
use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection of its own, whose events are told.
fn connect() -> Connect {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        virt::error::clear_error_callback();
        let events = events::register().unwrap();
        thread::spawn(|| {
            loop {
                events.turn().unwrap();
            }
        });
    });
    let node = "<node><domain type='test'><name>one</name><memory>8192</memory><os><type>hvm</type></os></domain></node>";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), node).unwrap();
    Connect::open(Some(&format!("test://{}", file.path().display()))).unwrap()
}

#[test]
fn all_events_that_this_libvirt_knows_are_asked_for() {
    let connect = connect();
    let listening = listen(&connect, |_| {});
    let known = NAMES.len()
        - listening
            .refused
            .iter()
            .filter(|name| **name != "close")
            .count();
    assert_eq!(listening.callbacks.len(), known);
    assert!(!listening.refused.contains(&"lifecycle"));
    let numbers: HashSet<_> = listening.callbacks.iter().collect();
    assert_eq!(numbers.len(), listening.callbacks.len());
    // A type of callback for each, or the compiler could not tell that one was forgotten.
    for (event, name) in NAMES.iter().enumerate() {
        assert!(callback(event).is_some(), "{name}");
    }
    let last = sys::VIR_DOMAIN_EVENT_ID_CHANNEL_LIFECYCLE as usize;
    assert_eq!(NAMES.len(), last + 1);
}

#[test]
fn a_change_of_a_domain_is_told_with_its_uuid() {
    let connect = connect();
    let domain = connect.lookup_domain_by_name("one").unwrap();
    let uuid = domain.uuid().unwrap();
    let (send, heard) = mpsc::channel();
    let listening = listen(&connect, move |what| drop(send.send(what)));
    domain.suspend().unwrap();
    assert!(matches!(heard.recv_timeout(PATIENCE), Ok(Heard::Domain(of, 0, _)) if of == uuid));
    let tags = "<vm><tag name='a'>b</tag></vm>";
    domain
        .set_metadata(2, Some(tags), Some("v"), Some("urn:vminfod:vm"), 0)
        .unwrap();
    assert!(matches!(heard.recv_timeout(PATIENCE), Ok(Heard::Domain(of, 23, _)) if of == uuid));
    drop(listening);
    let (send, later) = mpsc::channel();
    let _listening = listen(&connect, move |what| drop(send.send(what)));
    domain.resume().unwrap();
    assert!(matches!(later.recv_timeout(PATIENCE), Ok(Heard::Domain(of, 0, _)) if of == uuid));
    assert!(heard.try_recv().is_err());
}

#[test]
fn statistics_have_names_and_values() {
    let connect = connect();
    let domain = connect.lookup_domain_by_name("one").unwrap();
    let all = all_stats(&connect).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, domain.uuid().unwrap());
    assert_eq!(all[0].1["state.state"], 1);
    let one = stats(&domain).unwrap();
    assert_eq!(one["state.state"], 1);
    domain.suspend().unwrap();
    assert_eq!(stats(&domain).unwrap()["state.state"], 3);
}

#[test]
fn a_state_is_two_numbers() {
    let connect = connect();
    let domain = connect.lookup_domain_by_name("one").unwrap();
    domain.suspend().unwrap();
    assert_eq!(state(&domain).unwrap(), (3, 1));
    domain.destroy().unwrap();
    domain.undefine().unwrap();
    assert!(state(&domain).is_err());
}

#[test]
fn a_parameter_is_read_by_its_type() {
    let mut parameter: sys::virTypedParameter = unsafe {
        // SAFETY: all zeros is a valid value of this plain struct.
        std::mem::zeroed()
    };
    for (at, byte) in b"balloon.current\0".iter().enumerate() {
        parameter.field[at] = *byte as c_char;
    }
    let mut read = |kind, set: &dyn Fn(&mut sys::virTypedParameter)| {
        parameter.type_ = kind as c_int;
        set(&mut parameter);
        // SAFETY: the value is of the type that was just given.
        unsafe { value(&parameter) }.1
    };
    assert_eq!(read(sys::VIR_TYPED_PARAM_INT, &|p| p.value.i = -5), -5);
    assert_eq!(read(sys::VIR_TYPED_PARAM_UINT, &|p| p.value.ui = 5), 5);
    assert_eq!(
        read(sys::VIR_TYPED_PARAM_LLONG, &|p| p.value.l = -(1 << 40)),
        -(1i64 << 40)
    );
    assert_eq!(
        read(sys::VIR_TYPED_PARAM_ULLONG, &|p| p.value.ul = u64::MAX),
        u64::MAX
    );
    assert_eq!(read(sys::VIR_TYPED_PARAM_DOUBLE, &|p| p.value.d = 0.5), 0.5);
    assert_eq!(read(sys::VIR_TYPED_PARAM_BOOLEAN, &|p| p.value.b = 1), true);
    let text = |p: &mut sys::virTypedParameter| p.value.s = c"vda".as_ptr().cast_mut();
    assert_eq!(read(sys::VIR_TYPED_PARAM_STRING, &text), "vda");
    let nothing = |p: &mut sys::virTypedParameter| p.value.s = ptr::null_mut();
    assert_eq!(read(sys::VIR_TYPED_PARAM_STRING, &nothing), Value::Null);
    assert_eq!(read(99, &|p| p.value.i = 1), Value::Null);
}
