//! How long traffic stands still when a host has restarted: two hosts in namespaces, one of which is killed and started again.

use crate::demo::POLICY;
use crate::deployment::{Deployment, Host};
use crate::namespaces::Topology;
use crate::process::{PerfError, cpus};

/// Milliseconds between two pings: how finely it is measured.
const INTERVAL: f64 = 2.0;

/// The longest of: the restarted host is sent to, and it sends. In milliseconds from the first packet to the first answer.
///
/// # Errors
/// If the hosts do not start, or nothing is answered.
pub fn resume_after_restart() -> Result<f64, PerfError> {
    let deployment = Deployment::with_sessions("resume", POLICY)?;
    let topology = Topology::new(2, 1, &deployment.guests(1))?;
    let cpus = cpus()?;
    for host in 0..2 {
        let workers = format!("workers: [{{queue: 0, cpu: {}}}]", cpus[host % cpus.len()]);
        deployment.write_session_host(host, "", &workers)?;
    }
    let start = |number: usize| deployment.start(number, &topology.hosts[number], &[]);
    let _one: Host = start(0)?;
    let mut two: Option<Host> = Some(start(1)?);
    let first_answer = |from: &str, to: &str| -> Result<f64, PerfError> {
        let line = format!("ping -c 1000 -i {} -W 5 {to}", INTERVAL / 1000.0);
        let said = topology.guest(from).namespace.run(&line)?;
        answered_after(&said).ok_or_else(|| PerfError::Wrong(format!("no answer in: {said}")))
    };
    first_answer("blue-1", "10.1.0.2")?;
    let mut longest: f64 = 0.0;
    for (from, to) in [("blue-1", "10.1.0.2"), ("blue-2", "10.1.0.1")] {
        if let Some(mut host) = two.take() {
            host.process.kill();
        }
        two = Some(start(1)?);
        longest = longest.max(first_answer(from, to)?);
    }
    Ok(longest)
}

/// When the first answer came, from what ping says.
fn answered_after(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("icmp_seq="))?;
    let field = |name: &str| {
        let rest = line.split(name).nth(1)?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some((field("icmp_seq=")? - 1.0) * INTERVAL + field("time=")?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_answer_is_found() {
        let said = "PING 10.1.0.2 (10.1.0.2) 56(84) bytes of data.\n64 bytes from 10.1.0.2: icmp_seq=3 ttl=64 time=0.25 ms\n";
        assert_eq!(super::answered_after(said), Some(4.25));
        assert_eq!(super::answered_after("PING"), None);
    }
}
