//! The demo's overlay part: two tenants whose guests have the same MACs and addresses, over one wire.

use std::collections::BTreeMap;

use crate::actor;
use crate::capture::{Capture, count_kinds, kind_of, kinds_with};
use crate::deployment::{Deployment, Host, imbalance};
use crate::namespaces::Topology;
use crate::process::{PerfError, Running, cpus, wait_for};

use super::{Demo, PATIENCE, own_program};

/// The policy that it shows.
const POLICY: &str = include_str!("../../../rules/examples/overlay/policy.yaml");

/// Hosts, guests and wire of this part.
struct Overlay {
    // In the order in which they must go.
    servers: Vec<Running>,
    hosts: Vec<Host>,
    topology: Topology,
    deployment: Deployment,
}

/// Plays it, and compares.
pub(super) fn play(demo: &mut Demo) -> Result<(), PerfError> {
    demo.say("overlay: two tenants with the same MACs and addresses, in VXLAN and in Geneve");
    let deployment = Deployment::with_sessions("demo-overlay", POLICY)?;
    let topology = Topology::new(2, 1, &deployment.guests(1))?;
    let capture = Capture::start(&topology.wire, "host0", deployment.directory())?;
    let mut overlay = Overlay {
        servers: Vec::new(),
        hosts: Vec::new(),
        topology,
        deployment,
    };
    let cpus = cpus()?;
    for host in 0..2 {
        let cpu = cpus[host % cpus.len()];
        let workers = format!("workers: [{{queue: 0, cpu: {cpu}}}]");
        overlay.deployment.write_session_host(host, "", &workers)?;
        let started = overlay
            .deployment
            .start(host, &overlay.topology.hosts[host], &[])?;
        overlay.hosts.push(started);
    }
    for (from, to) in [
        ("blue-1", "10.1.0.2"),
        ("red-1", "10.1.0.2"),
        ("blue-2", "fd00:1::1"),
        ("red-2", "fd00:1::1"),
        ("blue-3", "10.1.0.1"),
    ] {
        overlay.ping(demo, from, to);
    }
    let secret = crate::deployment::random_hex(8)?;
    overlay.mail(demo, &secret)?;
    overlay.stop(demo)?;
    look_at_wire(demo, &capture.stop()?, &secret);
    Ok(())
}

impl Overlay {
    fn ping(&self, demo: &mut Demo, from: &str, to: &str) {
        demo.say(&format!("overlay: {from} pings {to}"));
        let line = format!("ping -c 5 -i 0.05 -W 1 {to}");
        let guest = &self.topology.guest(from).namespace;
        let answers = wait_for(&format!("{from} to reach {to}"), PATIENCE, || {
            let seen = guest.run(&line).unwrap_or_default();
            Ok(seen.contains("5 received").then_some(()))
        });
        let seen = answers.map_or_else(|error| error.to_string(), |()| "5 answers".to_owned());
        let ok = seen == "5 answers";
        demo.check(
            "guest",
            &format!("overlay: {from} pings {to}"),
            "5 answers",
            seen,
            ok,
        );
    }

    /// Both tenants send mail to the same address. First only the blue one has a server there.
    fn mail(&mut self, demo: &mut Demo, secret: &str) -> Result<(), PerfError> {
        let program = own_program()?;
        for (server, from, expected) in [
            (Some("blue-2"), "blue-1", Some("blue")),
            (None, "red-1", None),
            (Some("red-2"), "red-1", Some("red")),
        ] {
            if let Some(server) = server {
                let namespace = &self.topology.guest(server).namespace;
                let words = ["mail-server"];
                self.servers.push(actor::serve(
                    &program,
                    namespace,
                    self.deployment.directory(),
                    &words,
                )?);
            }
            demo.say(&format!("overlay: {from} sends mail to 10.1.0.2"));
            let mail = format!("{from}-{secret}");
            let guest = &self.topology.guest(from).namespace;
            let answer = actor::play_in(&program, guest, &["mail-client", "10.1.0.2", &mail]);
            let what = format!("overlay: {from} sends mail to 10.1.0.2");
            match expected {
                Some(_) => {
                    let expected = format!("250 {mail}");
                    let seen = answer.unwrap_or_else(|error| error.to_string());
                    let ok = seen == expected;
                    demo.check("guest", &what, &expected, seen, ok);
                }
                None => {
                    let refused = answer.is_err();
                    let seen = if refused { "refused" } else { "answered by blue-2" };
                    let what = format!("{what}, where only blue-2 listens");
                    demo.check("guest", &what, "refused", seen, refused);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self, demo: &mut Demo) -> Result<(), PerfError> {
        self.servers.clear();
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let totals = host.stop()?;
            let name = format!("overlay {}", self.deployment.policy.hosts[number].name);
            let balance = imbalance(&totals);
            let ok = balance.is_none();
            demo.check(
                "host",
                &format!("{name}: packets and frames"),
                "received = sum of outcomes, every frame in one place",
                balance.unwrap_or_else(|| "so it is".into()),
                ok,
            );
            demo.report.hosts.insert(name, totals);
        }
        Ok(())
    }
}

fn look_at_wire(demo: &mut Demo, frames: &[Vec<u8>], secret: &str) {
    let all = count_kinds(frames);
    let spis = all.keys().filter(|kind| kind.starts_with("ESP ")).count();
    demo.check(
        "wire",
        "overlay: SAs of the tenants' sessions, both ways",
        "4 or more",
        spis.to_string(),
        spis >= 4,
    );
    let readable = kinds_with(frames, secret);
    let seen = if readable.is_empty() {
        "nowhere".to_owned()
    } else {
        format!("{readable:?}")
    };
    demo.check(
        "wire",
        "overlay: the mails are readable",
        "nowhere",
        seen,
        readable.is_empty(),
    );
    let guests: Vec<&Vec<u8>> = frames
        .iter()
        .filter(|frame| frame.get(6..11) == Some(&[2, 0, 0, 1, 0]))
        .collect();
    let kinds: BTreeMap<String, usize> = guests.iter().fold(BTreeMap::new(), |mut kinds, frame| {
        *kinds.entry(kind_of(frame)).or_default() += 1;
        kinds
    });
    let seen = if kinds.is_empty() {
        "none".to_owned()
    } else {
        format!("{kinds:?}")
    };
    demo.check(
        "wire",
        "overlay: frames with guests' MACs, ARP among them",
        "none",
        seen,
        kinds.is_empty(),
    );
}
