//! SIGKILL under load: nothing of a guest leaves in plaintext, a restart needs no hand, no nonce is used again.

use std::collections::HashSet;

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::process::wait_for;

use crate::net::{Net, PATIENCE, Result, ensure, wait_for_spi};

const MARKER: &str = "killed-marker";

pub(crate) fn under_load() -> Result<()> {
    let mut net = Net::running("killed", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    // The worst host: its kernel bridges the guest's port to the uplink, so that whatever XDP lets through leaves.
    let host = &net.topology.hosts[0];
    host.ip("link add br0 type bridge mcast_snooping 0")?;
    for line in [
        "link set gp-blue-1 master br0",
        "link set uplink master br0",
        "link set br0 up",
    ] {
        host.ip(line)?;
    }
    let capture = net.capture()?;
    let spi = net.spi("blue-any-h1-h2");
    let _flood = net.flood(MARKER, 10_000)?;
    for _ in 0..3 {
        wait_for_spi(&capture, spi, 2000)?;
        net.host(0).process.kill();
        // The guest goes on sending, and nobody is there.
        net.wait_for_sent("blue-1", 3000)?;
        net.start(0, &[])?;
    }
    wait_for_spi(&capture, spi, 2000)?;
    net.stop(0)?;
    // After the orderly end the port is open: the same bridge now shows what would have leaked before.
    let mut follower = capture.follow()?;
    wait_for("the guest's plaintext after the orderly end", PATIENCE, || {
        Ok((!kinds_with(&follower.more()?, MARKER).is_empty()).then_some(()))
    })?;
    let frames = capture.stop()?;
    let readable = |frame: &Vec<u8>| kinds_with(std::slice::from_ref(frame), MARKER).len() == 1;
    let first_readable = frames.iter().position(readable);
    let is_sealed = |frame: &Vec<u8>| esp_of(frame).is_some_and(|(found, _)| found == spi);
    let last_sealed = frames.iter().rposition(is_sealed);
    ensure(first_readable > last_sealed, || {
        format!("plaintext before the orderly end: frame {first_readable:?}, last sealed {last_sealed:?}")
    })?;
    let sealed: Vec<(u32, u32)> = frames.iter().filter_map(|frame| esp_of(frame)).collect();
    let different: HashSet<&(u32, u32)> = sealed.iter().collect();
    ensure(sealed.len() > 8000, || {
        format!("only {} sealed packets were captured", sealed.len())
    })?;
    let twice = sealed.len() - different.len();
    ensure(twice == 0, || {
        format!("{twice} of {} (SPI, sequence) pairs came twice", sealed.len())
    })
}
