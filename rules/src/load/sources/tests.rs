//! Every message for a wrong file of sources, and what a right one says.

use super::super::schema::mismatch_of;
use super::super::tests::RIGHT as POLICY;
use super::super::{Source, load_policy};
use super::*;

/// A right file, for cases that change one thing of it.
pub(in crate::load) const RIGHT: &str = "\
sources:
  - name: ids
    suricata: {file: /var/log/suricata/eve.json}
    rate: 50
    time: /timestamp
    guest:
      - {address: '{source}', network: blue}
      - {when: {interface: [mon*, tap9]}, mac: '{destination-mac}', network: blue}
      - {mac: '{source-mac}'}
      - {interface: '{interface}', vlan: '{vlan}'}
      - {id: web}
      - {in: /host, like: '^vm-(?<guest>[a-z]+)$'}
    reports:
      - {when: {signature: 'ET INFO *'}, ignore: true}
      - {when: {severity: [1, 2], category: '*Trojan*'}, tag: {name: 'malware.{signature-id}', severity: 90, lasts: 12h}}
      - {when: {action: allowed}, guest: [{id: db}], tag: {name: alert, severity: '{/score}'}}
      - {clear: {name: 'malware.*'}}
  - name: av
    clamav: {told: [clamav]}
    guest: [{in: file, like: '^/srv/(?<guest>[^/]+)/'}]
    reports: [{tag: {name: '{virus}', severity: 100}}]
  - name: gate
    service: ids
    text: {socket: /run/gate.sock, group: adm, like: ['^in (?<user>\\S+) (?<from>\\S+)$', '^out (?<gone>\\S+)$']}
    guest: [{address: '{from}', network: blue}]
    reports:
      - {when: {user: '*'}, login: {user: '{user}', groups: [staff, '{/groups}']}}
      - {logout: {user: '{gone}'}}
  - name: edr
    service: av
    webhook: {listen: '192.0.2.1:7444', secret: edr.secret}
    guest: [{id: '{/vm}'}]
    reports: [{tag: {name: '{/rule}', severity: '{/score}'}}]
  - {name: flows, service: ids, agents: {directory: /run/guestseal/agents, group: kvm}}
";

fn load(text: &str) -> Result<Vec<model::Source>, FileErrors> {
    let source = |name: &str, text: &str| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let policy = format!("{POLICY}security-services: [ids, av]\n");
    let policy = load_policy(&[source("policy.yaml", &policy)]).unwrap();
    load_sources(&source("sources.yaml", text), &policy)
}

use crate::model::source as model;

#[test]
fn a_right_file_is_read_as_it_is_written() {
    assert_eq!(mismatch_of(SOURCES_SCHEMA, RIGHT), None);
    insta::assert_debug_snapshot!("sources", load(RIGHT).unwrap());
}

