//! Keys on the control side: read, checked, kept from other eyes; and the durable marks that keep nonces unique.

pub mod derive;
pub mod handshake;
pub mod high_water;
pub mod identity;
pub mod keymat;
pub mod kmip;
pub mod locked;
pub mod secret;
pub mod store;
