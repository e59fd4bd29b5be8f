//! docs/outcomes.md is made from the one list of endings: `UPDATE_DOCS=1 cargo test -p guestseal --test docs` writes it.

use std::fmt::Write;

use guestseal::path::outcome::{DropReason, Severity};
use guestseal_rules::containers::Refusal;
use guestseal_rules::event::Event;
use guestseal_rules::load::{Source, load_policy, load_sources};

fn page() -> String {
    let mut page = String::from(
        "# How packets end\n\n\
         Every packet ends in exactly one of these. `sent_encrypted`, `sent_authenticated` and `sent_plaintext` left by the uplink, `delivered` by a guest \
         port; the rest is dropped, each for one reason. *Policy*: the rules at work. *Hostile*: bytes that are no packet we accept, a fault or an attack. \
         *Trouble*: the host lacks room, a key or a device; look at it.\n\n\
         | reason | stage | | |\n|---|---|---|---|\n",
    );
    for reason in DropReason::ALL {
        let severity = match reason.severity() {
            Severity::Policy => "policy",
            Severity::Hostile => "hostile",
            Severity::Trouble => "trouble",
        };
        writeln!(
            page,
            "| `{}` | {} | {severity} | {} |",
            reason.name(),
            reason.stage(),
            reason.line()
        )
        .unwrap();
    }
    page
}

#[test]
fn the_page_of_outcomes_is_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/outcomes.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        page(),
        "run with UPDATE_DOCS=1"
    );
}

/// What the page of events shows are events, and its reasons are all there are.
#[test]
fn the_page_of_events_says_what_is_so() {
    let page = include_str!("../../docs/events.md");
    let block = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let mut kinds = std::collections::HashSet::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        kinds.insert(std::mem::discriminant(&event.what));
    }
    assert_eq!(kinds.len(), 11, "{kinds:?}");
    for refusal in Refusal::ALL {
        let row = format!("| {} |", refusal.name());
        assert!(page.contains(&row), "{row}");
    }
}

/// Files of sources that the page shows are right ones, about the demo's guests.
#[test]
fn the_page_of_sources_shows_right_files() {
    let source = |name: &str, text: &str| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let policy = include_str!("../../rules/examples/demo/policy.yaml");
    let policy = load_policy(&[source("policy.yaml", policy)]).unwrap();
    let page = include_str!("../../docs/sources.md");
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let mut files = 0;
    for block in blocks.filter(|block| block.starts_with("sources:")) {
        let loaded = load_sources(&source("sources.yaml", block), &policy);
        assert!(!loaded.unwrap_or_else(|errors| panic!("{errors}")).is_empty());
        files += 1;
    }
    assert!(files > 0);
}

/// A link to a file that is not there is a promise that nothing keeps.
#[test]
fn links_lead_somewhere() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut pages: Vec<_> = ["README.md", "ARCHITECTURE.md"]
        .map(|page| root.join(page))
        .into();
    pages.extend(
        std::fs::read_dir(root.join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path()),
    );
    let mut links = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = rest.split(')').next().unwrap();
            if !target.starts_with("http") && !target.starts_with('#') {
                let file = target.split('#').next().unwrap();
                assert!(
                    page.parent().unwrap().join(file).exists(),
                    "{}: {target}",
                    page.display()
                );
                links += 1;
            }
        }
    }
    assert!(links > 40, "{links} links were found");
}
