//! A fresh network namespace for a test, and whether this machine can run tests in one.
//! The namespace belongs to a thread and ends with it: nothing is left behind, however the test ends.
#![allow(dead_code, reason = "each test binary takes what it needs")]
#![allow(unsafe_code, reason = "unshare(2) and xsk-rs's socket have no safe form")]

use std::num::NonZeroU32;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use xsk_rs::config::{LibxdpFlags, SocketConfig, UmemConfig};
use xsk_rs::{FillQueue, RxQueue, Socket, TxQueue, Umem};

/// A test that needs no argument.
pub(crate) type Body = fn() -> Result<(), Failed>;

/// A test's name and body.
pub(crate) type Case = (String, Box<dyn FnOnce() -> Result<(), Failed> + Send>);

/// Runs the tests, each in a namespace of its own; where the machine cannot, they count as ignored.
pub(crate) fn run(cases: Vec<Case>) -> ! {
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("ignored: {reason}");
    }
    let trials = cases
        .into_iter()
        .map(|(name, body)| Trial::test(name, || inside(body)).with_ignored_flag(missing.is_some()))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Why no XDP program can be tested here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the tests of XDP programs need root".to_owned());
    }
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    libbpf_rs::MapHandle::create(libbpf_rs::MapType::Xskmap, Some("probe"), 4, 4, 1, &options)
        .err()
        .map(|error| format!("this kernel has no AF_XDP (CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS): {error}"))
}

fn inside(body: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Result<(), Failed> {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace of this thread changes; no memory or descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        ip("link set lo up");
        body()
    });
    thread.join().unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        Err(said
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()
            .into())
    })
}

/// Waits until a condition holds, two seconds at most.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("did not come: {what}");
}

/// Runs `ip` in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) {
    sh(&format!("ip {arguments}"));
}

/// Runs a shell command in the calling thread's namespace.
pub(crate) fn sh(command: &str) {
    let status = Command::new("bash")
        .args(["-c", command])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// The index of an interface, from the kernel's own list of this namespace (/sys shows another's).
pub(crate) fn ifindex(name: &str) -> u32 {
    let shown = Command::new("ip")
        .args(["-o", "link", "show", name])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    shown.split(':').next().unwrap().parse().unwrap()
}

/// A process in a namespace of its own, at the other end of a veth: the guest behind a guest port.
pub(crate) struct Guest(Child);

impl Guest {
    /// Makes `port` (192.0.2.1) here and `eth0` (192.0.2.2) there, neighbours known on both ends.
    pub(crate) fn behind(port: &str) -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "bash", "-c", "echo; read"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let guest = Self(child);
        let pid = guest.0.id();
        ip(&format!(
            "link add {port} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {pid}"
        ));
        ip(&format!("addr add 192.0.2.1/24 dev {port}"));
        ip(&format!("link set {port} up"));
        guest.sh("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up");
        guest.sh("ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0");
        guest
    }

    /// Runs a shell command as the guest.
    pub(crate) fn sh(&self, command: &str) {
        sh(&format!("nsenter -t {} -n bash -c '{command}'", self.0.id()));
    }

    /// Sends one datagram to the host's end.
    pub(crate) fn send(&self) {
        self.sh("echo -n hello > /dev/udp/192.0.2.1/9999");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bound AF_XDP socket, with room for what comes.
pub(crate) struct LiveSocket {
    pub(crate) fd: i32,
    pub(crate) receive: RxQueue,
    umem: (Umem, FillQueue, TxQueue, Vec<xsk_rs::FrameDesc>),
}

impl LiveSocket {
    /// Binds to queue 0 of an interface, in copy mode.
    pub(crate) fn bind(interface: &str) -> Self {
        let (umem, mut frames) =
            Umem::new(UmemConfig::default(), NonZeroU32::new(64).unwrap(), false).unwrap();
        let config = SocketConfig::builder()
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .build();
        // SAFETY: the UMEM is used by this socket alone, and its rings are kept with it.
        let (transmit, receive, rings) =
            unsafe { Socket::new(config, &umem, &interface.parse().unwrap(), 0) }.unwrap();
        let (mut fill, _) = rings.unwrap();
        // SAFETY: the frames are of this UMEM and in no ring yet.
        unsafe { fill.produce(&frames) };
        let fd = std::os::fd::AsRawFd::as_raw_fd(receive.fd());
        frames.truncate(16);
        Self {
            fd,
            receive,
            umem: (umem, fill, transmit, frames),
        }
    }

    /// Waits for frames and counts them; 0 after a second of none.
    pub(crate) fn received(&mut self) -> usize {
        // SAFETY: the descriptors are only written to, and their frames are not read.
        unsafe { self.receive.poll_and_consume(&mut self.umem.3, 1000) }.unwrap()
    }
}
