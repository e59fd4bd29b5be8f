//! Devices that fail under load cost counted packets or a rebind, never the worker, and no hand is needed.

use crate::net::{Net, Result, wait_for_spi};

pub(crate) fn uplink_down() -> Result<()> {
    let mut net = Net::running("down", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    let _flood = net.flood("down", 20_000)?;
    let capture = net.capture()?;
    let spi = net.spi("blue-any-h1-h2");
    for _ in 0..3 {
        wait_for_spi(&capture, spi, 1000)?;
        net.topology.hosts[0].ip("link set uplink down")?;
        net.wait_for_sent("blue-1", 10_000)?;
        net.topology.hosts[0].ip("link set uplink up")?;
    }
    wait_for_spi(&capture, spi, 1000)?;
    net.pings("blue-2", "10.1.0.1")?;
    net.pings("red-1", "10.2.0.2")?;
    net.stop(0)?;
    net.stop(1)?;
    Ok(())
}

pub(crate) fn uplink_deleted() -> Result<()> {
    let mut net = Net::running("deleted", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    net.pings("red-1", "10.2.0.2")?;
    let _flood = net.flood("deleted", 20_000)?;
    for _ in 0..2 {
        net.wait_for_sent("blue-1", 5000)?;
        // The wire's end goes, and the uplink with it.
        net.topology.wire.ip("link del host0")?;
        net.wait_for_word(0, "uplink uplink is gone")?;
        net.wait_for_sent("blue-1", 5000)?;
        net.topology.connect_host(0, 1)?;
        net.pings("blue-1", "10.1.0.2")?;
        net.pings("red-1", "10.2.0.2")?;
    }
    net.stop(0)?;
    net.stop(1)?;
    Ok(())
}

pub(crate) fn guest_port() -> Result<()> {
    let mut net = Net::running("port", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    net.guest("blue-1").ip("link del eth0")?;
    net.wait_for_word(0, "guest port gp-blue-1 is gone")?;
    // Its neighbour does not notice.
    net.pings("red-1", "10.2.0.2")?;
    net.topology.connect_guest(0)?;
    net.pings("blue-1", "10.1.0.2")?;
    // A guest of the other host answered by a port that was away.
    net.pings("blue-2", "10.1.0.1")?;
    net.stop(0)?;
    net.stop(1)?;
    Ok(())
}
