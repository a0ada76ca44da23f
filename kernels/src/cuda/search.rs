//! Exact search on a GPU: rows of halves in its memory, scored against many queries at once.
//!
//! A first pass over a sample of the rows finds for each query a score that as many rows reach as are wanted; the second goes through all rows and keeps
//! those that reach it. When that keeps more than there is room for, as it can when the sample is unlike the rest, the rows are gone through in parts
//! small enough that they cannot.

use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine};
use crate::exact::Scored;
use bytemuck::{NoUninit, Pod, Zeroable};
use half::f16;
use roaring::RoaringBitmap;
use std::sync::Arc;

/// Values of a row that four lanes read at once: rows are as long as a multiple of it; `INNER` of the kernels.
const INNER: usize = 32;
/// Columns of a tile of the product; two of them are a query.
const TILE_COLUMNS: usize = 8;
const QUERY_COLUMNS: usize = 2;
/// Rows of a block; `SCORE_WARPS` x `ROW_TILES` x 16 of the kernels.
const BLOCK_ROWS: u32 = 128;
const SCORE_THREADS: u32 = 128;
const SELECT_THREADS: u32 = 1_024;
/// A histogram of 256 digits, and what its block shares.
const SELECT_SHARED_BYTES: u32 = (256 + 4) * 4;
/// Blocks of scoring for each multiprocessor: enough that they hide one another's waiting.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;
/// Queries that are searched for together.
const QUERIES_MAX: usize = 256;
/// Candidates that a query has room for.
const CAPACITY: usize = 32_768;
/// Hits that can be asked for.
pub const HITS_MAX: usize = CAPACITY / 2;
/// Rows of the smallest sample.
const SAMPLE_MIN: usize = 4_096;

/// Rows in the memory of a GPU.
pub(crate) struct GpuRows<M: Machine> {
    machine: Arc<M>,
    dimension: usize,
    blocks: Vec<Block<M>>,
    rows: usize,
}

struct Block<M: Machine> {
    memory: M::Memory,
    first: usize,
    rows: usize,
}

/// A queue of work, with the memory that a search needs.
pub(crate) struct SearchLane<M: Machine> {
    queue: M::Queue,
    columns: M::Memory,
    candidates: M::Memory,
    /// Of each query: threshold, count, overflow.
    standing: M::Memory,
    allowed: Growing<M>,
    hits: Growing<M>,
}

/// Memory that is replaced by a larger piece when it does not suffice.
struct Growing<M: Machine>(Option<(M::Memory, usize)>);

impl<M: Machine> Growing<M> {
    /// At least so many bytes. What was there is gone when they were fewer: work that uses it must be done.
    fn of(&mut self, machine: &M, bytes: usize) -> Result<&M::Memory, GpuError> {
        let grown = match self.0.take() {
            Some((memory, size)) if size >= bytes => (memory, size),
            _ => (machine.allocate(bytes.next_power_of_two())?, bytes.next_power_of_two()),
        };
        Ok(&self.0.insert(grown).0)
    }

    fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, |(memory, _)| memory.address())
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScoreArguments {
    rows: u64,
    columns: u64,
    allowed: u64,
    thresholds: u64,
    candidates: u64,
    counts: u64,
    queries: u32,
    size: u32,
    first: u32,
    step: u32,
    count: u32,
    capacity: u32,
    base: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SelectArguments {
    candidates: u64,
    counts: u64,
    thresholds: u64,
    overflows: u64,
    hits: u64,
    capacity: u32,
    wanted: u32,
    forget_all: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Candidate {
    score: f32,
    row: u32,
}

/// One kernel of scoring.
struct Scoring {
    kernel: Kernel,
    columns: usize,
    shared_bytes: u32,
}

impl<M: Machine> GpuRows<M> {
    /// No rows yet, of so many values each.
    pub(crate) fn new(machine: Arc<M>, dimension: usize) -> Self {
        GpuRows { machine, dimension, blocks: Vec::new(), rows: 0 }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.rows
    }

    /// Bytes of the GPU's memory that `rows` rows of `dimension` values take.
    pub(crate) fn bytes_of(rows: usize, dimension: usize) -> usize {
        rows * padded(dimension) * size_of::<f16>()
    }

    /// Memory for searches, one at a time.
    pub(crate) fn new_lane(&self) -> Result<SearchLane<M>, GpuError> {
        let columns = (QUERIES_MAX * QUERY_COLUMNS).next_multiple_of(128);
        Ok(SearchLane {
            queue: self.machine.new_queue()?,
            columns: self.machine.allocate(columns * padded(self.dimension) * size_of::<f16>())?,
            candidates: self.machine.allocate(QUERIES_MAX * CAPACITY * size_of::<Candidate>())?,
            standing: self.machine.allocate(3 * QUERIES_MAX * size_of::<u32>())?,
            allowed: Growing(None),
            hits: Growing(None),
        })
    }

    /// Adds rows, one after the other, behind those that are there.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub(crate) fn append(&mut self, lane: &mut SearchLane<M>, rows: &[f16]) -> Result<(), GpuError> {
        assert!(rows.len().is_multiple_of(self.dimension), "{} values are not whole rows of {}", rows.len(), self.dimension);
        let count = rows.len() / self.dimension;
        if count == 0 {
            return Ok(());
        }
        let size = padded(self.dimension);
        let memory = self.machine.allocate(Self::bytes_of(count, self.dimension))?;
        if size == self.dimension {
            self.machine.upload(&mut lane.queue, &memory, 0, bytemuck::cast_slice(rows))?;
        } else {
            let mut longer = vec![f16::ZERO; count * size];
            for (to, from) in longer.chunks_exact_mut(size).zip(rows.chunks_exact(self.dimension)) {
                to[..self.dimension].copy_from_slice(from);
            }
            self.machine.upload(&mut lane.queue, &memory, 0, bytemuck::cast_slice(&longer))?;
        }
        // Searches of other lanes may begin as soon as this returns.
        self.machine.download(&mut lane.queue, &memory, 0, &mut [])?;
        self.blocks.push(Block { memory, first: self.rows, rows: count });
        self.rows += count;
        Ok(())
    }

    /// For each query the `k` rows with the largest inner product, as [`crate::exact::top_k`] finds them.
    ///
    /// # Panics
    /// If a query does not have `dimension` values, or more than [`HITS_MAX`] hits are wanted.
    pub(crate) fn top_k(
        &self,
        lane: &mut SearchLane<M>,
        queries: &[&[f32]],
        allowed: Option<&RoaringBitmap>,
        k: usize,
    ) -> Result<Vec<Vec<Scored>>, GpuError> {
        assert!(queries.iter().all(|query| query.len() == self.dimension) && k <= HITS_MAX);
        if k == 0 || self.rows == 0 {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        if let Some(allowed) = allowed {
            self.upload_allowed(lane, allowed)?;
        }
        let mut hits = Vec::with_capacity(queries.len());
        for group in queries.chunks(QUERIES_MAX) {
            let queries: Vec<Query> = group.iter().map(|query| Query::new(query)).collect();
            let mut search = Search {
                rows: self,
                lane,
                scoring: self.scoring(queries.len()),
                queries: &queries,
                filtered: allowed.is_some(),
                k,
            };
            hits.extend(search.run()?);
        }
        Ok(hits)
    }

    fn upload_allowed(&self, lane: &mut SearchLane<M>, allowed: &RoaringBitmap) -> Result<(), GpuError> {
        let mut words = vec![0u32; self.rows.div_ceil(32)];
        for row in allowed.iter().take_while(|row| (*row as usize) < self.rows) {
            words[row as usize / 32] |= 1 << (row % 32);
        }
        let memory = lane.allowed.of(&self.machine, size_of_val(words.as_slice()))?;
        self.machine.upload(&mut lane.queue, memory, 0, bytemuck::cast_slice(&words))
    }

    /// The kernel with the fewest columns that takes all queries at once; one with fewer where its shared memory does not suffice.
    fn scoring(&self, queries: usize) -> Scoring {
        let steps = padded(self.dimension) / INNER;
        let kernels = [(Kernel::Score8, 8), (Kernel::Score32, 32), (Kernel::Score128, 128)].map(|(kernel, columns)| Scoring {
            kernel,
            columns,
            shared_bytes: (steps * columns / TILE_COLUMNS * 32 * 16) as u32,
        });
        let mut chosen = None;
        for scoring in kernels {
            if chosen.is_some() && scoring.shared_bytes > self.machine.shared_bytes_max() {
                break;
            }
            let suffices = scoring.columns >= queries * QUERY_COLUMNS;
            chosen = Some(scoring);
            if suffices {
                break;
            }
        }
        chosen.expect("there are three kernels")
    }
}

/// A query as two halves for each value.
struct Query {
    /// The value rounded, for each value; then what that left.
    halves: [Vec<f16>; 2],
    /// By what the scores of the halves are to be multiplied.
    scale: f32,
}

impl Query {
    /// The values are multiplied by a power of two first, which rounds nothing, so that none is too large or too small for halves.
    fn new(values: &[f32]) -> Self {
        let largest = values.iter().filter(|value| value.is_finite()).fold(0.0f32, |largest, value| largest.max(value.abs()));
        // 2^8 for the largest: sums of products with the largest halves stay far below what f32 holds.
        let exponent = if largest > 0.0 { (8 - largest.log2().floor() as i32).clamp(-120, 120) } else { 0 };
        let factor = 2.0f32.powi(exponent);
        let high: Vec<f16> = values.iter().map(|value| f16::from_f32(value * factor)).collect();
        let low = values.iter().zip(&high).map(|(value, high)| f16::from_f32(value * factor - high.to_f32())).collect();
        Query { halves: [high, low], scale: 2.0f32.powi(-exponent) }
    }
}

/// One search of at most [`QUERIES_MAX`] queries.
struct Search<'a, M: Machine> {
    rows: &'a GpuRows<M>,
    lane: &'a mut SearchLane<M>,
    scoring: Scoring,
    queries: &'a [Query],
    filtered: bool,
    k: usize,
}

impl<M: Machine> Search<'_, M> {
    fn run(&mut self) -> Result<Vec<Vec<Scored>>, GpuError> {
        self.lane.hits.of(&self.rows.machine, self.queries.len() * self.k * size_of::<Candidate>())?;
        self.upload_queries()?;
        self.begin()?;
        if self.rows.count() > CAPACITY {
            // As many rows as that is expected to let through fill a quarter of the room.
            let sample = (4 * self.k * self.rows.count() / CAPACITY).clamp(SAMPLE_MIN, CAPACITY);
            self.score(self.rows.count().div_ceil(sample), 0..self.rows.count())?;
            self.select(true)?;
        }
        self.score(1, 0..self.rows.count())?;
        self.select(false)?;
        if let Some(hits) = self.fetch()? {
            return Ok(hits);
        }
        tracing::debug!("a sample let too many rows through: searching in parts");
        self.begin()?;
        let part = CAPACITY - self.k;
        for first in (0..self.rows.count()).step_by(part) {
            self.score(1, first..(first + part).min(self.rows.count()))?;
            self.select(false)?;
        }
        self.fetch()?
            .ok_or(GpuError::Failed { what: "a search in parts", reason: "a part has more candidates than rows".to_owned() })
    }

    /// Columns of the product: of each query the rounded values, then the rest; zeros up to a whole block.
    fn upload_queries(&mut self) -> Result<(), GpuError> {
        let size = padded(self.rows.dimension);
        let columns = (self.queries.len() * QUERY_COLUMNS).next_multiple_of(self.scoring.columns);
        let mut values = vec![f16::ZERO; columns * size];
        let parts = self.queries.iter().flat_map(|query| &query.halves);
        for (to, from) in values.chunks_exact_mut(size).zip(parts) {
            to[..from.len()].copy_from_slice(from);
        }
        self.rows.machine.upload(&mut self.lane.queue, &self.lane.columns, 0, bytemuck::cast_slice(&values))
    }

    /// Nothing is found yet, and every score is good enough.
    fn begin(&mut self) -> Result<(), GpuError> {
        let mut standing = vec![0u32; 3 * QUERIES_MAX];
        standing[..QUERIES_MAX].fill(f32::NEG_INFINITY.to_bits());
        self.rows.machine.upload(&mut self.lane.queue, &self.lane.standing, 0, bytemuck::cast_slice(&standing))
    }

    /// Scores every `step`-th of these rows.
    fn score(&mut self, step: usize, wanted: std::ops::Range<usize>) -> Result<(), GpuError> {
        for block in &self.rows.blocks {
            let (first, end) = (wanted.start.max(block.first), wanted.end.min(block.first + block.rows));
            if first >= end {
                continue;
            }
            let count = (end - first).div_ceil(step) as u32;
            let arguments = ScoreArguments {
                rows: block.memory.address(),
                columns: self.lane.columns.address(),
                allowed: if self.filtered { self.lane.allowed.address() } else { 0 },
                thresholds: self.standing(0),
                candidates: self.lane.candidates.address(),
                counts: self.standing(1),
                queries: self.queries.len() as u32,
                size: padded(self.rows.dimension) as u32,
                first: (first - block.first) as u32,
                step: step as u32,
                count,
                capacity: CAPACITY as u32,
                base: block.first as u32,
                unused: 0,
            };
            let blocks = count.div_ceil(BLOCK_ROWS).min(self.rows.machine.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR);
            let groups = (self.queries.len() * QUERY_COLUMNS).div_ceil(self.scoring.columns) as u32;
            let shape = LaunchShape { grid: [blocks, groups], threads: SCORE_THREADS, shared_bytes: self.scoring.shared_bytes };
            self.launch(self.scoring.kernel, shape, &arguments)?;
        }
        Ok(())
    }

    /// Keeps the best candidates of each query, or only the score of the last one wanted.
    fn select(&mut self, threshold_only: bool) -> Result<(), GpuError> {
        let arguments = SelectArguments {
            candidates: self.lane.candidates.address(),
            counts: self.standing(1),
            thresholds: self.standing(0),
            overflows: self.standing(2),
            hits: if threshold_only { 0 } else { self.lane.hits.address() },
            capacity: CAPACITY as u32,
            wanted: self.k as u32,
            forget_all: u32::from(threshold_only),
            unused: 0,
        };
        let shape =
            LaunchShape { grid: [self.queries.len() as u32, 1], threads: SELECT_THREADS, shared_bytes: SELECT_SHARED_BYTES };
        self.launch(Kernel::SelectBest, shape, &arguments)
    }

    /// The hits of each query, best first; nothing when some did not fit.
    fn fetch(&mut self) -> Result<Option<Vec<Vec<Scored>>>, GpuError> {
        let mut standing = vec![0u32; 3 * QUERIES_MAX];
        let machine = &self.rows.machine;
        machine.download(&mut self.lane.queue, &self.lane.standing, 0, bytemuck::cast_slice_mut(&mut standing))?;
        let (counts, overflows) = standing[QUERIES_MAX..].split_at(QUERIES_MAX);
        if overflows.iter().any(|overflow| *overflow > 0) {
            return Ok(None);
        }
        let mut candidates = vec![Candidate { score: 0.0, row: 0 }; self.queries.len() * self.k];
        let kept = self.lane.hits.of(machine, size_of_val(candidates.as_slice()))?;
        machine.download(&mut self.lane.queue, kept, 0, bytemuck::cast_slice_mut(&mut candidates))?;
        let mut hits = Vec::with_capacity(self.queries.len());
        for ((query, count), candidates) in self.queries.iter().zip(counts).zip(candidates.chunks_exact(self.k)) {
            let mut found: Vec<Scored> = candidates[..*count as usize]
                .iter()
                .map(|candidate| Scored { position: candidate.row, score: candidate.score * query.scale })
                .collect();
            found.sort_by(|left, right| right.score.total_cmp(&left.score).then(left.position.cmp(&right.position)));
            hits.push(found);
        }
        Ok(Some(hits))
    }

    fn standing(&self, which: usize) -> u64 {
        self.lane.standing.address() + (which * QUERIES_MAX * size_of::<u32>()) as u64
    }

    fn launch(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl NoUninit) -> Result<(), GpuError> {
        // SAFETY: both callers give the kernel its own structure and the shape that its source asks for; the lane's memory is made for the most queries and
        // the rows' for its blocks, and both live until the queue's work is done, because `fetch` waits for it.
        unsafe { self.rows.machine.launch(&mut self.lane.queue, kernel, shape, bytemuck::bytes_of(arguments)) }
    }
}

