//! What the wire no longer shows is seen by a listener on the host.

use std::process::Command;

use guestseal_perf::capture::{Capture, count_kinds, kinds_with};
use guestseal_perf::deployment::number;
use guestseal_perf::process::{Running, wait_for};

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::sources;

/// The demo's web traffic, copied.
fn policy() -> Result<String> {
    let web = "ports: [8080], action: encrypt, key: blue-web";
    ensure(POLICY.contains(web), || "the demo has no web".to_owned())?;
    Ok(POLICY.replacen(web, &format!("{web}, mirror: mon0"), 1))
}

fn net(name: &str) -> Result<Net> {
    let net = Net::of_policy(name, &policy()?)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    Ok(net)
}

/// A monitoring interface, and its other end, where the listener is.
fn monitor(net: &Net) -> Result<()> {
    let host = &net.topology.hosts[0];
    host.ip("link add mon0 type veth peer name listen0")?;
    for end in ["mon0", "listen0"] {
        host.run(&format!("sysctl -qw net.ipv6.conf.{end}.disable_ipv6=1"))?;
        host.ip(&format!("link set {end} up"))?;
    }
    Ok(())
}

/// A web server in blue-2 with one page.
fn serve(net: &Net, page: &str) -> Result<Running> {
    let root = net.deployment.directory().join("www");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("page"), page)?;
    let mut command = net.guest("blue-2").command("/usr/bin/python3");
    command
        .args(["-m", "http.server", "8080", "--directory"])
        .arg(&root);
    let server = Running::start("web", net.deployment.directory(), &mut command)?;
    wait_for("the page", PATIENCE, || Ok(fetch(net).ok()))?;
    Ok(server)
}

fn fetch(net: &Net) -> Result<String> {
    Ok(net
        .guest("blue-1")
        .run("curl -sSf --max-time 5 http://10.1.0.2:8080/page")?)
}

/// Suricata listens at the other end of the monitoring interface: a download that the wire shows to nobody brings the guest into
/// quarantine.
pub(crate) fn suricata_listens() -> Result<()> {
    let mut net = net("mirrored")?;
    monitor(&net)?;
    let directory = net.deployment.directory().to_owned();
    sources::serve(&mut net, &sources::ids("file: eve.json", "ids"))?;
    net.start(1, &[])?;
    let wire = net.capture()?;

    let (yaml, rules) = sources::suricata_files(&directory, "regular", &directory.join("eve.json"))?;
    let mut command = net.topology.hosts[0].command("suricata");
    command.arg("-c").arg(&yaml).arg("-S").arg(&rules);
    command.arg("--pcap=listen0").arg("-l").arg(&directory);
    let mut suricata = Running::start("suricata", &directory, &mut command)?;
    wait_for("Suricata to listen", PATIENCE, || {
        suricata.check_runs()?;
        let said = std::fs::read_to_string(directory.join("suricata.log")).unwrap_or_default();
        let said = said + &suricata.output() + &suricata.errors();
        Ok(said.contains("Engine started").then_some(()))
    })?;
    let _server = serve(&net, &sources::EICAR.concat())?;
    sources::wait_for_quarantine(&net, "blue-1", "1000001")?;
    ensure(fetch(&net).is_err(), || {
        "a guest in quarantine still downloads".to_owned()
    })?;

    let readable = kinds_with(&wire.stop()?, sources::EICAR[1]);
    ensure(readable.is_empty(), || {
        format!("readable on the wire: {readable:?}")
    })?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// Copies are those of the rule's packets, both ways, as they are between guest and seal; without a listener they are lost and
/// counted, and the packets themselves are not.
pub(crate) fn away_and_back() -> Result<()> {
    const MARKER: &str = "mirrored-page-marker";
    let mut net = net("monitor")?;
    monitor(&net)?;
    for host in 0..2 {
        net.start(host, &[])?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    let directory = net.deployment.directory().to_owned();
    let seen = Capture::start(&net.topology.hosts[0], "listen0", &directory)?;
    let _server = serve(&net, MARKER)?;
    wait_for("a copy of the page", PATIENCE, || {
        Ok((net.counter(0, "/mirrored").unwrap_or(0) >= 8).then_some(()))
    })?;
    let frames = seen.stop()?;
    // The page by itself is in one packet; the request and what belongs to it went the other way.
    let (page, request) = (kinds_with(&frames, MARKER), kinds_with(&frames, "GET /page"));
    ensure(
        page.contains_key("TCP 8080") && request.contains_key("TCP 8080"),
        || format!("the listener saw {page:?}, {request:?}"),
    )?;
    let kinds = count_kinds(&frames);
    ensure(kinds.keys().all(|kind| kind == "TCP 8080"), || {
        format!("the listener saw what no rule copies: {kinds:?}")
    })?;
    ensure(net.counter(1, "/mirrors_lost")? > 0, || {
        "the host without the interface lost no copies".to_owned()
    })?;

    net.topology.hosts[0].ip("link del mon0")?;
    let lost = net.counter(0, "/mirrors_lost")?;
    net.wait_for_word(0, "the monitoring interface mon0 is gone")?;
    ensure(fetch(&net)? == MARKER, || "the page changed".to_owned())?;
    wait_for("copies to be lost", PATIENCE, || {
        Ok((net.counter(0, "/mirrors_lost").unwrap_or(0) > lost).then_some(()))
    })?;

    monitor(&net)?;
    let before = net.counter(0, "/mirrored")?;
    wait_for("copies again", PATIENCE, || {
        let _ = fetch(&net);
        Ok((net.counter(0, "/mirrored").unwrap_or(0) > before).then_some(()))
    })?;
    for host in 0..2 {
        let totals = net.stop(host)?;
        ensure(number(&totals, "/outcomes/sent_encrypted") > 10, || {
            format!("nothing was sealed: {totals}")
        })?;
    }
    Ok(())
}

/// An interface that would lead plaintext to the wire or to a guest is no monitoring interface.
pub(crate) fn leaks_are_refused() -> Result<()> {
    let net = net("leaks")?;
    let path = net.deployment.directory().join("policy.yaml");
    let text = std::fs::read_to_string(&path)?;
    for (name, what) in [("uplink", "uplink"), ("gp-blue-1", "guest port")] {
        std::fs::write(
            &path,
            text.replacen("mirror: mon0", &format!("mirror: {name}"), 1),
        )?;
        let mut command = Command::new(guestseal_perf::deployment::program());
        command.arg("check");
        let output = command.arg(net.deployment.directory().join("h1.yaml")).output()?;
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let refused = !output.status.success() && said.contains("copies plaintext to") && said.contains(what);
        ensure(refused, || format!("{name}: {}: {said}", output.status))?;
    }
    Ok(())
}
