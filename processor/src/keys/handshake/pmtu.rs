//! How long a packet may be that passes on the way to a peer: searched for by probes (RFC 8899, DPLPMTUD).
//!
//! Pure: time and the peer's answers come as arguments, what is to be sent is the result. Sizes are those of whole IP packets.
//!
//! What the uplink takes is used until a probe of it is lost, since between hosts of one fleet it mostly passes. A probe counts
//! as lost after three tries (MAX_PROBES), a second apart, and only if a small one was answered meanwhile: a peer that
//! is silent says nothing of the size. Then the floor is used, and the largest size that passes is searched for between
//! what has passed and what was lost. While something is sealed the size in use is probed again and again (no data packet
//! is acknowledged, so nothing else would show that the way has become narrower), and now and then what the uplink takes.

use std::time::Duration;

use super::settings::Settings;

/// The least that is used: every link that IPv6 has takes it (RFC 8200 5), and the narrowest tunnels between hosts hardly less.
pub const FLOOR: u16 = 1280;
/// The most that is probed: longer packets have room in no frame of the UMEM, long ones neither.
pub const CEILING: u16 = 16_114;
/// Tries of a probe before it counts as lost (RFC 8899 5.1.2).
const TRIES: u8 = 3;
/// Sealed packets differ by multiples of this in length (RFC 4303 2.4): a finer search would gain nothing.
const STEP: u16 = 4;

/// What is to be sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Probes {
    /// A probe of this size.
    pub(super) size: u16,
    /// And a small one: is the peer there at all?
    pub(super) and_small: bool,
}

/// The search for one peer.
#[derive(Debug, Default)]
pub(super) struct PathMtu {
    /// What the uplink takes; 0 as long as nobody has said.
    most: u16,
    /// What is used.
    used: u16,
    /// What was last told of.
    told: u16,
    /// Not even the floor passes.
    is_narrow: bool,
    told_narrow: bool,
    stage: Stage,
    /// Something was sealed, or a session began, since the last probe that ended a search or confirmed one.
    is_active: bool,
    round: Option<Round>,
    /// When what is used is probed again.
    confirm_at: Duration,
    /// When what the uplink takes is tried again.
    raise_at: Duration,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing was probed yet.
    #[default]
    Fresh,
    /// More than what is used may pass, but not `lost`. Whether the floor does is to be seen, if nothing has passed yet.
    Searching { lost: u16, has_passed: bool },
    /// What is used has passed.
    Found,
    /// The peer has answered nothing; it is probed again once it is heard.
    Silent,
}

/// Tries of one size.
#[derive(Copy, Clone, Debug)]
struct Round {
    size: u16,
    tries: u8,
    next: Duration,
    /// The peer has answered a small probe.
    is_heard: bool,
}

impl PathMtu {
    /// What is used; `None` as long as nobody has said what the uplink takes.
    pub(super) fn used(&self) -> Option<u16> {
        (self.used > 0).then_some(self.used)
    }

    /// Whether not even the floor passes, if that is news.
    pub(super) fn is_narrow_now(&mut self) -> bool {
        let before = std::mem::replace(&mut self.told_narrow, self.is_narrow);
        self.is_narrow && !before
    }

    /// What is used, if that is news.
    pub(super) fn news(&mut self) -> Option<u16> {
        let used = self.used().filter(|used| *used != self.told)?;
        self.told = used;
        Some(used)
    }

    /// The uplink takes so much.
    pub(super) fn set_most(&mut self, most: u16, now: Duration) {
        let most = most.min(CEILING);
        let before = std::mem::replace(&mut self.most, most);
        if most == before {
            return;
        }
        self.told = 0;
        if self.stage == Stage::Fresh || most < self.used {
            (self.used, self.stage, self.round) = (most, Stage::Fresh, None);
        } else if most > before {
            self.raise_at = now;
        } else {
            self.round.take_if(|round| round.size > most);
            if let Stage::Searching { lost, .. } = &mut self.stage {
                *lost = most.saturating_add(1).min(*lost);
            }
        }
    }

    /// A session began, or something was sealed.
    pub(super) fn sealed(&mut self) {
        self.is_active = true;
    }

    /// The peer was heard, by whatever it sent.
    pub(super) fn heard(&mut self) {
        if self.stage == Stage::Silent {
            self.stage = Stage::Found;
        }
    }

