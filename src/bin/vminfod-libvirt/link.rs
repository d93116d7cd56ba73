//! What the crate `virt` lacks of libvirt's interface, or gets wrong: domain events, the news that a connection is
//! lost, statistics by name, states, capacities and addresses, and an event loop ([`events`]). All unsafe code of this
//! program is here.
//!
//! - A registration owns what its callback is given: libvirt frees it, by [`free`], when it has called it for
//!   the last time.
//! - Callbacks run on the thread that runs libvirt's event loop. They may not panic and only pass on what they
//!   are told.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::Arc;

use serde_json::{Number, Value};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

pub mod events;

/// What a connection says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Something happened to a domain: which of [`NAMES`] it was, and the number of this run of the domain, if it ran.
    Domain(Uuid, usize, Option<u32>),
    /// The connection is lost.
    Closed,
}

type Tell = Arc<dyn Fn(Heard) + Send + Sync>;

/// What a callback is given.
struct Told {
    tell: Tell,
    event: usize,
}

/// The domain events, by the numbers of `virDomainEventID`.
pub const NAMES: [&str; 30] = [
    "lifecycle",
    "reboot",
    "rtc-change",
    "watchdog",
    "io-error",
    "graphics",
    "io-error-reason",
    "control-error",
    "block-job",
    "disk-change",
    "tray-change",
    "pm-wakeup",
    "pm-suspend",
    "balloon-change",
    "pm-suspend-disk",
    "device-removed",
    "block-job-2",
    "tunable",
    "agent-lifecycle",
    "device-added",
    "migration-iteration",
    "job-completed",
    "device-removal-failed",
    "metadata-change",
    "block-threshold",
    "memory-failure",
    "memory-device-size-change",
    "nic-mac-change",
    "vcpu-removed",
    "channel-lifecycle",
];

type Text = *const c_char;
type Any = *const c_void;

/// Defines the callbacks, one for each list of arguments that events have. All do the same; the compiler has
/// to know how each is called.
macro_rules! callbacks {
    ($($name:ident($($argument:ty),*);)*) => {$(
        unsafe extern "C" fn $name(
            _: sys::virConnectPtr,
            domain: sys::virDomainPtr,
            $(_: $argument,)*
            opaque: *mut c_void,
        ) {
            // SAFETY: libvirt calls it with a domain that is valid during the call, and with the pointer that
            // it was registered with.
            unsafe { pass_on(domain, opaque) }
        }
    )*};
}

callbacks! {
    on_plain();
    on_longlong(c_longlong);
    on_int(c_int);
    on_uint(c_uint);
    on_ulonglong(c_ulonglong);
    on_text(Text);
    on_int_int(c_int, c_int);
    on_int_text(c_int, Text);
    on_text_int(Text, c_int);
    on_text_int_int(Text, c_int, c_int);
    on_text_ulonglong(Text, c_ulonglong);
    on_params(sys::virTypedParameterPtr, c_int);
    on_int_int_uint(c_int, c_int, c_uint);
    on_text_text_int(Text, Text, c_int);
    on_text_text_int_text(Text, Text, c_int, Text);
    on_text_text_text(Text, Text, Text);
    on_text_text_text_int(Text, Text, Text, c_int);
    on_text_text_sizes(Text, Text, c_ulonglong, c_ulonglong);
    on_graphics(c_int, Any, Any, Text, Any);
}

/// As the others, and libvirt wants a result, which it ignores.
unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: c_int,
    _: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: as for the others.
    unsafe { pass_on(domain, opaque) };
    0
}

/// Tells of an event.
///
/// # Safety
/// `domain` is valid, and `opaque` came from [`registered`].
unsafe fn pass_on(domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: it is a `Told` that is freed only after the last call.
    let told = unsafe { &*opaque.cast::<Told>() };
    // SAFETY: the caller says so.
    if let Some(uuid) = unsafe { uuid_of(domain) } {
        // SAFETY: likewise.
        let run = unsafe { sys::virDomainGetID(domain) };
        let run = (run != u32::MAX).then_some(run);
        (told.tell)(Heard::Domain(uuid, told.event, run));
    }
}

