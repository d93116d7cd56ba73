//! The daemon's health as `vminfo status` shows it. Pure.
//!
//! `.status` holds the full document; what people want at a glance is a part of it, the same part
//! that `GET /status` answers.

use serde_json::Value;

use super::{printable, raw_text};
use crate::vm::Object;

/// The members of the short document, in its order.
const SHORT: [&str; 12] = [
    "pid",
    "uptime",
    "memory",
    "state",
    "status",
    "numVms",
    "curDate",
    "curTime",
    "queue",
    "lastRefresh",
    "refreshErrors",
    "eventsListeners",
];

/// The short document out of the full one.
pub fn short(full: &Object) -> Object {
    SHORT
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), full.get(*key)?.clone())))
        .collect()
}

/// A document as `vminfo status` of SmartOS prints it, line by line the same where it has the same
/// to say. What only this daemon knows follows as indented `key: value` lines.
pub fn text(document: &Object) -> String {
    let at = |path: &str| document_at(document, path);
    let shown = |path: &str| at(path).map_or_else(|| "-".to_owned(), |value| plain(&value));
    let mut lines = vec![
        format!("state: {} ({})", shown("state"), shown("status")),
        format!("pid: {}", shown("pid")),
        format!("uptime: {}", shown("uptime")),
    ];
    let rss = at("memory.rss")
        .and_then(|rss| rss.as_f64())
        .unwrap_or_default();
    lines.push(format!("rss: {:.2}mb", rss / 1024.0 / 1024.0));
    lines.push(format!("numVms: {}", shown("numVms")));
    lines.push("queue".to_owned());
    lines.push(format!("  paused: {}", shown("queue.paused")));
    lines.push(format!("  idle: {}", shown("queue.idle")));
    lines.push(format!(
        "  npending: {}",
        shown("queue.vasync_queue.npending")
    ));
    lines.push(format!(
        "  nqueued: {}",
        shown("queue.vasync_queue.nqueued")
    ));
    lines.push("fullRefresh".to_owned());
    lines.push(format!("  lastRefresh: {}", shown("lastRefresh")));
    let items = |key: &str| {
        document
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let errors = items("refreshErrors");
    if !errors.is_empty() {
        lines.push(format!("  refreshErrors: ({} items)", errors.len()));
    }
    for error in errors {
        lines.push(format!(
            "    - {} ({})",
            plain(&error["err"]),
            plain(&error["ago"])
        ));
    }
    let log = items("refreshLog");
    if !log.is_empty() {
        lines.push(format!("  refreshLog: ({} items)", log.len()));
    }
    for scan in log {
        let (vms, changes) = (plain(&scan["vms"]), plain(&scan["vmChanges"]));
        lines.push(format!(
            "    - {vms} VMs / {changes} vmChanges - {} ago",
            plain(&scan["endedAgo"])
        ));
    }
    let own = document
        .iter()
        .filter(|(key, _)| !SHORT.contains(&key.as_str()) && *key != "refreshLog");
    for (key, value) in own {
        nested(0, key, value, &mut lines);
    }
    let listeners = document.get("eventsListeners").and_then(Value::as_object);
    lines.push(format!(
        "eventsListeners: ({} listeners)",
        listeners.map_or(0, Object::len)
    ));
    for (uuid, listener) in listeners.into_iter().flatten() {
        lines.push(format!("  - {}", plain(&listener["userAgent"])));
        lines.push(format!(
            "    {uuid} created {} ago",
            plain(&listener["createdAgo"])
        ));
        lines.push(String::new());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn document_at(document: &Object, path: &str) -> Option<Value> {
    let mut keys = path.split('.');
    let first = document.get(keys.next()?)?;
    keys.try_fold(first, |value, key| value.get(key)).cloned()
}

fn plain(value: &Value) -> String {
    let text = printable(&raw_text(value));
    if text.is_empty() || value.is_null() {
        "-".to_owned()
    } else {
        text
    }
}

/// A member of any shape, its own members below it.
fn nested(depth: usize, key: &str, value: &Value, lines: &mut Vec<String>) {
    let (indent, key) = ("  ".repeat(depth), printable(key));
    match value {
        Value::Object(members) if !members.is_empty() => {
            lines.push(format!("{indent}{key}"));
            members
                .iter()
                .for_each(|(key, member)| nested(depth + 1, key, member, lines));
        }
        Value::Array(elements) if !elements.is_empty() => {
            lines.push(format!("{indent}{key}: ({} items)", elements.len()));
            for (index, element) in elements.iter().enumerate() {
                nested(depth + 1, &index.to_string(), element, lines);
            }
        }
        Value::Object(_) | Value::Array(_) => lines.push(format!("{indent}{key}: -")),
        scalar => lines.push(format!("{indent}{key}: {}", plain(scalar))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn the_short_document_keeps_the_order_of_http_and_nothing_of_our_own() {
        let full = object(json!({
            "refreshLog": [], "sources": {}, "numVms": 3, "state": "running", "pid": 7,
            "fswatcher": {"running": true},
        }));
        let short = short(&full);
        let keys: Vec<&str> = short.keys().map(String::as_str).collect();
        assert_eq!(keys, ["pid", "state", "numVms"]);
    }

    #[test]
    fn text_has_the_lines_of_the_original() {
        let document = object(json!({
            "pid": 7,
            "uptime": "3.000000000s (3s)",
            "memory": {"rss": 1 << 20},
            "state": "running",
            "status": "ok",
            "numVms": 2,
            "queue": {"paused": false, "idle": true, "vasync_queue": {"npending": 0, "nqueued": 0}},
            "lastRefresh": null,
            "refreshErrors": [{"err": "zfs: no\nanswer", "ago": "3s"}],
            "eventsListeners": {"u": {"userAgent": "cat", "createdAgo": "1s"}},
            "refreshLog": [{"vms": 2, "vmChanges": 1, "endedAgo": "9s"}],
            "fswatcher": {"running": true, "watches": {"active": 3, "hint": null}},
        }));
        let expected = [
            "state: running (ok)",
            "pid: 7",
            "uptime: 3.000000000s (3s)",
            "rss: 1.00mb",
            "numVms: 2",
            "queue",
            "  paused: false",
            "  idle: true",
            "  npending: 0",
            "  nqueued: 0",
            "fullRefresh",
            "  lastRefresh: -",
            "  refreshErrors: (1 items)",
            "    - zfs: no\\nanswer (3s)",
            "  refreshLog: (1 items)",
            "    - 2 VMs / 1 vmChanges - 9s ago",
            "fswatcher",
            "  running: true",
            "  watches",
            "    active: 3",
            "    hint: -",
            "eventsListeners: (1 listeners)",
            "  - cat",
            "    u created 1s ago",
            "",
            "",
        ];
        assert_eq!(text(&document), expected.join("\n"));
    }

    #[test]
    fn a_document_that_lacks_things_shows_dashes() {
        let text = text(&Object::new());
        assert!(text.starts_with("state: - (-)\npid: -\n"), "{text}");
    }
}
