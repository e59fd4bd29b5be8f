//! A real etcd on the wire of a topology, which the hosts reach by TLS, and its operator on its own machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::deployment::write_private;
use crate::namespaces::{Namespace, Topology};
use crate::process::{PerfError, Running, run, run_line, wait_for};

/// Its address on the wire.
pub const ADDRESS: &str = "192.0.2.100";
/// Where its operator reaches it, on its own machine.
const OPERATOR: &str = "http://127.0.0.1:2381";
const PATIENCE: Duration = Duration::from_secs(30);

/// An etcd of one member.
#[derive(Debug)]
pub struct Etcd {
    directory: PathBuf,
    /// As the operator says it, once etcd wants to know who speaks.
    user: Option<&'static str>,
    server: Option<Running>,
}

impl Etcd {
    /// Makes its certificates below a directory, gives it an address on the wire and starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(directory: &Path, topology: &Topology) -> Result<Self, PerfError> {
        let directory = directory.join("etcd");
        std::fs::create_dir_all(&directory).map_err(PerfError::io(directory.display().to_string()))?;
        let mut etcd = Self {
            directory,
            user: None,
            server: None,
        };
        etcd.make_certificates()?;
        topology.wire.ip(&format!("addr add {ADDRESS}/24 dev br0"))?;
        etcd.restart(topology)?;
        Ok(etcd)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn make_certificates(&self) -> Result<(), PerfError> {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        run_line(&format!(
            "openssl req -x509 {key} -days 2 -subj /CN=authority -keyout {} -out {}",
            self.file("ca.key"),
            self.file("ca.pem")
        ))?;
        let extensions = format!("subjectAltName=IP:{ADDRESS}\nextendedKeyUsage=serverAuth,clientAuth\n");
        let path = self.file("ext");
        std::fs::write(&path, extensions).map_err(PerfError::io(path.clone()))?;
        for name in ["server", "guestseal"] {
            run_line(&format!(
                "openssl req {key} -subj /CN={name} -keyout {} -out {}",
                self.file(&format!("{name}.key")),
                self.file("request")
            ))?;
            run_line(&format!(
                "openssl x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {path} -out {}",
                self.file("request"),
                self.file("ca.pem"),
                self.file("ca.key"),
                self.file(&format!("{name}.pem"))
            ))?;
        }
        Ok(())
    }

