//! boringtun as a peer on the same wire: a WireGuard tunnel in a process of its own, on one thread.

use std::io::{BufRead, BufReader, Error, Write};
use std::net::Shutdown;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;

use boringtun::device::{DeviceConfig, DeviceHandle};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::process::PerfError;

/// The keys of one end, as hexadecimal digits.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    private: String,
    public: String,
}

impl Keys {
    /// Fresh ones.
    pub(super) fn generate() -> Result<Self, PerfError> {
        let mut bytes = [0; 32];
        guestseal::keys::handshake::random::Random::fill(
            &mut guestseal::keys::handshake::random::System,
            &mut bytes,
        );
        let secret = StaticSecret::from(bytes);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            public: hex(PublicKey::from(&secret).as_bytes()),
            private: hex(secret.as_bytes()),
        })
    }

    /// What the end with these keys is told of the other.
    pub(super) fn settings(&self, peer: &Keys, endpoint: &str, allowed: &[&str]) -> String {
        let allowed: String = allowed.iter().map(|one| format!("allowed_ip={one};")).collect();
        format!(
            "private_key={};listen_port=51820;public_key={};endpoint={endpoint};{allowed}",
            self.private, peer.public
        )
    }
}

/// Makes the interface and carries what is routed into it.
pub(crate) fn carry(interface: &str, settings: &str) -> std::io::Result<()> {
    let (told, teller) = UnixStream::pair()?;
    let config = DeviceConfig {
        n_threads: 1,
        use_connected_socket: true,
        use_multi_queue: false,
        uapi_fd: told.into_raw_fd(),
    };
    let mut device =
        DeviceHandle::new(interface, config).map_err(|error| Error::other(format!("{error:?}")))?;
    let mut told = &teller;
    write!(told, "set=1\n{}\n", settings.replace(';', "\n"))?;
    let mut answer = String::new();
    BufReader::new(told).read_line(&mut answer)?;
    if answer.trim() != "errno=0" {
        return Err(Error::other(format!("boringtun refuses its settings: {answer}")));
    }
    println!("listening");
    std::io::stdout().flush()?;
    device.wait();
    teller.shutdown(Shutdown::Both)
}
