//! The first entry that a packet meets, of several packets at once.
//!
//! Intersects the rows of a packet's fields (see [`crate::compile`]), as it is and as a reply, part by part until an entry is
//! met: of each 64 entries whether any may match, then where the words of bits that are left stand, then what is in them. Each of
//! these steps waits for memory, so it is taken for a whole group of packets before the next, and no branch of a step depends on
//! what that step reads for the first time.

use arrayvec::ArrayVec;

use crate::compile::rows::{PART, Part, RowId, RowStore, WORD};
use crate::compile::{Class, EntryVerdict, Fixed, Found, Index};
use crate::facts::{Facts, Party};
use crate::model::NetworkIndex;

/// Packets of one group.
pub(crate) const GROUP: usize = 64;

/// A row of one of the stores.
#[derive(Copy, Clone)]
struct RowOf {
    store: Store,
    row: RowId,
}

#[derive(Copy, Clone)]
enum Store {
    Fixed,
    Guests,
    Flows,
}

/// What is asked of the entries: of each way, as the packet is and as a reply, the rows that an entry must be in.
struct Question<const ROWS: usize> {
    /// Which of the group.
    packet: u8,
    /// It opens a connection: it is no reply.
    opening: bool,
    ways: [[RowOf; ROWS]; 2],
}

/// The rows of one side of a packet, in both roles.
#[derive(Copy, Clone)]
struct PartyRows {
    store: Store,
    roles: [RowId; 2],
    missing: Missing,
}

/// What the rows of a side are not about.
#[derive(Copy, Clone)]
enum Missing {
    Nothing,
    Network,
    /// Nor about its address, whose rows these are.
    Address([RowId; 2]),
}

