//! AEAD engines: keys and bytes only. They know nothing of ESP, SAs or frames.

pub mod aes_gcm;
pub mod engine;
