//! One event, and how the tools print it. Pure.
//!
//! An event is kept as the line it came in, so that `-j` prints it unchanged, next to what the
//! line says. The text form is SmartOS's: one line a change, so that it can be grepped.

use serde_json::Value;

use super::{VmName, printable};
use crate::vm::Object;

/// An alias longer than this is cut to fit the column.
const ALIAS_WIDTH: usize = 30;

/// What stands where an event has nothing to say, such as the alias of a VM that is gone.
const NOTHING: &str = "-";

/// One line of an events file.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    line: String,
    members: Object,
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The stream is open: what happens from here on follows.
    Ready,
    /// A VM has appeared.
    Create,
    /// A VM has changed.
    Modify,
    /// A VM has gone.
    Delete,
    /// Events were lost, since this reader was slow: whatever it knew may be wrong now.
    Gap,
    /// A kind that this version does not know.
    Other,
}

/// How an event is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The time of day and the first part of the uuid.
    Short,
    /// The whole date and uuid.
    Full,
    /// The line as it came.
    Json,
}

impl Event {
    /// Reads a line, given without its newline.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn parse(line: String) -> Result<Event, serde_json::Error> {
        let members = serde_json::from_str(&line)?;
        Ok(Event { line, members })
    }

    /// What it tells.
    pub fn kind(&self) -> Kind {
        match self.text("type") {
            Some("ready") => Kind::Ready,
            Some("create") => Kind::Create,
            Some("modify") => Kind::Modify,
            Some("delete") => Kind::Delete,
            Some("gap") => Kind::Gap,
            _ => Kind::Other,
        }
    }

    /// Whether somebody who follows only this VM wants it: its own events, and those about the
    /// stream, which are of no VM.
    pub fn concerns(&self, name: &VmName) -> bool {
        match self.kind() {
            Kind::Ready | Kind::Gap => true,
            _ => name.names(&self.members),
        }
    }

    /// The whole VM as the event left it. A deleted one has none.
    pub fn vm(&self) -> Option<&Object> {
        self.members.get("vm")?.as_object()
    }

    /// The text to print, with its newlines. A change that touched nothing prints nothing.
    pub fn print(&self, format: Format) -> String {
        let mut text = match format {
            Format::Json => self.line.clone(),
            Format::Short | Format::Full => self.lines(format).join("\n"),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    fn lines(&self, format: Format) -> Vec<String> {
        let date = self.date(format);
        match self.kind() {
            Kind::Ready if format == Format::Full => {
                let listener = self.text("uuid").unwrap_or(NOTHING);
                vec![format!("[{date}] ready (uuid {listener})")]
            }
            Kind::Ready => vec![format!("[{date}] ready")],
            Kind::Gap => {
                let missed = json_or_undefined(self.members.get("missed"));
                vec![format!("[{date}] {NOTHING} {NOTHING} gap: missed {missed}")]
            }
            Kind::Create | Kind::Modify | Kind::Delete | Kind::Other => {
                let uuid = self.uuid(format);
                let alias = self.alias();
                let kind = self.text("type").unwrap_or(NOTHING);
                let head = printable(&format!("[{date}] {uuid} {alias} {kind}"));
                match self.members.get("changes").and_then(Value::as_array) {
                    Some(changes) => changes
                        .iter()
                        .map(|change| format!("{head}: {}", change_text(change)))
                        .collect(),
                    None => vec![head],
                }
            }
        }
    }

    /// The time of day is what follows the `T`. A gap has no date: it stands for many events.
    fn date(&self, format: Format) -> &str {
        let date = self.text("date").unwrap_or(NOTHING);
        match (format, date.split_once('T')) {
            (Format::Short, Some((_, time))) => time,
            _ => date,
        }
    }

    fn uuid(&self, format: Format) -> &str {
        let uuid = self
            .text("uuid")
            .or_else(|| self.text("zonename"))
            .unwrap_or(NOTHING);
        match format {
            Format::Short => uuid.get(..8).unwrap_or(uuid),
            Format::Full | Format::Json => uuid,
        }
    }

    fn alias(&self) -> String {
        let alias = self.vm().and_then(|vm| vm.get("alias")?.as_str());
        match alias {
            None | Some("") => NOTHING.to_owned(),
            Some(alias) if alias.chars().count() > ALIAS_WIDTH => {
                let kept = alias.chars().take(ALIAS_WIDTH - 3);
                kept.chain("...".chars()).collect()
            }
            Some(alias) => alias.to_owned(),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.members.get(key)?.as_str()
    }
}

fn change_text(change: &Value) -> String {
    let word = |key| change.get(key).and_then(Value::as_str).unwrap_or(NOTHING);
    let what = format!(
        "{} {}",
        printable(word("prettyPath")),
        printable(word("action"))
    );
    let (old, new) = (change.get("oldValue"), change.get("newValue"));
    match old.or(new) {
        // A domain's XML is told to have changed, and not shown.
        None => what,
        Some(_) => format!(
            "{what} :: {} -> {}",
            json_or_undefined(old),
            json_or_undefined(new)
        ),
    }
}

/// A value that is not there is told from one that is null.
fn json_or_undefined(value: Option<&Value>) -> String {
    value.map_or_else(|| "undefined".to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const UUID: &str = "c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e";

    fn event(value: Value) -> Event {
        Event::parse(value.to_string()).unwrap()
    }

    fn modify(alias: &str, changes: Value) -> Event {
        event(json!({
            "type": "modify", "date": "2018-04-11T17:20:09.634Z", "zonename": UUID, "uuid": UUID,
            "vm": {"uuid": UUID, "alias": alias}, "changes": changes, "seq": 7, "via": "event",
        }))
    }

    #[test]
    fn a_change_is_one_line_with_both_values() {
        let quota = json!([{"prettyPath": "quota", "path": ["quota"], "action": "changed",
            "oldValue": 10, "newValue": 20}]);
        assert_eq!(
            modify("foo", quota).print(Format::Short),
            "[17:20:09.634Z] c4103a37 foo modify: quota changed :: 10 -> 20\n"
        );
    }

    #[test]
    fn a_missing_value_is_undefined_and_a_null_is_null() {
        let changes = json!([
            {"prettyPath": "zpool", "path": ["zpool"], "action": "added", "newValue": "zones"},
            {"prettyPath": "zoneid", "path": ["zoneid"], "action": "changed",
                "oldValue": null, "newValue": 3},
            {"prettyPath": "tags.a", "path": ["tags", "a"], "action": "removed", "oldValue": true},
        ]);
        assert_eq!(
            modify("foo", changes).print(Format::Short),
            "[17:20:09.634Z] c4103a37 foo modify: zpool added :: undefined -> \"zones\"\n\
             [17:20:09.634Z] c4103a37 foo modify: zoneid changed :: null -> 3\n\
             [17:20:09.634Z] c4103a37 foo modify: tags.a removed :: true -> undefined\n"
        );
    }

    #[test]
    fn nested_values_are_compact_json() {
        let changes = json!([{"prettyPath": "nics.*", "path": ["nics", null], "action": "added",
            "newValue": {"mac": "02:08:20:00:00:01", "ips": ["dhcp", "addrconf"]}}]);
        assert_eq!(
            modify("foo", changes).print(Format::Short),
            "[17:20:09.634Z] c4103a37 foo modify: nics.* added :: undefined -> \
             {\"mac\":\"02:08:20:00:00:01\",\"ips\":[\"dhcp\",\"addrconf\"]}\n"
        );
    }

    #[test]
    fn full_shows_the_whole_date_and_uuid() {
        let quota = json!([{"prettyPath": "quota", "path": ["quota"], "action": "changed",
            "oldValue": 10, "newValue": 20}]);
        assert_eq!(
            modify("foo", quota).print(Format::Full),
            format!("[2018-04-11T17:20:09.634Z] {UUID} foo modify: quota changed :: 10 -> 20\n")
        );
    }

    #[test]
    fn a_created_vm_shows_its_alias_and_a_deleted_one_a_dash() {
        let create = event(json!({"type": "create", "date": "2018-04-11T17:19:03.001Z",
            "zonename": UUID, "uuid": UUID, "vm": {"uuid": UUID, "alias": "foo"}, "seq": 1,
            "via": "event"}));
        let delete = event(json!({"type": "delete", "date": "2018-04-11T17:19:04.002Z",
            "zonename": UUID, "uuid": UUID, "seq": 2, "via": "event"}));
        assert_eq!(
            create.print(Format::Short),
            "[17:19:03.001Z] c4103a37 foo create\n"
        );
        assert_eq!(
            delete.print(Format::Short),
            "[17:19:04.002Z] c4103a37 - delete\n"
        );
    }

    #[test]
    fn an_alias_of_thirty_characters_stays_and_a_longer_one_is_cut() {
        let changes = json!([{"prettyPath": "a", "action": "added", "newValue": 1}]);
        let fits = "ä".repeat(30);
        let long = "ä".repeat(31);
        let line = |alias: &str| modify(alias, changes.clone()).print(Format::Short);
        assert!(line(&fits).contains(&format!(" {fits} modify")));
        assert!(line(&long).contains(&format!(" {}... modify", "ä".repeat(27))));
    }

    #[test]
    fn a_change_that_is_told_without_its_values_is_its_name() {
        let changes =
            json!([{"prettyPath": "[domain.xml]", "path": ["domain.xml"], "action": "changed"}]);
        let text = modify("web", changes).print(Format::Short);
        assert!(text.ends_with("[domain.xml] changed\n"), "{text}");
    }

    #[test]
    fn a_change_without_a_visible_difference_prints_nothing() {
        assert_eq!(modify("foo", json!([])).print(Format::Short), "");
    }

    #[test]
    fn ready_names_its_listener_only_in_full() {
        let ready = event(
            json!({"type": "ready", "date": "2018-04-11T17:19:03.001Z", "uuid": UUID, "seq": 9}),
        );
        assert_eq!(ready.print(Format::Short), "[17:19:03.001Z] ready\n");
        assert_eq!(
            ready.print(Format::Full),
            format!("[2018-04-11T17:19:03.001Z] ready (uuid {UUID})\n")
        );
    }

    #[test]
    fn a_gap_says_how_many_were_missed_and_concerns_everybody() {
        let gap = event(json!({"type": "gap", "seq": 40, "missed": 12}));
        assert_eq!(gap.print(Format::Short), "[-] - - gap: missed 12\n");
        assert!(gap.concerns(&VmName::new(UUID)));
    }

    #[test]
    fn an_event_concerns_its_vm_by_uuid_or_zonename() {
        let create = event(json!({"type": "create", "uuid": UUID, "zonename": "web",
            "vm": {"uuid": UUID}}));
        assert!(create.concerns(&VmName::new(UUID)));
        assert!(create.concerns(&VmName::new(UUID.to_uppercase())));
        assert!(create.concerns(&VmName::new("web")));
        assert!(!create.concerns(&VmName::new("we")));
        assert!(!create.concerns(&VmName::new("00000000-0000-0000-0000-000000000000")));
    }

    #[test]
    fn json_is_the_line_as_it_came() {
        let line = r#"{ "type":"gap",  "seq":4.0,"missed":1 }"#;
        let event = Event::parse(line.to_owned()).unwrap();
        assert_eq!(event.print(Format::Json), format!("{line}\n"));
    }

    #[test]
    fn what_is_not_an_object_is_no_event() {
        assert!(Event::parse("[]".to_owned()).is_err());
        assert!(Event::parse(r#"{"type":"modi"#.to_owned()).is_err());
    }

    proptest! {
        #[test]
        fn each_change_is_one_line_whatever_it_holds(
            alias in any::<String>(),
            changes in prop::collection::vec((any::<String>(), any::<String>()), 0..5),
        ) {
            let changes: Vec<Value> = changes
                .iter()
                .map(|(path, value)| json!({"prettyPath": path, "action": "changed",
                    "oldValue": value, "newValue": [value]}))
                .collect();
            let count = changes.len();
            let text = modify(&alias, Value::Array(changes)).print(Format::Full);
            prop_assert_eq!(text.lines().count(), count);
            prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