    /// When `turn` is to be called.
    pub(super) fn due(&self) -> Option<Duration> {
        let can_raise = self.used < self.most;
        match (&self.round, self.stage) {
            _ if self.most <= FLOOR => None,
            (Some(round), _) => Some(round.next),
            (None, Stage::Silent) => None,
            (None, _) if !self.is_active => None,
            (None, Stage::Fresh | Stage::Searching { .. }) => Some(Duration::ZERO),
            (None, Stage::Found) if can_raise => Some(self.confirm_at.min(self.raise_at)),
            (None, Stage::Found) => Some(self.confirm_at),
        }
    }

    /// Does what is due. What is to be sent, if there is something; call again until there is nothing.
    pub(super) fn turn(&mut self, settings: &Settings, now: Duration) -> Option<Probes> {
        while self.due().is_some_and(|due| due <= now) {
            let Some(round) = &mut self.round else {
                self.round = Some(Round {
                    size: self.next_size(now),
                    tries: 0,
                    next: now,
                    is_heard: false,
                });
                continue;
            };
            if round.tries < TRIES {
                round.tries += 1;
                round.next = now + settings.probe_timer;
                return Some(Probes {
                    size: round.size,
                    and_small: round.tries > 1,
                });
            }
            let Round { size, is_heard, .. } = *round;
            self.round = None;
            if is_heard {
                self.lost(size, settings, now);
            } else {
                if matches!(self.stage, Stage::Searching { .. }) {
                    self.raise_at = now;
                }
                self.stage = Stage::Silent;
                self.confirm_at = now + settings.confirm_after;
                self.is_active = false;
            }
        }
        None
    }

    /// A small probe was answered.
    pub(super) fn small_passed(&mut self) {
        if let Some(round) = &mut self.round {
            round.is_heard = true;
        }
    }

    /// A probe of this size was answered.
    pub(super) fn passed(&mut self, size: u16, settings: &Settings, now: Duration) {
        if self.round.take_if(|round| round.size == size).is_none() {
            return;
        }
        self.used = size;
        self.is_narrow = false;
        self.confirm_at = now + settings.confirm_after;
        match self.stage {
            Stage::Searching { lost, .. } => self.search(lost, settings, now),
            _ => self.found(),
        }
    }

    fn lost(&mut self, size: u16, settings: &Settings, now: Duration) {
        if size <= FLOOR {
            self.is_narrow = true;
            self.confirm_at = now + settings.confirm_after;
            self.raise_at = now + settings.raise_after;
            self.found();
        } else if size > self.used {
            self.search(size, settings, now);
        } else {
            // What was used does not pass any more: nothing is known of less.
            self.used = FLOOR;
            self.stage = Stage::Searching {
                lost: size,
                has_passed: false,
            };
        }
    }

    /// What is used has passed and `lost` did not: goes on between them.
    fn search(&mut self, lost: u16, settings: &Settings, now: Duration) {
        if between(self.used, lost).is_some() {
            self.stage = Stage::Searching {
                lost,
                has_passed: true,
            };
        } else {
            self.raise_at = now + settings.raise_after;
            self.found();
        }
    }

    fn found(&mut self) {
        self.stage = Stage::Found;
        self.is_active = false;
    }

    fn next_size(&self, now: Duration) -> u16 {
        let is_confirmed = now < self.confirm_at;
        match self.stage {
            Stage::Fresh => self.most,
            Stage::Searching {
                has_passed: false, ..
            } => FLOOR,
            Stage::Searching { lost, .. } if is_confirmed => between(self.used, lost).unwrap_or(self.used),
            Stage::Found if is_confirmed => self.most,
            _ => self.used,
        }
    }
}

