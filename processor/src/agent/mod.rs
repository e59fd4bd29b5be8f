//! The agent in a Linux guest: tells the host whose the guest's flows are and of which application.
//!
//! Looks at `/proc` again and again: what is new is told, what is gone is told to have ended, and all of it is told again before the host
//! forgets it. Needs root, to see other users' sockets; runs in the guest, and shares nothing with guestseal on a host but the form of
//! what it tells ([`crate::control::sources`]).

mod people;
mod sockets;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use people::People;
use sockets::Found;

/// After how long a flow that goes on is told again: the host forgets it after an hour.
const AGAIN: Duration = Duration::from_secs(20 * 60);

/// A flow as the guest sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Flow {
    fn json(&self) -> Value {
        json!({"protocol": self.protocol, "local": self.local, "remote": self.remote})
    }
}

/// What was told and is not over.
#[derive(Debug)]
pub struct Agent {
    proc: PathBuf,
    etc: PathBuf,
    told: BTreeMap<Flow, Told>,
}

#[derive(Copy, Clone, Debug)]
struct Told {
    inode: u64,
    at: Instant,
}

impl Agent {
    /// Of the machine whose `/proc` and `/etc` these are; nothing is told yet.
    #[must_use]
    pub fn new(proc: &Path, etc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            etc: etc.to_owned(),
            told: BTreeMap::new(),
        }
    }

    /// What there is to tell since the last time, one JSON object each.
    ///
    /// # Errors
    /// If the tables of sockets cannot be read.
    pub fn news(&mut self, now: Instant) -> io::Result<Vec<Value>> {
        let found = sockets::all(&self.proc)?;
        let mut news = Vec::new();
        self.told.retain(|flow, told| {
            let goes_on = found.get(flow).is_some_and(|found| found.inode == told.inode);
            if !goes_on {
                news.push(json!({"flow-end": flow.json()}));
            }
            goes_on
        });
        let is_due = |told: Option<&Told>| told.is_none_or(|told| now.duration_since(told.at) >= AGAIN);
        let due: Vec<(&Flow, &Found)> = found
            .iter()
            .filter(|(flow, _)| is_due(self.told.get(flow)))
            .collect();
        if due.is_empty() {
            return Ok(news);
        }
        let owners = sockets::owners(&self.proc, due.iter().map(|(_, found)| found.inode).collect());
        let people = People::read(&self.etc);
        for (flow, found) in due {
            let mut said = flow.json();
            said["user"] = people.name(found.user).into();
            said["groups"] = people.groups(found.user).into();
            if let Some(application) = owners.get(&found.inode) {
                said["application"] = application.as_str().into();
            }
            news.push(json!({"flow": said}));
            let inode = found.inode;
            self.told.insert(*flow, Told { inode, at: now });
        }
        Ok(news)
    }

    /// Forgets what was told: whoever listens from now on knows nothing.
    pub fn forget(&mut self) {
        self.told.clear();
    }
}

/// Where the host listens: a channel's device, or a Unix socket.
enum Channel {
    Device(File),
    Socket(UnixStream),
}

impl Channel {
    fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.file_type().is_socket() {
            return UnixStream::connect(path).map(Channel::Socket);
        }
        OpenOptions::new().append(true).open(path).map(Channel::Device)
    }

    fn tell(&mut self, news: &[Value]) -> io::Result<()> {
        let text: String = news.iter().map(|one| format!("{one}\n")).collect();
        match self {
            Channel::Device(file) => file.write_all(text.as_bytes()),
            Channel::Socket(stream) => stream.write_all(text.as_bytes()),
        }
    }
}

