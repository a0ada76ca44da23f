//! Exact search on a GPU: rows of halves in its memory, scored against many queries at once.
//!
//! Scores from queries rounded to halves say which rows may be among the best (`kernels/cu/search.cu` says why none is missed), and those few are scored again
//! from the queries' own values. A first pass over a sample of the rows finds for each query a score that as many rows reach as are wanted; the next goes
//! through all rows and keeps those that may reach it. When that keeps more than there is room for, as it can when the sample is unlike the rest, the rows are
//! gone through in parts small enough that they cannot.

use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine};
use super::rows::{GROUP_ROWS, GpuRows, Growing, OCTET, TILE_BYTES, padded};
use crate::exact::Scored;
use bytemuck::{NoUninit, Pod, Zeroable};
use half::f16;
use std::ops::Range;

/// Rows of a block of scoring by warps; `SCORE_WARPS` x `ROW_TILES` x 16 of the kernels.
const SCORE_ROWS: usize = 128;
const SCORE_THREADS: u32 = 128;
/// Blocks of scoring by warps for each multiprocessor: enough that they hide one another's waiting.
const SCORE_BLOCKS: u32 = 4;
/// Threads of a block of scoring by warpgroups: two of them, and a warp that brings rows.
const SCAN_THREADS: u32 = 2 * 128 + WARP;
/// Tiles of rows that a block of scoring by warpgroups holds at most, and at least.
const STAGES_MAX: usize = 24;
const STAGES_MIN: usize = 3;
const SELECT_THREADS: u32 = 512;
/// What a selecting block shares; `SelectMemory` of the kernels.
const SELECT_SHARED_BYTES: u32 = 256 * 4 + 24;
const WARP: u32 = 32;
/// Queries that are searched for together.
const QUERIES_MAX: usize = 256;
/// Candidates that a query has room for. Fewer in tests, whose sets of rows are as much smaller.
const CAPACITY: usize = if cfg!(test) { 4_096 } else { 32_768 };
/// Hits that can be asked for.
pub const HITS_MAX: usize = CAPACITY / 2;
/// Rows of the smallest sample.
const SAMPLE_MIN: usize = CAPACITY / 8;
/// Queries of a block that scores a sample, at most.
const SAMPLE_COLUMNS: usize = 64;
/// From so many queries on a first part of the rows is searched for a better threshold than the sample's: each candidate less is worth more than the time of
/// two launches.
const REFINED_QUERIES: usize = 17;
/// That first part.
const REFINING_PART: usize = 16;

/// A queue of work, with the memory that a search needs. Searches of all rows of a GPU may take turns with one.
pub(crate) struct SearchLane<M: Machine> {
    queue: M::Queue,
    /// Values of the longest rows that it can be used for.
    dimension_max: usize,
    queries: M::Memory,
    columns: M::Memory,
    scaled: M::Memory,
    standing: M::Memory,
    candidates: M::Memory,
    allowed: Growing<M>,
    /// Of each query how often there were too many candidates, how many are kept; then the hits.
    results: Growing<M>,
}

