//! Keys come from a KMIP key manager (PyKMIP), over a wire that it shares with what is sealed.

use std::path::{Path, PathBuf};
use std::process::Command;

use guestseal::control::journal::{Deed, Journal};
use guestseal_perf::deployment::{Deployment, number, random_hex};
use guestseal_perf::process::{Running, run, run_line, wait_for};

use crate::control::state;
use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::sessions::{current, datagrams, finish, ping};

const OPERATOR: &str = include_str!("key_manager.py");
const ADDRESS: &str = "192.0.2.1";

/// Where ci/setup puts PyKMIP.
fn pykmip(program: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/pykmip/bin")
        .join(program);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("{}: not there: run ci/setup", path.display()).into()),
    }
}

/// A key manager on the first host, and who may ask it.
struct KeyManager {
    directory: PathBuf,
    server: Option<Running>,
}

impl KeyManager {
    fn new(directory: &Path) -> Result<Self> {
        let directory = directory.join("kms");
        std::fs::create_dir_all(directory.join("policy"))?;
        let file = |name: &str| directory.join(name).display().to_string();
        run_line(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout {} -out {}",
            file("ca.key"),
            file("ca.pem")
        ))?;
        for name in ["server", "guestseal"] {
            let extensions = format!("subjectAltName=IP:{ADDRESS}\nextendedKeyUsage=serverAuth,clientAuth\n");
            std::fs::write(directory.join("ext"), extensions)?;
            run_line(&format!(
                "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {} -out {}",
                file(&format!("{name}.key")),
                file("request")
            ))?;
            run_line(&format!(
                "openssl x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
                file("request"),
                file("ca.pem"),
                file("ca.key"),
                file("ext"),
                file(&format!("{name}.pem"))
            ))?;
        }
        let config = format!(
            "[server]\nhostname={ADDRESS}\nport=5696\ncertificate_path={}\nkey_path={}\nca_path={}\nauth_suite=TLS1.2\n\
             policy_path={}\nenable_tls_client_auth=True\nlogging_level=INFO\ndatabase_path={}\n",
            file("server.pem"),
            file("server.key"),
            file("ca.pem"),
            file("policy"),
            file("keys.db")
        );
        std::fs::write(directory.join("server.conf"), config)?;
        std::fs::write(directory.join("manage.py"), OPERATOR)?;
        Ok(Self {
            directory,
            server: None,
        })
    }

    fn start(&mut self, net: &Net) -> Result<()> {
        // It has two processes beside its own, which end with it in a PID namespace.
        let mut command = net.topology.hosts[0].command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(pykmip("pykmip-server")?)
            .arg("-f")
            .arg(self.directory.join("server.conf"))
            .arg("-l")
            .arg(self.directory.join("server.log"));
        self.server = Some(Running::start("kms", &self.directory, &mut command)?);
        wait_for("the key manager to listen", PATIENCE, || {
            let sockets = net.topology.hosts[0].run("ss -Hlt sport 5696")?;
            Ok((!sockets.is_empty()).then_some(()))
        })?;
        Ok(())
    }

    /// What its operator does.
    fn operator(&self, net: &Net, arguments: &[&str]) -> Result<String> {
        let mut command: Command = net.topology.hosts[0].command(pykmip("python")?);
        command.arg(self.directory.join("manage.py")).arg(ADDRESS);
        for file in ["ca.pem", "guestseal.pem", "guestseal.key"] {
            command.arg(self.directory.join(file));
        }
        Ok(run(command.args(arguments))?)
    }
}

/// Two hosts whose first keys a key manager has.
fn running(name: &str, kmip: &str, sessions: &str) -> Result<(Net, KeyManager, Vec<String>)> {
    let deployment = Deployment::with_sessions(name, POLICY)?;
    let guests = deployment.guests(1);
    let mut net = Net::of(deployment, 1, &guests)?;
    let mut manager = KeyManager::new(net.deployment.directory())?;
    manager.start(&net)?;
    let keys = net.deployment.policy.keys.iter();
    let keys: Vec<String> = keys.map(|key| key.id.clone()).collect();
    for key in &keys {
        manager.operator(&net, &["register", &format!("{key}.1"), &random_hex(32)?])?;
    }
    // What is no key of ours, and what is none at all, is left alone.
    manager.operator(&net, &["register", "backup", &random_hex(32)?])?;
    for host in 0..2 {
        let path = net.write_session_host(host, sessions)?;
        let text = std::fs::read_to_string(&path)?;
        let name = format!("h{}", host + 1);
        let from = format!("  keys: {{directory: {name}.keys}}\n");
        let to = format!(
            "  keys:\n    kmip:\n      server: {ADDRESS}\n      authority: kms/ca.pem\n      certificate: kms/guestseal.pem\n      \
             key: kms/guestseal.key\n      every: 1s\n{kmip}"
        );
        ensure(text.contains(&from), || text.clone())?;
        std::fs::write(&path, text.replace(&from, &to))?;
        net.start(host, &[])?;
    }
    ping(&net, "blue-1", "10.1.0.2")?;
    both_at(&net, 1)?;
    Ok((net, manager, keys))
}

