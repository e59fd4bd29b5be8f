//! Rows of bits, a bit an entry: a table of blocks of 512 bits, a cache line each, and which blocks a row is made of.
//!
//! Equal blocks are kept once: most of a row is like its neighbours. A row stands in parts of eight blocks: their numbers, and
//! a summary with a bit for each of their words that is not empty, so that an intersection reads those words only that are
//! there in every row. Summary and numbers share half a cache line, and one read brings both.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// Entries of one block.
pub(crate) const BLOCK: usize = 512;

/// The number of a row in its store.
pub(crate) type RowId = u32;

/// Entries of one word of a block.
pub(crate) const WORD: usize = 64;

/// Words of one block.
pub(crate) const WORDS: usize = BLOCK / WORD;

/// Blocks of one part.
const BLOCKS: usize = 8;

/// Words of one part.
pub(crate) const PART: usize = BLOCKS * WORDS;

/// Blocks that a store can number. What would be one more is kept as the empty one: no entry matches, and the packet is dropped.
const MOST_BLOCKS: usize = 1 << 24;

/// A part of a row: the numbers of eight blocks, 24 bits each, then the summary.
#[derive(Copy, Clone, Debug)]
#[repr(align(32))]
pub(crate) struct Part([u8; 32]);

impl Part {
    const EMPTY: Part = Part([0; 32]);

    /// Where the summary begins.
    const SUMMARY: usize = 3 * BLOCKS;

    /// A bit for each word that is not empty.
    #[inline]
    pub(crate) fn summary(&self) -> u64 {
        self.0
            .last_chunk()
            .map_or(0, |summary| u64::from_le_bytes(*summary))
    }

    fn set_summary(&mut self, summary: u64) {
        self.0[Self::SUMMARY..].copy_from_slice(&summary.to_le_bytes());
    }

    /// The number of one of the blocks.
    #[inline]
    fn number(&self, block: usize) -> u32 {
        let first = 3 * (block % BLOCKS);
        let four = self.0[first..].first_chunk();
        four.map_or(0, |four| u32::from_le_bytes(*four)) & 0xff_ffff
    }

    fn set_number(&mut self, block: usize, number: u32) {
        let first = 3 * (block % BLOCKS);
        self.0[first..first + 3].copy_from_slice(&number.to_le_bytes()[..3]);
    }
}

/// The bits of 512 entries.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[repr(align(64))]
pub(crate) struct Block(pub(crate) [u64; 8]);

impl Block {
    const EMPTY: Block = Block([0; 8]);

    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.0
            .iter_mut()
            .zip(&other.0)
            .for_each(|(one, other)| *one &= other);
        self
    }

    /// A bit for each word that is not empty.
    fn words(&self) -> u8 {
        (0..WORDS).map(|word| u8::from(self.0[word] != 0) << word).sum()
    }
}

/// Bits being put together.
#[derive(Clone, Debug)]
pub(crate) struct Bits(pub(crate) Vec<Block>);

impl Bits {
    pub(crate) fn none(blocks: usize) -> Self {
        Self(vec![Block::EMPTY; blocks])
    }

    pub(crate) fn of(blocks: usize, positions: impl IntoIterator<Item = usize>) -> Self {
        let mut bits = Self::none(blocks);
        positions.into_iter().for_each(|position| bits.flip(position));
        bits
    }

    pub(crate) fn set(&mut self, position: usize) {
        self.0[position / BLOCK].0[position % BLOCK / 64] |= 1 << (position % 64);
    }

    pub(crate) fn flip(&mut self, position: usize) {
        self.0[position / BLOCK].0[position % BLOCK / 64] ^= 1 << (position % 64);
    }

    pub(crate) fn contains(&self, position: usize) -> bool {
        self.0[position / BLOCK].0[position % BLOCK / 64] & 1 << (position % 64) != 0
    }

    /// A word of bits, by its number.
    pub(crate) fn word(&self, word: usize) -> u64 {
        self.0[word / WORDS].0[word % WORDS]
    }
}

/// Bits that change little from one row to the next.
pub(crate) struct Sweep {
    bits: Bits,
    row: Vec<u32>,
    changed: Vec<usize>,
}