/// # Safety
/// `domain` is valid.
unsafe fn uuid_of(domain: sys::virDomainPtr) -> Option<Uuid> {
    let mut bytes = [0u8; 16];
    // SAFETY: libvirt writes the 16 bytes of VIR_UUID_BUFLEN.
    let result = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    (result == 0).then(|| Uuid::from_bytes(bytes))
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _: c_int, opaque: *mut c_void) {
    // SAFETY: as in `pass_on`.
    let told = unsafe { &*opaque.cast::<Told>() };
    (told.tell)(Heard::Closed);
}

/// Frees what a callback was given.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: it came from `registered`, and libvirt calls this once, after the last call of the callback.
    drop(unsafe { Box::from_raw(opaque.cast::<Told>()) });
}

/// What is passed to libvirt with a callback.
fn registered(tell: &Tell, event: usize) -> *mut c_void {
    let tell = tell.clone();
    Box::into_raw(Box::new(Told { tell, event })).cast()
}

/// The callback for an event, as libvirt takes all of them: it calls each with the arguments of its event.
fn callback(event: usize) -> sys::virConnectDomainEventGenericCallback {
    /// Gives a callback the type that all have when they are registered.
    macro_rules! as_any {
        ($callback:ident, $($argument:ty),* => $result:ty) => {{
            let callback: unsafe extern "C" fn(
                sys::virConnectPtr, sys::virDomainPtr, $($argument,)* *mut c_void,
            ) -> $result = $callback;
            // SAFETY: all pointers to functions have the same size, and libvirt turns it back into the type
            // that belongs to the event (the C macro VIR_DOMAIN_EVENT_CALLBACK does the same).
            Some(unsafe { std::mem::transmute::<
                unsafe extern "C" fn(
                    sys::virConnectPtr, sys::virDomainPtr, $($argument,)* *mut c_void,
                ) -> $result,
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void),
            >(callback) })
        }};
    }
    match NAMES[event] {
        "lifecycle" => as_any!(on_lifecycle, c_int, c_int => c_int),
        "reboot" | "control-error" => Some(on_plain),
        "rtc-change" => as_any!(on_longlong, c_longlong => ()),
        "watchdog" | "pm-wakeup" | "pm-suspend" | "pm-suspend-disk" | "migration-iteration" => {
            as_any!(on_int, c_int => ())
        }
        "io-error" => as_any!(on_text_text_int, Text, Text, c_int => ()),
        "graphics" => as_any!(on_graphics, c_int, Any, Any, Text, Any => ()),
        "io-error-reason" => as_any!(on_text_text_int_text, Text, Text, c_int, Text => ()),
        "block-job" | "block-job-2" | "channel-lifecycle" => {
            as_any!(on_text_int_int, Text, c_int, c_int => ())
        }
        "disk-change" => as_any!(on_text_text_text_int, Text, Text, Text, c_int => ()),
        "tray-change" => as_any!(on_text_int, Text, c_int => ()),
        "balloon-change" => as_any!(on_ulonglong, c_ulonglong => ()),
        "device-removed" | "device-added" | "device-removal-failed" => as_any!(on_text, Text => ()),
        "tunable" | "job-completed" => {
            as_any!(on_params, sys::virTypedParameterPtr, c_int => ())
        }
        "agent-lifecycle" => as_any!(on_int_int, c_int, c_int => ()),
        "metadata-change" => as_any!(on_int_text, c_int, Text => ()),
        "block-threshold" => {
            as_any!(on_text_text_sizes, Text, Text, c_ulonglong, c_ulonglong => ())
        }
        "memory-failure" => as_any!(on_int_int_uint, c_int, c_int, c_uint => ()),
        "memory-device-size-change" => as_any!(on_text_ulonglong, Text, c_ulonglong => ()),
        "nic-mac-change" => as_any!(on_text_text_text, Text, Text, Text => ()),
        "vcpu-removed" => as_any!(on_uint, c_uint => ()),
        _ => None,
    }
}

/// What a connection was asked to tell; dropping it ends that.
pub struct Listening {
    connect: Connect,
    callbacks: Vec<c_int>,
    /// The events that this libvirt does not know.
    pub refused: Vec<&'static str>,
}

