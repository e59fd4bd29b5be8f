//! Which event a report is, and why it is none.

use serde_json::json;

use super::*;
use crate::load::{self, load_policy, load_sources};

const POLICY: &str = "\
hosts:
  - {name: h1, address: 192.0.2.1}
  - {name: h2, address: 192.0.2.2}
networks:
  - {name: blue, type: flat}
  - {name: red, type: vxlan, vni: 7}
  - {name: green, type: vxlan, vni: 8}
guests:
  - {id: web, uuid: 11111111-0000-0000-0000-000000000000, host: h1, ports: [{interface: gp1, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1, 'fd00::1']}]}
  - {id: db, host: h2, ports: [{interface: gp1, network: red, mac: '02:00:00:00:00:02', addresses: [10.0.0.1]}]}
  - {id: mail, host: h1, ports: [{interface: trunk, vlan: 7, network: green, mac: '02:00:00:00:00:02', addresses: [10.0.0.3]}]}
keys:
  - {id: k}
rules:
  - {name: all, from: any, to: any, action: drop}
";

/// What is made of a report by a source with these fields.
fn event(fields: &str, report: &Value) -> Result<Event, Unmapped> {
    event_after(&[], fields, report)
}

/// The same, after guests have come to this host or left it.
fn event_after(moves: &[(&str, bool)], fields: &str, report: &Value) -> Result<Event, Unmapped> {
    let source = |name: &str, text: &str| load::Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let policy = load_policy(&[source("policy.yaml", POLICY)]).unwrap();
    let text = format!("sources:\n  - {{name: ids, suricata: {{file: eve.json}}, {fields}}}\n");
    let sources =
        load_sources(&source("sources.yaml", &text), &policy).unwrap_or_else(|errors| panic!("{errors}"));
    let host = policy.host("h1").unwrap();
    let mut directory = Directory::new(&policy, |guest| policy.guests[guest.index()].host == host);
    for (guest, is_here) in moves {
        directory.place(&policy, policy.guest(guest).unwrap(), *is_here);
    }
    sources[0].event(report, &policy, &directory)
}

const TAG: &str = "reports: [{tag: {name: t, severity: 1}}]";

/// The guest that a report speaks of.
fn guest(finders: &str, report: &Value) -> Option<String> {
    match event(&format!("guest: [{finders}], {TAG}"), report) {
        Ok(event) => Some(event.guest),
        Err(Unmapped::Nobody) => None,
        Err(why) => panic!("{why:?}"),
    }
}

#[test]
fn an_interface_is_that_of_the_guest_that_is_here() {
    let report = json!({"in_iface": "gp1"});
    let fields = format!("guest: [{{interface: '{{interface}}'}}], {TAG}");
    let after = |moves: &[(&str, bool)]| event_after(moves, &fields, &report).map(|event| event.guest);
    assert_eq!(after(&[("web", false)]), Err(Unmapped::Nobody));
    assert_eq!(after(&[("web", false), ("db", true)]), Ok("db".to_owned()));
    // Told in the other order, and of one that was never here.
    assert_eq!(after(&[("db", true), ("web", false)]), Ok("db".to_owned()));
    assert_eq!(
        after(&[("db", true), ("web", false), ("db", false)]),
        Err(Unmapped::Nobody)
    );
}

#[test]
fn guests_are_found_by_what_is_theirs_and_nobody_by_what_could_be_several() {
    let web = Some("11111111-0000-0000-0000-000000000000".to_owned());
    let (db, mail) = (Some("db".to_owned()), Some("mail".to_owned()));
    let alert = |source: &str, mac: &str, interface: &str| json!({"src_ip": source, "dest_ip": "10.0.0.9", "in_iface": interface, "vlan": [7], "ether": {"src_mac": mac}, "host": "vm-web"});
    let blue = "{address: '{source}', network: blue}";
    let red = "{address: '{source}', network: red}";
    for (finders, report, found) in [
        (blue, alert("10.0.0.1", "", ""), &web),
        (blue, alert("fd00:0::0001", "", ""), &web),
        (red, alert("10.0.0.1", "", ""), &db),
        (blue, alert("10.0.0.3", "", ""), &None),
        (blue, alert("web", "", ""), &None),
        (
            "{address: '{destination}', network: blue}, {address: '{source}', network: blue}",
            alert("10.0.0.1", "", ""),
            &web,
        ),
        ("{mac: '{source-mac}'}", alert("", "02:00:00:00:00:01", ""), &web),
        ("{mac: '{source-mac}'}", alert("", "02:00:00:00:00:02", ""), &None),
        (
            "{mac: '{source-mac}', network: green}",
            alert("", "02:00:00:00:00:02", ""),
            &mail,
        ),
        ("{interface: '{interface}'}", alert("", "", "gp1"), &web),
        ("{interface: '{interface}'}", alert("", "", "trunk"), &None),
        (
            "{interface: '{interface}', vlan: '{vlan}'}",
            alert("", "", "trunk"),
            &mail,
        ),
        (
            "{when: {interface: mon1}, id: db}, {id: mail}",
            alert("", "", "mon1"),
            &db,
        ),
        (
            "{when: {interface: mon1}, id: db}, {id: mail}",
            alert("", "", "mon2"),
            &mail,
        ),
        (
            "{id: '{/host}'}, {in: /host, like: '^vm-(?<guest>.*)$'}",
            alert("", "", ""),
            &web,
        ),
        ("{in: /host, like: '^vm-(?<guest>b)$'}", alert("", "", ""), &None),
        ("{id: '{/nothing}'}", alert("", "", ""), &None),
    ] {
        assert_eq!(&guest(finders, &report), found, "{finders}: {report}");
    }
}