impl Sweep {
    pub(crate) fn new(bits: Bits) -> Self {
        Self {
            row: Vec::new(),
            changed: Vec::new(),
            bits,
        }
    }

    pub(crate) fn flip(&mut self, position: usize) {
        self.bits.flip(position);
        self.changed.push(position / BLOCK);
    }
}

/// Rows of one length.
#[derive(Clone, Debug)]
pub(crate) struct RowStore {
    blocks_per_row: usize,
    parts_per_row: usize,
    /// How many.
    count: u32,
    /// One row after the other.
    parts: Vec<Part>,
    /// The first is the empty one.
    blocks: Vec<Block>,
    /// Blocks after the last time that those were left out which no row has.
    compact: usize,
}

/// What is kept once; only while a store is put together.
#[derive(Debug)]
pub(crate) struct Known {
    blocks: HashMap<Block, u32, FixedState>,
    rows: HashMap<Box<[u32]>, RowId, FixedState>,
}

impl Known {
    pub(crate) fn nothing() -> Self {
        Self {
            blocks: [(Block::EMPTY, 0)].into_iter().collect(),
            rows: HashMap::default(),
        }
    }
}

/// Bytes of a row of so many blocks, without the blocks themselves.
pub(crate) fn row_bytes(blocks: usize) -> usize {
    blocks.div_ceil(BLOCKS) * size_of::<Part>()
}

impl RowStore {
    pub(crate) fn new(blocks_per_row: usize) -> Self {
        Self {
            blocks_per_row,
            parts_per_row: blocks_per_row.div_ceil(BLOCKS),
            count: 0,
            parts: Vec::new(),
            blocks: vec![Block::EMPTY],
            compact: 1,
        }
    }

    pub(crate) fn blocks_per_row(&self) -> usize {
        self.blocks_per_row
    }

    /// The row of these bits.
    pub(crate) fn intern(&mut self, known: &mut Known, bits: &Bits) -> RowId {
        let blocks: Vec<u32> = bits.0.iter().map(|block| self.block(known, block)).collect();
        self.row(known, &blocks)
    }

    /// The row of these bits as they are now.
    pub(crate) fn intern_sweep(&mut self, known: &mut Known, sweep: &mut Sweep) -> RowId {
        if sweep.row.is_empty() {
            sweep.row = sweep
                .bits
                .0
                .iter()
                .map(|block| self.block(known, block))
                .collect();
        }
        for changed in sweep.changed.drain(..) {
            sweep.row[changed] = self.block(known, &sweep.bits.0[changed]);
        }
        self.row(known, &sweep.row)
    }

    fn block(&mut self, known: &mut Known, block: &Block) -> u32 {
        *known.blocks.entry(*block).or_insert_with(|| self.push(block))
    }

    fn push(&mut self, block: &Block) -> u32 {
        if self.blocks.len() >= MOST_BLOCKS {
            return 0;
        }
        self.blocks.push(*block);
        self.blocks.len() as u32 - 1
    }

    fn row(&mut self, known: &mut Known, blocks: &[u32]) -> RowId {
        if let Some(id) = known.rows.get(blocks) {
            return *id;
        }
        let id = self.reserve();
        self.write(id, blocks);
        known.rows.insert(blocks.into(), id);
        id
    }

    fn write(&mut self, id: RowId, blocks: &[u32]) {
        let first = id as usize * self.parts_per_row;
        for (part, blocks) in self.parts[first..].iter_mut().zip(blocks.chunks(BLOCKS)) {
            let mut summary = 0;
            for (place, number) in blocks.iter().enumerate() {
                summary |= u64::from(self.blocks[*number as usize].words()) << (WORDS * place);
                part.set_number(place, *number);
            }
            part.set_summary(summary);
        }
    }

    /// The numbers of a row's blocks.
    fn numbers(&self, id: RowId) -> impl Iterator<Item = u32> {
        let first = id as usize * self.parts_per_row;
        (0..self.blocks_per_row).map(move |block| self.parts[first + block / BLOCKS].number(block))
    }

