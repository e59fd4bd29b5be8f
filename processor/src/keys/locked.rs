//! Memory for secrets: a page for each, locked so that it is never swapped out, and in no core file, whatever the process's own
//! limits are.
//!
//! Traffic keys lie among what workers read for each packet, where a page for each would cost a TLB entry for each; so all
//! other memory of the process is locked too, page by page as it is touched ([`lock_all`]). That takes CAP_IPC_LOCK: under a
//! limit, frames, tables and threads' stacks would use it up and then fail. Where the system refuses either, secrets are kept
//! all the same, and an operator is told ([`census`]).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut};
use rustix::mm::MlockAllFlags;
use serde::Serialize;
use zeroize::Zeroize;

/// The least that can be locked.
const PAGE: usize = 4096;

static LOCKED: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);
static ALL_MEMORY: AtomicBool = AtomicBool::new(false);

/// Secrets that this process holds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// In locked memory.
    pub locked: usize,
    /// In memory that may be swapped out, since the system refuses to lock more.
    pub unlocked: usize,
    /// Whether all other memory of the process is locked, traffic keys with it.
    pub all_memory: bool,
}

/// Locks each page of this process as soon as it is touched, those of later on too.
///
/// # Errors
/// If the system refuses: then nothing is locked.
pub fn lock_all() -> std::io::Result<()> {
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    ALL_MEMORY.store(true, Ordering::Relaxed);
    Ok(())
}

/// Counts the secrets that there are now.
#[must_use]
pub fn census() -> Census {
    Census {
        locked: LOCKED.load(Ordering::Relaxed),
        unlocked: UNLOCKED.load(Ordering::Relaxed),
        all_memory: ALL_MEMORY.load(Ordering::Relaxed),
    }
}

enum Place<const N: usize> {
    Page(MmapMut),
    /// The system has no page left for it.
    Heap(Box<[u8; N]>),
}

/// Bytes that are never moved, and wiped when dropped.
pub(super) struct Locked<const N: usize> {
    place: Place<N>,
    counted: &'static AtomicUsize,
}

impl<const N: usize> Locked<N> {
    const FITS: () = assert!(N <= PAGE);

    /// Zeros.
    pub(super) fn new() -> Self {
        let () = Self::FITS;
        let (place, is_locked) = match MmapMut::map_anon(PAGE) {
            Ok(page) => {
                // Where this fails there is the process's own setting, which leaves no core file at all.
                let _ = page.advise(Advice::DontDump);
                let is_locked = page.lock().is_ok();
                (Place::Page(page), is_locked)
            }
            Err(_) => (Place::Heap(Box::new([0; N])), false),
        };
        let counted = if is_locked { &LOCKED } else { &UNLOCKED };
        counted.fetch_add(1, Ordering::Relaxed);
        Self { place, counted }
    }

    pub(super) fn bytes(&self) -> &[u8; N] {
        match &self.place {
            Place::Page(page) => page
                .first_chunk()
                .unwrap_or_else(|| unreachable!("it fits a page")),
            Place::Heap(bytes) => bytes,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; N] {
        match &mut self.place {
            Place::Page(page) => page
                .first_chunk_mut()
                .unwrap_or_else(|| unreachable!("it fits a page")),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl<const N: usize> Drop for Locked<N> {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        self.counted.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that an address is in.
    fn flags(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let ends = range.and_then(|(from, to)| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some((number(from)?, number(to)?))
            });
            if let Some((from, to)) = ends {
                is_it = (from..to).contains(&address);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_it) {
                return flags.to_owned();
            }
        }
        panic!("nothing is mapped at {address:x}")
    }

    /// As the kernel has it: `lo` is locked, `dd` is not dumped.
    #[test]
    fn what_is_in_it_is_locked_and_not_dumped() {
        let secret = Locked::<32>::new();
        let flags = flags(secret.bytes().as_ptr() as usize);
        assert!(flags.contains(" dd"), "{flags}");
        assert_eq!(
            flags.contains(" lo"),
            std::ptr::eq(secret.counted, &raw const LOCKED),
            "{flags}"
        );
        assert!(flags.contains(" lo"), "this machine locks no page: {flags}");
    }

    #[test]
    fn bytes_stay_where_they_are() {
        let mut secret = Locked::<32>::new();
        secret.bytes_mut().copy_from_slice(&[7; 32]);
        let before = secret.bytes().as_ptr();
        let moved = Box::new(secret);
        assert_eq!((moved.bytes().as_ptr(), moved.bytes()), (before, &[7; 32]));
    }
}
