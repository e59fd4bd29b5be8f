//! A QEMU machine (TCG, no KVM needed) whose network cards are taps of a namespace, run by orders over a serial port.
//!
//! The machine says READY when it has booted; [`Machine::run`] gives it a script and returns when its one answer is there.
//! Nothing waits for a time to pass. The console goes to a file; the machine ends with its [`Machine`].

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::namespaces::Namespace;
use crate::process::{PerfError, Running, check_interrupted, wait_for};

/// The longest that a boot may take on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// The longest that one script may take.
const SCRIPT: Duration = Duration::from_secs(180);

/// A network card.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The tap, which is there already.
    pub tap: String,
    /// QEMU's device with its options, without `netdev`: `virtio-net-pci,mac=...`.
    pub device: String,
    /// Queues of the tap.
    pub queues: u32,
}

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Its name, for logs.
    pub name: String,
    /// Memory in MiB.
    pub memory: u32,
    /// CPUs.
    pub cpus: u32,
    /// Memory nodes, dealt the memory evenly; all CPUs are on the first.
    pub nodes: u32,
    /// Network cards: `eth0` and so on.
    pub nics: Vec<Nic>,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    process: Running,
    control: BufReader<UnixStream>,
    monitor: BufReader<UnixStream>,
    name: String,
    directory: PathBuf,
    /// What `uname -r` says inside.
    pub release: String,
}

