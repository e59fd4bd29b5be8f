//! Real security services: what Suricata, clamd, PAM and a webhook's sender find is in force for the guest that it is about.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use guestseal_perf::deployment;
use guestseal_perf::process::{Running, run, wait_for};
use serde_json::{Value, json};

use crate::net::{Net, PATIENCE, Result, ensure};

/// The string of EICAR, which is no virus and is found as one; in two halves, so that no scanner finds this file.
pub(crate) const EICAR: [&str; 2] = [
    r"X5O!P%@AP[4\PZX54(P^)7CC)7}$",
    "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
];

/// A download by 10.1.0.1 from 10.1.0.2, as a capture.
const DOWNLOAD: &str = r#"
import sys
from scapy.all import Ether, IP, TCP, wrpcap
client, server = "10.1.0.1", "10.1.0.2"
up = Ether(src="02:00:00:01:00:01", dst="02:00:00:01:00:02") / IP(src=client, dst=server)
down = Ether(src="02:00:00:01:00:02", dst="02:00:00:01:00:01") / IP(src=server, dst=client)
ask = b"GET /eicar.com HTTP/1.1\r\nHost: x\r\n\r\n"
body = sys.argv[2].encode()
answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
to, back = dict(sport=40000, dport=80), dict(sport=80, dport=40000)
wrpcap(sys.argv[1], [
    up / TCP(flags="S", seq=1, **to), down / TCP(flags="SA", seq=1, ack=2, **back), up / TCP(flags="A", seq=2, ack=2, **to),
    up / TCP(flags="PA", seq=2, ack=2, **to) / ask,
    down / TCP(flags="PA", seq=2, ack=2 + len(ask), **back) / answer,
    up / TCP(flags="A", seq=2 + len(ask), ack=2 + len(answer), **to)])
"#;

/// A rule for the string, in hexadecimal digits: whatever scans the disk may leave it alone.
fn rule() -> String {
    let hex = EICAR[1].bytes().take(34).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x} ");
        hex
    });
    format!(
        "alert tcp any any -> any any (msg:\"EICAR download\"; flow:established,to_client; content:\"|{}|\"; \
         classtype:trojan-activity; sid:1000001; rev:1;)\n",
        hex.trim_end()
    )
}

/// Guestseal on the first host of the demo, with sources.
fn running(name: &str, sources: &str) -> Result<Net> {
    let mut net = Net::new(name, 1)?;
    serve(&mut net, sources)?;
    Ok(net)
}

pub(crate) fn serve(net: &mut Net, sources: &str) -> Result<()> {
    let file = net.write_host(0, 1)?;
    let directory = net.deployment.directory().to_owned();
    // Services before those that declare none: the demo's policy declares none.
    std::fs::write(directory.join("sources.yaml"), format!("sources:\n{sources}"))?;
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(
        &file,
        text.replacen("policy:", "sources: sources.yaml\npolicy:", 1),
    )?;
    net.start(0, &[])
}

fn guest(net: &Net, id: &str) -> Result<Value> {
    Ok(serde_json::from_str(&net.ctl(0, &["--json", "guests", id])?)?)
}

pub(crate) fn wait_for_quarantine(net: &Net, id: &str, tag: &str) -> Result<()> {
    let what = format!("{id} in quarantine with {tag}");
    wait_for(&what, PATIENCE, || {
        let Ok(guest) = guest(net, id) else {
            return Ok(None);
        };
        let tags = guest["tags"].to_string();
        Ok((guest["quarantine"] == true && tags.contains(tag)).then_some(()))
    })?;
    // People see it, too.
    let table = net.ctl(0, &["guests"])?;
    let line = table
        .lines()
        .find(|line| line.starts_with(id))
        .unwrap_or_default();
    ensure(line.contains("quarantine"), || table.clone())
}

/// What became of a source's reports.
fn counts(net: &Net, source: &str) -> Result<Value> {
    Ok(net.status(0)?["sources"][source].clone())
}

fn wait_for_count(net: &Net, source: &str, count: &str, wanted: u64) -> Result<()> {
    wait_for(&format!("{source}: {count} {wanted}"), PATIENCE, || {
        Ok(counts(net, source)
            .ok()
            .filter(|counts| counts[count] == wanted)
            .map(drop))
    })?;
    Ok(())
}

