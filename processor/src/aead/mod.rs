//! AEAD engines: keys and bytes only. They know nothing of ESP, SAs or frames. Every engine passes the suite in
//! processor/tests/engines.

pub mod aes_gcm;
pub mod choice;
pub mod engine;
#[cfg(target_arch = "x86_64")]
pub mod ipsec_mb;
mod known_answers;
#[cfg(target_arch = "x86_64")]
pub mod vaes;