/// Both hosts seal under this generation, by one session each way.
fn both_at(net: &Net, generation: u64) -> Result<()> {
    both_seal(net, |is| is == Some(generation))
}

/// Both hosts seal under a generation that holds.
fn both_seal(net: &Net, holds: impl Fn(Option<u64>) -> bool) -> Result<()> {
    let found = wait_for("both to seal under the generation", PATIENCE, || {
        let both = (0..2).all(|host| {
            net.deployment.status(host).is_ok_and(|status| {
                let sessions = current(&status, "blue-any");
                sessions.len() == 1
                    && sessions
                        .iter()
                        .all(|session| holds(session["generation"].as_u64()))
            })
        });
        Ok(both.then_some(()))
    });
    if found.is_err() {
        for host in 0..2 {
            eprintln!("{:#}", net.deployment.status(host)?["sessions"]);
        }
    }
    Ok(found?)
}

/// Status says how it is with the key manager, and how many generations have come from it.
fn status_says(net: &Net, answers: bool, taken: u64) -> Result<()> {
    for host in 0..2 {
        wait_for("status to say how the key manager is", PATIENCE, || {
            let Ok(status) = net.deployment.status(host) else {
                return Ok(None);
            };
            let manager = &status["sessions"]["key_manager"];
            let is_said = manager["answers"] == answers
                && manager["generations_taken"] == taken
                && manager["looked"].is_string()
                && manager["why"].is_null() == answers;
            Ok(is_said.then_some(()))
        })?;
    }
    Ok(())
}

/// Keys come from it, new generations under traffic; it goes and nothing stops; what is revoked there seals no more.
pub(crate) fn followed() -> Result<()> {
    let (mut net, mut manager, keys) = running("kmip", "", "")?;
    let load = datagrams(&net, 15)?;
    manager.operator(&net, &["register", "blue-any.2", &random_hex(32)?])?;
    both_at(&net, 2)?;
    let lost = finish(load)?;
    ensure(lost == 0, || format!("{lost} datagrams lost in the rotation"))?;

    if let Some(mut server) = manager.server.take() {
        server.kill();
    }
    for host in 0..2 {
        wait_for("the host to miss its key manager", PATIENCE, || {
            let said = net.host(host).process.errors();
            Ok(said.contains("the keys stay as they were").then_some(()))
        })?;
    }
    ping(&net, "blue-1", "10.1.0.2")?;
    ping(&net, "red-1", "10.2.0.2")?;
    both_at(&net, 2)?;
    status_says(&net, false, keys.len() as u64 + 1)?;
    manager.start(&net)?;
    for host in 0..2 {
        wait_for("the host to have it back", PATIENCE, || {
            let said = net.host(host).process.errors();
            Ok(said.contains("answers again").then_some(()))
        })?;
    }
    status_says(&net, true, keys.len() as u64 + 1)?;
    for generation in [1, 2] {
        manager.operator(&net, &["revoke", &format!("blue-any.{generation}")])?;
    }
    wait_for("no session under the revoked key", PATIENCE, || {
        let gone = (0..2).all(|host| {
            let status = net.deployment.status(host);
            status.is_ok_and(|status| current(&status, "blue-any").is_empty())
        });
        Ok(gone.then_some(()))
    })?;
    ensure(ping(&net, "blue-1", "10.1.0.2").is_err(), || {
        "a revoked key still seals".to_owned()
    })?;
    ping(&net, "red-1", "10.2.0.2")?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// Both hosts use a generation up at once, and order the next one: one is made, both go on under it, and nothing is lost.
pub(crate) fn ordered() -> Result<()> {
    let (mut net, manager, _) = running(
        "kmip-order",
        "      order: true\n",
        "  key-limit: {packets: 1000}\n",
    )?;
    let count = |name: &str| manager.operator(&net, &["count", name]);
    ensure(count("blue-any.2")?.trim() == "0", || {
        "it was there before".to_owned()
    })?;
    let load = datagrams(&net, 40)?;
    wait_for("the next generation", PATIENCE, || {
        let both = (0..2).all(|host| {
            let entries = Journal::read_after(&state(&net, host), 0, usize::MAX);
            let is_it = |deed: &Deed| matches!(deed, Deed::Keys { came, .. } if came.contains(&"blue-any.2".to_owned()));
            entries.is_ok_and(|entries| entries.iter().any(|entry| is_it(&entry.done.deed)))
        });
        Ok(both.then_some(()))
    })?;
    both_seal(&net, |generation| generation > Some(1))?;
    let lost = finish(load)?;
    ensure(lost == 0, || format!("{lost} datagrams lost"))?;
    let mut orders = 0;
    for host in 0..2 {
        let status = net.deployment.status(host)?;
        orders += number(&status, "/sessions/key_manager/generations_ordered");
    }
    ensure(orders > 0, || "neither has ordered it".to_owned())?;
    // What was made twice and not chosen is destroyed by who made it.
    wait_for("one key of each name", PATIENCE, || {
        Ok(count("blue-any.2")
            .is_ok_and(|said| said.trim() == "1")
            .then_some(()))
    })?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
