//! What a worker tells control: that a session is wanted, that a peer uses an SPI nobody knows, what control has to free.
//!
//! A bounded ring. What is told again by the next packet may find no room; what must not be lost has a part of the ring of
//! its own. Never allocates, never waits.

use std::net::IpAddr;

use rtrb::{Consumer, Producer, RingBuffer};

use crate::sa::inbound::InboundSa;
use crate::sa::outbound::{OutboundSa, Tally};
use crate::sa::slots::{Owned, Place, Slot};
use crate::sa::table::OutboundKey;
use crate::worker::handoff::Waker;

/// Slots of the ring.
const RING: usize = 512;
/// Slots that only what must not be lost may use.
const RESERVED: usize = 384;

/// What a worker says.
#[derive(Debug)]
pub enum Notice {
    /// Packets wait for a session.
    Wanted(OutboundKey),
    /// An ESP packet came under an SPI that no SA has.
    UnknownSpi {
        /// The host that sent it, if the packet is true.
        from: IpAddr,
        /// The SPI.
        spi: u32,
    },
    /// An SA that was retired, to be counted and freed.
    Outbound(Place, OutboundSa),
    /// An SA that was retired, to be counted and freed.
    Inbound(Place, InboundSa),
    /// What was done under each SA so far.
    Survey(Box<Survey>),
    /// Slots that larger ones took the place of, empty.
    OutboundRoom(Vec<Slot<OutboundSa>>),
    /// Slots that larger ones took the place of, empty.
    InboundRoom(Vec<Slot<InboundSa>>),
}

/// What was done under the SAs of one worker: slot, serial number, tally. Control makes the room, the worker fills it.
#[derive(Debug, Default)]
pub struct Survey {
    /// Of those that seal.
    pub outbound: Vec<(u32, u32, Tally)>,
    /// Of those that open.
    pub inbound: Vec<(u32, u32, Tally)>,
}

impl Survey {
    /// Room for so many slots of each direction.
    #[must_use]
    pub fn with_room(outbound: usize, inbound: usize) -> Box<Self> {
        Box::new(Self {
            outbound: Vec::with_capacity(outbound),
            inbound: Vec::with_capacity(inbound),
        })
    }

    /// Notes the tallies, as far as there is room.
    pub fn fill(&mut self, owned: &Owned) {
        let room = self.outbound.capacity();
        let outbound = owned.outbound.iter();
        self.outbound.extend(
            outbound
                .take(room)
                .map(|(slot, serial, sa)| (slot, serial, sa.tally.get())),
        );
        let room = self.inbound.capacity();
        let inbound = owned.inbound.iter();
        self.inbound.extend(
            inbound
                .take(room)
                .map(|(slot, serial, sa)| (slot, serial, sa.tally.get())),
        );
    }
}

/// A worker's end.
#[derive(Debug)]
pub struct Notices {
    ring: Producer<Notice>,
    control: Waker,
    pushed: bool,
}

/// Both ends; `control` is what wakes the control thread.
#[must_use]
pub fn notices(control: Waker) -> (Notices, Consumer<Notice>) {
    let (ring, consumer) = RingBuffer::new(RING);
    let notices = Notices {
        ring,
        control,
        pushed: false,
    };
    (notices, consumer)
}

impl Notices {
    /// Says what the next packet would say again; whether there was room for it.
    pub fn hint(&mut self, notice: Notice) -> bool {
        let room = self.ring.slots() > RESERVED;
        if room {
            self.tell(notice);
        }
        room
    }

    /// Whether something that must not be lost can be said.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ring.slots() > 0
    }

    /// Says what must not be lost: only after [`Self::has_room`], else it is freed here.
    pub fn tell(&mut self, notice: Notice) {
        self.pushed |= self.ring.push(notice).is_ok();
    }

    /// Lets control know that commands were obeyed.
    #[inline]
    pub fn obeyed(&mut self) {
        self.pushed = true;
    }

    /// Wakes control if something was said since the last time.
    #[inline]
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.pushed) {
            self.control.wake();
        }
    }
}
