//! AEAD engines: keys and bytes only. They know nothing of ESP, SAs or frames.

pub mod aes_gcm;
pub mod engine;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod esp_packets;
