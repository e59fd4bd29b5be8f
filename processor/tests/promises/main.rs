//! What Guestseal promises, tested over the whole path on memory ports, without root: one file a promise.

mod frames;
mod host;

mod anti_spoofing;
mod events_hold;
mod frames_are_conserved;
mod hostile_wire;
mod in_place;
mod key_of_rule;
mod known_flows;
mod long_packets;
mod no_allocation;
mod no_nonce_twice;
mod no_plaintext_leaks;
mod overlay;
mod overlay_apart;
mod overlay_behaves;
mod overlay_foreign;
mod overlay_inverse;
mod path_mtu;
mod quarantine;
mod seals_and_opens;
mod two_forms;
mod two_workers;
mod unfinished_checksums;
mod waits_for_session;
