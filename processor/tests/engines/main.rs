//! The suite that every AEAD engine passes. An engine that this CPU or the system's libraries cannot run counts as
//! ignored, never as passed.

mod conformance;
mod differential;
mod esp_packets;
mod places;

use std::sync::Arc;

use guestseal::aead::choice::{ENGINES, EngineError, choose};
use guestseal::aead::engine::Engine;
#[cfg(target_arch = "x86_64")]
use guestseal::aead::{choice::Choice, vaes::Vaes};
use guestseal::control::supervise::chain;
use libtest_mimic::{Arguments, Trial};

type Check = fn(&dyn Engine);

const CHECKS: &[(&str, Check)] = &[
    ("wycheproof_gcm", conformance::wycheproof_gcm),
    ("wycheproof_gmac", conformance::wycheproof_gmac),
    ("esp_packets", esp_packets::all),
    ("keys_of_wrong_lengths_are_refused", conformance::key_lengths),
    (
        "no_plaintext_on_a_bad_tag",
        conformance::no_plaintext_on_a_bad_tag,
    ),
    ("every_length", differential::every_length),
    ("every_length_beyond", differential::every_length_beyond),
    ("every_length_of_gmac", differential::every_length_of_gmac),
    (
        "every_length_of_gmac_beyond",
        differential::every_length_of_gmac_beyond,
    ),
    ("additional_data_of_any_length", differential::additional),
    ("any_batch", differential::any_batch),
    ("forgeries_spoil_no_other_packet", differential::forgeries),
    ("every_alignment", places::every_alignment),
    ("nothing_is_touched_at_the_end_of_memory", places::end_of_memory),
    (
        "nothing_is_touched_at_the_begin_of_memory",
        places::begin_of_memory,
    ),
];

type Found = Result<Arc<dyn Engine>, EngineError>;

/// Every engine by its name; of `vaes` both forms, whichever a process would take here.
fn engines() -> Vec<(String, Found)> {
    let mut engines = Vec::new();
    for choice in ENGINES {
        #[cfg(target_arch = "x86_64")]
        if choice == Choice::Vaes {
            let found = |form: Result<Vaes, _>| -> Found {
                let engine = form.map_err(|missing| EngineError::Cpu { missing })?;
                Ok(Arc::new(engine))
            };
            engines.push(("vaes_wide".to_owned(), found(Vaes::wide())));
            engines.push(("vaes_narrow".to_owned(), found(Vaes::narrow())));
            continue;
        }
        let name = format!("{choice:?}").to_lowercase();
        engines.push((name, choose(choice).map(|chosen| chosen.engine)));
    }
    engines
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (engine_name, found) in engines() {
        let mut ignored = false;
        if let Err(error) = &found {
            // A wrong answer is no reason to look away.
            ignored = !matches!(error, EngineError::WrongAnswer { .. });
            eprintln!(
                "{engine_name}: {}: {}",
                if ignored { "ignored" } else { "failed" },
                chain(error)
            );
        }
        let engine = found.map_err(|error| chain(&error));
        for (name, check) in CHECKS {
            let (engine, check) = (engine.clone(), *check);
            let run = move || {
                check(&*engine?);
                Ok(())
            };
            trials.push(Trial::test(format!("{engine_name}::{name}"), run).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