/// What a question's rows have of one part.
struct Reached<'a, const ROWS: usize> {
    rows: [[&'a Part; ROWS]; 2],
    /// Of each way, the words that are in all of its rows.
    words: [u64; 2],
}

/// Words that are asked of at a time.
const ASKED: usize = 128;

/// A word of entries of which one may be met.
struct Asked<'a, const ROWS: usize> {
    packet: u8,
    /// Of the word's entries.
    first: u32,
    /// Who of them is in each row.
    rows: [&'a u64; ROWS],
}

impl PartyRows {
    #[inline]
    fn row(&self, role: usize) -> RowOf {
        RowOf {
            store: self.store,
            row: self.roles[role],
        }
    }
}

fn fixed(row: RowId) -> RowOf {
    RowOf {
        store: Store::Fixed,
        row,
    }
}

impl Index {
    /// What each packet of a group meets first. `told` is empty or of each packet.
    #[inline]
    pub(super) fn look_up(&self, group: &[Facts], told: &[[Class; 2]], found: &mut [EntryVerdict; GROUP]) {
        let table = &*self.fixed;
        let mut plain: ArrayVec<Question<3>, GROUP> = ArrayVec::new();
        let mut strange: ArrayVec<Question<4>, GROUP> = ArrayVec::new();
        let mut rich: ArrayVec<Question<9>, GROUP> = ArrayVec::new();
        for (packet, facts) in (0u8..).zip(group.iter().take(GROUP)) {
            let opening = facts.opening;
            let source = self.party(&facts.source, facts.network);
            let destination = self.party(&facts.destination, facts.network);
            let [sent, answered] = table.traffic.kind(facts).map(fixed);
            let there = [source.row(0), destination.row(1), sent];
            let back = [destination.row(0), source.row(1), answered];
            let flows = self.flows.as_ref().zip(told.get(usize::from(packet)));
            let asks_more = flows.is_some() || table.traffic.asks_more();
            match (source.missing, destination.missing) {
                (Missing::Nothing, Missing::Nothing | Missing::Network)
                | (Missing::Network, Missing::Nothing)
                    if !asks_more =>
                {
                    plain.push(Question {
                        packet,
                        opening,
                        ways: [there, back],
                    });
                }
                (Missing::Network, Missing::Network) if !asks_more => {
                    let network = fixed(table.traffic.network(facts.network));
                    strange.push(Question {
                        packet,
                        opening,
                        ways: [there, back].map(|[from, to, kind]| [from, to, kind, network]),
                    });
                }
                _ => {
                    let network = fixed(table.traffic.network(facts.network));
                    // What nothing asks of is as good as the network asked of once more.
                    let more = table.traffic.more(facts);
                    let [vlan, dscp] = more.map(|row| row.map_or(network, fixed));
                    let address = |party: &PartyRows, role: usize| match party.missing {
                        Missing::Address(roles) => fixed(roles[role]),
                        _ => network,
                    };
                    let told = match flows {
                        Some((rows, told)) => told.map(|class| RowOf {
                            store: Store::Flows,
                            row: rows.row(class),
                        }),
                        None => [network; 2],
                    };
                    let way =
                        |[from, to, kind]: [RowOf; 3], sender: &PartyRows, receiver: &PartyRows, told| {
                            let (sender, receiver) = (address(sender, 0), address(receiver, 1));
                            [from, to, kind, network, sender, receiver, vlan, dscp, told]
                        };
                    rich.push(Question {
                        packet,
                        opening,
                        ways: [
                            way(there, &source, &destination, told[0]),
                            way(back, &destination, &source, told[1]),
                        ],
                    });
                }
            }
        }
        self.walk(&plain, found);
        self.walk(&strange, found);
        self.walk(&rich, found);
    }

    #[inline]
    fn party(&self, party: &Party, network: NetworkIndex) -> PartyRows {
        let (table, guests) = (&*self.fixed, &*self.guests);
        let (store, roles, missing) = match guests.find(&table.questions, party, network) {
            Found::Whole(roles) => (Store::Guests, roles, Missing::Nothing),
            Found::Nobody => {
                let nobody = table.addresses.nobody(party.address);
                (Store::Fixed, nobody, Missing::Network)
            }
            Found::Alone(roles) => {
                let alone = table.addresses.alone(party.address);
                (Store::Guests, roles, Missing::Address(alone))
            }
        };
        PartyRows {
            store,
            roles,
            missing,
        }
    }

    /// The first entry that is in every row of a way of each question.
    #[inline]
    fn walk<const ROWS: usize>(&self, questions: &[Question<ROWS>], found: &mut [EntryVerdict; GROUP]) {
        if questions.is_empty() {
            return;
        }
        let table = &*self.fixed;
        let stores: [&RowStore; 3] = [
            &table.store,
            self.guests.store(),
            self.flows.as_ref().map_or(&table.store, |flows| flows.store()),
        ];
        // The questions that have met nothing yet.
        let mut open: [u8; GROUP] = std::array::from_fn(|number| number as u8);
        let mut left = questions.len();
        for part in 0..table.parts {
            let mut reached: ArrayVec<Reached<'_, ROWS>, GROUP> = ArrayVec::new();
            // The ways, of each packet two, in which an entry may be met. No branch: which these are is anybody's guess.
            let mut hopeful = [0u8; 2 * GROUP];
            let mut ways = 0;
            for (number, place) in open[..left].iter().zip(0u8..) {
                let question = &questions[usize::from(*number)];
                let rows = question.ways.each_ref().map(|way| {
                    way.each_ref()
                        .map(|row| stores[row.store as usize].part(row.row, part))
                });
                let mut words = rows
                    .each_ref()
                    .map(|way| way.iter().fold(u64::MAX, |all, row| all & row.summary()));
                words[1] &= u64::from(question.opening).wrapping_sub(1);
                for (way, words) in (0u8..).zip(&words) {
                    hopeful[ways] = 2 * place + way;
                    ways += usize::from(*words != 0);
                }
                reached.push(Reached { rows, words });
            }
            let mut asked: ArrayVec<Asked<'_, ROWS>, ASKED> = ArrayVec::new();
            for hopeful in &hopeful[..ways] {
                let (place, way) = (usize::from(hopeful / 2), usize::from(hopeful % 2));
                let question = &questions[usize::from(open[place])];
                let stores = question.ways[way].map(|row| stores[row.store as usize]);
                let rows = &reached[place].rows[way];
                let mut rest = reached[place].words[way];
                while rest != 0 {
                    let word = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    if asked.is_full() {
                        table.answer(&asked, found);
                        asked.clear();
                    }
                    asked.push(Asked {
                        packet: question.packet,
                        first: ((part * PART + word) * WORD) as u32,
                        rows: std::array::from_fn(|row| stores[row].word(rows[row], word)),
                    });
                }
            }
            table.answer(&asked, found);
            // Whatever the next parts have comes later than what this one had. No branch: who has met something is anybody's guess.
            let mut still = 0;
            for at in 0..left {
                let number = open[at];
                let packet = usize::from(questions[usize::from(number)].packet);
                open[still] = number;
                still += usize::from(found[packet] == EntryVerdict::NONE);
            }
            left = still;
            if left == 0 {
                return;
            }
        }
    }
}

impl Fixed {
    /// Lets packets meet the first entry of each word that is in all rows.
    #[inline]
    fn answer<const ROWS: usize>(&self, asked: &[Asked<'_, ROWS>], found: &mut [EntryVerdict; GROUP]) {
        for Asked { packet, first, rows } in asked {
            let bits = rows.iter().fold(u64::MAX, |all, row| all & **row);
            // No branch: whether a word has a bit is anybody's guess.
            let position =
                (*first as usize + bits.trailing_zeros() as usize) & usize::from(bits != 0).wrapping_neg();
            let met = self.verdicts[position].or_none(bits == 0);
            let best = &mut found[usize::from(*packet) % GROUP];
            *best = met.min(*best);
        }
    }
}
