//! Which engine a process works with: what its operator says, or the fastest that can run here and answers right.

use std::sync::Arc;

use super::aes_gcm::AesGcm;
use super::engine::Engine;
#[cfg(target_arch = "x86_64")]
use super::ipsec_mb::{IpsecMb, IpsecMbError};
use super::known_answers;
#[cfg(target_arch = "x86_64")]
use super::vaes::Vaes;

/// An operator's choice.
#[derive(
    Copy, Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The first of the others that can run here.
    #[default]
    Auto,
    /// Guestseal's own for VAES and VPCLMULQDQ with AVX-512, or else with AVX2.
    Vaes,
    /// intel-ipsec-mb, from the system's library.
    IpsecMb,
    /// The portable one.
    AesGcm,
}

/// Every engine, the fastest first.
pub const ENGINES: [Choice; 3] = [Choice::Vaes, Choice::IpsecMb, Choice::AesGcm];

/// Why an engine is not used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The CPU, or a kernel that hides it.
    #[error("AEAD engine vaes needs a CPU with {}", missing.join(", "))]
    Cpu {
        /// Instruction sets that are not there.
        missing: Vec<&'static str>,
    },
    /// The library.
    #[cfg(target_arch = "x86_64")]
    #[error("AEAD engine ipsec-mb")]
    Library(#[from] IpsecMbError),
    /// It computes something else than AES-GCM.
    #[error("AEAD engine {engine} gives a wrong answer ({case}): it must not be used on this machine")]
    WrongAnswer {
        /// The engine.
        engine: &'static str,
        /// What was asked.
        case: String,
    },
}

/// The engine to work with.
pub struct Chosen {
    /// It has given the known answers.
    pub engine: Arc<dyn Engine>,
    /// Faster ones, and why they are not it.
    pub passed_over: Vec<EngineError>,
}

impl std::fmt::Debug for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chosen")
            .field("engine", &self.engine.name())
            .finish_non_exhaustive()
    }
}

/// Makes the engine of a choice and asks it for known answers.
///
/// # Errors
/// See [`EngineError`]; with [`Choice::Auto`] only if no engine at all answers right.
pub fn choose(choice: Choice) -> Result<Chosen, EngineError> {
    let mut passed_over = Vec::new();
    if choice == Choice::Auto {
        for one in [Choice::Vaes, Choice::IpsecMb] {
            match make(one) {
                Ok(engine) => return Ok(Chosen { engine, passed_over }),
                Err(error) => passed_over.push(error),
            }
        }
    }
    let engine = make(choice)?;
    Ok(Chosen { engine, passed_over })
}

/// [`Choice::Auto`] stands for the last resort here.
fn make(choice: Choice) -> Result<Arc<dyn Engine>, EngineError> {
    let engine: Arc<dyn Engine> = match choice {
        #[cfg(target_arch = "x86_64")]
        Choice::Vaes => Arc::new(Vaes::new().map_err(|missing| EngineError::Cpu { missing })?),
        #[cfg(target_arch = "x86_64")]
        Choice::IpsecMb => Arc::new(IpsecMb::load()?),
        #[cfg(not(target_arch = "x86_64"))]
        Choice::Vaes | Choice::IpsecMb => {
            return Err(EngineError::Cpu {
                missing: vec!["x86-64"],
            });
        }
        Choice::AesGcm | Choice::Auto => Arc::new(AesGcm),
    };
    known_answers::ask(&*engine).map_err(|case| EngineError::WrongAnswer {
        engine: engine.name(),
        case,
    })?;
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_choice_is_the_first_that_can_run() {
        let chosen = choose(Choice::Auto).unwrap();
        let first = ENGINES.into_iter().find_map(|one| choose(one).ok()).unwrap();
        assert_eq!(chosen.engine.name(), first.engine.name());
    }

    /// A process takes one of them only.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_form_of_vaes_answers_right() {
        for form in [Vaes::wide(), Vaes::narrow()].into_iter().flatten() {
            assert_eq!(known_answers::ask(&form), Ok(()), "{}", form.describe());
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vaes_is_as_wide_as_the_cpu() {
        let describe = |form: Result<Vaes, _>| form.map(|engine| engine.describe());
        let widest = describe(Vaes::wide()).or_else(|_| describe(Vaes::narrow()));
        assert_eq!(describe(Vaes::new()), widest);
    }

    #[test]
    fn the_portable_engine_is_always_there() {
        let chosen = choose(Choice::AesGcm).unwrap();
        assert_eq!(chosen.engine.name(), "aes-gcm");
        assert!(chosen.passed_over.is_empty());
    }
}
