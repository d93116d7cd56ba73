//! Which of libvirt's refusals means what. Some of them have the same number and are told apart by their words.

use virt::error::{Error, ErrorDomain, ErrorDomainEnum, ErrorNumber};
use vminfod::source::FailedKind;
use vminfod::source::libvirt::step::Step;

use crate::load::is;

/// What kind of failure it is that libvirt refuses a step.
pub(super) fn kind(error: &Error, step: &Step) -> FailedKind {
    use ErrorNumber::*;
    let one_of = |numbers: &[ErrorNumber]| numbers.iter().any(|number| is(error, *number));
    let message = error.message();
    // Devices that other devices of the host are needed for, and files of it.
    let names_a_thing_of_the_host = matches!(
        step,
        Step::AttachNic { .. }
            | Step::UpdateNic { .. }
            | Step::AttachDisk { .. }
            | Step::Media { .. }
    );
    if is(error, NoDomain) {
        FailedKind::Gone
    } else if one_of(&[OperationDenied, AccessDenied]) {
        FailedKind::Forbidden
    } else if knows_no_such_flags(error) || message.contains("cgroup") || is_of_the_way(error) {
        FailedKind::Source
    } else if is(error, OperationInvalid) && message.contains("already exists") {
        FailedKind::Invalid
    } else if one_of(&[
        OperationInvalid,
        OperationTimeout,
        ResourceBusy,
        AgentUnresponsive,
        AgentCommandTimeout,
    ]) || message.contains("cannot acquire state change lock")
    {
        FailedKind::Busy
    } else if one_of(&[
        InvalidArg,
        XmlError,
        XmlDetail,
        XmlInvalidSchema,
        InvalidMac,
        NoNetwork,
        NoStoragePool,
        NoStorageVolume,
        DeviceMissing,
    ]) || is(error, SystemError) && names_a_thing_of_the_host
    {
        FailedKind::Invalid
    } else {
        FailedKind::Source
    }
}

/// Whether libvirt was not reached, or went while it was asked.
fn is_of_the_way(error: &Error) -> bool {
    error.domain() == ErrorDomainEnum::from(ErrorDomain::Rpc)
}

/// What kind of failure it is that libvirt does not define a domain.
pub(super) fn kind_of_definition(error: &Error) -> FailedKind {
    use ErrorNumber::*;
    let message = error.message();
    let taken = ["already exists with uuid", "already defined with uuid"];
    let is_taken = taken.iter().any(|taken| message.contains(taken));
    let values = [
        InvalidArg,
        XmlError,
        XmlDetail,
        XmlInvalidSchema,
        InvalidMac,
        OsType,
    ];
    if is(error, DomExist) || is_taken {
        FailedKind::Exists
    } else if is(error, OperationDenied) || is(error, AccessDenied) {
        FailedKind::Forbidden
    } else if values.iter().any(|number| is(error, *number)) {
        FailedKind::Invalid
    } else {
        FailedKind::Source
    }
}

/// Whether a driver does not know some of the flags that it was given.
pub(super) fn knows_no_such_flags(error: &Error) -> bool {
    is(error, ErrorNumber::NoSupport) || error.message().contains("unsupported flags")
}
