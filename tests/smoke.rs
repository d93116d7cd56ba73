//! The narrowest path through everything.

mod support;

use serde_json::json;
use support::Store;
use vminfod::sample::change;

#[test]
fn a_changed_tag_is_in_the_file_the_document_and_the_events() {
    let store = Store::new(3);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let uuid = mounted.json("vms.json")[0]["uuid"].clone();
    assert!(uuid.is_string());
    let events = mounted.events();
    change::set_tag(&store.root(), zone, "role", &json!("changed")).unwrap();
    let event = events.find(|event| event["zonename"] == **zone);
    assert_eq!(event["type"], "modify");
    assert_eq!(event["vm"]["tags"]["role"], "changed");
    let uuid = event["uuid"].as_str().unwrap();
    assert_eq!(mounted.read(format!("{uuid}/tags/role")), "changed\n");
    assert_eq!(
        mounted.json(format!("{uuid}/vm.json"))["tags"]["role"],
        "changed"
    );
}
