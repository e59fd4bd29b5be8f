//! Attaching for real: veth ends in namespaces, modes as the kernel tells them, links that outlive a killed process.

mod namespace;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guestseal_xdp::{
    Attachment, GuestProgram, ModeChoice, PinDirectory, Program, UplinkConfig, UplinkProgram, XdpError,
    XdpMode,
};
use libtest_mimic::Failed;
use namespace::{Body, Case, Guest, LiveSocket, ifindex, ip, wait_for};

/// Set in a child process: interface, mode and pin directory that it is to hold until it is killed.
const HOLD: &str = "GUESTSEAL_TEST_HOLD";

const NATIVE: ModeChoice = ModeChoice::Only(XdpMode::Native);
const GENERIC: ModeChoice = ModeChoice::Only(XdpMode::Generic);

fn main() {
    if let Ok(orders) = std::env::var(HOLD) {
        return hold(&orders);
    }
    let tests: [(&str, Body); 13] = [
        ("modes_are_read_back", modes_are_read_back),
        ("auto_falls_back_with_a_reason", auto_falls_back),
        ("frames_reach_the_socket", frames_reach_the_socket),
        (
            "uplink_leaves_the_host_reachable",
            uplink_leaves_the_host_reachable,
        ),
        ("without_a_pin_the_end_opens_the_port", without_a_pin),
        ("a_dropped_hold_keeps_the_port_closed", dropped_hold),
        ("a_killed_process_leaves_the_port_closed", killed_native),
        ("a_killed_process_leaves_the_port_closed_generic", killed_generic),
        ("a_running_process_is_not_robbed", not_robbed),
        ("a_foreign_program_is_named", foreign_program),
        ("a_vanished_interface_leaves_no_pin", vanished_interface),
        ("pins_made_inside_a_mount_namespace_last", private_mount_namespace),
        ("pins_are_mounted_for_process_1", mounted_for_process_1),
    ];
    namespace::run(
        tests
            .map(|(name, body)| -> Case { (name.to_owned(), Box::new(body)) })
            .into(),
    );
}

fn modes_are_read_back() -> Result<(), Failed> {
    let _guest = Guest::behind("gp");
    for (choice, mode) in [(NATIVE, XdpMode::Native), (GENERIC, XdpMode::Generic)] {
        let port = GuestProgram::load()?.attach(at("gp", choice, None))?;
        assert_eq!(port.mode()?, mode);
        let word = if mode == XdpMode::Native {
            "xdp"
        } else {
            "xdpgeneric"
        };
        namespace::sh(&format!("ip link show gp | grep -q 'mtu 1500 {word} '"));
        assert_eq!(
            (port.fallback(), port.taken_over(), port.interface()),
            (None, false, "gp")
        );
        port.detach()?;
        namespace::sh("! ip link show gp | grep -q xdp");
    }
    Ok(())
}

/// A bridge's driver has no XDP of its own.
fn auto_falls_back() -> Result<(), Failed> {
    ip("link add nodrv type bridge");
    let error = GuestProgram::load()?
        .attach(at("nodrv", NATIVE, None))
        .unwrap_err();
    assert!(error.to_string().contains("use --xdp-mode generic"), "{error}");
    let port = GuestProgram::load()?.attach(at("nodrv", ModeChoice::Auto, None))?;
    assert_eq!(port.mode()?, XdpMode::Generic);
    let reason = port.fallback().unwrap();
    assert!(reason.contains("nodrv refuses native mode"), "{reason}");
    let _guest = Guest::behind("gp");
    let port = GuestProgram::load()?.attach(at("gp", ModeChoice::Auto, None))?;
    assert_eq!((port.mode()?, port.fallback()), (XdpMode::Native, None));
    Ok(())
}

fn frames_reach_the_socket() -> Result<(), Failed> {
    for choice in [NATIVE, GENERIC] {
        let guest = Guest::behind("gp");
        let program = GuestProgram::load()?;
        let mut socket = LiveSocket::bind("gp");
        program.register_socket(0, &socket.fd)?;
        let port = program.attach(at("gp", choice, None))?;
        guest.send();
        assert!(socket.received() > 0, "{choice:?}");
        let counted = port.counters()?;
        assert!(
            counted.redirected > 0 && counted.no_socket == 0 && counted.no_stamp == 0,
            "{counted:?}"
        );
        drop(socket);
        guest.send();
        wait_for("drops once the socket is closed", || {
            port.counters().unwrap().no_socket > 0
        });
        assert_eq!(port.counters()?.passed, 0);
        port.detach()?;
        ip("link del gp");
    }
    Ok(())
}