const WEB: &str = "guest: [{id: web}]";

#[test]
fn the_first_meaning_that_matches_decides() {
    let fields = format!(
        "{WEB}, reports: [
            {{when: {{signature: 'ET INFO *'}}, ignore: true}},
            {{when: {{severity: [1, 2], category: ['*Trojan*', worm]}}, tag: {{name: 'malware.{{signature-id}}', severity: 90, lasts: 1h}}}},
            {{when: {{/tags: late}}, guest: [{{id: mail}}], clear: {{name: 'malware.*'}}}}]"
    );
    let alert = |severity: u8, category: &str| {
        json!({"timestamp": "2026-11-28T08:00:00.250001+0100",
            "alert": {"severity": severity, "category": category, "signature": "ET MALWARE x", "signature_id": 2000}})
    };
    let made = event(&fields, &alert(1, "A Network Trojan was detected")).unwrap();
    let said = serde_json::to_value(&made).unwrap();
    assert_eq!(
        said["tag"],
        json!({"service": "ids", "name": "malware.2000", "severity": 90, "lasts": "3600000ms"})
    );
    assert_eq!(said["time"], "2026-11-28T07:00:00.250Z");
    assert_eq!(event(&fields, &alert(3, "worm")), Err(Unmapped::NoMeaning));
    assert_eq!(event(&fields, &alert(1, "a worm")), Err(Unmapped::NoMeaning));
    let noise = json!({"alert": {"severity": 1, "category": "worm", "signature": "ET INFO x"}});
    assert_eq!(event(&fields, &noise), Err(Unmapped::Ignored));
    let cleared = event(&fields, &json!({"tags": ["early", "late"]})).unwrap();
    assert_eq!((cleared.guest.as_str(), cleared.time), ("mail", None));
    assert!(matches!(cleared.what, What::Clear(_)));
}

#[test]
fn what_a_report_says_never_makes_its_event_refused_for_its_form() {
    let fields = format!("{WEB}, reports: [{{tag: {{name: 'n.{{/n}}', severity: '{{/s}}'}}}}]");
    let tag = |name: &Value, severity: &Value| match event(&fields, &json!({"n": name, "s": severity}))?.what
    {
        What::Tag(tag) => Ok((tag.name, tag.severity)),
        what => panic!("{what}"),
    };
    let long = "\u{e9}".repeat(1000);
    let (name, severity) = tag(&long.as_str().into(), &json!(1e9)).unwrap();
    assert!(
        name.len() <= LONGEST_NAME && name.starts_with("n.\u{e9}"),
        "{name}"
    );
    assert_eq!(severity, 100);
    assert_eq!(tag(&json!("a\nb"), &json!("66.6")), Ok(("n.a_b".to_owned(), 67)));
    assert_eq!(tag(&json!(["a", 7]), &json!(-3)), Ok(("n.a,7".to_owned(), 0)));
    assert_eq!(tag(&json!({"a": 1}), &json!(1)), Err(Unmapped::Incomplete));
    assert_eq!(tag(&json!("a"), &json!("bad")), Err(Unmapped::Incomplete));
    assert_eq!(tag(&json!("a"), &json!("NaN")), Err(Unmapped::Incomplete));
}

#[test]
fn logins_have_groups_of_words() {
    let fields = format!(
        "{WEB}, reports: [{{when: {{/in: true}}, login: {{user: '{{/user}}', groups: [all, '{{/groups}}']}}}}, {{logout: {{user: '{{/user}}'}}}}]"
    );
    let login = json!({"in": true, "user": "alice", "groups": "admins  wheel,\tops\n"});
    let said = serde_json::to_value(event(&fields, &login).unwrap()).unwrap();
    assert_eq!(
        said["login"],
        json!({"user": "alice", "groups": ["all", "admins", "wheel", "ops"]})
    );
    let many = json!({"in": true, "user": "alice", "groups": "g ".repeat(100) + &"x".repeat(300)});
    let said = serde_json::to_value(event(&fields, &many).unwrap()).unwrap();
    assert_eq!(said["login"]["groups"].as_array().unwrap().len(), MOST_GROUPS);
    let gone = event(&fields, &json!({"in": false, "user": "alice"})).unwrap();
    assert_eq!(gone.what.to_string(), "logout of alice");
    assert_eq!(event(&fields, &json!({"in": true})), Err(Unmapped::Incomplete));
}
