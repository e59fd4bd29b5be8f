//! A guest of libvirt: a real libvirtd in a host's namespace, with `guestseal hook libvirt` as its hook, starts and stops a QEMU machine.
//!
//! ```text
//!  [domain one] --tap vnet0, named by libvirt-- [h1: libvirtd, guestseal] --veth-- [wire] --veth-- [h2: guestseal] --veth-- [guest two]
//! ```
//!
//! Libvirtd has mounts and processes of its own: what the machine here has of libvirt is not touched, and all of it ends with its
//! process 1. What docs/guests.md tells users of libvirt to do is what is done here.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::capture::Capture;
use crate::deployment::{Deployment, Host, imbalance, number, program};
use crate::namespaces::{GUEST_MTU, Namespace, Topology};
use crate::process::{PerfError, Running, cpus, run as run_command, wait_for};

use super::tally::{Step, Tally};
use super::{Boot, Setting, only_sealed};

const MODULES: &[&str] = &["virtio_pci", "virtio_net", "af_packet"];
const PATIENCE: Duration = Duration::from_secs(60);
const MARKER: &str = "libvirt-page-marker";
/// As libvirt names the first that it makes.
const TAP: &str = "vnet0";

const POLICY: &str = r#"
hosts:
  - {name: h1, addresses: [192.0.2.1]}
  - {name: h2, addresses: [192.0.2.2]}
networks:
  - {name: blue, type: flat}
guests:
  - id: one
    uuid: 6a5f4f0e-3c0c-4b7a-9d0f-2f1f6b1f7d01
    host: h1
    ports: [{interface: blue-1, network: blue, mac: "52:54:00:00:01:00", addresses: [10.1.0.1]}]
  - id: two
    host: h2
    ports: [{interface: blue-2, network: blue, mac: "52:54:00:00:02:00", addresses: [10.1.0.2]}]
keys:
  - {id: blue-any}
rules:
  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}
  - {name: blue, from: any, to: any, action: encrypt, key: blue-any}
"#;

/// Runs it.
///
/// # Errors
/// If it cannot be set up.
pub fn run(setting: &Setting, tally: &mut Tally) -> Result<(), PerfError> {
    println!("libvirt: a real libvirtd calls the hook");
    let mut bench = Bench::new(setting)?;
    let steps: [Step<Bench>; 6] = [
        (
            "a domain that starts gets its port, and is reached",
            Bench::starts,
        ),
        (
            "libvirtd starts anew and the hook binds a port that was taken away",
            Bench::reconnects,
        ),
        ("a domain that is destroyed leaves no port", Bench::stops),
        ("a domain takes a tap that was made before it", Bench::takes_a_tap),
        (
            "a domain of another host, and one whose host has no guestseal, are refused with the reason",
            Bench::refuses,
        ),
        (
            "no plaintext on the wire, totals of both hosts balance",
            Bench::end,
        ),
    ];
    tally.steps("libvirt", &mut bench, &steps)
}

/// Libvirtd with mounts and processes of its own in a namespace.
struct Libvirtd {
    /// `unshare`, whose child is process 1 in there: it starts libvirtd again when that ends, and takes QEMU with it in its end.
    keeper: Running,
    /// That child, as seen from here.
    init: String,
}

/// Process 1: mounts, the user that libvirtd looks for even where QEMU is to run as root, and libvirtd for as long as it is wanted.
///
/// `$1` has the files that libvirtd is to find in /etc/libvirt.
const INIT: &str = r#"
for place in /run /var/lib /var/cache /var/log; do mount -t tmpfs none $place; done
mkdir -p /run/etc /var/log/libvirt
cp -r "$1" /run/etc/libvirt
mount --bind /run/etc/libvirt /etc/libvirt
cp /etc/passwd /etc/group /run/etc
echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >>/run/etc/passwd
echo 'libvirt-qemu:x:64055:' >>/run/etc/group
for file in passwd group; do mount --bind /run/etc/$file /etc/$file; done
while :; do libvirtd; done
"#;

