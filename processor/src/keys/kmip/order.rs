//! Orders the next generation of a key at its manager: one, however many hosts order it.
//!
//! Who finds no key of the wanted name makes one, which is not active and so nobody's yet. [`SETTLE`] after a host has first
//! seen keys of that name it activates the one whose identifier sorts first. A host that looked before the first of them was
//! made has made its own by then, since what it asks is answered sooner or not at all; so all choose the same. What this host
//! has made and is not chosen, it destroys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{KmipError, State};
use crate::keys::store::Generation;

/// How long after keys of a name were first seen one of them is chosen: twice as long as it may take to look and then act on
/// it, and more. One host may make its key that late, and another may not see it for that long.
pub const SETTLE: Duration = Duration::from_secs(15);

/// Names that were used and are no more are passed over, up to so many.
const MOST_PASSED: u32 = 64;

/// What is asked of a manager.
pub(super) trait Keys {
    /// The symmetric keys of a name, and how it is with each.
    fn find(&mut self, name: &str) -> Result<Vec<(String, State)>, KmipError>;
    /// Makes one of 32 bytes that is not active; gives its identifier.
    fn make(&mut self, name: &str) -> Result<String, KmipError>;
    /// Lets all who may see it have it.
    fn activate(&mut self, id: &str) -> Result<(), KmipError>;
    /// It is wanted by nobody.
    fn destroy(&mut self, id: &str) -> Result<(), KmipError>;
}

/// An order that is under way.
#[derive(Debug, Default)]
struct Order {
    /// The identifier of the key that this host has made for it.
    made: Option<String>,
    /// When keys of its name were first seen, on the clock of [`Orders::follow`].
    seen: Option<Duration>,
}

/// What a look at the manager came to: names of keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ordered {
    /// That were made.
    pub made: Vec<String>,
    /// That are active since.
    pub active: Vec<String>,
}

/// The orders of one host.
#[derive(Debug, Default)]
pub struct Orders(BTreeMap<String, Order>);

impl Orders {
    /// Does what is due for the keys of which a generation behind this one is wanted.
    pub(super) fn follow(
        &mut self,
        keys: &mut impl Keys,
        wanted: &BTreeMap<String, Generation>,
        now: Duration,
    ) -> Result<Ordered, KmipError> {
        let mut ordered = Ordered::default();
        let mut open = BTreeSet::new();
        for (key, used) in wanted {
            for number in (used.0..=used.0.saturating_add(MOST_PASSED)).skip(1) {
                let name = format!("{key}.{number}");
                let found = keys.find(&name)?;
                if found.iter().any(|(_, state)| *state == State::Active) {
                    break;
                }
                if found.iter().any(|(_, state)| *state == State::Over) {
                    continue;
                }
                open.insert(name.clone());
                let order = self.0.entry(name.clone()).or_default();
                match found.iter().map(|(id, _)| id).min() {
                    None => {
                        order.made = Some(keys.make(&name)?);
                        order.seen = Some(now);
                        ordered.made.push(name);
                    }
                    Some(first) => {
                        let seen = *order.seen.get_or_insert(now);
                        if now.saturating_sub(seen) >= SETTLE {
                            keys.activate(first)?;
                            ordered.active.push(name);
                        }
                    }
                }
                break;
            }
        }
        let over: Vec<(String, Order)> = self.0.extract_if(.., |name, _| !open.contains(name)).collect();
        for (name, order) in over {
            let is_mine = |one: &(String, State)| Some(&one.0) == order.made.as_ref();
            if let Some((id, State::Waiting)) = keys.find(&name)?.into_iter().find(is_mine) {
                keys.destroy(&id)?;
            }
        }
        Ok(ordered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: Duration = Duration::from_secs(1);

    #[derive(Clone, Debug)]
    struct Key {
        id: String,
        name: String,
        made: Duration,
        active: Option<Duration>,
        over: Option<Duration>,
    }

    /// A manager as several hosts see it: what a host acts on may be as old as an answer may be.
    #[derive(Default)]
    struct Manager {
        keys: Vec<Key>,
    }

    struct Seen<'a> {
        manager: &'a mut Manager,
        /// Of what the answers are.
        then: Duration,
        now: Duration,
        id: String,
    }

    impl Keys for Seen<'_> {
        fn find(&mut self, name: &str) -> Result<Vec<(String, State)>, KmipError> {
            let then = self.then;
            let is_past = |time: &Option<Duration>| time.is_some_and(|time| time <= then);
            let known = self.manager.keys.iter();
            let known = known.filter(|key| key.name == name && key.made <= then);
            let state = |key: &Key| match (is_past(&key.active), is_past(&key.over)) {
                (_, true) => State::Over,
                (true, false) => State::Active,
                (false, false) => State::Waiting,
            };
            Ok(known.map(|key| (key.id.clone(), state(key))).collect())
        }

        fn make(&mut self, name: &str) -> Result<String, KmipError> {
            self.manager.keys.push(Key {
                id: self.id.clone(),
                name: name.to_owned(),
                made: self.now,
                active: None,
                over: None,
            });
            Ok(self.id.clone())
        }

        fn activate(&mut self, id: &str) -> Result<(), KmipError> {
            let key = self.manager.keys.iter_mut().find(|key| key.id == id).unwrap();
            key.active.get_or_insert(self.now);
            Ok(())
        }

        fn destroy(&mut self, id: &str) -> Result<(), KmipError> {
            self.manager
                .keys
                .retain(|key| key.id != id || key.active.is_some());
            Ok(())
        }
    }

