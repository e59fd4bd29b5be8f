//! Other network namespaces: found by the number that this one knows them by, entered by a thread of their own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::link;

/// Where `ip netns` keeps names.
const NAMED: &str = "/run/netns";

/// A network namespace, as this process can reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The process's own.
    Here,
    /// Another one, which this path leads to.
    There(PathBuf),
}

impl Place {
    /// The namespace that this one knows by a number (`link-netnsid`): by a name that `ip netns` gave it, or by a process that
    /// lives in it. None if nothing leads to it.
    #[must_use]
    pub fn of_number(number: i32) -> Option<Self> {
        let files = |directory: &Path| {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            entries.filter_map(Result::ok).map(|entry| entry.path())
        };
        let processes = files(Path::new("/proc")).map(|process| process.join("ns/net"));
        files(Path::new(NAMED))
            .chain(processes)
            .find(|path| number_of(path) == Some(number))
            .map(Self::There)
    }

    /// Does something in the namespace.
    ///
    /// # Errors
    /// If it cannot be entered, and those of the work.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Self::There(path) = self else {
            return work();
        };
        let file = File::open(path)?;
        std::thread::scope(|scope| {
            let entered = || move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let thread = scope.spawn(move || entered().map_err(Into::into).and_then(|()| work()));
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command as it is to be typed here so that it runs in the namespace.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        match self {
            Self::Here => command.to_owned(),
            Self::There(path) => match path.strip_prefix(NAMED) {
                Ok(name) => format!("ip netns exec {} {command}", name.display()),
                Err(_) => format!("nsenter --net={} {command}", path.display()),
            },
        }
    }
}

fn number_of(path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let mut question = NsidMessage::default();
    question
        .attributes
        .push(NsidAttribute::Fd(file.as_raw_fd().cast_unsigned()));
    let answer = link::ask(RouteNetlinkMessage::GetNsId(question), 0).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer else {
        return None;
    };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) => Some(*number),
        _ => None,
    })
}