/// No cgroups, no security modules, QEMU as root: nothing of what the machine here may lack.
const QEMU_CONF: &str = r#"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
security_driver = "none"
stdio_handler = "file"
"#;

impl Libvirtd {
    fn start(namespace: &Namespace, setting: &Setting, config: &Path) -> Result<Self, PerfError> {
        let etc = setting.logs.join("etc-libvirt");
        let hook = format!(
            "#!/bin/sh\nexec {} hook libvirt --config {} \"$@\"\n",
            program().display(),
            config.display()
        );
        let libvirtd = format!(
            "listen_tls = 0\nauth_unix_rw = \"none\"\nlog_outputs = \"2:file:{}\"\n",
            setting.logs.join("libvirtd.log").display()
        );
        for (name, text) in [
            ("hooks/qemu", hook.as_str()),
            ("libvirtd.conf", &libvirtd),
            ("qemu.conf", QEMU_CONF),
        ] {
            let path = etc.join(name);
            let failed = || PerfError::io(path.display().to_string());
            std::fs::create_dir_all(path.parent().unwrap_or(&etc)).map_err(failed())?;
            std::fs::write(&path, text).map_err(failed())?;
            let permissions = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, permissions).map_err(failed())?;
        }
        let mut command = namespace.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]);
        command.args(["sh", "-euc", INIT, "init"]).arg(&etc);
        let mut keeper = Running::start("libvirtd", &setting.logs, &mut command)?;
        // `ip netns exec` becomes the command that it is given.
        let children = format!("/proc/{0}/task/{0}/children", keeper.pid());
        let init = wait_for("libvirtd's process 1", PATIENCE, || {
            keeper.check_runs()?;
            let found = std::fs::read_to_string(&children).unwrap_or_default();
            Ok((!found.trim().is_empty()).then(|| found.trim().to_owned()))
        })?;
        let mut libvirtd = Self { keeper, init };
        libvirtd.wait()?;
        Ok(libvirtd)
    }

    /// Runs a program where libvirtd is.
    fn run(&self, words: &[&str]) -> Result<String, PerfError> {
        let mut command = Command::new("nsenter");
        // With its root: where this machine is itself a root of its own, that of the mounts is another one.
        command.args(["--target", &self.init, "--mount", "--pid", "--net", "--root"]);
        run_command(command.args(words))
    }

    fn virsh(&self, words: &[&str]) -> Result<String, PerfError> {
        let mut all = vec!["virsh", "--quiet", "--connect", "qemu:///system"];
        all.extend(words);
        self.run(&all)
    }

    /// Until it answers.
    fn wait(&mut self) -> Result<(), PerfError> {
        let mut why = String::new();
        wait_for("libvirtd", PATIENCE, || {
            self.keeper.check_runs()?;
            let answer = self.virsh(&["uri"]);
            Ok(answer.map_err(|error| why = error.to_string()).ok().map(drop))
        })
        .map_err(|error| PerfError::Wrong(format!("{error}: {why}")))
    }

    /// Ends it; process 1 starts it again.
    fn restart(&mut self) -> Result<(), PerfError> {
        let pid = || self.run(&["cat", "/run/libvirtd.pid"]).ok();
        let before = pid().ok_or_else(|| PerfError::Wrong("libvirtd has no file with its pid".into()))?;
        self.run(&["kill", before.trim()])?;
        wait_for("another libvirtd", PATIENCE, || {
            Ok(pid().filter(|now| now.trim() != before.trim()).map(drop))
        })?;
        self.wait()
    }
}

struct Bench {
    // In the order in which they must go: programs before namespaces, namespaces before files.
    libvirtd: Libvirtd,
    /// The definition of domain one.
    xml: PathBuf,
    hosts: [Option<Host>; 2],
    capture: Option<Capture>,
    topology: Topology,
    deployment: Deployment,
}