    /// A row of the caller's own, empty so far: `overwrite` fills it.
    pub(crate) fn reserve(&mut self) -> RowId {
        let id = self.count;
        self.count += 1;
        self.parts
            .resize(self.parts.len() + self.parts_per_row, Part::EMPTY);
        id
    }

    /// What a row of the caller's own becomes. Without `known`, a block is kept anew unless the row has it already, or one that
    /// it is likely to be like.
    pub(crate) fn overwrite(&mut self, mut known: Option<&mut Known>, id: RowId, like: RowId, bits: &Bits) {
        let mut row = Vec::with_capacity(self.blocks_per_row);
        let there: Vec<(u32, u32)> = self.numbers(id).zip(self.numbers(like)).collect();
        for (block, (own, like)) in bits.0.iter().zip(there) {
            let mut there = [own, like, 0].into_iter();
            row.push(match &mut known {
                Some(known) => self.block(known, block),
                None => there
                    .find(|there| self.blocks[*there as usize] == *block)
                    .unwrap_or_else(|| self.push(block)),
            });
        }
        self.write(id, &row);
    }

    /// Leaves out the blocks that no row has, once they may be more than the others.
    pub(crate) fn tidy(&mut self) {
        if self.blocks.len() <= 2 * self.compact + 1024 {
            return;
        }
        let old = std::mem::replace(&mut self.blocks, vec![Block::EMPTY]);
        let mut known = Known::nothing();
        let mut parts = std::mem::take(&mut self.parts);
        for part in &mut parts {
            for place in 0..BLOCKS {
                let number = self.block(&mut known, &old[part.number(place) as usize]);
                part.set_number(place, number);
            }
        }
        self.parts = parts;
        self.finish();
    }

    /// Nothing will be added for now.
    pub(crate) fn finish(&mut self) {
        self.compact = self.blocks.len();
        self.blocks.shrink_to_fit();
        self.parts.shrink_to_fit();
    }

    /// The bits of a row.
    pub(crate) fn bits(&self, id: RowId) -> Bits {
        let blocks = self.numbers(id).map(|number| self.blocks[number as usize]);
        Bits(blocks.collect())
    }

    /// A part of a row: [`PART`] words.
    #[inline]
    pub(crate) fn part(&self, id: RowId, part: usize) -> &Part {
        &self.parts[id as usize * self.parts_per_row + part]
    }

    /// A word of bits of a part, by its number there.
    #[inline]
    pub(crate) fn word(&self, part: &Part, word: usize) -> &u64 {
        &self.blocks[part.number(word / WORDS) as usize].0[word % WORDS]
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.capacity() * size_of::<Part>() + self.blocks.capacity() * size_of::<Block>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is written over whatever, a row has the bits that were written last, and memory stays in bounds.
        #[test]
        fn rows_keep_what_was_written(writes in prop::collection::vec((0usize..4, prop::collection::vec(0usize..1500, 0..6)), 1..300)) {
            let mut store = RowStore::new(3);
            let mut known = Known::nothing();
            let rows: Vec<RowId> = (0..4).map(|_| store.reserve()).collect();
            let mut expected = vec![Bits::none(3); 4];
            for row in &rows {
                store.overwrite(Some(&mut known), *row, *row, &Bits::none(3));
            }
            store.finish();
            for (row, positions) in writes {
                let mut bits = Bits::none(3);
                positions.iter().for_each(|position| bits.set(*position));
                store.overwrite(None, rows[row], rows[0], &bits);
                store.tidy();
                expected[row] = bits;
                for (row, expected) in rows.iter().zip(&expected) {
                    prop_assert_eq!(&store.bits(*row).0, &expected.0);
                    for (number, block) in expected.0.iter().enumerate() {
                        prop_assert_eq!((store.part(*row, 0).summary() >> (8 * number)) as u8, block.words());
                    }
                }
            }
        }
    }

    #[test]
    fn what_no_row_has_is_left_out() {
        let mut store = RowStore::new(1);
        let row = store.reserve();
        for number in 0..100_000usize {
            store.overwrite(None, row, row, &Bits::of(1, [number % 512, number / 512]));
            store.tidy();
        }
        assert!(store.bytes() < 1 << 18, "{} bytes", store.bytes());
    }
}