fn uplink_leaves_the_host_reachable() -> Result<(), Failed> {
    let peer = Guest::behind("upl");
    let host = listen();
    let config = UplinkConfig {
        host_addresses: vec!["192.0.2.1".parse()?],
        guest_macs: vec![[2, 0, 0, 0, 1, 1]],
        flat: true,
        ..UplinkConfig::default()
    };
    let uplink = UplinkProgram::load(&config)?.attach(at("upl", ModeChoice::Auto, None))?;
    // The peer has to ask for the host's address, and both the question and the datagram must pass.
    peer.sh("ip neigh flush all && ip neigh del 192.0.2.1 dev eth0 || true");
    peer.send();
    assert!(arrives(&host));
    assert!(uplink.counters()?.passed >= 2);
    peer.sh("ip neigh add 192.0.2.77 lladdr 02:00:00:00:01:01 dev eth0");
    peer.sh("echo -n for-the-guest > /dev/udp/192.0.2.77/9999");
    wait_for("a guest's frame without a socket", || {
        uplink.counters().unwrap().no_socket > 0
    });
    Ok(())
}

fn without_a_pin() -> Result<(), Failed> {
    let guest = Guest::behind("gp");
    let host = listen();
    guest.send();
    assert!(arrives(&host), "nothing is attached yet");
    let port = GuestProgram::load()?.attach(at("gp", NATIVE, None))?;
    guest.send();
    assert!(!arrives(&host));
    drop(port);
    guest.send();
    assert!(arrives(&host));
    Ok(())
}

fn dropped_hold() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let pins = PinDirectory::open(&scratch.pins())?;
    let guest = Guest::behind("gp");
    let host = listen();
    drop(GuestProgram::load()?.attach(at("gp", NATIVE, Some(&pins)))?);
    guest.send();
    assert!(!arrives(&host), "dropping the hold is not an orderly end");
    let port = GuestProgram::load()?.attach(at("gp", NATIVE, Some(&pins)))?;
    assert!(port.taken_over());
    port.detach()?;
    guest.send();
    assert!(arrives(&host), "detached");
    assert_eq!(pinned(&pins), 0);
    Ok(())
}

fn killed_native() -> Result<(), Failed> {
    killed("native", NATIVE, XdpMode::Native)
}

fn killed_generic() -> Result<(), Failed> {
    killed("generic", GENERIC, XdpMode::Generic)
}

fn killed(name: &str, choice: ModeChoice, mode: XdpMode) -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let guest = Guest::behind("gp");
    let host = listen();
    let mut holder = Holder::start("gp", name, &scratch.pins());
    guest.send();
    assert!(!arrives(&host), "attached");
    holder.kill();
    guest.send();
    assert!(
        !arrives(&host),
        "killed: what the guest sends must not reach the host's stack"
    );

    // The next start takes over, serves, and ends in order; nothing is cleaned by hand.
    let pins = PinDirectory::open(&scratch.pins())?;
    let other = if mode == XdpMode::Native { GENERIC } else { NATIVE };
    let error = GuestProgram::load()?
        .attach(at("gp", other, Some(&pins)))
        .unwrap_err();
    assert!(matches!(error, XdpError::ModeFixed { .. }), "{error}");
    let program = GuestProgram::load()?;
    let mut socket = LiveSocket::bind("gp");
    program.register_socket(0, &socket.fd)?;
    let port = program.attach(at("gp", choice, Some(&pins)))?;
    assert!(port.taken_over());
    assert_eq!(port.mode()?, mode);
    guest.send();
    assert!(socket.received() > 0, "the new program is the one in force");
    assert!(!arrives(&host));
    port.detach()?;
    guest.send();
    assert!(arrives(&host), "the orderly end");
    Ok(())
}

fn not_robbed() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let pins = PinDirectory::open(&scratch.pins())?;
    let _guest = Guest::behind("gp");
    let mut holder = Holder::start("gp", "native", &scratch.pins());
    let error = GuestProgram::load()?
        .attach(at("gp", NATIVE, Some(&pins)))
        .unwrap_err();
    assert!(matches!(error, XdpError::InUse { .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("gp is served by another running Guestseal"),
        "{error}"
    );
    holder.kill();
    assert!(
        GuestProgram::load()?
            .attach(at("gp", NATIVE, Some(&pins)))?
            .taken_over()
    );
    Ok(())
}

fn foreign_program() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let pins = PinDirectory::open(&scratch.pins())?;
    let _guest = Guest::behind("gp");
    let _foreign = UplinkProgram::load(&UplinkConfig::default())?.attach(at("gp", GENERIC, None))?;
    for pins in [None, Some(&pins)] {
        let error = GuestProgram::load()?.attach(at("gp", NATIVE, pins)).unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with("gp already has an XDP program, `uplink` (id "),
            "{said}"
        );
        assert!(said.contains("generic mode"), "{said}");
    }
    assert_eq!(pinned(&pins), 0);
    let error = GuestProgram::load()?
        .attach(Attachment {
            ifindex: 9999,
            mode: NATIVE,
            pins: None,
        })
        .unwrap_err();
    assert!(
        matches!(error, XdpError::NoInterface { ifindex: 9999, .. }),
        "{error}"
    );
    Ok(())
}

