//! Guests whose taps come under any name while guestseal runs: by libvirt's hook and by hand.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use guestseal_perf::deployment::{Deployment, program};
use guestseal_perf::namespaces::GuestSpec;
use guestseal_perf::process::wait_for;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};

const MAC: &str = "02:00:00:01:00:01";

/// As libvirt calls its hook for QEMU.
fn hook(net: &Net, words: &str, definition: &str) -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../processor/tests/libvirt");
    let mut command = Command::new(program());
    command.args(["hook", "libvirt", "--config"]);
    command.arg(net.deployment.directory().join("h1.yaml"));
    command
        .args(words.split(' '))
        .stdin(File::open(fixtures.join(definition))?);
    let done = command.output()?;
    ensure(done.status.success(), || {
        String::from_utf8_lossy(&done.stderr).into_owned()
    })?;
    ensure(done.stdout.is_empty(), || {
        "libvirt would take what it printed for a definition".into()
    })
}

fn add(net: &Net, interface: &str, mac: &str) -> std::result::Result<String, String> {
    let words = ["port", "add", "blue-1", "--mac", mac, "--interface", interface];
    net.ctl(0, &words).map_err(|error| error.to_string())
}

/// That the guest reaches its peer, or nobody.
fn reaches(net: &Net, does: bool) -> Result<()> {
    if does {
        return net.pings("blue-1", "10.1.0.2");
    }
    let answer = net.guest("blue-1").run("ping -c 3 -i 0.2 -W 1 -q 10.1.0.2");
    ensure(answer.is_err(), || "a port that is none carries packets".into())
}

pub(crate) fn by_hook_and_by_hand() -> Result<()> {
    let deployment = Deployment::new("ports", POLICY, &["red"])?;
    let mut guests = deployment.guests(1);
    guests[0].interface = "vnet7".into();
    let mut net = Net::of(deployment, 1, &guests)?.start_all(1)?;
    reaches(&net, false)?;
    hook(&net, "blue-1 prepare begin -", "defined.xml")?;
    hook(&net, "blue-1 start begin -", "running.xml")?;
    reaches(&net, true)?;
    hook(&net, "blue-1 started begin -", "running.xml")?;
    let ports = net.ctl(0, &["ports"])?;
    let line = ports
        .lines()
        .find(|line| line.starts_with("vnet7"))
        .unwrap_or_default();
    ensure(line.contains("yes") && line.contains("blue-1"), || ports.clone())?;
    net.host(0).process.kill();
    net.hosts[0] = None;
    net.start(0, &[])?;
    reaches(&net, true)?;
    hook(&net, "blue-1 stopped end -", "running.xml")?;
    reaches(&net, false)?;
    // Twice is as good as once, and so is another's guest.
    hook(&net, "blue-1 release end -", "running.xml")?;
    hook(&net, "somebody start begin -", "defined.xml")?;
    add(&net, "vnet7", MAC)?;
    reaches(&net, true)?;
    // The tap goes, and another one gets its name: it is not the guest's until somebody says so.
    net.guest("blue-1").ip("link del eth0")?;
    net.wait_for_word(0, "interface vnet7 is no guest port any more, says guestseal")?;
    net.topology.connect_guest(0)?;
    reaches(&net, false)?;
    add(&net, "vnet7", MAC)?;
    reaches(&net, true)?;
    for (interface, mac, why) in [
        ("gp-red-1", MAC, "another guest's by the policy"),
        ("uplink", MAC, "is the uplink"),
        ("vnet9", MAC, "no interface vnet9"),
        ("vnet7", "02:00:00:01:00:77", "has no port with the MAC"),
        ("vnet7", "blue", "is no MAC"),
    ] {
        let refused = add(&net, interface, mac).err().unwrap_or_default();
        ensure(refused.contains(why), || format!("{interface} {mac}: {refused}"))?;
    }
    net.ctl(0, &["port", "remove", "vnet7"])?;
    reaches(&net, false)?;
    let journal = net.ctl(0, &["journal"])?;
    wait_for("the journal", PATIENCE, || {
        Ok(
            (journal.matches("port-added").count() >= 3 && journal.matches("port-removed").count() >= 3)
                .then_some(()),
        )
    })?;
    net.stop(0)?;
    net.stop(1).map(drop)
}

/// A host is told of a guest on the first host that is in no file.
pub(crate) fn add_blue_9(net: &Net, host: usize, address: &str) -> std::result::Result<String, String> {
    let words = [
        "port",
        "add",
        "blue-9",
        "--network",
        "blue",
        "--mac",
        "02:00:00:01:00:09",
        "--address",
        address,
        "--interface",
        "vnet9",
        "--host",
        "h1",
    ];
    net.ctl(host, &words).map_err(|error| error.to_string())
}

/// A guest that is in no file comes and goes, is told to every host, and outlives a SIGKILL; what a file may not say is refused.
pub(crate) fn of_no_file() -> Result<()> {
    let deployment = Deployment::new("added", POLICY, &["red"])?;
    let mut guests = deployment.guests(1);
    guests.push(GuestSpec {
        id: "blue-9".into(),
        host: 0,
        interface: "vnet9".into(),
        mac: "02:00:00:01:00:09".into(),
        addresses: vec!["10.1.0.9/24".into()],
        queues: 1,
    });
    let mut net = Net::of(deployment, 1, &guests)?.start_all(1)?;
    let refused = add_blue_9(&net, 0, "10.1.0.1").err().unwrap_or_default();
    ensure(
        refused.contains("10.1.0.1") && refused.contains("added-guests.yaml:"),
        || refused.clone(),
    )?;
    for host in 0..2 {
        add_blue_9(&net, host, "10.1.0.9")?;
    }
    let twice = add_blue_9(&net, 0, "10.1.0.9").err().unwrap_or_default();
    ensure(twice.contains("there already"), || twice.clone())?;
    net.pings("blue-9", "10.1.0.2")?;
    net.host(0).process.kill();
    net.hosts[0] = None;
    net.start(0, &[])?;
    net.pings("blue-9", "10.1.0.2")?;
    net.ctl(1, &["port", "remove", "vnet9", "--host", "h1"])?;
    net.ctl(0, &["port", "remove", "vnet9"])?;
    let answer = net.guest("blue-9").run("ping -c 3 -i 0.2 -W 1 -q 10.1.0.2");
    ensure(answer.is_err(), || {
        "a guest that is none any more carries packets".into()
    })?;
    for host in 0..2 {
        let guests = net.ctl(host, &["guests"])?;
        ensure(!guests.contains("blue-9"), || guests.clone())?;
    }
    net.stop(0)?;
    net.stop(1).map(drop)
}
