//! The kinds of zones that a sample store mixes: brand, phase of life, and what is odd about one.

use super::random::Random;

/// What runs in a zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Brand {
    Joyent,
    JoyentMinimal,
    Lx,
    Kvm,
    Bhyve,
    Builder,
}

use Brand::{Bhyve, Builder, Joyent, JoyentMinimal, Kvm, Lx};

impl Brand {
    pub(super) fn name(self) -> &'static str {
        match self {
            Joyent => "joyent",
            JoyentMinimal => "joyent-minimal",
            Lx => "lx",
            Kvm => "kvm",
            Bhyve => "bhyve",
            Builder => "builder",
        }
    }

    pub(super) fn is_hardware_virtual(self) -> bool {
        matches!(self, Kvm | Bhyve)
    }

    /// The memory that a virtual machine's zone needs beside the guest's, in MiB.
    pub(super) fn overhead(self) -> u64 {
        match self {
            Kvm => 1024,
            Bhyve => 1280,
            Joyent | JoyentMinimal | Lx | Builder => 0,
        }
    }
}

/// What makes a zone worth a second look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    NoAlias,
    UnicodeAlias,
    NewlineInMetadata,
    TagKeysThatAreNoFileNames,
    SharedAlias,
    PasswordInMetadata,
    NotInventoried,
    Docker,
    EmptyTag,
    TypedTags,
    FlexibleDisk,
    VncPassword,
    Failed,
    Provisioning,
    Transition,
    Exited,
    Indestructible,
    Snapshots,
    MissingVolume,
}

/// The brands in the order of the zones' numbers, over and over, each with what is odd about the
/// zone of the first round in a store that is large enough to hold them all.
pub(super) const ROUND: [(Brand, Odd); 20] = [
    (Joyent, Odd::NoAlias),
    (Lx, Odd::UnicodeAlias),
    (Bhyve, Odd::NewlineInMetadata),
    (JoyentMinimal, Odd::TagKeysThatAreNoFileNames),
    (Lx, Odd::SharedAlias),
    (Lx, Odd::SharedAlias),
    (Joyent, Odd::PasswordInMetadata),
    (Builder, Odd::NotInventoried),
    (Lx, Odd::Docker),
    (Kvm, Odd::EmptyTag),
    (Bhyve, Odd::TypedTags),
    (Bhyve, Odd::FlexibleDisk),
    (Kvm, Odd::VncPassword),
    (Joyent, Odd::Failed),
    (Bhyve, Odd::Provisioning),
    (Joyent, Odd::Transition),
    (JoyentMinimal, Odd::Exited),
    (JoyentMinimal, Odd::Indestructible),
    (Joyent, Odd::Snapshots),
    (Kvm, Odd::MissingVolume),
];

/// Where a zone is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    ShuttingDown,
    Stopped,
    Failed,
    Provisioning,
    Transition,
    Incomplete,
}

impl Phase {
    /// Four zones of five run, unless the oddity wants another phase.
    pub(super) fn draw(random: &mut Random, odd: Option<Odd>) -> Self {
        let drawn = match random.below(1000) {
            0..800 => Phase::Running,
            800..803 => Phase::ShuttingDown,
            803..970 => Phase::Stopped,
            970..982 => Phase::Failed,
            982..992 => Phase::Provisioning,
            992..998 => Phase::Transition,
            _ => Phase::Incomplete,
        };
        match odd {
            Some(Odd::Failed) => Phase::Failed,
            Some(Odd::Provisioning) => Phase::Provisioning,
            Some(Odd::Transition) => Phase::Transition,
            Some(Odd::Exited) => Phase::Stopped,
            _ => drawn,
        }
    }
}
