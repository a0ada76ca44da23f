//! The file of a segment's vectors, one after the other. It is mapped into memory. Where memory is short, searches read the vectors that they compare
//! instead: what was read lies in the system's cache of files, and not in the memory of the node.

use super::files;
use crate::gpu_rows;
use half::f16;
use memmap2::Mmap;
use ragged_kernels::{RowFile, Scored, exact};
use roaring::RoaringBitmap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of vectors that are read at a time when many are compared.
const READ_BYTES: usize = 1 << 20;
/// And when they are compared with many queries, for which more is prepared.
const READ_BYTES_FOR_MANY: usize = 16 << 20;

/// Vectors, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub(super) values: &'a [f16],
    pub(super) dimension: usize,
}

impl Vectors<'_> {
    /// Number of them.
    pub(super) fn count(&self) -> usize {
        self.values.len() / self.dimension
    }

    /// One of them.
    pub(super) fn of(&self, position: usize) -> Vec<f32> {
        let start = position * self.dimension;
        self.values[start..start + self.dimension].iter().map(|value| value.to_f32()).collect()
    }

    /// The nearest of the rows at these positions, with exact scores, best first.
    pub(super) fn scored_again(&self, query: &[f32], positions: &[u32], wanted: usize) -> Vec<Scored> {
        best_of(exact::score(query, self.values, self.dimension, positions), wanted)
    }
}

/// The `wanted` best, best first; of equal scores the lower position.
fn best_of(mut scored: Vec<Scored>, wanted: usize) -> Vec<Scored> {
    let by_score = |one: &Scored, other: &Scored| other.score.total_cmp(&one.score).then(one.position.cmp(&other.position));
    if wanted < scored.len() {
        scored.select_nth_unstable_by(wanted, by_score);
        scored.truncate(wanted);
    }
    scored.sort_unstable_by(by_score);
    scored
}

/// The file, which nothing changes or shortens.
pub(super) struct VectorFile {
    /// None of an empty file, which cannot be mapped.
    mapped: Option<Mmap>,
    rows: RowFile,
    reads_rows: AtomicBool,
    dimension: usize,
}

impl VectorFile {
    /// Opens a file of whole vectors of this length. It may be deleted while it is open.
    pub(super) fn open(path: &Path, dimension: usize) -> io::Result<VectorFile> {
        let file = File::open(path)?;
        // SAFETY: nothing changes or shortens a file of vectors that has been written; it is only ever deleted, which leaves a mapping intact.
        let mapped = if file.metadata()?.len() == 0 { None } else { Some(unsafe { Mmap::map(&file) }?) };
        let rows = RowFile::new(file, 0, dimension * size_of::<f16>());
        Ok(VectorFile { mapped, rows, reads_rows: AtomicBool::new(false), dimension })
    }

    /// The vectors where they are mapped.
    pub(super) fn mapped(&self) -> Vectors<'_> {
        // A mapping starts at a page and its length is that of whole vectors, so the cast cannot fail.
        let values = self.mapped.as_ref().map_or(&[][..], |mapped| bytemuck::cast_slice(mapped));
        Vectors { values, dimension: self.dimension }
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> usize {
        self.mapped.as_ref().map_or(0, |mapped| mapped.len())
    }

    /// Whether vectors are read from now on, or looked at where they are mapped.
    pub(super) fn read_rows(&self, reads_rows: bool) {
        if self.reads_rows.swap(reads_rows, Ordering::Relaxed) != reads_rows && reads_rows {
            self.give_back();
        }
    }

    /// The nearest of the rows at these positions, with exact scores, best first.
    pub(super) fn scored_again(&self, query: &[f32], positions: &[u32], wanted: usize) -> io::Result<Vec<Scored>> {
        if !self.reads_rows.load(Ordering::Relaxed) {
            return Ok(self.mapped().scored_again(query, positions, wanted));
        }
        Ok(best_of(self.read_and_compare(query, positions, positions.len())?, wanted))
    }

    /// The `k` nearest of the rows at the allowed positions, or of all, best first.
    pub(super) fn nearest(&self, query: &[f32], allowed: Option<&RoaringBitmap>, k: usize) -> io::Result<Vec<Scored>> {
        let all = self.mapped();
        if !self.reads_rows.load(Ordering::Relaxed) {
            return Ok(exact::top_k(query, all.values, all.dimension, allowed, k));
        }
        let count = all.count() as u32;
        match allowed {
            Some(allowed) => self.nearest_of(query, allowed.iter().take_while(|position| *position < count), k),
            None => self.nearest_of(query, 0..count, k),
        }
    }

