//! What guests of the demo do: small servers and clients that run inside a guest's namespace.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Subcommand;
use guestseal_xdp::{Generator, Pace};

use crate::namespaces::Namespace;
use crate::process::{PerfError, Running, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(5);

/// The parts that a guest can play.
#[derive(Clone, Debug, Subcommand)]
pub enum Actor {
    /// Answers lines on TCP port 25 until it is ended.
    MailServer,
    /// Sends one line to port 25 and prints the answer.
    MailClient {
        /// The server.
        server: IpAddr,
        /// The line.
        line: String,
    },
    /// Answers every name on UDP port 53 with 192.0.2.53 until it is ended.
    NameServer,
    /// Asks for a name and prints the answer's address.
    NameClient {
        /// The server.
        server: IpAddr,
        /// The name.
        name: String,
    },
    /// Prints the first message on UDP port 514.
    LogServer,
    /// Prints every message on a UDP port until it is ended.
    Receive {
        /// The port.
        port: u16,
    },
    /// Prints mark and number of every whole datagram that `send` sent to a UDP port, until it is ended.
    Collect {
        /// The port.
        port: u16,
    },
    /// Sends numbered datagrams of many lengths to a UDP port.
    Send {
        /// The server.
        server: IpAddr,
        /// The port.
        port: u16,
        /// What each datagram begins with.
        marker: String,
        /// The last number.
        count: u32,
        /// The first number.
        #[arg(long, default_value_t = 1)]
        first: u32,
        /// Datagrams a second (0: as many as it can).
        #[arg(long, default_value_t = 0)]
        rate: u32,
    },
    /// Sends a message to UDP port 514, again until the guest ends it.
    LogClient {
        /// The server.
        server: IpAddr,
        /// The message.
        message: String,
    },
    /// Accepts on a TCP port until it is ended.
    Listen {
        /// The port.
        port: u16,
    },
    /// Sends numbered datagrams to UDP port 7000, so many a second (0: as many as it can), until it is ended.
    Flood {
        /// The server.
        server: IpAddr,
        /// What each datagram begins with.
        marker: String,
        /// Datagrams a second.
        #[arg(long, default_value_t = 0)]
        rate: u32,
    },
    /// Carries packets through a tunnel of boringtun, on one thread, until it is ended.
    Tunnel {
        /// The interface that it makes.
        interface: String,
        /// What it is told of keys and peer, in the words of WireGuard's configuration protocol, `;` for line ends.
        settings: String,
    },
    /// Carries what comes by either of two interfaces to the other by AF_XDP, unread, until it is ended.
    Forward {
        /// One.
        one: String,
        /// The other.
        other: String,
        /// Never sleep.
        #[arg(long)]
        busy_poll: bool,
    },
    /// Answers every datagram on a UDP port until it is ended.
    Echo {
        /// The port.
        port: u16,
    },
    /// Asks an echo so often, one after the other, and prints how long each answer took, in ns.
    Ask {
        /// The server.
        server: SocketAddr,
        /// How often.
        count: u32,
    },
    /// Sends a file of packets, one a line in hexadecimal digits, out of an interface, so many a second for so many seconds.
    Repeat {
        /// The interface.
        interface: String,
        /// The file.
        packets: std::path::PathBuf,
        /// Packets a second.
        rate: u32,
        /// Seconds.
        seconds: u32,
    },
    /// Tries to connect; prints `connected` or `refused`.
    Connect {
        /// The server.
        server: IpAddr,
        /// The port.
        port: u16,
    },
}

impl Actor {
    /// Plays the part.
    ///
    /// # Errors
    /// If the network does not let it.
    pub fn play(self) -> std::io::Result<()> {
        match self {
            Actor::Tunnel { interface, settings } => crate::veth::tunnel::carry(&interface, &settings)?,
            Actor::Forward {
                one,
                other,
                busy_poll,
            } => {
                crate::veth::forward::carry([&one, &other], busy_poll).map_err(std::io::Error::other)?;
            }
            Actor::Echo { port } => {
                let socket = UdpSocket::bind(("0.0.0.0", port))?;
                let mut datagram = [0; 2048];
                loop {
                    let (length, from) = socket.recv_from(&mut datagram)?;
                    socket.send_to(&datagram[..length], from)?;
                }
            }
            Actor::Ask { server, count } => {
                let socket = udp_to(server.ip(), server.port())?;
                let mut answer = [0; 64];
                for number in 0..count {
                    let begin = std::time::Instant::now();
                    socket.send(&number.to_be_bytes())?;
                    // What was lost is not asked for again: it is a long answer.
                    while socket
                        .recv(&mut answer)
                        .is_ok_and(|length| answer[..length] != number.to_be_bytes())
                    {}
                    println!("{}", begin.elapsed().as_nanos());
                }
            }
            Actor::Repeat {
                interface,
                packets,
                rate,
                seconds,
            } => repeat(&interface, &packets, rate, seconds)?,
            Actor::MailServer => {
                for stream in listen(25)?.incoming() {
                    let mut stream = stream?;
                    let mut line = String::new();
                    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
                    write!(stream, "250 {line}")?;
                }
            }
            Actor::MailClient { server, line } => {
                let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, 25), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                writeln!(stream, "{line}")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                print!("{answer}");
            }
            Actor::NameServer => {
                let socket = UdpSocket::bind("[::]:53")?;
                println!("listening");
                let mut query = [0; 512];
                loop {
                    let (length, from) = socket.recv_from(&mut query)?;
                    if let Some(answer) = answer(&query[..length]) {
                        socket.send_to(&answer, from)?;
                    }
                }
            }
            Actor::NameClient { server, name } => {
                let socket = udp_to(server, 53)?;
                let mut query = vec![0x47, 0x53, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                for label in name.split('.') {
                    query.push(label.len() as u8);
                    query.extend(label.as_bytes());
                }
                query.extend([0, 0, 1, 0, 1]);
                socket.send(&query)?;
                let mut reply = [0; 512];
                let length = socket.recv(&mut reply)?;
                match reply[..length].last_chunk::<4>() {
                    Some([a, b, c, d]) if reply.starts_with(&[0x47, 0x53]) => println!("{a}.{b}.{c}.{d}"),
                    _ => return Err(std::io::Error::other("not an answer to this query")),
                }
            }
            Actor::LogServer => {
                let socket = UdpSocket::bind("[::]:514")?;
                println!("listening");
                let mut message = [0; 2048];
                let length = socket.recv(&mut message)?;
                println!("{}", String::from_utf8_lossy(&message[..length]));
            }
            Actor::Receive { port } => {
                let socket = UdpSocket::bind(("::", port))?;
                println!("listening");
                let mut message = [0; 2048];
                loop {
                    let length = socket.recv(&mut message)?;
                    println!("{}", String::from_utf8_lossy(&message[..length]));
                }
            }
            Actor::Collect { port } => {
                let socket = UdpSocket::bind(("::", port))?;
                // Bursts wait here while the machine is busy with something else.
                rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
                println!("listening");
                let mut message = [0; 2048];
                loop {
                    let (length, _) = socket.recv_from(&mut message)?;
                    println!("{}", collected(&message[..length]));
                }
            }
            Actor::Send {
                server,
                port,
                marker,
                count,
                first,
                rate,
            } => {
                let socket = udp_to(server, port)?;
                let begin = std::time::Instant::now();
                for number in first..=count {
                    // An SA at its end refuses: who collects sees what is missing.
                    let _ = socket.send(numbered(&marker, number).as_bytes());
                    if let Some(due) = Duration::from_secs(u64::from(number - first)).checked_div(rate)
                        && let Some(early) = due.checked_sub(begin.elapsed())
                    {
                        std::thread::sleep(early);
                    }
                }
            }
            Actor::LogClient { server, message } => {
                udp_to(server, 514)?.send(message.as_bytes())?;
            }
            Actor::Listen { port } => {
                for stream in listen(port)?.incoming() {
                    stream?.write_all(b"hello\n")?;
                }
            }
            Actor::Flood { server, marker, rate } => flood(server, &marker, rate)?,
            Actor::Connect { server, port } => {
                let tried =
                    TcpStream::connect_timeout(&SocketAddr::new(server, port), Duration::from_secs(1));
                println!("{}", if tried.is_ok() { "connected" } else { "refused" });
            }
        }
        Ok(())
    }
}

/// Errors do not end it: a flood goes on while the network is being changed.
fn flood(server: IpAddr, marker: &str, rate: u32) -> std::io::Result<()> {
    let socket = udp_to(server, 7000)?;
    println!("listening");
    std::io::stdout().flush()?;
    let begin = std::time::Instant::now();
    for number in 0u64.. {
        let _ = socket.send(format!("{marker} {number:020}").as_bytes());
        if let Some(due) = Duration::from_secs(number).checked_div(rate)
            && let Some(early) = due.checked_sub(begin.elapsed())
        {
            std::thread::sleep(early);
        }
    }
    Ok(())
}

/// A datagram whose length and filling follow from its number, so that what was damaged shows.
fn numbered(marker: &str, number: u32) -> String {
    let letter = char::from(b'a' + (number % 26) as u8);
    let filling = String::from(letter).repeat((number as usize * 37) % 1090);
    format!("{marker} {number} {filling}")
}

/// Mark and number of a datagram, or that it is damaged.
fn collected(datagram: &[u8]) -> String {
    let text = String::from_utf8_lossy(datagram);
    let mut words = text.split(' ');
    let (marker, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match number.parse() {
        Ok(number) if numbered(marker, number) == text => format!("{marker} {number}"),
        _ => format!("damaged: {} bytes", datagram.len()),
    }
}

/// Runs a part in a namespace to its end; gives what it printed.
///
/// # Errors
/// If it fails.
pub fn play_in(program: &Path, namespace: &Namespace, words: &[&str]) -> Result<String, PerfError> {
    let mut command = namespace.command(program);
    run(command.arg("actor").args(words))
}

/// Starts a server in a namespace; returns when it listens.
///
/// # Errors
/// If it does not.
pub fn serve(
    program: &Path,
    namespace: &Namespace,
    directory: &Path,
    words: &[&str],
) -> Result<Running, PerfError> {
    let name = format!(
        "{}-{}",
        namespace.name(),
        words.join("-").replace(['/', ':'], "_")
    );
    let mut command = namespace.command(program);
    command.arg("actor").args(words);
    start(&name, directory, &mut command, PATIENCE)
}

/// Starts a part; returns when it says that it listens.
pub(crate) fn start(
    name: &str,
    directory: &Path,
    command: &mut Command,
    patience: Duration,
) -> Result<Running, PerfError> {
    let mut running = Running::start(name, directory, command)?;
    wait_for(&format!("{name} to listen"), patience, || {
        running.check_runs()?;
        Ok(running.output().contains("listening").then_some(()))
    })?;
    Ok(running)
}

/// The command of a part that this program plays in a namespace, on a CPU; its words are still to be added.
pub(crate) fn pinned(namespace: &Namespace, cpu: usize) -> Result<Command, PerfError> {
    let own = std::env::current_exe().map_err(PerfError::io("this program"))?;
    let mut command = namespace.command("taskset");
    command.args(["-c", &cpu.to_string()]).arg(own).arg("actor");
    Ok(command)
}

fn repeat(interface: &str, packets: &Path, rate: u32, seconds: u32) -> std::io::Result<()> {
    let text = std::fs::read_to_string(packets)?;
    let bytes = |line: &str| -> Vec<u8> {
        let digits = line.as_bytes().chunks_exact(2);
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        digits.filter_map(byte).collect()
    };
    let packets: Vec<Vec<u8>> = text.lines().map(bytes).collect();
    let missing = || std::io::Error::other(format!("no interface {interface}"));
    let ifindex = guestseal::control::link::index_of(interface).ok_or_else(missing)?;
    let generator = Generator::load(ifindex, &packets).map_err(std::io::Error::other)?;
    println!("listening");
    let (sent, taken) = generator
        .send(rate * seconds, Pace::PerSecond(rate.into()))
        .map_err(std::io::Error::other)?;
    println!("sent {sent} in {taken:.2} s");
    Ok(())
}

/// Listens on both families and says so, so that nobody has to guess when.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(("::", port))?;
    println!("listening");
    std::io::stdout().flush()?;
    Ok(listener)
}

fn udp_to(server: IpAddr, port: u16) -> std::io::Result<UdpSocket> {
    let own = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(own)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, port))?;
    Ok(socket)
}

/// The query's own bytes, marked as an answer, with one address behind (RFC 1035 4.1).
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.to_vec();
    *answer.get_mut(2)? |= 0x80;
    *answer.get_mut(7)? = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_datagram_is_not_collected() {
        let whole = numbered("m", 30);
        assert_eq!(collected(whole.as_bytes()), "m 30");
        assert!(collected(whole.replace("30 e", "30 f").as_bytes()).starts_with("damaged"));
        assert!(collected(&whole.as_bytes()[..whole.len() - 1]).starts_with("damaged"));
        assert!(collected(b"m 30 x").starts_with("damaged"));
    }
}