impl<M: Machine> SearchLane<M> {
    /// For searches, one at a time, of rows of at most so many values.
    pub(crate) fn new(machine: &M, dimension_max: usize) -> Result<Self, GpuError> {
        let values = QUERIES_MAX * padded(dimension_max);
        Ok(SearchLane {
            queue: machine.new_queue()?,
            dimension_max,
            queries: machine.allocate(QUERIES_MAX * dimension_max * size_of::<f32>())?,
            columns: machine.allocate(values * size_of::<f16>())?,
            scaled: machine.allocate(values * size_of::<f32>())?,
            standing: machine.allocate(QUERIES_MAX * STANDING_BYTES)?,
            candidates: machine.allocate(QUERIES_MAX * CAPACITY * size_of::<Candidate>())?,
            allowed: Growing::none(),
            results: Growing::none(),
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PrepareArguments {
    queries: u64,
    columns: u64,
    scaled: u64,
    standing: u64,
    overflows: u64,
    queries_there: u32,
    dimension: u32,
    size: u32,
    longest: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScoreArguments {
    slabs: u64,
    columns: u64,
    allowed: u64,
    standing: u64,
    candidates: u64,
    size: u32,
    rows: u32,
    first: u32,
    step: u32,
    count: u32,
    capacity: u32,
    sampled: u32,
    stages: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SelectArguments {
    slabs: u64,
    scaled: u64,
    candidates: u64,
    standing: u64,
    overflows: u64,
    kept: u64,
    hits: u64,
    size: u32,
    capacity: u32,
    wanted: u32,
    sampled: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Candidate {
    score: f32,
    row: u32,
}

/// `Standing` of the kernels.
const STANDING_BYTES: usize = 16;

/// How rows are scored.
#[derive(Clone, Copy)]
struct Scoring {
    kernel: Kernel,
    /// Columns of a block.
    columns: usize,
    threads: u32,
    shared_bytes: u32,
    /// Tiles of rows that a block holds; 0 where rows go straight into registers.
    stages: usize,
}

impl<M: Machine> GpuRows<M> {
    /// For each query the `k` rows with the largest inner product, as [`crate::exact::top_k`] finds them. `allowed` has bit `row % 64` of word `row / 64` for
    /// each row that may be found; rows beyond its end may not.
    ///
    /// # Panics
    /// If a query does not have `dimension` values, more than [`HITS_MAX`] hits are wanted, or the lane is for shorter rows.
    pub(crate) fn top_k(
        &self,
        lane: &mut SearchLane<M>,
        queries: &[&[f32]],
        allowed: Option<&[u64]>,
        k: usize,
    ) -> Result<Vec<Vec<Scored>>, GpuError> {
        assert!(queries.iter().all(|query| query.len() == self.dimension) && k <= HITS_MAX);
        assert!(self.dimension <= lane.dimension_max, "the lane is for rows of {} values", lane.dimension_max);
        if k == 0 || self.rows == 0 {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        if let Some(allowed) = allowed {
            self.upload_allowed(lane, allowed)?;
        }
        let mut hits = Vec::with_capacity(queries.len());
        for queries in queries.chunks(QUERIES_MAX) {
            let scoring = self.scoring(queries.len());
            let mut search = Search { rows: self, lane, scoring, queries, filtered: allowed.is_some(), k };
            match search.run() {
                Ok(found) => hits.extend(found),
                Err(fault) => {
                    // What was begun may still read the rows, and these may be freed as soon as this returns.
                    if let Err(fault) = self.machine.download(&mut lane.queue, &lane.queries, 0, &mut []) {
                        tracing::debug!(%fault, "what was begun of a search has failed");
                    }
                    return Err(fault);
                }
            }
        }
        Ok(hits)
    }

    fn upload_allowed(&self, lane: &mut SearchLane<M>, allowed: &[u64]) -> Result<(), GpuError> {
        let needed = self.rows.div_ceil(64);
        let mut words = allowed[..needed.min(allowed.len())].to_vec();
        words.resize(needed, 0);
        if let (Some(last), rest @ 1..) = (words.last_mut(), self.rows % 64) {
            *last &= (1 << rest) - 1;
        }
        // The kernels read words of 32 bits: in little endian the same bytes.
        words.iter_mut().for_each(|word| *word = word.to_le());
        let memory = lane.allowed.of(&self.machine, size_of_val(words.as_slice()))?;
        self.machine.upload(&mut lane.queue, memory, 0, bytemuck::cast_slice(&words))
    }

    /// The way of scoring with the fewest columns that takes all queries at once; one with fewer where its shared memory does not suffice.
    fn scoring(&self, queries: usize) -> Scoring {
        let room = self.machine.shared_bytes_max() as usize;
        let by_warpgroups = [(Kernel::Scan8, 8), (Kernel::Scan64, 64), (Kernel::Scan128, 128), (Kernel::Scan256, 256)]
            .map(|(kernel, columns)| self.by_warpgroups(kernel, columns, room));
        let by_warps = [(Kernel::Score8, 8), (Kernel::Score32, 32), (Kernel::Score128, 128)]
            .map(|(kernel, columns)| Some(self.by_warps(kernel, columns)).filter(|way| way.shared_bytes as usize <= room));
        let ways = if self.machine.has_warpgroups() && by_warpgroups[0].is_some() { &by_warpgroups[..] } else { &by_warps[..] };
        let mut chosen = None;
        for way in ways.iter().flatten() {
            chosen = Some(*way);
            if way.columns >= queries {
                break;
            }
        }
        // Rows that are too long for any are for a driver that gives a block as much as it asks for.
        chosen.unwrap_or(self.by_warps(Kernel::Score8, 8))
    }

    fn by_warps(&self, kernel: Kernel, columns: usize) -> Scoring {
        let shared_bytes = (columns * padded(self.dimension) * size_of::<f16>()) as u32;
        Scoring { kernel, columns, threads: SCORE_THREADS, shared_bytes, stages: 0 }
    }

    /// Nothing where a block has no room for enough tiles of rows beside its columns.
    fn by_warpgroups(&self, kernel: Kernel, columns: usize, room: usize) -> Option<Scoring> {
        const BARRIER_BYTES: usize = 8;
        // One barrier for the columns, and one for the turn of each warpgroup.
        let of_columns = columns * (padded(self.dimension) * size_of::<f16>() + size_of::<f32>()) + 3 * BARRIER_BYTES;
        let of_a_stage = TILE_BYTES + 2 * BARRIER_BYTES;
        let stages = (room.saturating_sub(of_columns) / of_a_stage).min(STAGES_MAX);
        let shared_bytes = (of_columns + stages * of_a_stage) as u32;
        (stages >= STAGES_MIN).then_some(Scoring { kernel, columns, threads: SCAN_THREADS, shared_bytes, stages })
    }
}

/// One search of at most [`QUERIES_MAX`] queries.
struct Search<'a, M: Machine> {
    rows: &'a GpuRows<M>,
    lane: &'a mut SearchLane<M>,
    scoring: Scoring,
    queries: &'a [&'a [f32]],
    filtered: bool,
    k: usize,
}

impl<M: Machine> Search<'_, M> {
    fn run(&mut self) -> Result<Vec<Vec<Scored>>, GpuError> {
        self.lane.results.of(&self.rows.machine, self.hits_at() + self.queries.len() * self.k * size_of::<Candidate>())?;
        self.begin()?;
        let octets = self.rows.count().div_ceil(OCTET);
        let mut first = 0;
        if self.rows.count() > CAPACITY {
            // As many rows as that is expected to let through fill a quarter of the room.
            let wanted = 4 * self.k * self.rows.count() / CAPACITY;
            let sample = wanted.clamp(SAMPLE_MIN, CAPACITY) / OCTET;
            let step = octets.div_ceil(sample);
            let looked_at = octets.div_ceil(step);
            // Few rows for many queries: blocks of fewer columns, so that there are blocks for all multiprocessors.
            let all = self.scoring;
            self.scoring = self.rows.scoring(self.queries.len().min(SAMPLE_COLUMNS));
            self.score(0..octets, step, true)?;
            self.scoring = all;
            self.select(looked_at * OCTET)?;
            // A sample that is smaller than is wanted lets more through than there is room for, if all rows are looked at next.
            if self.queries.len() >= REFINED_QUERIES || wanted > CAPACITY {
                first = (octets / REFINING_PART).next_multiple_of(GROUP_ROWS / OCTET);
                self.score(0..first, 1, false)?;
                self.select(0)?;
            }
        }
        self.score(first..octets, 1, false)?;
        self.select(0)?;
        if let Some(hits) = self.fetch()? {
            return Ok(hits);
        }
        tracing::debug!("a sample let too many rows through: searching in parts");
        self.begin()?;
        let part = (CAPACITY - self.k) / GROUP_ROWS * GROUP_ROWS / OCTET;
        for first in (0..octets).step_by(part) {
            self.score(first..(first + part).min(octets), 1, false)?;
            self.select(0)?;
        }
        self.fetch()?
            .ok_or(GpuError::Failed { what: "a search in parts", reason: "a part has more candidates than rows".to_owned() })
    }

    /// Uploads the queries. Nothing is found yet, and every score is good enough.
    fn begin(&mut self) -> Result<(), GpuError> {
        let values = self.queries.concat();
        self.rows.machine.upload(&mut self.lane.queue, &self.lane.queries, 0, bytemuck::cast_slice(&values))?;
        let arguments = PrepareArguments {
            queries: self.lane.queries.address(),
            columns: self.lane.columns.address(),
            scaled: self.lane.scaled.address(),
            standing: self.lane.standing.address(),
            overflows: self.lane.results.address(),
            queries_there: self.queries.len() as u32,
            dimension: self.rows.dimension as u32,
            size: padded(self.rows.dimension) as u32,
            longest: self.rows.longest,
        };
        let shape = LaunchShape { grid: [self.columns() as u32, 1], threads: WARP, shared_bytes: 0 };
        self.launch(Kernel::PrepareQueries, shape, &arguments)
    }

    /// Columns of all blocks.
    fn columns(&self) -> usize {
        self.queries.len().next_multiple_of(self.scoring.columns)
    }

    /// Scores every `step`-th eight of these eights of rows.
    fn score(&mut self, octets: Range<usize>, step: usize, sampled: bool) -> Result<(), GpuError> {
        let count = octets.len().div_ceil(step);
        if count == 0 {
            return Ok(());
        }
        let arguments = ScoreArguments {
            slabs: self.rows.table.address(),
            columns: self.lane.columns.address(),
            allowed: if self.filtered { self.lane.allowed.address() } else { 0 },
            standing: self.lane.standing.address(),
            candidates: self.lane.candidates.address(),
            size: padded(self.rows.dimension) as u32,
            rows: self.rows.count() as u32,
            first: octets.start as u32,
            step: step as u32,
            count: count as u32,
            capacity: CAPACITY as u32,
            sampled: u32::from(sampled),
            stages: self.scoring.stages as u32,
        };
        let Scoring { columns, threads, shared_bytes, kernel, stages } = self.scoring;
        let multiprocessors = self.rows.machine.multiprocessors();
        let (block_rows, most) =
            if stages == 0 { (SCORE_ROWS, multiprocessors * SCORE_BLOCKS) } else { (GROUP_ROWS, multiprocessors) };
        let blocks = ((count * OCTET).div_ceil(block_rows) as u32).min(most);
        let shape = LaunchShape { grid: [blocks, (self.columns() / columns) as u32], threads, shared_bytes };
        self.launch(kernel, shape, &arguments)
    }

    /// Keeps the best candidates of each query; or, of so many scores of a sample, only the one that enough rows reach.
    fn select(&mut self, sampled: usize) -> Result<(), GpuError> {
        let arguments = SelectArguments {
            slabs: self.rows.table.address(),
            scaled: self.lane.scaled.address(),
            candidates: self.lane.candidates.address(),
            standing: self.lane.standing.address(),
            overflows: self.lane.results.address(),
            kept: self.lane.results.address() + (QUERIES_MAX * size_of::<u32>()) as u64,
            hits: self.lane.results.address() + self.hits_at() as u64,
            size: padded(self.rows.dimension) as u32,
            capacity: CAPACITY as u32,
            wanted: self.k as u32,
            sampled: sampled as u32,
        };
        let shape =
            LaunchShape { grid: [self.queries.len() as u32, 1], threads: SELECT_THREADS, shared_bytes: SELECT_SHARED_BYTES };
        self.launch(Kernel::SelectBest, shape, &arguments)
    }

    /// Where the hits begin in the results.
    fn hits_at(&self) -> usize {
        2 * QUERIES_MAX * size_of::<u32>()
    }

    /// The hits of each query, best first; nothing when some did not fit.
    fn fetch(&mut self) -> Result<Option<Vec<Vec<Scored>>>, GpuError> {
        let words_of_hits = self.queries.len() * self.k * size_of::<Candidate>() / size_of::<u32>();
        let mut results = vec![0u32; 2 * QUERIES_MAX + words_of_hits];
        let memory = self.lane.results.of(&self.rows.machine, size_of_val(results.as_slice()))?;
        self.rows.machine.download(&mut self.lane.queue, memory, 0, bytemuck::cast_slice_mut(&mut results))?;
        let (overflows, rest) = results.split_at(QUERIES_MAX);
        let (kept, hits) = rest.split_at(QUERIES_MAX);
        if overflows[..self.queries.len()].iter().any(|overflow| *overflow > 0) {
            return Ok(None);
        }
        let candidates: &[Candidate] = bytemuck::cast_slice(hits);
        let best_first = |(kept, candidates): (&u32, &[Candidate])| {
            let candidates = &candidates[..*kept as usize];
            let mut found: Vec<Scored> =
                candidates.iter().map(|candidate| Scored { position: candidate.row, score: candidate.score }).collect();
            found.sort_by(|left, right| right.score.total_cmp(&left.score).then(left.position.cmp(&right.position)));
            found
        };
        Ok(Some(kept.iter().zip(candidates.chunks_exact(self.k)).map(best_first).collect()))
    }

    fn launch(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl NoUninit) -> Result<(), GpuError> {
        // SAFETY: the callers give each kernel its own structure and the shape that its source asks for; the lane's memory is made for the most queries and
        // the slabs for all rows, and both live until the queue's work is done, because `fetch` waits for it, and `top_k` where that is not come to.
        unsafe { self.rows.machine.launch(&mut self.lane.queue, kernel, shape, bytemuck::bytes_of(arguments)) }
    }
}

#[cfg(test)]
mod tests;