    fn nearest_of(&self, query: &[f32], positions: impl Iterator<Item = u32>, k: usize) -> io::Result<Vec<Scored>> {
        let together = self.rows_of(READ_BYTES);
        let mut positions = positions.fuse();
        let mut best = Vec::new();
        loop {
            let some: Vec<u32> = positions.by_ref().take(together).collect();
            if some.is_empty() {
                return Ok(best_of(best, k));
            }
            best.extend(self.read_and_compare(query, &some, k)?);
            if best.len() >= 2 * k.max(together) {
                best = best_of(best, k);
            }
        }
    }

    /// For each query, one after the other in `queries`, the `k` nearest of all rows, best first.
    pub(super) fn nearest_of_each(&self, queries: &[f32], k: usize, threads: usize) -> io::Result<Vec<Vec<Scored>>> {
        let all = self.mapped();
        if !self.reads_rows.load(Ordering::Relaxed) {
            return Ok(exact::top_k_of_each(queries, all.values, all.dimension, k, threads));
        }
        let mut best = vec![Vec::new(); queries.len() / self.dimension];
        let positions: Vec<u32> = (0..all.count() as u32).collect();
        for some in positions.chunks(self.rows_of(READ_BYTES_FOR_MANY)) {
            let mut values = vec![f16::ZERO; some.len() * self.dimension];
            self.rows.read(some, bytemuck::cast_slice_mut(&mut values))?;
            for (best, found) in best.iter_mut().zip(exact::top_k_of_each(queries, &values, self.dimension, k, threads)) {
                best.extend(found.into_iter().map(|one| Scored { position: some[one.position as usize], ..one }));
                *best = best_of(std::mem::take(best), k);
            }
        }
        Ok(best)
    }

    /// So many vectors have so many bytes, but one has any.
    fn rows_of(&self, bytes: usize) -> usize {
        (bytes / (self.dimension * size_of::<f16>())).max(1)
    }

    /// The best `k` of the rows at these positions.
    fn read_and_compare(&self, query: &[f32], positions: &[u32], k: usize) -> io::Result<Vec<Scored>> {
        let mut values = vec![f16::ZERO; positions.len() * self.dimension];
        self.rows.read(positions, bytemuck::cast_slice_mut(&mut values))?;
        let places = exact::top_k(query, &values, self.dimension, None, k);
        Ok(places.into_iter().map(|one| Scored { position: positions[one.position as usize], ..one }).collect())
    }

    /// Gives the pages of the file back.
    pub(super) fn give_back(&self) {
        if let Some(mapped) = &self.mapped {
            // SAFETY: a file that is mapped for reading only, as a whole, and that nothing changes.
            unsafe { files::give_back(mapped) };
        }
    }
}

impl gpu_rows::Vectors for VectorFile {
    fn values(&self) -> &[f16] {
        self.mapped().values
    }

    fn looked_at(&self) {
        if self.reads_rows.load(Ordering::Relaxed) {
            self.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_is_found_as_what_is_mapped(
            (dimension, values) in (1usize..5).prop_flat_map(|dimension| {
                (Just(dimension), prop::collection::vec(-3i8..3, 0..60).prop_map(move |values| values[..values.len() / dimension * dimension].to_vec()))
            }),
            query in prop::collection::vec(-2f32..2.0, 5),
            allowed in prop::option::of(prop::collection::btree_set(0u32..70, 0..40)),
            k in 1usize..20,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("vectors");
            let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(f32::from(*value))).collect();
            std::fs::write(&path, bytemuck::cast_slice::<f16, u8>(&halves)).unwrap();
            let file = VectorFile::open(&path, dimension).unwrap();
            let query = &query[..dimension];
            let allowed = allowed.map(RoaringBitmap::from_iter);
            let named: Vec<u32> = (0..(halves.len() / dimension) as u32).rev().step_by(2).collect();
            let found = || {
                let nearest = file.nearest(query, allowed.as_ref(), k).unwrap();
                let of_each = file.nearest_of_each(query, k, 2).unwrap();
                (nearest, file.scored_again(query, &named, k).unwrap(), of_each)
            };
            let mapped = found();
            file.read_rows(true);
            prop_assert_eq!(mapped, found());
        }
    }
}