/// Suricata's configuration, with a file or socket for its alerts, and its rules.
pub(crate) fn suricata_files(
    directory: &Path,
    filetype: &str,
    filename: &Path,
) -> Result<(PathBuf, PathBuf)> {
    let rules = directory.join("test.rules");
    std::fs::write(&rules, rule())?;
    // As the page says.
    let page = include_str!("../../../docs/sources.md");
    let outputs = page
        .split("```yaml\n")
        .find(|block| block.starts_with("outputs:"));
    let outputs = outputs
        .and_then(|block| block.split("```").next())
        .ok_or("the page shows no outputs")?;
    let outputs = outputs
        .replace("filetype: regular", &format!("filetype: {filetype}"))
        .replace("filename: eve.json", &format!("filename: {}", filename.display()));
    let yaml = directory.join("suricata.yaml");
    std::fs::write(&yaml, format!("%YAML 1.1\n---\n{outputs}"))?;
    Ok((yaml, rules))
}

/// Has Suricata read the download, and write its alerts to a file or socket.
fn suricata(directory: &Path, filetype: &str, filename: &Path) -> Result<()> {
    let capture = directory.join("download.pcap");
    std::fs::write(directory.join("download.py"), DOWNLOAD)?;
    let mut script = Command::new("/usr/bin/python3");
    run(script
        .arg(directory.join("download.py"))
        .arg(&capture)
        .arg(EICAR.concat()))?;
    let (yaml, rules) = suricata_files(directory, filetype, filename)?;
    let mut command = Command::new("suricata");
    command
        .arg("-c")
        .arg(&yaml)
        .arg("-r")
        .arg(&capture)
        .arg("-l")
        .arg(directory);
    run(command.arg("-S").arg(rules).args(["-k", "none"]))?;
    Ok(())
}

/// Alerts of Suricata as a source.
pub(crate) fn ids(way: &str, name: &str) -> String {
    format!(
        "  - name: {name}\n    service: av\n    suricata: {{{way}}}\n    guest: [{{address: '{{destination}}', network: blue}}]\n    \
         reports: [{{when: {{severity: 1, category: '*Trojan*'}}, tag: {{name: '{{signature-id}}', severity: 90}}}}]\n"
    )
}

/// A download that Suricata alerts on leads to quarantine, by eve.json and by its socket.
pub(crate) fn suricata_alerts() -> Result<()> {
    for (name, way) in [
        ("suricata-file", "file: eve.json"),
        ("suricata-socket", "socket: eve.sock"),
    ] {
        let mut net = running(name, &ids(way, "ids"))?;
        let directory = net.deployment.directory().to_owned();
        match name {
            "suricata-file" => suricata(&directory, "regular", &directory.join("eve.json"))?,
            _ => suricata(&directory, "unix_stream", &directory.join("eve.sock"))?,
        }
        wait_for_quarantine(&net, "blue-1", "1000001")?;
        wait_for_count(&net, "ids", "told", 1)?;
        net.stop(0)?;
    }
    Ok(())
}

/// clamd with a database of its own, which knows one signature.
struct Clamd {
    socket: PathBuf,
    _running: Running,
}

impl Clamd {
    fn start(directory: &Path, more: &str) -> Result<Self> {
        let database = directory.join("database");
        std::fs::create_dir_all(&database)?;
        let hex = EICAR[1]
            .bytes()
            .take(34)
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        std::fs::write(database.join("eicar.ndb"), format!("Eicar-Test:0:*:{hex}\n"))?;
        let socket = directory.join("clamd.sock");
        let configuration = directory.join("clamd.conf");
        let text = format!(
            "DatabaseDirectory {}\nLocalSocket {}\nForeground yes\nLogTime yes\nExtendedDetectionInfo yes\n{more}\n",
            database.display(),
            socket.display()
        );
        std::fs::write(&configuration, text)?;
        let mut command = Command::new("clamd");
        command.arg("-c").arg(&configuration);
        let mut running = Running::start("clamd", directory, &mut command)?;
        wait_for("clamd to listen", PATIENCE, || {
            running.check_runs()?;
            Ok(UnixStream::connect(&socket).ok().map(drop))
        })?;
        Ok(Self {
            socket,
            _running: running,
        })
    }