/// Has a connection tell of all events that its libvirt knows, and of its end.
pub fn listen(connect: &Connect, tell: impl Fn(Heard) + Send + Sync + 'static) -> Listening {
    let tell: Tell = Arc::new(tell);
    let mut listening = Listening {
        connect: connect.clone(),
        callbacks: Vec::new(),
        refused: Vec::new(),
    };
    for (event, name) in NAMES.iter().enumerate() {
        let opaque = registered(&tell, event);
        // SAFETY: the connection is alive; callback and what it is given belong together, and libvirt frees
        // the latter.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                event as c_int,
                callback(event),
                opaque,
                Some(free),
            )
        };
        if id >= 0 {
            listening.callbacks.push(id);
        } else {
            // SAFETY: what was refused is not freed by libvirt, and nobody else has it.
            unsafe { free(opaque) };
            listening.refused.push(name);
        }
    }
    let opaque = registered(&tell, 0);
    // SAFETY: as above.
    let result = unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), opaque, Some(free))
    };
    if result < 0 {
        // SAFETY: as above. (A driver within this process cannot be lost, says that it is registered all the
        // same, and never frees it: some bytes, once.)
        unsafe { free(opaque) };
        listening.refused.push("close");
    }
    listening
}

impl Drop for Listening {
    fn drop(&mut self) {
        for id in self.callbacks.drain(..) {
            // SAFETY: the connection is alive and the number is its own. That it may be lost is no matter:
            // what was registered is let go all the same.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), id) };
        }
        if !self.refused.contains(&"close") {
            // SAFETY: the same callback was registered.
            unsafe {
                sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close))
            };
        }
    }
}

/// Statistics of a domain by their names.
pub type Stats = BTreeMap<String, Value>;

/// What is asked for: what the mapping uses.
const WANTED: c_uint = sys::VIR_DOMAIN_STATS_STATE
    | sys::VIR_DOMAIN_STATS_BALLOON
    | sys::VIR_DOMAIN_STATS_VCPU
    | sys::VIR_DOMAIN_STATS_INTERFACE
    | sys::VIR_DOMAIN_STATS_BLOCK;

/// The statistics of all domains. A domain that is busy tells less, and is not waited for.
///
/// # Errors
/// Those of libvirt.
pub fn all_stats(connect: &Connect) -> Result<Vec<(Uuid, Stats)>, Error> {
    let mut records = ptr::null_mut();
    // SAFETY: the connection is alive; libvirt gives a list that `read` frees.
    let count = unsafe {
        sys::virConnectGetAllDomainStats(
            connect.as_ptr(),
            WANTED,
            &mut records,
            sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
    };
    // SAFETY: as libvirt gave it.
    unsafe { read(records, count) }
}

/// The statistics of one domain, likewise.
///
/// # Errors
/// Those of libvirt.
pub fn stats(domain: &Domain) -> Result<Stats, Error> {
    let mut records = ptr::null_mut();
    // SAFETY: the domain is alive during the call, which copies the pointer.
    let mut domains = [unsafe { domain.as_ptr() }, ptr::null_mut()];
    // SAFETY: the list ends in a null pointer.
    let count = unsafe {
        sys::virDomainListGetStats(
            domains.as_mut_ptr(),
            WANTED,
            &mut records,
            sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
    };
    // SAFETY: as libvirt gave it.
    let all = unsafe { read(records, count) }?;
    Ok(all
        .into_iter()
        .next()
        .map(|(_, stats)| stats)
        .unwrap_or_default())
}

/// Reads a list of statistics and frees it.
///
/// # Safety
/// `records` and `count` are what libvirt gave.
unsafe fn read(
    records: *mut sys::virDomainStatsRecordPtr,
    count: c_int,
) -> Result<Vec<(Uuid, Stats)>, Error> {
    let Ok(count) = usize::try_from(count) else {
        return Err(Error::last_error());
    };
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        // SAFETY: there are `count` valid records, each with `nparams` parameters.
        let record = unsafe { &**records.add(at) };
        // SAFETY: the domain belongs to the record.
        let Some(uuid) = (unsafe { uuid_of(record.dom) }) else {
            continue;
        };
        let parameters = match usize::try_from(record.nparams) {
            Ok(length) if !record.params.is_null() => {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts(record.params, length) }
            }
            _ => &[],
        };
        // SAFETY: each parameter is as libvirt filled it.
        let stats = parameters
            .iter()
            .map(|parameter| unsafe { value(parameter) });
        all.push((uuid, stats.collect()));
    }
    if !records.is_null() {
        // SAFETY: the list is libvirt's, and nothing of it is kept.
        unsafe { sys::virDomainStatsRecordListFree(records) };
    }
    Ok(all)
}