/// Values of a row in the GPU's memory; those past the dimension are zeros.
fn padded(dimension: usize) -> usize {
    dimension.next_multiple_of(INNER)
}

#[cfg(test)]
mod tests {
    use super::super::emulator::Emulator;
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn vectors(seed: u64, count: usize, dimension: usize) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count * dimension).map(|_| random.random_range(-1.0f32..1.0)).collect()
    }

    fn gpu(rows: &[f16], dimension: usize, parts: usize) -> (GpuRows<Emulator>, SearchLane<Emulator>) {
        let mut gpu = GpuRows::new(Arc::new(Emulator::new(7)), dimension);
        let mut lane = gpu.new_lane().unwrap();
        let part = (rows.len() / dimension).div_ceil(parts).max(1) * dimension;
        for part in rows.chunks(part) {
            gpu.append(&mut lane, part).unwrap();
        }
        (gpu, lane)
    }

    /// The hits are those of the processor but for what rounding may exchange.
    fn assert_same(found: &[Scored], expected: &[Scored], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found.score - expected.score).abs() <= tolerance, "{found:?} instead of {expected:?}");
        }
        let positions: std::collections::BTreeSet<u32> = found.iter().map(|hit| hit.position).collect();
        assert_eq!(positions.len(), found.len(), "a row is there twice");
        let last = expected.last().map_or(0.0, |hit| hit.score);
        for expected in expected.iter().filter(|hit| hit.score > last + 2.0 * tolerance) {
            assert!(positions.contains(&expected.position), "{expected:?} is missing");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn hits_are_those_of_the_processor(
            seed in any::<u64>(), dimension in 1usize..100, count in 1usize..600, queries in 1usize..70, k in 1usize..40,
            parts in 1usize..4, scale in -30i32..30, filtered in any::<bool>(),
        ) {
            let rows = crate::exact::to_f16(&vectors(seed, count, dimension));
            let (gpu, mut lane) = gpu(&rows, dimension, parts);
            let scale = 2.0f32.powi(scale);
            let asked: Vec<f32> = vectors(seed ^ 1, queries, dimension).into_iter().map(|value| value * scale).collect();
            let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
            let allowed: RoaringBitmap = (0..count as u32 + 50).filter(|row| row.wrapping_mul(2_654_435_761) >> 30 != 0).collect();
            let allowed = filtered.then_some(&allowed);
            let hits = gpu.top_k(&mut lane, &asked, allowed, k).unwrap();
            prop_assert_eq!(hits.len(), queries);
            for (query, hits) in asked.iter().zip(&hits) {
                let expected = crate::exact::top_k(query, &rows, dimension, allowed, k);
                assert_same(hits, &expected, 1e-5 * scale * dimension as f32);
            }
        }
    }

    #[test]
    fn large_sets_are_sampled_and_searched_in_parts_where_the_sample_misleads() {
        let (dimension, count, k) = (3, 2 * CAPACITY + 1_000, 50);
        let query = [1.0f32, 0.5, -0.25];
        let random = crate::exact::to_f16(&vectors(3, count, dimension));
        // Nearly all rows are as good as the best, but those that a sample looks at: more reach its score than there is room for.
        let step = count.div_ceil(SAMPLE_MIN);
        let misleading: Vec<f16> = (0..count)
            .flat_map(|row| {
                [f16::from_f32(if row % step == 0 { -1.0 } else { 1.0 + (row % 7) as f32 / 8.0 }), f16::ONE, f16::ONE]
            })
            .collect();
        for rows in [random, misleading] {
            let (gpu, mut lane) = gpu(&rows, dimension, 3);
            let hits = gpu.top_k(&mut lane, &[&query], None, k).unwrap();
            assert_same(&hits[0], &crate::exact::top_k(&query, &rows, dimension, None, k), 1e-5);
        }
    }

    #[test]
    fn equal_scores_come_in_the_order_of_their_rows() {
        let rows = vec![f16::ONE; 500 * 4];
        let (gpu, mut lane) = gpu(&rows, 4, 2);
        let hits = gpu.top_k(&mut lane, &[&[1.0, 2.0, 3.0, 4.0]], None, 20).unwrap();
        assert_eq!(hits[0].iter().map(|hit| hit.position).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_number_is_never_found() {
        let mut rows = vec![f16::ONE; 40 * 4];
        rows[4..8].fill(f16::NAN);
        rows[12] = f16::NAN;
        let (gpu, mut lane) = gpu(&rows, 4, 1);
        let hits = gpu.top_k(&mut lane, &[&[1.0; 4], &[f32::NAN; 4]], None, 100).unwrap();
        assert_eq!(hits[0].len(), 38);
        assert!(hits[0].iter().all(|hit| hit.position != 1 && hit.position != 3));
        assert!(hits[1].is_empty());
    }
}
