//! What agents said of flows to rows: which entries a flow of this context passes.
//!
//! Flows are many, and the rules ask few questions of them: a flow's context is kept as its class, the set of questions that
//! it answers with yes. A look-up is one of a hash table, by whose two numbers (the sender's agent's word and the receiver's)
//! the rows are found. The table is cut in parts, and a change copies only those in which it is.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

use crate::facts::Facts;
use crate::flows::{FlowContext, FlowKey, Flows};
use crate::model::{FlowTest, FlowTestIndex};

use super::rows::{Bits, RowId, RowStore};

/// The number of a set of answers.
pub(crate) type Class = u32;

/// The class of a flow of which nothing is known.
const UNKNOWN: Class = 0;
const PARTS: usize = 64;

/// Hashed with a secret: an agent chooses the flows that it tells of.
type Part = HashMap<FlowKey, [Class; 2], RandomState>;

/// The flows of which something is known.
#[derive(Clone, Debug)]
pub(crate) struct FlowTable {
    tests: Arc<[FlowTest]>,
    /// Chooses the part.
    hasher: RandomState,
    parts: Box<[Arc<Part>]>,
    classes: Classes,
}

/// The sets of answers that there are.
#[derive(Clone, Debug)]
struct Classes {
    /// By class, how many ends of flows have it.
    uses: Vec<u32>,
    known: HashMap<Arc<[bool]>, Class, FixedState>,
    answers: Vec<Arc<[bool]>>,
    free: Vec<Class>,
    /// Classes whose rows are not yet what they stand for.
    fresh: Vec<Class>,
}

/// What one index's entries ask of flows.
#[derive(Clone, Debug)]
struct FlowQuestions {
    /// By test, the entries that ask it.
    asked: Vec<Vec<u32>>,
    unasked: Bits,
}

/// The rows of an index by class.
#[derive(Clone, Debug)]
pub(crate) struct FlowRows {
    questions: Arc<FlowQuestions>,
    store: RowStore,
    rows: Vec<RowId>,
}

impl FlowTable {
    pub(crate) fn build(tests: &[FlowTest], flows: &Flows) -> Self {
        let nothing: Arc<[bool]> = vec![false; tests.len()].into();
        let mut table = Self {
            tests: tests.into(),
            hasher: RandomState::default(),
            parts: (0..PARTS).map(|_| Arc::default()).collect(),
            classes: Classes {
                uses: vec![1],
                known: [(Arc::clone(&nothing), UNKNOWN)].into_iter().collect(),
                answers: vec![nothing],
                free: Vec::new(),
                fresh: vec![UNKNOWN],
            },
        };
        flows.by_key.keys().for_each(|key| table.update(key, flows));
        table
    }

    /// What is now known of one flow.
    pub(crate) fn update(&mut self, key: &FlowKey, flows: &Flows) {
        let told = flows.by_key.get(key);
        let now = told.map(|told| {
            [0, 1].map(|end: usize| {
                let context = told[end].as_deref();
                self.classes.of(&self.tests, context)
            })
        });
        // A flow of which nothing is known that anything asks needs no place.
        let now = now.filter(|now| *now != [UNKNOWN; 2]);
        let number = self.part(key);
        let part = Arc::make_mut(&mut self.parts[number]);
        let before = match now {
            Some(now) => part.insert(*key, now),
            None => part.remove(key),
        };
        now.iter().flatten().for_each(|class| self.classes.take(*class));
        before
            .iter()
            .flatten()
            .for_each(|class| self.classes.leave(*class));
    }

    /// What the sender's and the receiver's agent said of a packet's flow.
    #[inline]
    pub(crate) fn classes(&self, facts: &Facts) -> [Class; 2] {
        let Some((key, sender)) = FlowKey::of(facts) else {
            return [UNKNOWN; 2];
        };
        match self.parts[self.part(&key)].get(&key) {
            Some(classes) => [classes[sender], classes[sender ^ 1]],
            None => [UNKNOWN; 2],
        }
    }

    /// The part in which a flow is.
    #[inline]
    fn part(&self, key: &FlowKey) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % PARTS
    }

    /// Whether no class is without its rows.
    pub(crate) fn is_settled(&self) -> bool {
        self.classes.fresh.is_empty()
    }

    /// Gives an index the rows of the classes that are new.
    pub(crate) fn bring_up(&self, rows: &mut FlowRows) {
        for class in &self.classes.fresh {
            rows.set(*class, &self.classes.answers[*class as usize]);
        }
        rows.store.tidy();
    }

    /// All indexes have their rows.
    pub(crate) fn settle(&mut self) {
        self.classes.fresh.clear();
    }

    pub(crate) fn bytes(&self) -> usize {
        let flows: usize = self.parts.iter().map(|part| part.capacity()).sum();
        flows * size_of::<(FlowKey, [Class; 2])>() + self.classes.answers.len() * self.tests.len()
    }
}

impl Classes {
    fn of(&mut self, tests: &[FlowTest], context: Option<&FlowContext>) -> Class {
        if context.is_none() {
            return UNKNOWN;
        }
        let answers: Arc<[bool]> = tests.iter().map(|test| test.passes(context)).collect();
        if let Some(known) = self.known.get(&answers) {
            return *known;
        }
        let class = match self.free.pop() {
            Some(free) => {
                self.answers[free as usize] = Arc::clone(&answers);
                free
            }
            None => {
                self.answers.push(Arc::clone(&answers));
                self.uses.push(0);
                self.uses.len() as Class - 1
            }
        };
        self.known.insert(answers, class);
        self.fresh.push(class);
        class
    }

    fn take(&mut self, class: Class) {
        self.uses[class as usize] += 1;
    }

    /// Of those that nobody has any more the number is given to the next one that is new.
    fn leave(&mut self, class: Class) {
        let uses = &mut self.uses[class as usize];
        *uses -= 1;
        if *uses == 0 {
            self.known.remove(&self.answers[class as usize]);
            self.free.push(class);
        }
    }
}

impl FlowRows {
    /// Of the flow tests of entries in the order of their positions; `None` if none has one.
    pub(crate) fn new(
        entries: impl Iterator<Item = Option<FlowTestIndex>>,
        tests: usize,
        blocks: usize,
    ) -> Option<Self> {
        let mut asked = vec![Vec::new(); tests];
        let mut unasked = Bits::none(blocks);
        for (position, test) in entries.enumerate() {
            match test {
                None => unasked.set(position),
                Some(test) => asked[test.index()].push(position as u32),
            }
        }
        let any = asked.iter().any(|positions| !positions.is_empty());
        any.then(|| Self {
            store: RowStore::new(blocks),
            questions: Arc::new(FlowQuestions { asked, unasked }),
            rows: Vec::new(),
        })
    }

    fn set(&mut self, class: Class, answers: &[bool]) {
        while self.rows.len() <= class as usize {
            let row = self.store.reserve();
            self.rows.push(row);
        }
        let mut bits = self.questions.unasked.clone();
        for (positions, _) in self.questions.asked.iter().zip(answers).filter(|(_, yes)| **yes) {
            positions.iter().for_each(|position| bits.set(*position as usize));
        }
        self.store.overwrite(
            None,
            self.rows[class as usize],
            self.rows[UNKNOWN as usize],
            &bits,
        );
    }

    #[inline]
    pub(crate) fn row(&self, class: Class) -> RowId {
        self.rows[class as usize]
    }

    #[inline]
    pub(crate) fn store(&self) -> &RowStore {
        &self.store
    }

    pub(crate) fn bytes(&self) -> usize {
        self.store.bytes() + self.rows.len() * 4
    }
}
