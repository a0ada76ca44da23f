//! The approximate index over a segment's vectors: faiss.
//!
//! It finds candidates only; what is returned is re-scored from the exact rows. Every call into faiss is here. faiss reports what goes
//! wrong by exceptions, which its C interface turns into codes.

use super::error::PartitionError;
use faiss::index::IndexImpl;
use faiss::index::io::{read_index, write_index};
use faiss::{Index, MetricType, index_factory};
use serde::{Deserialize, Serialize};
use std::os::raw::{c_char, c_int};
use std::path::Path;
use std::ptr;

/// Vectors that are converted to f32 at a time.
const BLOCK_ROWS: usize = 4096;
/// Vectors for training, for each list. faiss wants 39 at least.
const TRAINING_ROWS_PER_LIST: usize = 40;
/// Threads for building. Searches use one each: they run beside each other.
const BUILD_THREADS: c_int = 2;

unsafe extern "C" {
    fn omp_set_num_threads(threads: c_int);
}

/// Sets how many threads faiss uses when called from this one.
fn use_threads(count: c_int) {
    // SAFETY: sets a variable of the calling thread; any positive number is valid.
    unsafe { omp_set_num_threads(count) }
}

/// How hard an index is searched: the lists that are looked into, and the candidates that are re-scored for ten and for a hundred rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Effort {
    probes: u32,
    for_ten: u32,
    for_hundred: u32,
}

impl Effort {
    /// Efforts for an index of so many vectors, from the least on.
    pub(super) fn ladder(count: usize) -> impl Iterator<Item = Effort> {
        let lists = lists_for(count) as u32;
        let rungs = [
            (8, 100, 400),
            (6, 100, 400),
            (4, 100, 400),
            (4, 200, 600),
            (3, 200, 600),
            (3, 400, 1000),
            (2, 400, 1000),
            (2, 800, 1600),
            (1, 800, 1600),
        ];
        rungs.into_iter().map(move |(part, for_ten, for_hundred)| Effort {
            probes: (lists / part).max(16).min(lists),
            for_ten,
            for_hundred,
        })
    }

    /// Candidates for so many rows. The more rows are wanted, the fewer candidates each of them needs.
    pub(super) fn candidates(self, rows: usize) -> usize {
        (self.for_ten as usize).max(rows * self.for_hundred as usize / 100)
    }
}

/// An index that is in memory.
pub(super) struct VectorIndex {
    index: IndexImpl,
    lists: usize,
}

/// Converts vectors by their positions: `read(first, until, into)` replaces `into` with them, one after the other.
pub(super) type ReadVectors<'a> = dyn Fn(usize, usize, &mut Vec<f32>) + 'a;

/// Lists for so many vectors: about twice the square root, but enough vectors in each to train with. Codes are scanned in blocks, so
/// that twice as many lists cost two thirds more time at nearly the same recall (63,436 vectors of MiniLM, blocks of 32).
fn lists_for(count: usize) -> usize {
    let wanted = 2 * count.isqrt();
    let rounded = if wanted > 128 { wanted.div_ceil(64) * 64 } else { wanted };
    rounded.clamp(1, (count / TRAINING_ROWS_PER_LIST).max(1))
}

/// faiss's name for the index that suits vectors of this length. Products of four values with four bits each are scanned in registers;
/// other lengths get eight bits a value. Blocks of 64 codes: with those of 32 faiss takes its way for many queries at once, which costs one query
/// a third more at the same recall (63,436 vectors of MiniLM, faiss 1.15).
fn description(count: usize, dimension: usize) -> String {
    let lists = lists_for(count);
    if dimension >= 16 && dimension.is_multiple_of(4) {
        format!("IVF{lists},PQ{}x4fs_64", dimension / 4)
    } else {
        format!("IVF{lists},SQ8")
    }
}

/// Builds an index of `count` vectors into a file.
pub(super) fn build(path: &Path, count: usize, dimension: usize, read: &ReadVectors<'_>) -> Result<(), PartitionError> {
    use_threads(BUILD_THREADS);
    let mut index = index_factory(dimension as u32, description(count, dimension), MetricType::InnerProduct).map_err(failed)?;
    train(&mut index, count, dimension, read)?;
    let mut block = Vec::new();
    for first in (0..count).step_by(BLOCK_ROWS) {
        read(first, (first + BLOCK_ROWS).min(count), &mut block);
        index.add(&block).map_err(failed)?;
    }
    let name = path.to_str().ok_or_else(|| PartitionError::Vectors("the data folder's name is not UTF-8".to_owned()))?;
    write_index(&index, name).map_err(failed)
}

/// Trains with vectors that are spread evenly over all of them.
fn train(index: &mut IndexImpl, count: usize, dimension: usize, read: &ReadVectors<'_>) -> Result<(), PartitionError> {
    let wanted = (lists_for(count) * TRAINING_ROWS_PER_LIST).min(count);
    let mut sample = Vec::with_capacity(wanted * dimension);
    let mut one = Vec::new();
    for number in 0..wanted {
        let position = number * count / wanted;
        read(position, position + 1, &mut one);
        sample.extend_from_slice(&one);
    }
    index.train(&sample).map_err(failed)
}

