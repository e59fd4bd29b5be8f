//! docs/rules.md: its examples are one policy, its tables have every field, its links lead to its headings.

use guestseal_rules::check::warnings;
use guestseal_rules::load::{SCHEMA, Source, load_policy};

const PAGE: &str = include_str!("../../docs/rules.md");

#[test]
fn the_examples_are_one_policy() {
    let sources: Vec<Source> = PAGE
        .split("```yaml\n")
        .skip(1)
        .zip(1..)
        .map(|(rest, number)| Source {
            name: format!("example {number}"),
            text: rest.split("```").next().unwrap().to_owned(),
        })
        .collect();
    assert!(sources.len() > 6, "{} examples", sources.len());
    let policy = load_policy(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    // The green network is there to be seen only.
    let odd: Vec<String> = warnings(&policy)
        .iter()
        .map(ToString::to_string)
        .filter(|warning| !warning.contains("that no rule matches"))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn every_field_has_its_line() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let objects = schema["definitions"].as_object().unwrap().values();
    let mut fields = 0;
    for object in objects.chain([&schema]) {
        let properties = object.get("properties").and_then(|all| all.as_object());
        for field in properties.into_iter().flat_map(|all| all.keys()) {
            assert!(PAGE.contains(&format!("`{field}`")), "{field} is nowhere");
            fields += 1;
        }
    }
    assert!(fields > 60, "{fields} fields");
}

#[test]
fn links_within_the_page_lead_to_its_headings() {
    let headings: Vec<String> = PAGE
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .replace(' ', "-")
        })
        .collect();
    let mut links = 0;
    for target in PAGE
        .split("](#")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
    {
        assert!(headings.iter().any(|heading| heading == target), "{target}");
        links += 1;
    }
    assert!(links > 5);
}
