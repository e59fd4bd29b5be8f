//! The places of guest ports: which port has which, and the interface, program and sockets behind it.
//!
//! A port keeps its place, and with it its sockets, as long as a policy has the guest with the same interface and VLAN on
//! this host. A place that is nobody's any more is given to another port only after a while: packets on their way to it know
//! its number. The interface of a port that no policy has any more stays closed until the end, or until another port has it:
//! what a guest sends never reaches the host's stack only because somebody has edited a file.

use std::time::{Duration, Instant};

use guestseal_rules::model::{Policy, PortIndex};
use guestseal_xdp::{Attached, Attachment, Counters as XdpCounters, GuestProgram, PinDirectory, Program};

use crate::control::bindings::Interface;
use crate::control::config::HostConfig;
use crate::control::link::{self, Link};
use crate::control::offloads::{self, Lookout};
use crate::path::batch::WorkerId;
use crate::path::tables::PlaceOf;

use super::{StartError, counters_of, detach_or_say, head};

/// How long a place is nobody's before another port gets it: longer than any packet is on its way.
const REST: Duration = Duration::from_secs(60);

/// What a port is known by through policies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// The guest's UUID.
    guest: String,
    pub(super) interface: Interface,
    vlan: Option<u16>,
}

/// A place, whose number is the one by which tables and workers know it.
#[derive(Debug)]
pub(super) struct Place {
    /// Whose it is, by the policy's number.
    pub(super) port: Option<PortIndex>,
    /// Whose it is, or was last.
    pub(super) identity: Identity,
    /// The number of the one that has the interface: itself, or of a trunk's ports the first.
    pub(super) through: usize,
    /// While it is there; only of one that has the interface.
    pub(super) open: Option<OpenPort>,
    /// Why it could not be opened, said once.
    pub(super) trouble: String,
    /// Workers that have not closed its sockets yet, and the commands that say so.
    pub(super) closing: Vec<(WorkerId, u64)>,
    /// Since when it is nobody's.
    vacant: Option<Instant>,
}

/// An interface with its program, and the workers that have its queues.
#[derive(Debug)]
pub(super) struct OpenPort {
    pub(super) link: Link,
    pub(super) program: Attached<GuestProgram>,
    pub(super) owners: Vec<WorkerId>,
    /// Bytes that the program puts in front of what comes, which the sockets must be told.
    pub(super) head: u8,
    pub(super) lookout: Lookout,
}

/// All places of a host.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) all: Vec<Place>,
    /// Interfaces that no port has any more: their programs let nothing pass.
    shut: Vec<(String, Attached<GuestProgram>)>,
}

fn ports_of(config: &HostConfig) -> impl Iterator<Item = (PortIndex, Identity)> + '_ {
    let policy: &Policy = &config.policy;
    config.local_ports().map(|(number, interface)| {
        let port = &policy.ports[number.index()];
        let identity = Identity {
            guest: policy.guests[port.guest.index()].uuid.clone(),
            interface,
            vlan: port.vlan,
        };
        (number, identity)
    })
}

impl Places {
    /// A place for each port of this host; the programs of those whose interfaces are there are attached, and let nothing pass.
    pub(super) fn attach(config: &HostConfig, pins: &PinDirectory) -> Result<Self, StartError> {
        let mut places = Self {
            all: Vec::new(),
            shut: Vec::new(),
        };
        places.adopt(config, Instant::now());
        for number in 0..places.all.len() {
            if places.has_interface(number) && places.index_of(number).is_some() {
                places.all[number].open = Some(attach(places.interface(number), config, pins)?);
            }
        }
        Ok(places)
    }

    /// Gives the ports of another policy their places.
    pub(super) fn adopt(&mut self, config: &HostConfig, now: Instant) {
        let mut wanted: Vec<(PortIndex, Identity)> = ports_of(config).collect();
        let by_identity: std::collections::HashMap<&Identity, usize> = wanted
            .iter()
            .enumerate()
            .map(|(number, (_, identity))| (identity, number))
            .collect();
        let mut seated = vec![false; wanted.len()];
        for place in &mut self.all {
            match by_identity.get(&place.identity) {
                Some(number) if !seated[*number] => {
                    seated[*number] = true;
                    (place.port, place.vacant) = (Some(wanted[*number].0), None);
                }
                _ => {
                    place.port = None;
                    place.vacant.get_or_insert(now);
                }
            }
        }
        let mut seated = seated.into_iter();
        wanted.retain(|_| seated.next() == Some(false));
        for (index, identity) in wanted {
            let mut numbers = 0..self.all.len();
            let through = numbers.find(|number| {
                self.all[*number].identity.interface == identity.interface && self.has_interface(*number)
            });
            let number = self.free_number(now);
            if number > usize::from(u16::MAX) {
                tracing::error!(
                    "guest port {}: it is one too many, and is not served",
                    identity.interface.name
                );
                continue;
            }
            let place = Place {
                port: Some(index),
                identity,
                through: through.unwrap_or(number),
                open: None,
                trouble: String::new(),
                closing: Vec::new(),
                vacant: None,
            };
            match self.all.get_mut(number) {
                Some(rested) => *rested = place,
                None => self.all.push(place),
            }
        }
    }