    /// Starts it again with what it has on its disk.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn restart(&mut self, topology: &Topology) -> Result<(), PerfError> {
        let urls = format!("https://{ADDRESS}:2379,{OPERATOR}");
        let mut command = topology.wire.command("etcd");
        command
            .args([
                "--name",
                "one",
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                "--logger",
                "zap",
            ])
            .args([
                "--log-level",
                "warn",
                "--client-cert-auth",
                "--data-dir",
                &self.file("data"),
            ])
            .args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls])
            .args(["--trusted-ca-file", &self.file("ca.pem")])
            .args([
                "--cert-file",
                &self.file("server.pem"),
                "--key-file",
                &self.file("server.key"),
            ]);
        self.server = Some(Running::start("etcd", &self.directory, &mut command)?);
        wait_for("etcd to answer", PATIENCE, || {
            if let Some(server) = &mut self.server {
                server.check_runs()?;
            }
            Ok(self.operator(&topology.wire, &["endpoint", "health"]).ok())
        })?;
        Ok(())
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// It stands still, and whoever waits for it waits, or goes on.
    pub fn pause(&mut self, still: bool) {
        if let Some(server) = &mut self.server {
            server.signal(if still { Signal::STOP } else { Signal::CONT });
        }
    }

    /// What `etcdctl` says to its operator.
    ///
    /// # Errors
    /// If it fails.
    pub fn operator(&self, wire: &Namespace, words: &[&str]) -> Result<String, PerfError> {
        let mut command: Command = wire.command("env");
        command.args(["ETCDCTL_API=3", "etcdctl", "--endpoints", OPERATOR]);
        if let Some(user) = self.user {
            command.args(["--user", user]);
        }
        run(command.args(words))
    }

    /// Writes a key of which the value is larger than what a command line takes, as its operator.
    ///
    /// # Errors
    /// If etcd refuses.
    pub fn put_large(&self, wire: &Namespace, key: &str, value: &[u8]) -> Result<(), PerfError> {
        let path = self.directory.join("large");
        std::fs::write(&path, value).map_err(PerfError::io(path.display().to_string()))?;
        let user = self.user.map_or(String::new(), |user| format!("--user {user} "));
        let line = format!(
            "ETCDCTL_API=3 etcdctl --endpoints {OPERATOR} {user}put {key} <{}",
            path.display()
        );
        let mut command: Command = wire.command("sh");
        run(command.arg("-c").arg(line)).map(drop)
    }

    /// From here on etcd wants to know who speaks: its operator, and the hosts by their names, whose passwords are theirs too. A
    /// host may read everything, and write what hosts write if it is one of the `writers`.
    ///
    /// # Errors
    /// If etcd refuses.
    pub fn know_hosts(
        &mut self,
        wire: &Namespace,
        hosts: &[&str],
        writers: &[&str],
    ) -> Result<(), PerfError> {
        let say = |line: &str| self.say(wire, line);
        say("user add root:operator")?;
        say("role add root")?;
        say("user grant-role root root")?;
        for host in hosts {
            let own = format!("readwrite /guestseal/hosts/{host}");
            let writes = [
                "--prefix=true readwrite /guestseal/guests/",
                "--prefix=true readwrite /guestseal/endpoints/",
                &own,
            ];
            let writes = writes.into_iter().filter(|_| writers.contains(host));
            let may: Vec<&str> = std::iter::once("--prefix=true read /guestseal/")
                .chain(writes)
                .collect();
            self.know(wire, host, &may)?;
        }
        say("auth enable")?;
        self.user = Some("root:operator");
        Ok(())
    }

    /// Writes a key that only hosts look at which take their policy from etcd: so many times, so many bytes, as fast as etcd takes it.
    ///
    /// # Errors
    /// If it does not.
    pub fn fill(&self, wire: &Namespace, times: usize, bytes: usize) -> Result<(), PerfError> {
        // `/guestseal/policy/`, and any base64 of that length.
        let (key, value) = ("L2d1ZXN0c2VhbC9wb2xpY3kv", "A".repeat(bytes / 3 * 4));
        let body = self.directory.join("fill");
        std::fs::write(&body, format!("{{\"key\": \"{key}\", \"value\": \"{value}\"}}"))
            .map_err(PerfError::io(body.display().to_string()))?;
        let mut command: Command = wire.command("curl");
        command.args([
            "--fail",
            "--silent",
            "--parallel",
            "--parallel-max",
            "64",
            "--output",
            "/dev/null",
        ]);
        command.arg("--data").arg(format!("@{}", body.display()));
        run(command.arg(format!("{OPERATOR}/v3/kv/put?[1-{times}]"))).map(drop)
    }

    fn say(&self, wire: &Namespace, line: &str) -> Result<(), PerfError> {
        let words: Vec<&str> = line.split(' ').collect();
        self.operator(wire, &words).map(drop)
    }

    /// Etcd knows somebody more, by a name which is the password too: who may do what, in the words of `etcdctl role grant-permission`.
    ///
    /// # Errors
    /// If etcd refuses.
    pub fn know(&self, wire: &Namespace, who: &str, may: &[&str]) -> Result<(), PerfError> {
        self.say(wire, &format!("user add {who}:{who}"))?;
        self.say(wire, &format!("role add {who}"))?;
        for one in may {
            self.say(wire, &format!("role grant-permission {who} {one}"))?;
        }
        self.say(wire, &format!("user grant-role {who} {who}"))?;
        write_private(&self.directory.join(format!("{who}.password")), who)
    }

    /// The part of a host's file by which the host reaches it; `who` is whom etcd knows it as.
    #[must_use]
    pub fn section(&self, who: Option<&str>) -> String {
        let mut text = format!(
            "etcd:\n  endpoints: ['https://{ADDRESS}:2379']\n  authority: {}\n  certificate: {}\n  key: {}\n",
            self.file("ca.pem"),
            self.file("guestseal.pem"),
            self.file("guestseal.key")
        );
        if let Some(who) = who {
            text += &format!(
                "  user: {who}\n  password: {}\n",
                self.file(&format!("{who}.password"))
            );
        }
        text
    }
}