    fn wanted() -> BTreeMap<String, Generation> {
        BTreeMap::from([("blue".to_owned(), Generation(1))])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Hosts that look at any time, and act on what was so up to nearly half of [`SETTLE`] ago, end with one key.
        #[test]
        fn however_many_order_it_one_is_made(
            looks in prop::collection::vec((0..4usize, 0..4u64, 0..8u64, "[a-z]{6}"), 80..160),
        ) {
            let mut manager = Manager::default();
            // And when each has done something last, which it sees in any case.
            let mut hosts: [(Orders, Duration); 4] = Default::default();
            let mut now = Duration::from_secs(100);
            for (number, (host, pause, age, id)) in looks.into_iter().enumerate() {
                now += STEP * pause as u32;
                let (orders, done) = &mut hosts[host];
                let then = (now - STEP * age as u32).max(*done);
                let mut seen = Seen { manager: &mut manager, then, now, id: format!("{id}{number}") };
                if orders.follow(&mut seen, &wanted(), now).unwrap() != Ordered::default() {
                    *done = now;
                }
            }
            // Long enough for each to see what came of it.
            for (host, _) in &mut hosts {
                for _ in 0..3 {
                    now += SETTLE;
                    let mut seen = Seen { manager: &mut manager, then: now, now, id: format!("late {now:?}") };
                    host.follow(&mut seen, &wanted(), now).unwrap();
                }
            }
            prop_assert_eq!(manager.keys.len(), 1, "{:?}", manager.keys);
            prop_assert!(manager.keys[0].active.is_some());
        }
    }

    #[test]
    fn what_was_made_in_vain_is_destroyed_when_nothing_is_wanted_any_more() {
        let (mut manager, mut orders) = (Manager::default(), Orders::default());
        for (now, wanted) in [(SETTLE, wanted()), (2 * SETTLE, BTreeMap::new())] {
            let mut seen = Seen {
                manager: &mut manager,
                then: now,
                now,
                id: "a".to_owned(),
            };
            orders.follow(&mut seen, &wanted, now).unwrap();
            assert_eq!(manager.keys.len(), wanted.len());
        }
    }

    #[test]
    fn a_number_that_was_used_is_passed_over() {
        let mut manager = Manager::default();
        let old = Some(Duration::ZERO);
        manager.keys.push(Key {
            id: "a".to_owned(),
            name: "blue.2".to_owned(),
            made: Duration::ZERO,
            active: old,
            over: old,
        });
        let now = SETTLE;
        let mut seen = Seen {
            manager: &mut manager,
            then: now,
            now,
            id: "b".to_owned(),
        };
        let ordered = Orders::default().follow(&mut seen, &wanted(), now).unwrap();
        assert_eq!(ordered.made, ["blue.3"]);
        assert!(ordered.active.is_empty());
    }
}