/// What is changed in the right file, and what is said then.
#[test]
fn every_mistake_is_named_with_its_place_and_what_was_expected() {
    let cases = [
        ("not YAML", "sources:\n", "sources: [\n"),
        ("unknown section", "sources:\n", "source:\n"),
        ("unknown field of a source", "rate: 50", "rates: 50"),
        ("unknown field of a finder", "{id: web}", "{guest: web}"),
        ("unknown field of a report", "ignore: true", "skip: true"),
        ("unknown field of a tag", "lasts: 12h", "for: 12h"),
        ("no name", "name: ids", "name: ''"),
        ("a name that is a path", "name: ids", "name: ../ids"),
        ("an undeclared security service", "name: ids", "name: idss"),
        (
            "an undeclared security service, said",
            "    rate: 50",
            "    service: aw",
        ),
        (
            "no service",
            "    suricata: {file: /var/log/suricata/eve.json}\n",
            "",
        ),
        ("nowhere to read", "{file: /var/log/suricata/eve.json}", "{}"),
        ("no rate", "rate: 50", "rate: 0"),
        ("no number", "rate: 50", "rate: many"),
        ("no field for the time", "time: /timestamp", "time: when"),
        ("an unknown field in a text", "'{source}'", "'{sourec}'"),
        ("an open brace", "'{source}'", "'{source'"),
        ("an empty text", "'{source}'", "''"),
        ("an undeclared network", "network: blue}", "network: blu}"),
        (
            "an address of any network",
            "'{source}', network: blue",
            "'{source}'",
        ),
        (
            "an unknown field in a condition",
            "interface: [mon*",
            "interfaces: [mon*",
        ),
        (
            "a condition on nothing",
            "interface: [mon*, tap9]",
            "interface: []",
        ),
        ("a network of an id", "{id: web}", "{id: web, network: blue}"),
        ("a VLAN of an id", "{id: web}", "{id: web, vlan: 7}"),
        ("two ways to find", "{id: web}", "{id: web, mac: '{source-mac}'}"),
        ("no way to find", "{id: web}", "{when: {action: x}}"),
        ("an undeclared guest", "{id: web}", "{id: wed}"),
        (
            "within a field without a pattern",
            ", like: '^vm-(?<guest>[a-z]+)$'",
            "",
        ),
        ("a pattern without a guest", "?<guest>", "?<vm>"),
        ("no pattern", "[a-z]+)$", "[a-z+$"),
        ("whom it speaks of", RIGHT_GUESTS, ""),
        ("two meanings", "ignore: true", "ignore: true, clear: {name: x}"),
        ("no meaning", ", ignore: true", ""),
        ("not ignored", "ignore: true", "ignore: false"),
        ("a severity above 100", "severity: 90", "severity: 101"),
        ("a severity that is a word", "severity: 90", "severity: high"),
        ("no duration", "lasts: 12h", "lasts: 12"),
        ("no time at all", "lasts: 12h", "lasts: 0s"),
        ("no reports", RIGHT_REPORTS, ""),
        ("two services", "    rate: 50", "    json: {told: []}"),
        ("two ways", "{file: /var", "{socket: /run/eve.sock, file: /var"),
        ("a group of a file", "{file: /var", "{group: suricata, file: /var"),
        ("an unknown field of a way", "{file: /var", "{path: /var"),
        (
            "no lines",
            "suricata: {file: /var/log/suricata/eve.json}",
            "text: {file: a}",
        ),
        (
            "an open pattern",
            "suricata: {file: /var/log/suricata/eve.json}",
            "text: {file: a, like: ['(']}",
        ),
        (
            "told lines",
            "suricata: {file: /var/log/suricata/eve.json}",
            "text: {told: [], like: [a]}",
        ),
        (
            "no port",
            "suricata: {file: /var/log/suricata/eve.json}",
            "webhook: {listen: 192.0.2.1, secret: s}",
        ),
        (
            "no secret",
            "suricata: {file: /var/log/suricata/eve.json}",
            "webhook: {listen: '192.0.2.1:1'}",
        ),
        (
            "agents with reports",
            "suricata: {file: /var/log/suricata/eve.json}",
            "agents: {directory: /run/a}",
        ),
        (
            "no user",
            "{clear: {name: 'malware.*'}}",
            "{login: {groups: [a]}}",
        ),
    ];
    let mut said = String::new();
    for (what, right, wrong) in cases {
        assert!(RIGHT.contains(right), "{what}: the right file has no `{right}`");
        let errors = load(&RIGHT.replacen(right, wrong, 1)).expect_err(what);
        for error in &errors.0 {
            let place = &error.0.place;
            assert!(place.line > 0 && place.column > 0, "{what}: {error}");
        }
        said += &format!("# {what}: {}\n{errors}\n\n", wrong.trim_end());
    }
    let twice = format!("{RIGHT}{}", RIGHT.trim_start_matches("sources:\n"));
    said += &format!("# a source twice\n{}\n", load(&twice).expect_err("twice"));
    insta::assert_snapshot!("messages", said);
}

const RIGHT_GUESTS: &str = "    guest:
      - {address: '{source}', network: blue}
      - {when: {interface: [mon*, tap9]}, mac: '{destination-mac}', network: blue}
      - {mac: '{source-mac}'}
      - {interface: '{interface}', vlan: '{vlan}'}
      - {id: web}
      - {in: /host, like: '^vm-(?<guest>[a-z]+)$'}
";

const RIGHT_REPORTS: &str = "    reports:
      - {when: {signature: 'ET INFO *'}, ignore: true}
      - {when: {severity: [1, 2], category: '*Trojan*'}, tag: {name: 'malware.{signature-id}', severity: 90, lasts: 12h}}
      - {when: {action: allowed}, guest: [{id: db}], tag: {name: alert, severity: '{/score}'}}
      - {clear: {name: 'malware.*'}}
";

#[test]
fn what_the_loader_refuses_by_its_shape_the_schema_refuses() {
    for (right, wrong) in [
        ("rate: 50", "rates: 50"),
        ("rate: 50", "rate: -1"),
        ("ignore: true", "ignore: maybe"),
        ("lasts: 12h", "lasts: {a: b}"),
        ("{id: web}", "{name: web}"),
        ("{clear: {name: 'malware.*'}}", "{login: {groups: [a]}}"),
    ] {
        let text = RIGHT.replacen(right, wrong, 1);
        assert!(
            load(&text).is_err() && mismatch_of(SOURCES_SCHEMA, &text).is_some(),
            "{wrong}"
        );
    }
}