impl Bench {
    fn new(setting: &Setting) -> Result<Self, PerfError> {
        let deployment = Deployment::new("libvirt", POLICY, &[])?;
        let guests: Vec<_> = deployment
            .guests(1)
            .into_iter()
            .filter(|guest| guest.id == "two")
            .collect();
        let topology = Topology::new(2, 1, &guests)?;
        // A machine that takes no orders: it has its address, and gives a page.
        let start = format!(
            "ip link set eth0 up\nip addr add 10.1.0.1/24 dev eth0\nmkdir /www\n\
             yes '{MARKER} 0123456789abcdef' | head -c 200000 >/www/page\nexec httpd -f -p 80 -h /www\n"
        );
        let programs = ["ip"].map(Into::into);
        let boot = setting.boot_with("libvirt", "cloud-amd64", MODULES, &programs, Some(&start))?;
        let cpus = cpus()?;
        let write_host = |host: usize| {
            let cpu = cpus[host % cpus.len()];
            deployment.write_host(host, &format!("workers: [{{queue: 0, cpu: {cpu}}}]"))
        };
        let config = write_host(0)?;
        write_host(1)?;
        let capture = Capture::start(&topology.wire, "host0", deployment.directory())?;
        let libvirtd = Libvirtd::start(&topology.hosts[0], setting, &config)?;
        for (name, uuid, mac) in [
            ("one", "6a5f4f0e-3c0c-4b7a-9d0f-2f1f6b1f7d01", "52:54:00:00:01:00"),
            ("two", "6a5f4f0e-3c0c-4b7a-9d0f-2f1f6b1f7d02", "52:54:00:00:02:00"),
        ] {
            let xml = setting.logs.join(format!("{name}.xml"));
            let text = definition(name, uuid, mac, &boot, &setting.logs);
            std::fs::write(&xml, text).map_err(PerfError::io(xml.display().to_string()))?;
            libvirtd.virsh(&["define", &xml.display().to_string()])?;
        }
        let start = |host: usize| deployment.start(host, &topology.hosts[host], &[]);
        Ok(Self {
            hosts: [Some(start(0)?), Some(start(1)?)],
            libvirtd,
            xml: setting.logs.join("one.xml"),
            capture: Some(capture),
            topology,
            deployment,
        })
    }

    /// Guest two gets the page of domain one.
    fn page(&self) -> Result<(), PerfError> {
        let two = &self.topology.guest("two").namespace;
        wait_for("domain one to give its page", PATIENCE, || {
            let got = two.run("curl -sSf --max-time 5 http://10.1.0.1/page");
            Ok(got.ok().filter(|got| got.contains(MARKER)).map(drop))
        })
    }

    /// The line of `guestseal ctl ports` for a tap.
    fn port(&self, tap: &str) -> Result<Option<String>, PerfError> {
        let ports = self.deployment.ctl(0, &["ports"])?;
        let mut lines = ports.lines();
        Ok(lines.find(|line| line.starts_with(tap)).map(str::to_owned))
    }

    fn bound(&self) -> Result<(), PerfError> {
        match self.port(TAP)? {
            Some(line) if line.contains("one") && line.contains("yes") => Ok(()),
            other => Err(PerfError::Wrong(format!("{TAP} is no port of one: {other:?}"))),
        }
    }

    fn starts(&mut self) -> Result<(), PerfError> {
        self.libvirtd.virsh(&["start", "one"])?;
        self.bound()?;
        self.page()
    }

    fn reconnects(&mut self) -> Result<(), PerfError> {
        self.deployment.ctl(0, &["port", "remove", TAP])?;
        if let Some(line) = self.port(TAP)? {
            return Err(PerfError::Wrong(format!("{TAP} was removed: {line}")));
        }
        self.libvirtd.restart()?;
        let state = self.libvirtd.virsh(&["domstate", "one"])?;
        if state.trim() != "running" {
            return Err(PerfError::Wrong(format!("domain one is {state}")));
        }
        // Domains are found again behind the answer to virsh.
        wait_for("the hook to bind the port again", PATIENCE, || {
            Ok(self.port(TAP)?.map(drop))
        })?;
        self.bound()?;
        self.page()
    }

