//! The states of domains and the reasons that libvirt gives for them, in words.

/// A state in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// `state` and `zone_state`.
    pub state: &'static str,
    /// `state_reason`; none where libvirt does not know.
    pub reason: Option<&'static str>,
}

/// A state for each `virDomainState`, and a word for each of its reasons, both by their numbers. The words
/// are those of `virsh domstate --reason`, with underscores. Reason 0 is "unknown" throughout.
const STATES: [(&str, &[&str]); 8] = [
    ("unknown", &[]),
    (
        "running",
        &[
            "booted",
            "migrated",
            "restored",
            "from_snapshot",
            "unpaused",
            "migration_canceled",
            "save_canceled",
            "event_wakeup",
            "crashed",
            "post_copy",
            "post_copy_failed",
        ],
    ),
    // Waiting for a resource, which says nothing to users: it runs.
    ("running", &[]),
    (
        "paused",
        &[
            "user",
            "migrating",
            "saving",
            "dumping",
            "io_error",
            "watchdog",
            "from_snapshot",
            "shutting_down",
            "creating_snapshot",
            "crashed",
            "starting_up",
            "post_copy",
            "post_copy_failed",
            "api_error",
        ],
    ),
    ("shutting_down", &["user"]),
    (
        "stopped",
        &[
            "shutdown",
            "destroyed",
            "crashed",
            "migrated",
            "saved",
            "failed",
            "from_snapshot",
            "daemon",
        ],
    ),
    ("crashed", &["panicked"]),
    ("suspended", &[]),
];

/// The words for a `virDomainState` and a reason of it. What a newer libvirt may add is unknown.
pub fn state(state: i32, reason: i32) -> State {
    let find = |number: i32| usize::try_from(number).ok();
    let (state, reasons) = find(state)
        .and_then(|state| STATES.get(state))
        .unwrap_or(&STATES[0]);
    let reason = find(reason - 1).and_then(|reason| reasons.get(reason));
    State {
        state,
        reason: reason.copied(),
    }
}
