//! Which rule a packet meets.
//!
//! The look-up intersects the rows of the packet's fields (see [`crate::compile`]), forward and as a reply at once: of each
//! 512 entries whether any may match, of what is left each 64, then those words of bits that are left. Allocates nothing.

use crate::compile::rows::{BLOCK, Row, RowId, RowStore, WORD};
use crate::compile::{Class, EntryVerdict, Found, Index, Ruleset};
use crate::facts::{Facts, Party, Ports};
use crate::model::{KeyIndex, RuleIndex};

/// How a packet is sealed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// AES-GCM.
    Encrypt,
    /// AES-GMAC.
    Authenticate,
}

/// What a rule does.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sealed under a key.
    Seal {
        /// How.
        protection: Protection,
        /// Under which key.
        key: KeyIndex,
    },
    /// As it is.
    Plaintext,
    /// Not at all.
    Drop,
}

impl Action {
    /// Its word in a policy.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Action::Seal {
                protection: Protection::Encrypt,
                ..
            } => "encrypt",
            Action::Seal {
                protection: Protection::Authenticate,
                ..
            } => "authenticate",
            Action::Plaintext => "plaintext",
            Action::Drop => "drop",
        }
    }
}

/// What the rules say of a packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rule matches.
    Matched {
        /// Which.
        rule: RuleIndex,
        /// What it does.
        action: Action,
    },
    /// No rule matches.
    NoRule,
    /// A fragment without ports met a rule that needs them.
    FragmentNeedsPorts,
}

/// What holds of a packet, and what would hold if the sections that are only watched were all.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// The rule of a watched section that matches, if there is one.
    pub watched: Option<RuleIndex>,
}

/// A verdict in 32 bits: a rule, or one of the two below.
pub(crate) const NO_RULE: u32 = u32::MAX;
pub(crate) const NEEDS_PORTS: u32 = u32::MAX - 1;

impl Ruleset {
    /// The decision on one packet.
    #[must_use]
    pub fn classify(&self, facts: &Facts) -> Decision {
        let told = self.flows.as_ref().map(|flows| flows.classes(facts));
        let watched = self
            .monitored
            .as_ref()
            .and_then(|index| self.rule(index.look_up(facts, told)));
        let enforced = self.enforced.look_up(facts, told);
        let verdict = match self.rule(enforced) {
            Some(rule) => Verdict::Matched {
                rule,
                action: self.actions[rule.index()],
            },
            None if enforced == NEEDS_PORTS => Verdict::FragmentNeedsPorts,
            None => Verdict::NoRule,
        };
        Decision { verdict, watched }
    }

    fn rule(&self, number: u32) -> Option<RuleIndex> {
        ((number as usize) < self.actions.len()).then_some(RuleIndex(number))
    }
}

/// The rows of one side of a packet, in both roles.
#[derive(Copy, Clone)]
struct PartyRows<'a> {
    from: Row<'a>,
    to: Row<'a>,
    /// Those of its address, if they are not in the ones above.
    beside: Option<[Row<'a>; 2]>,
}

impl Index {
    /// The rule's number, [`NO_RULE`] or [`NEEDS_PORTS`].
    #[inline]
    fn look_up(&self, facts: &Facts, told: Option<[Class; 2]>) -> u32 {
        let fixed = &*self.fixed;
        let source = self.party(&facts.source);
        let destination = self.party(&facts.destination);
        let [network, kind] = fixed.traffic.common(facts).map(|row| fixed.store.get(row));
        let ports = fixed.traffic.ports(facts).map(|row| fixed.store.get(row));
        let flows = self.flows.as_ref().zip(told);
        let plain = source.beside.is_none() && destination.beside.is_none();
        let best = if plain && flows.is_none() && !fixed.traffic.asks_more() {
            let forward = [source.from, destination.to, ports[0]];
            let reply = [destination.from, source.to, ports[1]];
            self.walk(&[network, kind], &forward, &reply, facts.opening)
        } else {
            // What nothing asks of is as good as asked of once more.
            let more = fixed
                .traffic
                .more(facts)
                .map(|row| row.map_or(kind, |row| fixed.store.get(row)));
            let [sent, answered] = match flows {
                Some((rows, told)) => told.map(|class| rows.store().get(rows.row(class))),
                None => ports,
            };
            let [source_from, source_to] = source.beside.unwrap_or([source.from, source.to]);
            let [to_from, to_to] = destination.beside.unwrap_or([destination.from, destination.to]);
            let forward = [source.from, destination.to, ports[0], source_from, to_to, sent];
            let reply = [
                destination.from,
                source.to,
                ports[1],
                to_from,
                source_to,
                answered,
            ];
            self.walk(
                &[network, kind, more[0], more[1]],
                &forward,
                &reply,
                facts.opening,
            )
        };
        match best.0 {
            u32::MAX => NO_RULE,
            found if found & 1 == 1 && facts.ports == Ports::Unreadable => NEEDS_PORTS,
            found => found >> 1,
        }
    }

