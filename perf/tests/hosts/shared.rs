//! What hosts share by a real etcd, which comes and goes.

use guestseal_perf::etcd::Etcd;
use guestseal_perf::process::wait_for;
use serde_json::Value;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};

/// Hosts and an etcd. It goes before the namespaces that it is in.
struct Fleet {
    etcd: Etcd,
    net: Net,
}

impl Fleet {
    /// The demo's hosts; nothing runs yet but etcd.
    fn new(name: &str) -> Result<Self> {
        let net = Net::of_policy(name, POLICY)?;
        let etcd = Etcd::start(net.deployment.directory(), &net.topology)?;
        Ok(Self { etcd, net })
    }

    /// Writes the host's file; with `as_itself` etcd knows it by its name.
    fn write_host(&self, host: usize, as_itself: bool) -> Result<()> {
        let name = &self.net.deployment.policy.hosts[host].name;
        let section = self.etcd.section(as_itself.then_some(name));
        self.net.write_host_with(host, &section).map(drop)
    }

    fn running(name: &str) -> Result<Self> {
        let mut fleet = Self::new(name)?;
        for host in 0..2 {
            fleet.write_host(host, false)?;
            fleet.net.start(host, &[])?;
            fleet.connected(host, true)?;
        }
        Ok(fleet)
    }

    /// Waits until what a host says of etcd is so.
    fn wait_for(&self, host: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        Ok(wait_for(what, PATIENCE, || {
            // A host that has just started has not said anything yet.
            let status = self.net.deployment.status(host).unwrap_or_default();
            Ok(Some(status["etcd"].clone()).filter(&holds))
        })?)
    }

    fn connected(&self, host: usize, connected: bool) -> Result<Value> {
        let what = format!("host {host} to say connected: {connected}");
        self.wait_for(host, &what, |etcd| etcd["connected"] == connected)
    }

    /// Waits until one host says whether another is alive.
    fn alive(&self, host: usize, other: &str, alive: bool) -> Result<Value> {
        let what = format!("host {host} to say that {other} is alive: {alive}");
        self.wait_for(host, &what, |etcd| etcd["hosts"][other]["alive"] == alive)
    }

    fn stop(mut self) -> Result<()> {
        for host in 0..2 {
            self.net.stop(host)?;
        }
        Ok(())
    }
}

/// Each host knows whether the other is alive; without etcd hosts start and traffic flows; a host that is killed is not heard any more.
pub(crate) fn liveness() -> Result<()> {
    let mut fleet = Fleet::running("liveness")?;
    fleet.alive(0, "h2", true)?;
    fleet.alive(1, "h1", true)?;
    fleet.etcd.kill();
    fleet.connected(0, false)?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.net.stop(1)?;
    fleet.net.start(1, &[])?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.connected(1, false)?;
    let said = fleet.net.deployment.status(1)?["etcd"]["error"].clone();
    ensure(said.is_string(), || said.to_string())?;
    fleet.etcd.restart(&fleet.net.topology)?;
    fleet.connected(0, true)?;
    fleet.alive(0, "h2", true)?;
    // Who says something that cannot be is counted, and nothing else.
    let wire = &fleet.net.topology.wire;
    fleet
        .etcd
        .operator(wire, &["put", "/guestseal/hosts/h9", "nonsense"])?;
    fleet
        .etcd
        .operator(wire, &["put", "/guestseal/elsewhere", "nonsense"])?;
    fleet.wait_for(0, "both to be counted", |etcd| {
        etcd["refused"]["MalformedHost"] == 1 && etcd["refused"]["UnknownKey"] == 1
    })?;
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    fleet.alive(0, "h2", false)?;
    fleet.net.start(1, &[])?;
    fleet.alive(0, "h2", true)?;
    fleet.stop()
}
