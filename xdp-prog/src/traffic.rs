//! The two ends of a measurement: a generator that sends packets out of an interface from within the kernel, some
//! millions a second on one core, and a sink that counts what arrives and how old it is.
//! Both belong to the network namespace of the thread that loads or attaches them.
//! Neither has a part in what Guestseal does with packets.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use crate::error::kernel_error;
use crate::kernel::run_live;
use crate::loader::{log_libbpf, not_loaded, put};
use crate::skeleton::traffic::TrafficSkelBuilder;
use crate::{Program, XdpError};

/// Bytes of the longest packet.
pub const LONGEST: usize = 1536;

/// What a UDP payload over IPv4 begins with for its packet to be stamped: 8 bytes behind it become the time.
pub const MAGIC: [u8; 4] = *b"GSPF";

/// Where it stands.
const MAGIC_AT: usize = 42;

/// Nanoseconds of a latency are told apart by 32 steps for each power of two.
const STEPS: u64 = 32;

/// How fast packets leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as it goes.
    Full,
    /// So many a second, each at its time, whatever becomes of the ones before.
    PerSecond(f64),
}

/// Sends packets out of an interface.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
    plans: MapHandle,
    longest: Vec<u8>,
    count: u32,
    stamped: bool,
}

impl Generator {
    /// Loads a list of packets, to be sent in turns out of an interface of the calling thread's network namespace. If the
    /// first of them has [`MAGIC`] in its place, all have, and all are stamped.
    ///
    /// # Errors
    /// If the kernel does not take it, or a packet is longer than [`LONGEST`].
    pub fn load(ifindex: u32, packets: &[Vec<u8>]) -> Result<Self, XdpError> {
        log_libbpf();
        let mut object = MaybeUninit::uninit();
        let failed = |error| not_loaded("generate", error);
        let mut open = TrafficSkelBuilder::default().open(&mut object).map_err(failed)?;
        open.maps
            .packets
            .set_max_entries(packets.len().max(1) as u32)
            .map_err(failed)?;
        let skeleton = open.load().map_err(failed)?;
        let (maps, zero) = (&skeleton.maps, 0_u32.to_ne_bytes());
        put_in(&maps.exits, "exits", &zero, &ifindex.to_ne_bytes())?;
        let mut value = vec![0; 4 + LONGEST];
        for (number, packet) in (0_u32..).zip(packets) {
            let Some(place) = value.get_mut(4..4 + packet.len()) else {
                return Err(XdpError::Map {
                    map: "packets",
                    action: format!("put a packet of {} bytes", packet.len()),
                    hint: ": it is too long",
                    source: io::ErrorKind::InvalidInput.into(),
                });
            };
            place.copy_from_slice(packet);
            value[..4].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
            put_in(&maps.packets, "packets", &number.to_ne_bytes(), &value)?;
        }
        let is_marked = |packet: &Vec<u8>| packet.get(MAGIC_AT..).is_some_and(|at| at.starts_with(&MAGIC));
        let longest = packets.iter().max_by_key(|packet| packet.len()).cloned();
        Ok(Self {
            program: skeleton
                .progs
                .generate
                .as_fd()
                .try_clone_to_owned()
                .map_err(|source| XdpError::Trial { length: 0, source })?,
            plans: MapHandle::try_from(&maps.plans).map_err(failed)?,
            longest: longest.unwrap_or_default(),
            count: packets.len() as u32,
            stamped: packets.first().is_some_and(is_marked),
        })
    }

    /// Sends so many packets, beginning with the first of the list; gives how many left and the seconds that it took.
    /// The calling thread must be in the namespace of the interface, and its CPU does the work of both ends of it. A
    /// signal ends it early.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&self, count: u32, pace: Pace) -> Result<(u64, f64), XdpError> {
        // Time for the call to get going, so that the first packet is not late already.
        const HEAD_START: u64 = 200_000;
        let (interval, batch) = match pace {
            Pace::Full => (0, 64),
            Pace::PerSecond(rate) => ((1e9 * 1024.0 / rate) as u64, 1),
        };
        let start = monotonic() + HEAD_START;
        self.plan(start, interval)?;
        let began = std::time::Instant::now();
        run_live(self.program.as_fd(), &self.longest, count, batch).map_err(|source| XdpError::Trial {
            length: self.longest.len(),
            source,
        })?;
        let taken = began.elapsed().as_secs_f64();
        Ok((self.sent()?, taken))
    }

    fn plan(&self, start: u64, interval: u64) -> Result<(), XdpError> {
        let mut plan = Vec::with_capacity(32);
        for number in [0, start, interval] {
            plan.extend(number.to_ne_bytes());
        }
        plan.extend(self.count.to_ne_bytes());
        plan.extend(u32::from(self.stamped).to_ne_bytes());
        put(&self.plans, "plans", &0_u32.to_ne_bytes(), &plan)
    }

    fn sent(&self) -> Result<u64, XdpError> {
        let plan = self.plans.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY);
        let plan = plan.map_err(|error| unreadable("plans", kernel_error(&error)))?;
        let sent = plan.as_deref().and_then(<[u8]>::first_chunk);
        sent.map(|sent| u64::from_ne_bytes(*sent))
            .ok_or_else(|| unreadable("plans", io::ErrorKind::NotFound.into()))
    }
}