/// Tells the host what there is to tell, for ever: when the host is not there, it is tried again.
pub fn run(channel: &Path, every: Duration) -> ! {
    let mut agent = Agent::new(Path::new("/proc"), Path::new("/etc"));
    let (mut open, mut said) = (None, String::new());
    loop {
        if let Err(error) = turn(&mut agent, channel, &mut open) {
            open = None;
            agent.forget();
            let text = format!("{}: {error}", channel.display());
            if text != said {
                tracing::warn!("the host cannot be told, and is tried again: {text}");
                said = text;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        std::thread::sleep(every);
    }
}

fn turn(agent: &mut Agent, path: &Path, open: &mut Option<Channel>) -> io::Result<()> {
    let channel = match open {
        Some(channel) => channel,
        None => open.insert(Channel::open(path)?),
    };
    let news = agent.news(Instant::now())?;
    channel.tell(&news)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn of<'a>(news: &'a [Value], what: &str, local: SocketAddr) -> Vec<&'a Value> {
        let of_it = news.iter().map(|one| &one[what]);
        of_it.filter(|flow| flow["local"] == local.to_string()).collect()
    }

    /// This test's own connections, as the kernel shows them.
    #[test]
    fn a_flow_is_told_once_with_its_user_and_application_and_so_is_its_end() {
        // Loopback is no business of the host's; this machine's other addresses are, but may not be there.
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let mut agent = Agent::new(Path::new("/proc"), Path::new("/etc"));
        let found = sockets::table(Path::new("/proc")).unwrap();
        let flow = Flow {
            protocol: 6,
            local,
            remote,
        };
        let socket = found[&flow];
        let owners = sockets::owners(Path::new("/proc"), std::iter::once(socket.inode).collect());
        let own = std::env::current_exe().unwrap();
        assert_eq!(
            Some(owners[&socket.inode].as_str()),
            own.file_name().unwrap().to_str()
        );
        assert_eq!(socket.user, rustix::process::geteuid().as_raw());
        assert!(
            of(&agent.news(Instant::now()).unwrap(), "flow", local).is_empty(),
            "loopback"
        );
    }

    /// Tables as the kernel writes them, of an address that is none of this machine's.
    #[test]
    fn what_is_new_what_goes_on_and_what_is_over() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("net");
        fs::create_dir(&net).unwrap();
        let begin = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let row = |local: &str, remote: &str, state: &str, user: u32, inode: u64| {
            format!(
                "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  {user}        0 {inode} 1 0 20 4 30 10 -1\n"
            )
        };
        let write = |rows: &str| fs::write(net.join("tcp"), format!("{begin}{rows}")).unwrap();
        let etc = root.path().join("etc");
        fs::create_dir(&etc).unwrap();
        fs::write(etc.join("passwd"), "alice:x:1000:100::/home/alice:/bin/sh\n").unwrap();
        fs::write(
            etc.join("group"),
            "users:x:100:\nadmins:x:101:bob,alice\nothers:x:102:bob\n",
        )
        .unwrap();
        let mut agent = Agent::new(root.path(), &etc);
        let begin_at = Instant::now();
        let established = row("0100010A:9C40", "0200010A:01BB", "01", 1000, 77);
        // Listening, and waiting for its end.
        let others = row("00000000:0016", "00000000:0000", "0A", 0, 5)
            + &row("0100010A:9C41", "0200010A:01BB", "06", 0, 0);
        write(&(established.clone() + &others));
        let wanted = json!({"flow": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443", "user": "alice", "groups": ["users", "admins"]}});
        assert_eq!(agent.news(begin_at).unwrap(), std::slice::from_ref(&wanted));
        assert!(agent.news(begin_at).unwrap().is_empty());
        assert_eq!(
            agent.news(begin_at + AGAIN).unwrap(),
            [wanted],
            "before the host forgets it"
        );
        // The same ends, another socket, of a user that has no name.
        write(&row("0100010A:9C40", "0200010A:01BB", "02", 4711, 78));
        let news = agent.news(begin_at).unwrap();
        assert!(
            news[0].get("flow-end").is_some() && news[1]["flow"]["user"] == "4711",
            "{news:?}"
        );
        write("");
        let end = json!({"flow-end": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443"}});
        assert_eq!(agent.news(begin_at).unwrap(), [end]);
        // IPv6, and IPv4 in an IPv6 socket.
        let long = row(
            "00000000000000000000000001000000:9C40",
            "000000FD000000000000000002000000:01BB",
            "01",
            0,
            9,
        );
        let mapped = row(
            "0000000000000000FFFF00000100010A:9C40",
            "0000000000000000FFFF00000200010A:01BB",
            "01",
            0,
            10,
        );
        fs::write(net.join("tcp6"), format!("{begin}{long}{mapped}nonsense\n")).unwrap();
        let news = agent.news(begin_at).unwrap();
        assert!(
            of(&news, "flow", "10.1.0.1:40000".parse().unwrap()).len() == 1,
            "{news:?}"
        );
    }

    #[test]
    fn what_is_connected_by_udp_is_a_flow() {
        let (one, two) = (
            UdpSocket::bind("127.0.0.3:0").unwrap(),
            UdpSocket::bind("127.0.0.3:0").unwrap(),
        );
        one.connect(two.local_addr().unwrap()).unwrap();
        let flow = Flow {
            protocol: 17,
            local: one.local_addr().unwrap(),
            remote: two.local_addr().unwrap(),
        };
        assert!(sockets::table(Path::new("/proc")).unwrap().contains_key(&flow));
    }
}
