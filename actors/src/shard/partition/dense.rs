//! Small numbers as bits, one after the other: where many are gathered in any order, this is quicker than inserting them into a compressed bitmap,
//! which is made of it at the end.

use roaring::RoaringBitmap;

/// Numbers that are passed on at a time.
pub(super) const PART: usize = 128;

/// Documents or positions below a count.
pub(super) struct DenseBits {
    words: Vec<u64>,
}

impl DenseBits {
    /// None yet, with room for those below `count`.
    pub(super) fn below(count: usize) -> DenseBits {
        DenseBits { words: vec![0; count.div_ceil(64)] }
    }

    /// Those of `numbers` that there is room for.
    pub(super) fn of(numbers: &RoaringBitmap, count: usize) -> DenseBits {
        let mut bits = DenseBits::below(count);
        let (mut numbers, mut part) = (numbers.iter(), [0; PART]);
        loop {
            let part = numbers.next_many(&mut part);
            if part.is_empty() {
                return bits;
            }
            bits.insert_all(part);
        }
    }

    /// The places of those of `rows`, which are in order, that are `wanted`.
    pub(super) fn places(rows: &[u32], wanted: &RoaringBitmap) -> DenseBits {
        let mut places = DenseBits::below(rows.len());
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return places };
        if (last - first) as usize + 1 == rows.len() {
            wanted.range(first..=last).for_each(|row| places.insert(row - first));
            return places;
        }
        let mut from = 0;
        for row in wanted.range(first..=last) {
            // Those that are wanted are often close to each other: the search goes on where the last one ended, in steps that double.
            let mut step = 1;
            while rows.get(from + step).is_some_and(|known| *known <= row) {
                from += step;
                step *= 2;
            }
            let until = (from + step).min(rows.len());
            from += rows[from..until].partition_point(|known| *known < row);
            if rows.get(from) == Some(&row) {
                places.insert(from as u32);
            }
        }
        places
    }

    /// Adds one; what there is no room for is left out.
    #[inline]
    pub(super) fn insert(&mut self, number: u32) {
        if let Some(word) = self.words.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Adds several.
    pub(super) fn insert_all(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| self.insert(*number));
    }

    /// Calls `take` with all of them, in order, at most [`PART`] at a time.
    pub(super) fn each_part(&self, mut take: impl FnMut(&[u32])) {
        let mut part = [0; PART];
        let mut filled = 0;
        for (place, word) in self.words.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                part[filled] = place as u32 * 64 + word.trailing_zeros();
                word &= word - 1;
                filled += 1;
                if filled == PART {
                    take(&part);
                    filled = 0;
                }
            }
        }
        take(&part[..filled]);
    }

    /// Bit `number % 64` of word `number / 64` for each number.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The same numbers, compressed.
    pub(super) fn to_bitmap(&self) -> RoaringBitmap {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        RoaringBitmap::from_lsb0_bytes(0, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_are_those_of_wanted_rows(rows in prop::collection::btree_set(0u32..3000, 0..300), wanted in prop::collection::vec(0u32..3000, 0..300), base in 0u32..5, is_whole: bool) {
            let rows: Vec<u32> = if is_whole { (base..base + rows.len() as u32).collect() } else { rows.into_iter().collect() };
            let wanted: RoaringBitmap = wanted.into_iter().collect();
            let places = (0u32..).zip(&rows).filter(|(_, row)| wanted.contains(**row)).map(|(place, _)| place);
            prop_assert!(DenseBits::places(&rows, &wanted).to_bitmap().into_iter().eq(places));
        }

        #[test]
        fn what_is_inserted_comes_out_in_order(numbers in prop::collection::vec(0u32..200_000, 0..600), count in 0usize..220_000) {
            let expected: RoaringBitmap = numbers.iter().copied().filter(|number| (*number as usize) < count.next_multiple_of(64)).collect();
            let mut bits = DenseBits::below(count);
            bits.insert_all(&numbers);
            prop_assert_eq!(&bits.to_bitmap(), &expected);
            let mut out = Vec::new();
            bits.each_part(|part| out.extend_from_slice(part));
            prop_assert!(out.into_iter().eq(&expected));
            let again = DenseBits::of(&numbers.into_iter().collect(), count);
            prop_assert_eq!(again.words(), bits.words());
        }
    }
}
