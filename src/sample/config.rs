//! The JSON files of one zone's `config` folder: metadata, tags, routes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::kind::Odd;
use super::random::Random;

/// `customer_metadata`: keys to log in with, and what the zone runs at boot.
pub(super) fn customer_metadata(random: &mut Random, role: &str, odd: Option<Odd>) -> Value {
    let mut metadata = Map::new();
    let people = ["ada", "grace", "ken", "dennis", "barbara", "edsger"];
    let keys: Vec<String> = (0..1 + random.below(3))
        .map(|_| {
            let person = random.pick(&people);
            format!("{} {person}@sample", ssh_key(random))
        })
        .collect();
    metadata.insert("root_authorized_keys".to_owned(), json!(keys.join("\n")));
    if random.percent(60) {
        metadata.insert("user-script".to_owned(), json!(user_script(role)));
    }
    if random.percent(20) {
        let cloud_config = format!("#cloud-config\npackages:\n  - {role}\n");
        metadata.insert("user-data".to_owned(), json!(cloud_config));
    }
    match odd {
        Some(Odd::NewlineInMetadata) => {
            let motd = "first line\nsecond line, \"quoted\"\n\n\ttabbed, no end";
            metadata.insert("motd".to_owned(), json!(motd));
        }
        Some(Odd::PasswordInMetadata) => {
            metadata.insert("root_pw".to_owned(), json!("correct horse battery staple"));
        }
        _ => {}
    }
    Value::Object(metadata)
}

/// `internal_metadata`: what operators and provisioning leave behind.
pub(super) fn internal_metadata(random: &mut Random, odd: Option<Odd>) -> Value {
    if odd == Some(Odd::Docker) {
        return json!({
            "docker:id": format!("{:016x}", random.number()).repeat(4),
            "docker:cmd": "[\"nginx\",\"-g\",\"daemon off;\"]",
            "docker:env": "[\"PATH=/usr/sbin:/usr/bin:/sbin:/bin\",\"LANG=C.UTF-8\"]",
            "docker:workdir": "/",
        });
    }
    let mut metadata = Map::new();
    if random.percent(40) {
        let password = format!("{:012x}", random.below(1 << 48));
        metadata.insert("root_pw".to_owned(), json!(password));
    }
    if random.percent(30) {
        let ticket = format!("OPS-{}", random.below(10_000));
        metadata.insert("provision:ticket".to_owned(), json!(ticket));
    }
    Value::Object(metadata)
}

/// `tags`: every zone has its role and environment.
pub(super) fn tags(random: &mut Random, role: &str, odd: Option<Odd>) -> Value {
    let mut tags = json!({
        "role": role,
        "env": random.pick(&["prod", "prod", "prod", "staging", "test"]),
    });
    if random.percent(30) {
        tags["team"] = json!(random.pick(&["platform", "storefront", "data", "payments"]));
    }
    if random.percent(20) {
        tags["cost-center"] = json!(4000 + random.below(40));
    }
    if random.percent(15) {
        tags["monitored"] = json!(random.percent(80));
    }
    match odd {
        Some(Odd::TagKeysThatAreNoFileNames) => {
            tags["example.com/owner"] = json!("ops");
            tags[".hidden"] = json!("yes");
            tags["100%"] = json!("full");
        }
        Some(Odd::EmptyTag) => tags["note"] = json!(""),
        Some(Odd::TypedTags) => {
            tags["priority"] = json!(7);
            tags["weight"] = json!(0.25);
            tags["backup"] = json!(true);
            tags["legacy"] = json!(false);
        }
        _ => {}
    }
    tags
}

/// `routes`: few zones have some, and only they have the file.
pub(super) fn routes(random: &mut Random) -> Option<Value> {
    random.percent(20).then(|| {
        json!({
            "172.16.0.0/12": "10.0.0.9",
            format!("192.168.{}.0/24", random.below(256)): "nics[0]",
        })
    })
}

/// The public half of an Ed25519 key that nobody has.
fn ssh_key(random: &mut Random) -> String {
    // The length of the name, the name, the length of the key, the key.
    let mut key = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
    key.extend(random.bytes(32));
    format!("ssh-ed25519 {}", STANDARD.encode(key))
}

fn user_script(role: &str) -> String {
    format!(
        "#!/bin/bash\n\
         set -o errexit\n\
         if [[ ! -e /var/svc/.{role}-ready ]]; then\n    \
             pkgin -y install {role}-server\n    \
             svcadm enable -s {role}\n    \
             touch /var/svc/.{role}-ready\n\
         fi\n\
         exit 0\n"
    )
}