    fn scan(&self, path: &Path) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(format!("zSCAN {}\0", path.display()).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// A file of a guest that clamd finds something in leads to quarantine, by its log and by its VirusEvent.
pub(crate) fn clamd_finds() -> Result<()> {
    for (name, way) in [("clamd-log", "file: clamd.log"), ("clamd-event", "told: []")] {
        let source = format!(
            "  - name: av\n    clamav: {{{way}}}\n    guest: [{{in: file, like: '/images/(?<guest>[^/]+)/'}}]\n    \
             reports: [{{tag: {{name: 'malware.{{virus}}', severity: 90}}}}]\n"
        );
        let mut net = running(name, &source)?;
        let directory = net.deployment.directory().to_owned();
        let more = match name {
            "clamd-log" => format!("LogFile {}", directory.join("clamd.log").display()),
            _ => format!(
                "VirusEvent {} ctl --config {} report av --environment CLAM_VIRUSEVENT_",
                deployment::program().display(),
                directory.join("h1.yaml").display()
            ),
        };
        let clamd = Clamd::start(&directory, &more)?;
        let scan = |guest: &str, text: &str| -> Result<String> {
            let images = directory.join("images").join(guest);
            std::fs::create_dir_all(&images)?;
            std::fs::write(images.join("file"), text)?;
            clamd.scan(&images.join("file"))
        };
        let clean = scan("red-1", "nothing")?;
        ensure(clean.contains("OK"), || clean.clone())?;
        let found = scan("blue-1", &EICAR.concat())?;
        ensure(found.contains("Eicar-Test"), || found.clone())?;
        wait_for_quarantine(&net, "blue-1", "malware.Eicar-Test")?;
        scan("nobody", &EICAR.concat())?;
        wait_for_count(&net, "av", "nobody", 1)?;
        let other = guest(&net, "red-1")?;
        ensure(other["quarantine"] == false, || other.to_string())?;
        net.stop(0)?;
    }
    Ok(())
}

/// A user who logs in by PAM is one of the guest's until the session is closed.
pub(crate) fn pam_logins() -> Result<()> {
    let page = include_str!("../../../docs/sources.md");
    let source = page
        .split("```yaml\nsources:\n")
        .find(|block| block.contains("name: portal"));
    let source = source
        .and_then(|block| block.split("```").next())
        .ok_or("the page shows no portal")?;
    let mut net = running("pam", source)?;
    let directory = net.deployment.directory().to_owned();
    let script = directory.join("login");
    let program = deployment::program();
    let text = page
        .split("```sh\n")
        .nth(1)
        .and_then(|block| block.split("```").next())
        .ok_or("no script")?;
    let text = text
        .replace("exec guestseal", &format!("exec {}", program.display()))
        .replace(
            "/etc/guestseal/h1.yaml",
            &directory.join("h1.yaml").display().to_string(),
        );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let service = directory.join("pam.d");
    std::fs::create_dir(&service)?;
    let stack = format!("session required pam_exec.so {}\n", script.display());
    std::fs::write(service.join("guestseal-test"), stack)?;
    // The system's own services are hidden from this call only.
    let session = |operation: &str| -> Result<String> {
        let line = format!(
            "mount --bind {} /etc/pam.d && pamtester -I rhost=10.1.0.1 guestseal-test root {operation}",
            service.display()
        );
        Ok(run(Command::new("unshare").args(["--mount", "sh", "-c", &line]))?)
    };
    session("open_session")?;
    let logged_in = guest(&net, "blue-1")?["logins"].to_string();
    ensure(logged_in.contains("root"), || logged_in.clone())?;
    session("close_session")?;
    let logged_out = guest(&net, "blue-1")?["logins"].to_string();
    ensure(!logged_out.contains("root"), || logged_out.clone())?;
    net.stop(0).map(drop)
}

/// A report signed by OpenSSL and posted by curl is in force when it is answered.
pub(crate) fn signed_webhook() -> Result<()> {
    // In the host's own network namespace, whatever else runs.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let source = format!(
        "  - name: edr\n    service: av\n    webhook: {{listen: '127.0.0.1:{port}', secret: edr.secret}}\n    guest: [{{id: '{{/vm}}'}}]\n    \
         reports: [{{tag: {{name: '{{/rule}}', severity: '{{/score}}'}}}}]\n"
    );
    let mut net = Net::new("webhook", 1)?;
    let directory = net.deployment.directory().to_owned();
    let secret = directory.join("edr.secret");
    run(Command::new("sh").arg("-c").arg(format!(
        "umask 077; echo whsec_$(openssl rand -base64 32) > {}",
        secret.display()
    )))?;
    serve(&mut net, &source)?;
    let body = json!({"vm": "blue-1", "rule": "ransom", "score": 95}).to_string();
    let script = format!(
        "key=$(sed s/whsec_// {secret} | openssl base64 -d -A | od -An -vtx1 | tr -d ' \\n'); at=$(date +%s); \
         sign=$(printf %s \"one.$at.$1\" | openssl dgst -sha256 -mac HMAC -macopt hexkey:$key -binary | openssl base64 -A); \
         curl -s -o /dev/null -w '%{{http_code}}' -H \"webhook-id: one\" -H \"webhook-timestamp: $at\" -H \"webhook-signature: v1,$sign\" \
         --data-binary \"$2\" http://127.0.0.1:{port}/v1/hooks/edr",
        secret = secret.display()
    );
    let send = |signed: &str, sent: &str| -> Result<String> {
        let mut command = net.topology.hosts[0].command(Path::new("sh"));
        Ok(run(command.args(["-c", &script, "sh", signed, sent]))?)
    };
    let forged = send(&body, &body.replace("blue-1", "blue-2"))?;
    ensure(forged == "401", || forged.clone())?;
    let answer = send(&body, &body)?;
    ensure(answer == "200", || answer.clone())?;
    let tagged = guest(&net, "blue-1")?;
    ensure(
        tagged["quarantine"] == true && tagged["tags"].to_string().contains("ransom"),
        || tagged.to_string(),
    )?;
    let again = send(&body, &body)?;
    ensure(again == "409", || again.clone())?;
    net.stop(0).map(drop)
}

/// The agent in a guest tells of its flows by its guest's own socket; by another guest's it is not believed.
pub(crate) fn agent_in_guest() -> Result<()> {
    let mut net = running("agent", "  - {name: flows, agents: {directory: agents}}\n")?;
    let directory = net.deployment.directory().to_owned();
    let start = |name: &str, socket: &str| -> Result<Running> {
        let mut command = net.guest("blue-1").command(deployment::program());
        let socket = directory.join("agents").join(socket);
        command
            .arg("agent")
            .arg("--to")
            .arg(socket)
            .args(["--every", "20ms"]);
        Ok(Running::start(name, &directory, &mut command)?)
    };
    let _agent = start("agent", "blue-1.sock")?;
    // A connected socket that is held until the test ends; bash has no port of its own choice.
    let mut command = net.guest("blue-1").command("bash");
    command.args([
        "-c",
        "exec 3<>/dev/udp/10.1.0.2/5000; exec 4<>/dev/udp/10.1.0.2/5001; sleep 600",
    ]);
    let holder = Running::start("holder", &directory, &mut command)?;
    let journal = || -> Result<Vec<Value>> {
        let entries: Value = serde_json::from_str(&net.ctl(0, &["--json", "journal"])?)?;
        Ok(entries.as_array().cloned().unwrap_or_default())
    };
    let said = |what: &str, remote: &str| -> Result<Option<Value>> {
        let mut entries = journal()?.into_iter();
        Ok(entries.find(|entry| entry["event"][what]["remote"] == remote))
    };
    let told = |what: &str, remote: &str| {
        wait_for(&format!("{what} to {remote}"), PATIENCE, || {
            Ok(said(what, remote).ok().flatten())
        })
    };
    let entry = told("flow", "10.1.0.2:5000")?;
    let flow = &entry["event"]["flow"];
    ensure(
        entry["by"] == "agent in blue-1" && entry["event"]["guest"] == "blue-1",
        || entry.to_string(),
    )?;
    let is_its =
        flow["user"] == "root" && flow["protocol"] == 17 && flow["local"].to_string().contains("10.1.0.1:");
    // bash has become sleep.
    let application = flow["application"].as_str().unwrap_or_default().to_owned();
    ensure(
        is_its && ["bash", "sleep"].contains(&application.as_str()),
        || entry.to_string(),
    )?;
    told("flow", "10.1.0.2:5001")?;
    drop(holder);
    told("flow-end", "10.1.0.2:5000")?;
    // The other guest's socket: what it says is of nobody's flow there.
    let mut command = net.guest("blue-1").command("bash");
    command.args(["-c", "exec 3<>/dev/udp/10.1.0.2/5002; sleep 600"]);
    let _holder = Running::start("holder-2", &directory, &mut command)?;
    let _liar = start("liar", "red-1.sock")?;
    wait_for("the refusal", PATIENCE, || {
        let status = net.ctl(0, &["--json", "status"])?;
        Ok(status.contains("NotItsFlow").then_some(()))
    })?;
    ensure(
        !journal()?.iter().any(|entry| entry["by"] == "agent in red-1"),
        || "it was believed".into(),
    )?;
    // Where the guest goes, its socket goes.
    let socket = directory.join("agents/blue-1.sock");
    for (host, here) in [("h2", false), ("h1", true)] {
        net.ctl(0, &["move", "blue-1", "--to", host])?;
        wait_for("the socket to go with its guest", PATIENCE, || {
            Ok((socket.exists() == here).then_some(()))
        })?;
    }
    net.stop(0).map(drop)
}