fn failed(fault: faiss::error::Error) -> PartitionError {
    PartitionError::Vectors(fault.to_string())
}

impl VectorIndex {
    /// Loads an index of a file whose checksum has been compared.
    pub(super) fn load(path: &Path, count: usize, dimension: usize) -> Result<VectorIndex, PartitionError> {
        let name = path.to_str().ok_or_else(|| PartitionError::Vectors("the data folder's name is not UTF-8".to_owned()))?;
        let index = read_index(name).map_err(failed)?;
        if index.ntotal() != count as u64 || index.d() as usize != dimension {
            return Err(PartitionError::damaged(path, "it is the index of other vectors"));
        }
        Ok(VectorIndex { index, lists: lists_for(count) })
    }

    /// Positions of about the `candidates` nearest vectors, in no order that counts; of those in `allowed` when it is given: bit
    /// `position % 8` of byte `position / 8`.
    pub(super) fn search(
        &self,
        query: &[f32],
        effort: Effort,
        candidates: usize,
        allowed: Option<&[u8]>,
    ) -> Result<Vec<u32>, PartitionError> {
        if query.len() != self.index.d() as usize {
            return Err(PartitionError::Dimension { expected: self.index.d() as usize, found: query.len() });
        }
        use_threads(1);
        let parameters = Parameters::new(effort.probes as usize, allowed)?;
        let mut distances = vec![0f32; candidates];
        let mut labels = vec![-1i64; candidates];
        // SAFETY: the index is alive, searching does not change it, and faiss allows searches of one index from several threads at once.
        // The query has as many values as the index's vectors (compared above), the results have room for `candidates` entries, the
        // parameters are of the type that IVF indexes take, and the bitmap that they point to outlives the call.
        let code = unsafe {
            faiss_sys::faiss_Index_search_with_params(
                self.index.inner_ptr(),
                1,
                query.as_ptr(),
                candidates as i64,
                parameters.inner.cast(),
                distances.as_mut_ptr(),
                labels.as_mut_ptr(),
            )
        };
        check(code)?;
        Ok(labels.into_iter().filter_map(|label| u32::try_from(label).ok()).collect())
    }

    /// Bytes in memory, roughly: codes, ids and centroids.
    pub(super) fn memory_bytes(&self) -> usize {
        let (count, dimension) = (self.index.ntotal() as usize, self.index.d() as usize);
        let code = if dimension >= 16 && dimension.is_multiple_of(4) { dimension / 8 } else { dimension };
        count * (code + 8) + self.lists * dimension * 4
    }
}

/// Parameters of one search.
struct Parameters {
    inner: *mut faiss_sys::FaissSearchParametersIVF,
    selector: *mut faiss_sys::FaissIDSelector,
}

impl Parameters {
    fn new(probes: usize, allowed: Option<&[u8]>) -> Result<Parameters, PartitionError> {
        let mut parameters = Parameters { inner: ptr::null_mut(), selector: ptr::null_mut() };
        if let Some(bitmap) = allowed {
            let mut selector = ptr::null_mut();
            // SAFETY: the bitmap has the given length; the selector refers to it and is used only by `search`, which holds it.
            check(unsafe { faiss_sys::faiss_IDSelectorBitmap_new(&mut selector, bitmap.len(), bitmap.as_ptr()) })?;
            parameters.selector = selector.cast();
        }
        // SAFETY: the selector is null (all vectors) or alive until `drop`.
        let made =
            unsafe { faiss_sys::faiss_SearchParametersIVF_new_with(&mut parameters.inner, parameters.selector, probes, 0) };
        check(made)?;
        Ok(parameters)
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        // SAFETY: both are null, which freeing ignores, or were made by `new` and are freed once; the parameters do not own the selector.
        unsafe {
            faiss_sys::faiss_SearchParametersIVF_free(self.inner);
            faiss_sys::faiss_IDSelector_free(self.selector);
        }
    }
}

/// The error of a code that faiss returned.
fn check(code: c_int) -> Result<(), PartitionError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: after an error this is a text that ends with a zero, kept by the calling thread until its next call of faiss.
    let message = unsafe {
        let text: *const c_char = faiss_sys::faiss_get_last_error();
        if text.is_null() { "unknown".into() } else { std::ffi::CStr::from_ptr(text).to_string_lossy() }
    };
    Err(PartitionError::Vectors(message.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_follow_the_number_of_vectors() {
        assert_eq!(lists_for(63_000), 512);
        assert_eq!(lists_for(157_458), 832);
        assert!(
            (1..20_000)
                .all(|count| lists_for(count) >= 1
                    && lists_for(count) * TRAINING_ROWS_PER_LIST <= count.max(TRAINING_ROWS_PER_LIST))
        );
    }
}