    /// The number of a place that has been nobody's for a while, or a new one.
    fn free_number(&self, now: Instant) -> usize {
        let is_free = |number: &usize| {
            let place = &self.all[*number];
            let rested = place
                .vacant
                .is_some_and(|since| now.duration_since(since) >= REST);
            rested && place.open.is_none() && place.closing.is_empty() && !self.has_interface(*number)
        };
        (0..self.all.len()).find(is_free).unwrap_or(self.all.len())
    }

    pub(super) fn interface(&self, number: usize) -> &str {
        &self.all[number].identity.interface.name
    }

    /// The number of the interface of a place, while it is there.
    pub(super) fn index_of(&self, number: usize) -> Option<u32> {
        let wanted = &self.all[number].identity.interface;
        // Another one of the name is another guest's.
        link::index_of(&wanted.name).filter(|found| wanted.index.is_none_or(|index| index == *found))
    }

    /// Whether a place has an interface that some port goes by.
    pub(super) fn has_interface(&self, number: usize) -> bool {
        let goes_by = |place: &Place| place.port.is_some() && place.through == number;
        let own = &self.all[number];
        own.through == number && (goes_by(own) || self.all.iter().any(goes_by))
    }

    /// Whether sockets of an interface are still being closed.
    pub(super) fn is_closing(&self, interface: &str) -> bool {
        let of_it = |place: &&Place| place.identity.interface.name == interface;
        self.all
            .iter()
            .filter(of_it)
            .any(|place| !place.closing.is_empty())
    }

    /// What the interface of a place is, while it is open.
    pub(super) fn open(&self, place: &Place) -> Option<&OpenPort> {
        self.all[place.through].open.as_ref()
    }

    /// Attaches the program of an interface.
    pub(super) fn attach_to(
        &mut self,
        interface: &str,
        config: &HostConfig,
        pins: &PinDirectory,
    ) -> Result<OpenPort, StartError> {
        // Its pin is taken over, and nothing passes meanwhile.
        self.shut.retain(|(name, _)| name != interface);
        attach(interface, config, pins)
    }

    /// Keeps the program of an interface that no port has any more.
    pub(super) fn keep_shut(&mut self, open: OpenPort) {
        for queue in 0..open.link.queues {
            open.program.unregister_socket(queue);
        }
        tracing::warn!(
            "interface {} is no guest port any more: what comes from it is dropped until guestseal ends",
            open.link.name
        );
        self.shut.push((open.link.name, open.program));
    }

    /// What is to be said of open interfaces, once each.
    pub(super) fn look_out(&mut self) -> impl Iterator<Item = String> + '_ {
        let open = self.all.iter_mut().filter_map(|place| place.open.as_mut());
        open.filter_map(|open| open.lookout.news(&open.link))
    }

    /// What each place is, for the tables.
    pub(super) fn for_tables(&self) -> Vec<PlaceOf> {
        let place = |place: &Place| {
            let open = self.open(place);
            PlaceOf {
                port: place.port,
                through: place.through as u16,
                owners: open.map_or_else(Vec::new, |open| open.owners.clone()),
                leaves_checksums: open.is_some_and(|open| open.link.may_leave_checksums()),
            }
        };
        self.all.iter().map(place).collect()
    }

    /// No socket gets anything more.
    pub(super) fn unregister_sockets(&self) {
        for open in self.all.iter().filter_map(|place| place.open.as_ref()) {
            (0..open.link.queues).for_each(|queue| open.program.unregister_socket(queue));
        }
    }

    /// Lets go of every interface, and detaches its program where `detach` says so. Gives what the programs decided.
    pub(super) fn end(self, detach: bool) -> Vec<(String, XdpCounters)> {
        let open = self.all.into_iter().filter_map(|place| place.open);
        let open = open.map(|open| (open.link.name, open.program));
        let mut counted = Vec::new();
        for (interface, program) in open.chain(self.shut) {
            counted.extend(counters_of(&interface, program.counters()));
            if detach {
                detach_or_say(program);
            }
        }
        counted
    }
}

fn attach(interface: &str, config: &HostConfig, pins: &PinDirectory) -> Result<OpenPort, StartError> {
    let link = link::describe(interface)?;
    let head = head::of(interface, config, link.mtu);
    let program = GuestProgram::with_head(head)?.attach(Attachment {
        ifindex: link.index,
        mode: config.xdp_mode,
        pins: Some(pins),
    })?;
    if let Some(reason) = program.fallback() {
        tracing::warn!("XDP on {interface} is generic, which is slower: native was refused: {reason}");
    }
    let fix = config.fix_offloads.then_some(&*config.state_directory);
    let mode = program.mode()?;
    offloads::check(&link, mode, fix)?;
    Ok(OpenPort {
        lookout: Lookout::new(&link, mode),
        link,
        program,
        head,
        owners: Vec::new(),
    })
}