    fn stops(&mut self) -> Result<(), PerfError> {
        self.libvirtd.virsh(&["destroy", "one"])?;
        if let Some(line) = self.port(TAP)? {
            return Err(PerfError::Wrong(format!("{TAP} is still there: {line}")));
        }
        Ok(())
    }

    fn takes_a_tap(&mut self) -> Result<(), PerfError> {
        let host = &self.topology.hosts[0];
        host.ip("tuntap add dev blue-1 mode tap vnet_hdr")?;
        host.ip("link set blue-1 up")?;
        let xml = std::fs::read_to_string(&self.xml).map_err(PerfError::io("a domain's definition"))?;
        let managed = "<target dev='blue-1' managed='no'/>\n      <model type='virtio'/>";
        let xml = xml.replace(
            &format!("<mtu size='{GUEST_MTU}'/>\n      <model type='virtio'/>"),
            managed,
        );
        std::fs::write(&self.xml, xml).map_err(PerfError::io("a domain's definition"))?;
        self.libvirtd
            .virsh(&["define", &self.xml.display().to_string()])?;
        self.libvirtd.virsh(&["start", "one"])?;
        self.page()?;
        self.libvirtd.virsh(&["destroy", "one"])?;
        // The tap stays, and is nobody's.
        match self.port("blue-1")? {
            Some(line) if line.contains("yes") => {
                Err(PerfError::Wrong(format!("blue-1 is still a port: {line}")))
            }
            _ => Ok(()),
        }
    }

    fn refuses(&mut self) -> Result<(), PerfError> {
        let refused = |said: Result<String, PerfError>, word: &str| match said {
            Err(error) if error.to_string().contains(word) => Ok(()),
            Err(error) => Err(PerfError::Wrong(format!("it says nothing of `{word}`: {error}"))),
            Ok(said) => Err(PerfError::Wrong(format!("the domain runs: {said}"))),
        };
        refused(self.libvirtd.virsh(&["start", "two"]), "h2")?;
        let totals = self.stop(0)?;
        refused(
            self.libvirtd.virsh(&["start", "one"]),
            "guestseal cannot be reached",
        )?;
        if let Some(what) = imbalance(&totals) {
            return Err(PerfError::Wrong(format!("{what}: {totals}")));
        }
        let sealed = number(&totals, "/outcomes/sent_encrypted");
        println!("         domain one: {sealed} packets sealed");
        if sealed < 100 {
            return Err(PerfError::Wrong(format!("hardly anything was sealed: {totals}")));
        }
        Ok(())
    }

    fn stop(&mut self, host: usize) -> Result<serde_json::Value, PerfError> {
        match self.hosts[host].take() {
            Some(mut running) => running.stop(),
            None => Err(PerfError::Wrong(format!("host {} does not run", host + 1))),
        }
    }

    fn end(&mut self) -> Result<(), PerfError> {
        let totals = self.stop(1)?;
        if let Some(what) = imbalance(&totals) {
            return Err(PerfError::Wrong(format!("{what}: {totals}")));
        }
        match self.capture.take() {
            Some(capture) => only_sealed(capture, &self.deployment.policy, MARKER),
            None => Ok(()),
        }
    }
}

/// A domain's definition: the interface is that of docs/guests.md, with a tap that libvirt names.
fn definition(name: &str, uuid: &str, mac: &str, boot: &Boot, logs: &Path) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>384</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{}</kernel>
    <initrd>{}</initrd>
    <cmdline>console=ttyS0 panic=-1 mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='ethernet'>
      <mac address='{mac}'/>
      <mtu size='{GUEST_MTU}'/>
      <model type='virtio'/>
      <driver><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver>
    </interface>
    <serial type='file'><source path='{}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
        boot.image.display(),
        boot.initramfs.display(),
        logs.join(format!("{name}.console")).display()
    );
    text
}