    #[inline]
    fn party(&self, party: &Party) -> PartyRows<'_> {
        let (fixed, guests) = (&*self.fixed, &*self.guests);
        let ([from, to], beside) = match guests.find(&fixed.questions, party.guest, party.address) {
            Found::Whole(roles) => (roles_of(guests.store(), roles), None),
            Found::Nobody => (
                roles_of(&fixed.store, fixed.addresses.rows(party.address).nobody),
                None,
            ),
            Found::Alone(roles) => {
                let alone = fixed.addresses.rows(party.address).alone;
                (
                    roles_of(guests.store(), roles),
                    Some(roles_of(&fixed.store, alone)),
                )
            }
        };
        PartyRows { from, to, beside }
    }

    /// The first entry in the intersection, forward or, of what opens no connection, as a reply.
    #[inline]
    fn walk<const COMMON: usize, const WAY: usize>(
        &self,
        common: &[Row<'_>; COMMON],
        forward: &[Row<'_>; WAY],
        reply: &[Row<'_>; WAY],
        opening: bool,
    ) -> EntryVerdict {
        let fixed = &*self.fixed;
        let mut best = EntryVerdict(u32::MAX);
        for part in 0..fixed.parts {
            let front = |rows: &[Row<'_>]| rows.iter().fold(u64::MAX, |all, row| all & row.front(part));
            let shared = front(common);
            let forward_blocks = shared & front(forward);
            let reply_blocks = if opening { 0 } else { shared & front(reply) };
            let mut left = forward_blocks | reply_blocks;
            while left != 0 {
                let bit = left & left.wrapping_neg();
                left ^= bit;
                let number = part * 64 + bit.trailing_zeros() as usize;
                if fixed.lowest[number] >= best {
                    continue;
                }
                let places = Places::of(common, forward, reply, number);
                // A row without the block has none of its words; only of what opens nothing is a reply.
                let reply_words = if opening { 0 } else { places.reply_words };
                let mut words = places.forward_words | reply_words;
                while words != 0 {
                    let word = words.trailing_zeros();
                    words &= words - 1;
                    let mut found = 0;
                    if places.forward_words >> word & 1 == 1 {
                        found = intersection(forward, &places.forward, word);
                    }
                    if reply_words >> word & 1 == 1 {
                        found |= intersection(reply, &places.reply, word);
                    }
                    found &= intersection(common, &places.common, word);
                    if found != 0 {
                        let position =
                            number * BLOCK + word as usize * WORD + found.trailing_zeros() as usize;
                        best = best.min(fixed.verdicts[position]);
                    }
                }
            }
        }
        best
    }
}

#[inline]
fn roles_of(store: &RowStore, roles: [RowId; 2]) -> [Row<'_>; 2] {
    roles.map(|row| store.get(row))
}

/// Where the rows' blocks of one number are, and which of their words are there in every row.
struct Places<const COMMON: usize, const WAY: usize> {
    common: [u32; COMMON],
    forward: [u32; WAY],
    reply: [u32; WAY],
    forward_words: u32,
    reply_words: u32,
}

impl<const COMMON: usize, const WAY: usize> Places<COMMON, WAY> {
    #[inline]
    fn of(
        common: &[Row<'_>; COMMON],
        forward: &[Row<'_>; WAY],
        reply: &[Row<'_>; WAY],
        block: usize,
    ) -> Self {
        let common = common.map(|row| row.place(block));
        let forward = forward.map(|row| row.place(block));
        let reply = reply.map(|row| row.place(block));
        let words = |places: &[u32]| places.iter().fold(u32::MAX, |all, place| all & place) >> 24;
        let shared = words(&common);
        Self {
            forward_words: shared & words(&forward),
            reply_words: shared & words(&reply),
            common,
            forward,
            reply,
        }
    }
}

#[inline]
fn intersection<const ROWS: usize>(rows: &[Row<'_>; ROWS], places: &[u32; ROWS], word: u32) -> u64 {
    let words = rows
        .iter()
        .zip(places)
        .map(|(row, place)| row.word(*place, word as usize));
    words.fold(u64::MAX, |all, word| all & word)
}

#[cfg(test)]
mod tests;