fn vanished_interface() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let pins = PinDirectory::open(&scratch.pins())?;
    let guest = Guest::behind("gp");
    let gone = GuestProgram::load()?.attach(at("gp", NATIVE, Some(&pins)))?;
    ip("link del gp");
    drop(guest);
    assert!(gone.mode().is_err());
    drop(gone);
    let _guest = Guest::behind("gp2");
    let port = GuestProgram::load()?.attach(at("gp2", NATIVE, Some(&pins)))?;
    assert!(!port.taken_over());
    assert_eq!(pinned(&pins), 1, "the vanished interface's pin is swept");
    port.detach()?;
    Ok(())
}

/// `ip netns exec` starts a process in a mount namespace of its own; what it pins must outlive that, here because
/// the directory was a bpf file system before.
fn private_mount_namespace() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let pins = PinDirectory::open(&scratch.pins())?;
    let guest = Guest::behind("gp");
    let host = listen();
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--propagation", "slave"])
        .arg(std::env::current_exe()?);
    let mut holder = Holder::start_by(&mut unshare, "gp", "native", &scratch.pins());
    holder.kill();
    guest.send();
    assert!(!arrives(&host));
    let port = GuestProgram::load()?.attach(at("gp", NATIVE, Some(&pins)))?;
    assert!(port.taken_over());
    port.detach()?;
    Ok(())
}

/// With no bpf file system there before, it is mounted for process 1: a shell in a process namespace of the test's.
/// The pin lasts as long as that shell, which is what shows where it was made.
fn mounted_for_process_1() -> Result<(), Failed> {
    let scratch = Scratch::new()?;
    let guest = Guest::behind("gp");
    let host = listen();
    let holder = std::env::current_exe()?;
    let script = format!(
        "coproc unshare --mount --propagation slave {}; read -u ${{COPROC[0]}}; echo held; read; \
         kill -9 $COPROC_PID; wait; echo killed; read",
        holder.display()
    );
    let mut shell = Command::new("unshare");
    shell.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        &script,
    ]);
    let mut shell = Holder::start_by(&mut shell, "gp", "native", &scratch.pins());
    let mut said = BufReader::new(shell.0.stdout.take().unwrap());
    writeln!(shell.0.stdin.as_mut().unwrap())?;
    let mut line = String::new();
    said.read_line(&mut line)?;
    assert_eq!(line, "killed\n");
    guest.send();
    assert!(!arrives(&host), "process 1 of the namespace still has the mount");
    shell.kill();
    wait_for("the end of the mount namespace", || {
        guest.send();
        arrives(&host)
    });
    Ok(())
}

/// What a child process does: attach, say so, and wait to be killed.
fn hold(orders: &str) {
    let [interface, mode, pins] = orders.split(',').collect::<Vec<_>>()[..] else {
        panic!("{orders}")
    };
    let mode = if mode == "native" { NATIVE } else { GENERIC };
    let pins = PinDirectory::open(Path::new(pins)).unwrap();
    let _port = GuestProgram::load()
        .unwrap()
        .attach(at(interface, mode, Some(&pins)))
        .unwrap();
    println!("held");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A process that holds an attachment.
struct Holder(Child);

impl Holder {
    fn start(interface: &str, mode: &str, pins: &Path) -> Self {
        Self::start_by(
            &mut Command::new(std::env::current_exe().unwrap()),
            interface,
            mode,
            pins,
        )
    }

    fn start_by(command: &mut Command, interface: &str, mode: &str, pins: &Path) -> Self {
        let orders = format!("{interface},{mode},{}", pins.display());
        let mut child = command
            .env(HOLD, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "held\n");
        Self(child)
    }

    /// SIGKILL, and until the kernel has closed all that the process had open.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of this test, and the bpf file system that the loader mounts in it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        tempfile::Builder::new().prefix("gs").tempdir().map(Self)
    }

    fn pins(&self) -> PathBuf {
        self.0.path().join("bpf")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.pins())
            .stderr(Stdio::null())
            .status();
    }
}

fn at<'a>(interface: &str, mode: ModeChoice, pins: Option<&'a PinDirectory>) -> Attachment<'a> {
    Attachment {
        ifindex: ifindex(interface),
        mode,
        pins,
    }
}

/// Interfaces that have a pin; a bpf file system may hold files of the kernel's own besides.
fn pinned(pins: &PinDirectory) -> usize {
    std::fs::read_dir(pins.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .count()
}

/// The host's stack, where nothing of a guest may arrive.
fn listen() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:9999").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

fn arrives(host: &UdpSocket) -> bool {
    host.recv(&mut [0; 64]).is_ok()
}