/// # Safety
/// The parameter is as libvirt filled it: its type says which value it has, texts end in NUL.
unsafe fn value(parameter: &sys::virTypedParameter) -> (String, Value) {
    // SAFETY: the name is a text within the parameter.
    let name = unsafe { CStr::from_ptr(parameter.field.as_ptr()) };
    // SAFETY: the type says which member of the union is set.
    let value = unsafe {
        match parameter.type_ as c_uint {
            sys::VIR_TYPED_PARAM_INT => parameter.value.i.into(),
            sys::VIR_TYPED_PARAM_UINT => parameter.value.ui.into(),
            sys::VIR_TYPED_PARAM_LLONG => parameter.value.l.into(),
            sys::VIR_TYPED_PARAM_ULLONG => parameter.value.ul.into(),
            sys::VIR_TYPED_PARAM_DOUBLE => {
                Number::from_f64(parameter.value.d).map_or(Value::Null, Value::Number)
            }
            sys::VIR_TYPED_PARAM_BOOLEAN => (parameter.value.b != 0).into(),
            sys::VIR_TYPED_PARAM_STRING if !parameter.value.s.is_null() => {
                CStr::from_ptr(parameter.value.s).to_string_lossy().into()
            }
            _ => Value::Null,
        }
    };
    (name.to_string_lossy().into_owned(), value)
}

/// The state of a domain and the reason for it, as numbers. (`virt` gives them as types of its own, which know
/// only what they know.)
///
/// # Errors
/// Those of libvirt.
pub fn state(domain: &Domain) -> Result<(i32, i32), Error> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain is alive, and libvirt writes two numbers.
    let result = unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) };
    match result {
        0 => Ok((state, reason)),
        _ => Err(Error::last_error()),
    }
}

/// Whether a domain is asked by this connection.
pub fn is_of(domain: &Domain, connection: &Connect) -> bool {
    // SAFETY: the pointers are only compared.
    let is_same = |its: Connect| unsafe { its.as_ptr() == connection.as_ptr() };
    domain.connect().is_ok_and(is_same)
}

/// For how many milliseconds a running domain has kept libvirt waiting for the end of one command; 0 if it
/// does not.
pub fn waiting(domain: &Domain) -> u64 {
    // SAFETY: all zeros is a valid value of this plain struct.
    let mut info: sys::virDomainControlInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the domain is alive, and libvirt fills the struct.
    let result = unsafe { sys::virDomainGetControlInfo(domain.as_ptr(), &mut info, 0) };
    match result == 0 && info.state == sys::VIR_DOMAIN_CONTROL_OCCUPIED {
        true => info.stateTime,
        false => 0,
    }
}

/// The capacity of a disk in bytes. (`virt` has this too, and reads what is not there when libvirt refuses.)
///
/// # Errors
/// Those of libvirt.
pub fn capacity(domain: &Domain, disk: &str) -> Result<u64, Error> {
    let disk = CString::new(disk)?;
    // SAFETY: all zeros is a valid value of this plain struct.
    let mut info: sys::virDomainBlockInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the domain is alive, the text ends in NUL, and libvirt fills the struct.
    let result =
        unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) };
    match result {
        0 => Ok(info.capacity),
        _ => Err(Error::last_error()),
    }
}

/// The addresses that libvirt's networks have given a domain, each with the mac it was given to. (`virt` has
/// this too and frees nothing of it.)
pub fn addresses(domain: &Domain) -> Vec<(String, String)> {
    let mut interfaces = ptr::null_mut();
    // SAFETY: the domain is alive; libvirt gives a list that is freed below.
    let count = unsafe {
        sys::virDomainInterfaceAddresses(
            domain.as_ptr(),
            &mut interfaces,
            sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            0,
        )
    };
    let mut found = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: there are `count` valid interfaces, each with `naddrs` addresses; texts end in NUL.
        unsafe {
            let interface = *interfaces.add(at);
            if !(*interface).hwaddr.is_null() {
                let mac = CStr::from_ptr((*interface).hwaddr).to_string_lossy();
                for at in 0..(*interface).naddrs as usize {
                    let address = CStr::from_ptr((*(*interface).addrs.add(at)).addr);
                    found.push((mac.to_string(), address.to_string_lossy().into_owned()));
                }
            }
            sys::virDomainInterfaceFree(interface);
        }
    }
    // SAFETY: the list was allocated for us by malloc, or is null.
    unsafe { libc::free(interfaces.cast()) };
    found
}

#[cfg(test)]
mod tests;