/// What a sink has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// UDP and ESP packets over IPv4.
    pub packets: u64,
    /// Their bytes, with Ethernet headers.
    pub bytes: u64,
}

/// Counts what arrives at an interface, and lets it end there.
#[derive(Debug)]
pub struct Sink {
    program: OwnedFd,
    seen: MapHandle,
    ages: MapHandle,
}

impl Sink {
    /// Loads a sink of its own counts, to be attached.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn load() -> Result<Self, XdpError> {
        log_libbpf();
        let mut object = MaybeUninit::uninit();
        let failed = |error| not_loaded("sink", error);
        let skeleton = TrafficSkelBuilder::default()
            .open(&mut object)
            .and_then(|open| open.load())
            .map_err(failed)?;
        Ok(Self {
            program: skeleton
                .progs
                .sink
                .as_fd()
                .try_clone_to_owned()
                .map_err(|source| XdpError::Trial { length: 0, source })?,
            seen: MapHandle::try_from(&skeleton.maps.seen).map_err(failed)?,
            ages: MapHandle::try_from(&skeleton.maps.ages).map_err(failed)?,
        })
    }

    /// What it has counted since it was loaded.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn seen(&self) -> Result<Seen, XdpError> {
        Ok(Seen {
            packets: sum(&self.seen, "seen", 0)?,
            bytes: sum(&self.seen, "seen", 1)?,
        })
    }

    /// How old stamped packets were, since it was loaded: nanoseconds, and how many were about as old as that and not older.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn ages(&self) -> Result<Vec<(u64, u64)>, XdpError> {
        let mut ages = Vec::new();
        for key in self.ages.keys() {
            let Some(bucket) = key.first_chunk().map(|key| u32::from_ne_bytes(*key)) else {
                continue;
            };
            let count = sum(&self.ages, "ages", bucket)?;
            if count > 0 {
                ages.push((bucket_end(bucket.into()), count));
            }
        }
        Ok(ages)
    }
}

impl Program for Sink {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// The longest time, in ns, that is counted in a bucket; `bucket_of` in bpf/traffic.bpf.c is its inverse.
fn bucket_end(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let (octave, step) = (bucket / STEPS, bucket % STEPS);
    ((STEPS + step + 1) << (octave - 1)) - 1
}

fn put_in(map: &libbpf_rs::MapMut<'_>, name: &'static str, key: &[u8], value: &[u8]) -> Result<(), XdpError> {
    map.update(key, value, MapFlags::ANY)
        .map_err(|error| XdpError::Map {
            map: name,
            action: "set an entry".into(),
            hint: "",
            source: kernel_error(&error),
        })
}

/// A counter over all CPUs.
fn sum(map: &MapHandle, name: &'static str, index: u32) -> Result<u64, XdpError> {
    let values = map
        .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
        .map_err(|error| unreadable(name, kernel_error(&error)))?
        .ok_or_else(|| unreadable(name, io::ErrorKind::NotFound.into()))?;
    let numbers = values.iter().filter_map(|value| value.first_chunk());
    Ok(numbers.map(|value| u64::from_ne_bytes(*value)).sum())
}

fn unreadable(map: &'static str, source: io::Error) -> XdpError {
    XdpError::Map {
        map,
        action: "read it".into(),
        hint: "",
        source,
    }
}

fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another() {
        assert_eq!([0, 31, 32, 63, 64, 65].map(bucket_end), [0, 31, 32, 63, 65, 67]);
        for bucket in 1..1216 {
            assert!(bucket_end(bucket - 1) < bucket_end(bucket), "{bucket}");
        }
        // Within a thirty-second of what was measured.
        assert_eq!(bucket_end(7 * 32), (32 << 7 >> 1) + 63);
    }
}