impl Machine {
    /// Starts a machine in a namespace; returns when it is ready. `directory` gets its logs and sockets.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn start(
        namespace: &Namespace,
        image: &Path,
        initramfs: &Path,
        spec: &MachineSpec,
        directory: &Path,
    ) -> Result<Self, PerfError> {
        let file = |kind: &str| directory.join(format!("{}.{kind}", spec.name));
        let socket = |kind: &str| {
            let path = file(kind);
            // One of a machine of this name that is no more.
            let _ = std::fs::remove_file(&path);
            path
        };
        let (control, monitor) = (socket("control"), socket("monitor"));
        let mut command = namespace.command("qemu-system-x86_64");
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-nodefaults",
        ]);
        command.args(["-no-reboot", "-display", "none", "-m", &spec.memory.to_string()]);
        command.args(["-smp", &spec.cpus.to_string()]);
        for node in 0..spec.nodes {
            let size = spec.memory / spec.nodes;
            let cpus = match node {
                0 => format!(",cpus=0-{}", spec.cpus - 1),
                _ => String::new(),
            };
            command.arg("-object");
            command.arg(format!("memory-backend-ram,id=node{node},size={size}M"));
            command.arg("-numa");
            command.arg(format!("node,nodeid={node},memdev=node{node}{cpus}"));
        }
        command.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
        command.args(["-append", "console=ttyS0 panic=-1 mitigations=off"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", file("console").display()));
        command.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=control,name=control",
        ]);
        command.arg("-chardev").arg(format!(
            "socket,id=control,server=on,wait=off,path={}",
            control.display()
        ));
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        for (number, nic) in spec.nics.iter().enumerate() {
            command.arg("-netdev").arg(netdev(number, nic));
            // A root port of its own for each: igb needs one, and what stands in one can be unplugged.
            command.arg("-device").arg(format!(
                "pcie-root-port,id=port{number},chassis={number},slot={number}"
            ));
            command.arg("-device").arg(format!(
                "{},netdev=net{number},id=nic{number},bus=port{number}",
                nic.device
            ));
        }
        let mut process = Running::start(&spec.name, directory, &mut command)?;
        let mut connect = |path: &Path| {
            wait_for("QEMU's sockets", BOOT, || {
                process.check_runs()?;
                Ok(UnixStream::connect(path).ok())
            })
        };
        let control = stream(connect(&control)?)?;
        let monitor = stream(connect(&monitor)?)?;
        let mut machine = Self {
            process,
            control,
            monitor,
            name: spec.name.clone(),
            directory: directory.to_owned(),
            release: String::new(),
        };
        machine.order(&json!({"execute": "qmp_capabilities"}))?;
        machine.wait_ready()?;
        Ok(machine)
    }

    fn wait_ready(&mut self) -> Result<(), PerfError> {
        let line = self.line(BOOT)?;
        let release = line.strip_prefix("READY ").ok_or_else(|| self.malformed(&line))?;
        self.release = release.to_owned();
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a script (of a shell); gives what it wrote.
    ///
    /// # Errors
    /// If its status is not 0, or the machine ends.
    pub fn run(&mut self, script: &str) -> Result<String, PerfError> {
        let (status, said) = self.try_run(script)?;
        if status == 0 {
            Ok(said)
        } else {
            let mut command = format!("{}: {}", self.name, script.trim());
            if command.len() > 300 {
                command = format!("{}...", command.chars().take(300).collect::<String>());
            }
            Err(PerfError::Command {
                command,
                status: format!("exit status {status}"),
                said,
            })
        }
    }

    /// Runs a script; gives its status and what it wrote.
    ///
    /// # Errors
    /// If the machine ends.
    pub fn try_run(&mut self, script: &str) -> Result<(i32, String), PerfError> {
        let line = base64(script.as_bytes()) + "\n";
        let name = self.name.clone();
        self.control
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(PerfError::io(name.clone()))?;
        let line = self.line(SCRIPT)?;
        let mut words = line.split(' ');
        let (Some("RESULT"), Some(Ok(status)), Some(Ok(length))) = (
            words.next(),
            words.next().map(str::parse::<i32>),
            words.next().map(str::parse::<usize>),
        ) else {
            return Err(self.malformed(&line));
        };
        let mut said = vec![0; length];
        let end = Instant::now() + SCRIPT;
        let mut filled = 0;
        while filled < length {
            self.alive(end, "the rest of an answer")?;
            match self.control.read(&mut said[filled..]) {
                Ok(count) => filled += count,
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(PerfError::io(name)(error)),
            }
        }
        Ok((status, String::from_utf8_lossy(&said).trim_end().to_owned()))
    }

    /// Runs a script until it succeeds.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_until(&mut self, what: &str, limit: Duration, script: &str) -> Result<String, PerfError> {
        wait_for(what, limit, || {
            let (status, said) = self.try_run(script)?;
            Ok((status == 0).then_some(said))
        })
    }

    /// Starts a program inside that runs beside; what it writes goes to `/tmp/NAME`. [`Machine::end`] ends it.
    ///
    /// # Errors
    /// If the machine ends.
    pub fn begin(&mut self, name: &str, command: &str) -> Result<(), PerfError> {
        self.run(&format!(
            "{command} >/tmp/{name} 2>/tmp/{name}.err & echo $! >/tmp/{name}.pid"
        ))?;
        Ok(())
    }

    /// Ends a program that was begun by SIGTERM and waits until it is gone.
    ///
    /// # Errors
    /// If it stays.
    pub fn end(&mut self, name: &str) -> Result<(), PerfError> {
        self.try_run(&format!("kill $(cat /tmp/{name}.pid)"))?;
        let gone = format!("! grep -q '^State:.*[RSD] (' /proc/$(cat /tmp/{name}.pid)/status");
        self.wait_until(&format!("the end of {name}"), Duration::from_secs(60), &gone)?;
        Ok(())
    }

    /// Writes a file inside.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, path: &str, text: &str) -> Result<(), PerfError> {
        self.run(&format!(
            "mkdir -p $(dirname {path}) && umask 077 && base64 -d >{path} <<'.'\n{}\n.\n",
            base64(text.as_bytes())
        ))?;
        Ok(())
    }

    /// Gives QEMU an order (QMP) and waits for its answer.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn order(&mut self, order: &Value) -> Result<Value, PerfError> {
        let name = format!("{}'s monitor", self.name);
        writeln!(self.monitor.get_mut(), "{order}").map_err(PerfError::io(name.clone()))?;
        loop {
            let mut answer = self.monitor_line(&name)?;
            if let Some(error) = answer.get("error") {
                return Err(PerfError::Command {
                    command: order.to_string(),
                    status: name,
                    said: error.to_string(),
                });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Waits for an event of QEMU.
    ///
    /// # Errors
    /// If it does not come.
    pub fn wait_event(&mut self, event: &str) -> Result<(), PerfError> {
        let name = format!("{event} of {}'s monitor", self.name);
        while self.monitor_line(&name)?["event"] != event {}
        Ok(())
    }

    fn monitor_line(&mut self, what: &str) -> Result<Value, PerfError> {
        let end = Instant::now() + BOOT;
        let mut line = String::new();
        loop {
            self.alive(end, what)?;
            match self.monitor.read_line(&mut line) {
                Ok(0) => return Err(self.malformed("the monitor's end")),
                Ok(_) if line.ends_with('\n') => break,
                Ok(_) => {}
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(PerfError::io(what)(error)),
            }
        }
        serde_json::from_str(&line).map_err(|error| PerfError::Malformed {
            what: what.to_owned(),
            why: error.to_string(),
        })
    }

    /// Starts it anew, as its reset button does; returns when it is ready again.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn reset(&mut self) -> Result<(), PerfError> {
        // Started with -no-reboot, so that a kernel that panics ends the run.
        self.order(&json!({"execute": "set-action", "arguments": {"reboot": "reset"}}))?;
        self.order(&json!({"execute": "system_reset"}))?;
        self.wait_ready()
    }

    /// Switches it off and waits until QEMU has ended.
    ///
    /// # Errors
    /// If it ends badly.
    pub fn stop(&mut self) -> Result<(), PerfError> {
        self.order(&json!({"execute": "quit"}))?;
        self.process.finish(Duration::from_secs(20))?;
        Ok(())
    }

    fn line(&mut self, limit: Duration) -> Result<String, PerfError> {
        let end = Instant::now() + limit;
        let mut line = Vec::new();
        loop {
            self.alive(end, "an answer")?;
            match self.control.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    return Ok(String::from_utf8_lossy(&line).trim().to_owned());
                }
                Ok(_) => {}
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(PerfError::io(self.name.clone())(error)),
            }
        }
    }

    fn alive(&mut self, end: Instant, what: &str) -> Result<(), PerfError> {
        check_interrupted()?;
        self.process.check_runs()?;
        if Instant::now() > end {
            let console = self.directory.join(format!("{}.console", self.name));
            return Err(PerfError::Malformed {
                what: format!("{what} of {}", self.name),
                why: format!("it did not come; the console is in {}", console.display()),
            });
        }
        Ok(())
    }

    fn malformed(&self, line: &str) -> PerfError {
        PerfError::Malformed {
            what: format!("the answer of {}", self.name),
            why: format!("{line:?} was not expected"),
        }
    }
}

/// QEMU's words for a network card's other end.
#[must_use]
pub fn netdev(number: usize, nic: &Nic) -> String {
    let queues = if nic.queues > 1 {
        format!(",queues={}", nic.queues)
    } else {
        String::new()
    };
    format!(
        "tap,id=net{number},ifname={},script=no,downscript=no{queues}",
        nic.tap
    )
}

/// With a pause in which the machine's state is looked at.
fn stream(stream: UnixStream) -> Result<BufReader<UnixStream>, PerfError> {
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .map_err(PerfError::io("a socket of QEMU"))?;
    Ok(BufReader::new(stream))
}

fn is_pause(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// RFC 4648 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() {
                char::from(DIGITS[digit])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648 10.
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, expected) in vectors.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *expected);
        }
    }
}
