//! Guestseal.
