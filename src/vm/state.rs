//! The state of a VM, as a pure function of what its sources say.
//!
//! `zone_state` is what the host's kernel knows of the zone; `state` is what its users want to
//! know: a zone that is merely installed is a stopped VM, or one still being provisioned, or one
//! whose provisioning failed.

/// What a VM's state is made of.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The state of the zone: `installed`, `running`, ….
    pub zone_state: &'a str,
    /// The attribute `transition`, `<state>:<to>:<expiry in ms since 1970>`, if the VM has it.
    pub transition: Option<&'a str>,
    /// Whether the attribute `provisioning` is true.
    pub provisioning: bool,
    /// Whether an attribute `failed` is true.
    pub failed: bool,
}

/// The members of a VM object that say which state it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `state`.
    pub state: String,
    /// `transition_to`: the state that the VM is on its way to.
    pub transition_to: Option<String>,
    /// `transition_expire`: when it should have arrived, in milliseconds since 1970.
    pub transition_expire: Option<u64>,
}

impl Reading<'_> {
    /// The state of the VM. Each rule overrides those before it:
    ///
    /// 1. A transition gives its own state. Without one, an installed zone is `stopped` and any
    ///    other zone is in its `zone_state`.
    /// 2. A stopped VM with `provisioning` is `provisioning`.
    /// 3. A VM with `failed` is `failed`, whatever else it may be.
    ///
    /// A transition that has not exactly three fields, or whose state is empty, is ignored. One
    /// whose expiry is no number has no `transition_expire`.
    pub fn state(&self) -> State {
        let transition = self.transition.and_then(parse_transition);
        let mut state = match transition {
            Some((state, _, _)) => state,
            None if self.zone_state == "installed" => "stopped",
            None => self.zone_state,
        };
        if state == "stopped" && self.provisioning {
            state = "provisioning";
        }
        if self.failed {
            state = "failed";
        }
        State {
            state: state.to_owned(),
            transition_to: transition.map(|(_, to, _)| to.to_owned()),
            transition_expire: transition.and_then(|(_, _, expire)| expire.parse().ok()),
        }
    }
}

/// The three fields of the attribute `transition`.
fn parse_transition(text: &str) -> Option<(&str, &str, &str)> {
    let mut fields = text.split(':');
    let (state, to, expire) = (fields.next()?, fields.next()?, fields.next()?);
    (fields.next().is_none() && !state.is_empty()).then_some((state, to, expire))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INSTALLED: Reading = Reading {
        zone_state: "installed",
        transition: None,
        provisioning: false,
        failed: false,
    };

    fn plain(state: &str) -> State {
        State {
            state: state.to_owned(),
            transition_to: None,
            transition_expire: None,
        }
    }

    #[test]
    fn an_installed_zone_is_a_stopped_vm() {
        assert_eq!(INSTALLED.state(), plain("stopped"));
    }

    #[test]
    fn any_other_zone_state_is_the_state() {
        for zone_state in [
            "configured",
            "incomplete",
            "ready",
            "running",
            "shutting_down",
            "down",
        ] {
            let reading = Reading {
                zone_state,
                ..INSTALLED
            };
            assert_eq!(reading.state(), plain(zone_state));
        }
    }

    #[test]
    fn a_transition_gives_state_goal_and_expiry() {
        let reading = Reading {
            zone_state: "running",
            transition: Some("stopping:stopped:1523467256000"),
            ..INSTALLED
        };
        let expected = State {
            state: "stopping".to_owned(),
            transition_to: Some("stopped".to_owned()),
            transition_expire: Some(1_523_467_256_000),
        };
        assert_eq!(reading.state(), expected);
    }

    #[test]
    fn a_transition_without_exactly_three_fields_is_ignored() {
        for text in ["", "stopping", "stopping:stopped", "a:b:1:2", ":stopped:1"] {
            let reading = Reading {
                transition: Some(text),
                ..INSTALLED
            };
            assert_eq!(reading.state(), plain("stopped"), "{text:?}");
        }
    }

    #[test]
    fn an_expiry_that_is_no_number_is_left_out() {
        let reading = Reading {
            transition: Some("stopping:stopped:soon"),
            ..INSTALLED
        };
        let state = reading.state();
        assert_eq!(state.state, "stopping");
        assert_eq!(state.transition_to.as_deref(), Some("stopped"));
        assert_eq!(state.transition_expire, None);
    }

    #[test]
    fn only_a_stopped_vm_is_provisioning() {
        let provisioning = Reading {
            provisioning: true,
            ..INSTALLED
        };
        assert_eq!(provisioning.state(), plain("provisioning"));
        let running = Reading {
            zone_state: "running",
            ..provisioning
        };
        assert_eq!(running.state(), plain("running"));
    }

    #[test]
    fn a_transition_comes_before_provisioning() {
        let reading = Reading {
            transition: Some("receiving:stopped:1"),
            provisioning: true,
            ..INSTALLED
        };
        assert_eq!(reading.state().state, "receiving");
    }

    #[test]
    fn failed_comes_before_everything() {
        let reading = Reading {
            zone_state: "running",
            transition: Some("stopping:stopped:1"),
            provisioning: true,
            failed: true,
        };
        assert_eq!(reading.state().state, "failed");
    }

    proptest! {
        #[test]
        fn every_vm_has_a_state(
            zone_state in "[a-z_]{1,12}",
            transition in prop::option::of("[a-z:0-9]{0,20}"),
            provisioning: bool,
            failed: bool,
        ) {
            let transition = transition.as_deref();
            let reading = Reading { zone_state: &zone_state, transition, provisioning, failed };
            prop_assert!(!reading.state().state.is_empty());
        }
    }
}
