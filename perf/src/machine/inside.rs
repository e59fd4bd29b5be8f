//! Guestseal inside a machine: its files, its process, what it and the kernel say of it, its totals.

use std::time::Duration;

use serde_json::Value;

use crate::deployment::{Deployment, imbalance};
use crate::process::PerfError;

use super::qemu::Machine;

const FILES: &str = "/etc/guestseal";
const PATIENCE: Duration = Duration::from_secs(60);

/// Guestseal in a machine.
#[derive(Debug)]
pub struct Inside {
    config: String,
}

/// The mode of one AF_XDP socket, as the kernel's socket diagnosis (`ss --xdp -e`) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Interface index.
    pub interface: u32,
    /// Queue.
    pub queue: u32,
    /// Whether the driver shares the frames.
    pub zero_copy: bool,
}

impl Inside {
    /// Writes a host's files into a machine; its SAs begin at 1.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn install(
        machine: &mut Machine,
        deployment: &Deployment,
        host: usize,
        extra: &str,
    ) -> Result<Self, PerfError> {
        let file = deployment.write_host(host, extra)?;
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let keymat = deployment
            .sas
            .iter()
            .filter(|sa| sa.from == host || sa.to == host)
            .map(|sa| format!("{}.hex", sa.name));
        for name in keymat.chain([name.clone(), "policy.yaml".to_owned()]) {
            let text = std::fs::read_to_string(deployment.directory().join(&name))
                .map_err(PerfError::io(name.clone()))?;
            machine.write(&format!("{FILES}/{name}"), &text)?;
        }
        let config = format!("{FILES}/{name}");
        machine.run(&format!("guestseal sa init --config {config}"))?;
        Ok(Self { config })
    }

    /// Starts it; returns what it said when traffic flows.
    ///
    /// # Errors
    /// If it ends instead: then with what it said.
    pub fn start(&self, machine: &mut Machine, arguments: &str) -> Result<String, PerfError> {
        machine.run("rm -f /tmp/ready /tmp/totals.json")?;
        machine.begin(
            "guestseal",
            &format!(
                "guestseal run --config {} --pin-directory /run/guestseal/bpf --ready-file /tmp/ready \
                 --totals-json /tmp/totals.json {arguments}",
                self.config
            ),
        )?;
        // Ready, or gone.
        machine.wait_until(
            "guestseal to be ready",
            PATIENCE,
            "[ -e /tmp/ready ] || ! [ -e /proc/$(cat /tmp/guestseal.pid)/exe ]",
        )?;
        let said = self.said(machine)?;
        match machine.try_run("[ -e /tmp/ready ]")?.0 {
            0 => Ok(said),
            _ => Err(PerfError::Wrong(format!("guestseal ended: {said}"))),
        }
    }

    /// What it has said so far.
    ///
    /// # Errors
    /// If the machine ends.
    pub fn said(&self, machine: &mut Machine) -> Result<String, PerfError> {
        machine.run("cat /tmp/guestseal.err")
    }

    /// Ends it by SIGTERM; gives its totals, which must balance.
    ///
    /// # Errors
    /// If they do not.
    pub fn stop(&self, machine: &mut Machine) -> Result<Value, PerfError> {
        machine.end("guestseal")?;
        let text = machine.run("cat /tmp/totals.json")?;
        let totals: Value = serde_json::from_str(&text).map_err(|error| PerfError::Malformed {
            what: "totals".into(),
            why: format!("{error}: {}", self.said(machine).unwrap_or_default()),
        })?;
        match imbalance(&totals) {
            None => Ok(totals),
            Some(what) => Err(PerfError::Wrong(format!("{what}: {totals}"))),
        }
    }
}

/// What the kernel's socket diagnosis says of every AF_XDP socket of the machine, and its words.
///
/// # Errors
/// If it says nothing that is understood.
pub fn bound(machine: &mut Machine) -> Result<(Vec<Bound>, String), PerfError> {
    let text = machine.run("ss --xdp -e")?;
    let sockets: Vec<Bound> = text.lines().filter_map(socket).collect();
    if sockets.is_empty() {
        return Err(PerfError::Wrong(format!("`ss --xdp -e` shows no socket: {text}")));
    }
    Ok((sockets, text))
}

/// The UMEM of a line: `umem(id:1,size:...,ifindex:2,qid:0,zc:1,refs:2)`.
fn socket(line: &str) -> Option<Bound> {
    let (_, umem) = line.split_once("umem(")?;
    let (umem, _) = umem.split_once(')')?;
    let field = |name: &str| -> Option<u32> {
        umem.split(',')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))?
            .parse()
            .ok()
    };
    Some(Bound {
        interface: field("ifindex")?,
        queue: field("qid")?,
        zero_copy: field("zc")? == 1,
    })
}