/// A size between one that has passed and one that has not, if a packet could have it.
fn between(passed: u16, lost: u16) -> Option<u16> {
    let middle = passed.midpoint(lost) / STEP * STEP;
    let next = if middle > passed {
        middle
    } else {
        passed / STEP * STEP + STEP
    };
    (next < lost).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A way whose width changes, and what goes over it.
    struct Way {
        path: PathMtu,
        settings: Settings,
        now: Duration,
        width: u16,
        is_cut: bool,
        probes: Vec<u16>,
    }

    impl Way {
        fn new(most: u16, width: u16) -> Self {
            let mut path = PathMtu::default();
            path.set_most(most, Duration::ZERO);
            Self {
                path,
                settings: Settings::default(),
                now: 1000 * SECOND,
                width,
                is_cut: false,
                probes: Vec::new(),
            }
        }

        /// Lets time pass, with something sealed all the time. A probe that passes is answered at once.
        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.path.sealed();
                while let Some(probes) = self.path.turn(&self.settings, self.now) {
                    self.probes.push(probes.size);
                    if self.is_cut {
                        continue;
                    }
                    if probes.and_small {
                        self.path.small_passed();
                    }
                    if probes.size <= self.width {
                        self.path.passed(probes.size, &self.settings, self.now);
                    }
                }
                self.now += SECOND / 10;
            }
        }

        fn used(&self) -> u16 {
            self.path.used().unwrap()
        }
    }

    /// RFC 8899 5.1.2: MAX_PROBES tries, PROBE_TIMER apart.
    #[test]
    fn what_the_uplink_takes_is_used_until_it_is_lost_three_times() {
        let mut way = Way::new(1500, 1400);
        way.pass(SECOND * 29 / 10);
        assert_eq!((way.used(), way.probes.as_slice()), (1500, &[1500; 3][..]));
        way.pass(SECOND / 10 * 2);
        assert!(way.used() < 1400 && way.used() >= FLOOR);
    }

    #[test]
    fn every_width_is_found_to_the_last_word() {
        for most in [1280, 1300, 1420, 1498, 1500, 3840, 9000, 16_200] {
            for width in 1280..=most.min(2000) {
                let mut way = Way::new(most, width);
                way.pass(60 * SECOND);
                let best = if width >= most.min(CEILING) {
                    most.min(CEILING)
                } else {
                    width / STEP * STEP
                };
                assert_eq!(way.used(), best, "most {most}, width {width}: {:?}", way.probes);
            }
        }
    }

    /// However the width changes: what is used passes again soon, and the width is found again at the raise time.
    #[test]
    fn it_follows_down_soon_and_up_at_the_raise_time() {
        let mut way = Way::new(1500, 1500);
        way.pass(20 * SECOND);
        assert_eq!(way.used(), 1500);
        for (number, width) in [1400, 1396, 1280, 1333, 1492, 1284, 1500].into_iter().enumerate() {
            way.width = width;
            let before = way.used();
            way.pass(SECOND * 11 + SECOND / 2);
            assert!(way.used() <= width, "{number}: {} used, {width} wide", way.used());
            way.pass(30 * SECOND);
            if before < width {
                assert_eq!(way.used(), before, "not before the raise time");
                way.pass(way.settings.raise_after + 30 * SECOND);
            }
            assert_eq!(way.used(), width / STEP * STEP, "{number}");
        }
    }

    #[test]
    fn a_silent_peer_says_nothing_of_the_width() {
        let mut way = Way::new(1500, 1500);
        way.pass(10 * SECOND);
        way.is_cut = true;
        way.pass(100 * SECOND);
        assert_eq!(way.used(), 1500);
        // Nobody is asked again until the peer is heard: then at once.
        let asked = way.probes.len();
        way.pass(100 * SECOND);
        assert_eq!(way.probes.len(), asked);
        (way.is_cut, way.width) = (false, 1350);
        way.path.heard();
        way.pass(SECOND * 7 / 2);
        assert!(way.used() <= 1350);
    }

    #[test]
    fn a_way_narrower_than_the_floor_is_known_as_such() {
        let mut way = Way::new(1500, 1200);
        way.pass(20 * SECOND);
        assert_eq!((way.used(), way.path.is_narrow), (FLOOR, true));
        way.width = 1300;
        way.pass(way.settings.raise_after + 30 * SECOND);
        assert_eq!((way.used(), way.path.is_narrow), (1300, false));
    }

    #[test]
    fn nothing_is_probed_when_nothing_is_sealed() {
        let mut way = Way::new(1500, 1400);
        way.pass(60 * SECOND);
        let probes = way.path.turn(&way.settings, way.now + 100 * SECOND);
        assert!(probes.is_some(), "something was sealed since the last probe");
        way.path.passed(1400, &way.settings, way.now + 100 * SECOND);
        assert_eq!(way.path.due(), None);
    }

    #[test]
    fn another_mtu_of_the_uplink_holds() {
        let mut way = Way::new(1500, 3000);
        way.pass(10 * SECOND);
        assert_eq!(way.path.news(), Some(1500));
        way.path.set_most(1400, way.now);
        assert_eq!((way.used(), way.path.news()), (1400, Some(1400)), "at once");
        way.pass(10 * SECOND);
        way.path.set_most(9000, way.now);
        assert_eq!(
            way.path.news(),
            Some(1400),
            "more is not used before it has passed"
        );
        way.pass(60 * SECOND);
        assert_eq!((way.used(), way.path.news()), (3000, Some(3000)));
        assert_eq!(way.path.news(), None);
        // Less than the floor is not searched below.
        way.path.set_most(1000, way.now);
        way.pass(60 * SECOND);
        assert_eq!(way.used(), 1000);
    }
}
