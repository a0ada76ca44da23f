//! Exact search on a GPU: rows of halves in its memory, scored against many queries at once.
//!
//! Scores from queries rounded to halves say which rows may be among the best (`kernels/cu/search.cu` says why none is missed), and those few are scored again
//! from the queries' own values. A first pass over a sample of the rows finds for each query a score that as many rows reach as are wanted; the next goes
//! through all rows and keeps those that may reach it. When that keeps more than there is room for, as it can when the sample is unlike the rest, the rows are
//! gone through in parts small enough that they cannot.

use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine};
use crate::exact::Scored;
use bytemuck::{NoUninit, Pod, Zeroable};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;
use std::sync::Arc;

/// Values of a row that lie together: rows are as long as a multiple of it; as in the kernels.
const TILE_VALUES: usize = 64;
/// Values that are exchanged as a whole.
const CHUNK: usize = 8;
const TILE_CHUNKS: usize = TILE_VALUES / CHUNK;
/// Rows that lie together.
const GROUP_ROWS: usize = 64;
const TILE_BYTES: usize = GROUP_ROWS * TILE_VALUES * size_of::<f16>();
/// Rows that a sample takes together.
const OCTET: usize = 8;
/// Rows that one piece of memory holds at most.
const SLAB_ROWS: usize = 1_024 * GROUP_ROWS;
/// Rows that are laid out and uploaded at a time; slabs are whole multiples.
const UPLOAD_ROWS: usize = SLAB_ROWS / 16;
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

/// Rows in the memory of a GPU.
pub(crate) struct GpuRows<M: Machine> {
    machine: Arc<M>,
    dimension: usize,
    slabs: Vec<Slab<M>>,
    /// Addresses of the slabs.
    table: Growing<M>,
    rows: usize,
    /// Rows of the last group, which the next ones join.
    open: Vec<f16>,
    /// Euclidean length of the longest row of finite values.
    longest: f32,
}

/// Up to [`SLAB_ROWS`] rows. All but the last are full.
struct Slab<M: Machine> {
    memory: M::Memory,
    /// Rows that it has room for: whole groups.
    room: usize,
}

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
            allowed: Growing(None),
            results: Growing(None),
        })
    }
}

/// Memory that is replaced by a larger piece when it does not suffice.
struct Growing<M: Machine>(Option<(M::Memory, usize)>);

impl<M: Machine> Growing<M> {
    /// At least so many bytes. What was there is gone when they were fewer: work that uses it must be done. It stays when there is no more memory.
    fn of(&mut self, machine: &M, bytes: usize) -> Result<&M::Memory, GpuError> {
        if self.0.as_ref().is_none_or(|(_, size)| *size < bytes) {
            let size = bytes.next_power_of_two();
            self.0 = Some((machine.allocate(size)?, size));
        }
        self.0.as_ref().map(|(memory, _)| memory).ok_or(GpuError::OutOfMemory { bytes })
    }

    fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, |(memory, _)| memory.address())
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
    /// No rows yet, of so many values each.
    pub(crate) fn new(machine: Arc<M>, dimension: usize) -> Self {
        GpuRows { machine, dimension, slabs: Vec::new(), table: Growing(None), rows: 0, open: Vec::new(), longest: 0.0 }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.rows
    }

    /// Makes room for so many rows, so that memory which they come to need is taken once. Nothing has changed when there is too little.
    pub(crate) fn reserve(&mut self, queue: &mut M::Queue, rows: usize) -> Result<(), GpuError> {
        self.make_room(queue, rows)
    }

    /// Adds rows, one after the other, behind those that are there. All or none of them, when there is too little memory.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub(crate) fn append(&mut self, queue: &mut M::Queue, rows: &[f16]) -> Result<(), GpuError> {
        assert!(rows.len().is_multiple_of(self.dimension), "{} values are not whole rows of {}", rows.len(), self.dimension);
        if rows.is_empty() {
            return Ok(());
        }
        let first = self.rows / GROUP_ROWS * GROUP_ROWS;
        // The last group is written again with what joins it.
        let mut all = [&self.open, rows].concat();
        let count = first + all.len() / self.dimension;
        self.make_room(queue, count)?;
        let mut at = first;
        while at < count {
            // Parts of the slabs, so that what is laid out anew is never much.
            let end = count.min((at / UPLOAD_ROWS + 1) * UPLOAD_ROWS);
            self.upload(queue, at, &all[(at - first) * self.dimension..(end - first) * self.dimension])?;
            at = end;
        }
        self.longest = longest(rows, self.dimension).max(self.longest);
        self.open = all.split_off((count / GROUP_ROWS * GROUP_ROWS - first) * self.dimension);
        self.rows = count;
        // Searches of other lanes may begin as soon as this returns.
        let table = self.table.of(&self.machine, 1)?;
        self.machine.download(queue, table, 0, &mut [])
    }

    /// Slabs for so many rows. The last one grows until it is full. Nothing has changed when there is too little memory.
    fn make_room(&mut self, queue: &mut M::Queue, rows: usize) -> Result<(), GpuError> {
        let row_bytes = padded(self.dimension) * size_of::<f16>();
        let there: usize = self.slabs.iter().map(|slab| slab.room).sum();
        if there >= rows {
            return Ok(());
        }
        // The last one that is there, when it is not full, is replaced by a larger one; others follow.
        let first = self.slabs.len() - usize::from(!there.is_multiple_of(SLAB_ROWS));
        let mut new = Vec::new();
        for number in first..rows.div_ceil(SLAB_ROWS) {
            let needed = (rows - number * SLAB_ROWS).next_multiple_of(GROUP_ROWS);
            let room = self.slabs.get(number).map_or(needed, |slab| needed.max(2 * slab.room)).min(SLAB_ROWS);
            new.push(Slab { memory: self.machine.allocate(room * row_bytes)?, room });
        }
        let addresses = self.slabs[..first].iter().chain(&new).map(|slab| slab.memory.address());
        let addresses: Vec<u64> = addresses.collect();
        let table = self.table.of(&self.machine, size_of_val(addresses.as_slice()))?;
        self.machine.upload(queue, table, 0, bytemuck::cast_slice(&addresses))?;
        if let (Some(before), Some(after)) = (self.slabs.get(first), new.first()) {
            self.machine.copy(queue, &before.memory, &after.memory, before.room * row_bytes)?;
        }
        self.machine.download(queue, table, 0, &mut [])?;
        self.slabs.truncate(first);
        self.slabs.append(&mut new);
        Ok(())
    }

    /// Writes rows from the `first` on, which begins a group; they are within one slab.
    fn upload(&self, queue: &mut M::Queue, first: usize, rows: &[f16]) -> Result<(), GpuError> {
        let row_bytes = padded(self.dimension) * size_of::<f16>();
        let laid_out = laid_out(rows, self.dimension);
        let slab = &self.slabs[first / SLAB_ROWS];
        self.machine.upload(queue, &slab.memory, first % SLAB_ROWS * row_bytes, bytemuck::cast_slice(&laid_out))
    }

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

/// Bytes that so many rows take in a GPU's memory, when room is made for all of them at once.
pub(crate) fn bytes_of(rows: usize, dimension: usize) -> usize {
    rows.next_multiple_of(GROUP_ROWS) * padded(dimension) * size_of::<f16>()
}

/// Values of a row in the GPU's memory; those past the dimension are zeros.
fn padded(dimension: usize) -> usize {
    dimension.next_multiple_of(TILE_VALUES)
}

/// Rows in the order of the GPU's memory: groups of [`GROUP_ROWS`], the last one filled up with zeros.
fn laid_out(rows: &[f16], dimension: usize) -> Vec<f16> {
    let size = padded(dimension);
    let count = rows.len() / dimension;
    let mut out = vec![f16::ZERO; count.next_multiple_of(GROUP_ROWS) * size];
    for (number, row) in rows.chunks_exact(dimension).enumerate() {
        let group = &mut out[number / GROUP_ROWS * GROUP_ROWS * size..][..GROUP_ROWS * size];
        for (chunk, values) in row.chunks(CHUNK).enumerate() {
            let tile = chunk / TILE_CHUNKS * GROUP_ROWS * TILE_VALUES;
            let place = tile + number % GROUP_ROWS * TILE_VALUES + (chunk ^ number) % TILE_CHUNKS * CHUNK;
            group[place..place + values.len()].copy_from_slice(values);
        }
    }
    out
}

/// Euclidean length of the longest of these rows whose values are finite.
fn longest(rows: &[f16], dimension: usize) -> f32 {
    let mut values = vec![0.0; dimension];
    let mut length = |row: &[f16]| {
        row.convert_to_f32_slice(&mut values);
        values.iter().map(|value| value * value).sum::<f32>().sqrt()
    };
    rows.chunks_exact(dimension).map(&mut length).filter(|length| length.is_finite()).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::super::emulator::Emulator;
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use roaring::RoaringBitmap;

    fn vectors(seed: u64, count: usize, dimension: usize) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count * dimension).map(|_| random.random_range(-1.0f32..1.0)).collect()
    }

    fn gpu(rows: &[f16], dimension: usize, parts: usize) -> (GpuRows<Emulator>, SearchLane<Emulator>) {
        gpu_of(Emulator::new(7), rows, dimension, parts)
    }

    fn gpu_of(machine: Emulator, rows: &[f16], dimension: usize, parts: usize) -> (GpuRows<Emulator>, SearchLane<Emulator>) {
        let mut gpu = GpuRows::new(Arc::new(machine), dimension);
        let mut lane = SearchLane::new(gpu.machine.as_ref(), dimension).unwrap();
        let part = (rows.len() / dimension).div_ceil(parts).max(1) * dimension;
        for part in rows.chunks(part) {
            gpu.append(&mut lane.queue, part).unwrap();
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
            seed in any::<u64>(), dimension in 1usize..200, count in 1usize..600, queries in 1usize..70, k in 1usize..40,
            parts in 1usize..4, scale in -30i32..30, filtered in any::<bool>(), has_warpgroups in any::<bool>(),
        ) {
            let rows = crate::exact::to_f16(&vectors(seed, count, dimension));
            let mut machine = Emulator::new(seed);
            machine.has_warpgroups = has_warpgroups;
            let (gpu, mut lane) = gpu_of(machine, &rows, dimension, parts);
            let scale = 2.0f32.powi(scale);
            let asked: Vec<f32> = vectors(seed ^ 1, queries, dimension).into_iter().map(|value| value * scale).collect();
            let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
            let allowed: RoaringBitmap = (0..count as u32 + 50).filter(|row| row.wrapping_mul(2_654_435_761) >> 30 != 0).collect();
            let allowed = filtered.then_some(&allowed);
            let words = allowed.map(|allowed| super::super::words_of(allowed, count));
            let hits = gpu.top_k(&mut lane, &asked, words.as_deref(), k).unwrap();
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

    /// So many rows that each block has several times as many tiles as it holds.
    #[test]
    fn tiles_of_long_rows_are_replaced_again_and_again() {
        for (dimension, count, queries) in [(250, 3_000, 5), (390, 1_500, 70)] {
            let rows = crate::exact::to_f16(&vectors(8, count, dimension));
            let (gpu, mut lane) = gpu(&rows, dimension, 2);
            assert!(count / GROUP_ROWS * padded(dimension) / TILE_VALUES > 4 * STAGES_MAX);
            check(&gpu, &mut lane, &rows, queries, 9);
        }
    }

    /// Every way of scoring, one after the other, with a sample, a first part for a better threshold, and the rest.
    #[test]
    fn any_number_of_queries_goes_through_all_passes() {
        let (dimension, count) = (40, CAPACITY + 300);
        let rows = crate::exact::to_f16(&vectors(11, count, dimension));
        for has_warpgroups in [true, false] {
            let mut machine = Emulator::new(4);
            machine.has_warpgroups = has_warpgroups;
            let (gpu, mut lane) = gpu_of(machine, &rows, dimension, 2);
            let kernels: Vec<Kernel> = [1, 20, 100, 200].map(|queries| gpu.scoring(queries).kernel).to_vec();
            match has_warpgroups {
                true => assert_eq!(kernels, [Kernel::Scan8, Kernel::Scan64, Kernel::Scan128, Kernel::Scan256]),
                false => assert_eq!(kernels, [Kernel::Score8, Kernel::Score32, Kernel::Score128, Kernel::Score128]),
            }
            for queries in [1, REFINED_QUERIES, 100, 200] {
                check(&gpu, &mut lane, &rows, queries, 5);
            }
        }
    }

    fn check(gpu: &GpuRows<Emulator>, lane: &mut SearchLane<Emulator>, rows: &[f16], queries: usize, k: usize) {
        let dimension = gpu.dimension;
        let asked = vectors(queries as u64, queries, dimension);
        let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
        let hits = gpu.top_k(lane, &asked, None, k).unwrap();
        for (query, hits) in asked.iter().zip(&hits) {
            assert_same(hits, &crate::exact::top_k(query, rows, dimension, None, k), 1e-5 * dimension as f32);
        }
    }

    #[test]
    fn rows_come_in_pieces_of_any_size_and_none_is_lost_when_memory_runs_out() {
        let dimension = 5;
        let rows = crate::exact::to_f16(&vectors(4, 900, dimension));
        let machine = Arc::new(Emulator::new(3));
        let mut gpu = GpuRows::new(machine.clone(), dimension);
        let mut lane = SearchLane::new(gpu.machine.as_ref(), dimension).unwrap();
        let query = [0.5f32, -1.0, 0.25, 2.0, 1.0];
        let mut there = 0;
        for (turn, piece) in [1, 2, 60, 1, 64, 130, 7, 300, 335].into_iter().enumerate() {
            let piece_rows = &rows[there * dimension..(there + piece) * dimension];
            // With no memory left, a piece that fits into the room there is comes in all the same.
            machine.allocations_left.store(0, std::sync::atomic::Ordering::Relaxed);
            let refused = gpu.append(&mut lane.queue, piece_rows);
            machine.allocations_left.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
            if let Err(fault) = refused {
                assert!(matches!(fault, GpuError::OutOfMemory { .. }), "{fault}");
                assert_eq!(gpu.count(), there);
                if turn > 0 {
                    let expected = crate::exact::top_k(&query, &rows[..there * dimension], dimension, None, 4);
                    assert_same(&gpu.top_k(&mut lane, &[&query], None, 4).unwrap()[0], &expected, 1e-5);
                }
                gpu.append(&mut lane.queue, piece_rows).unwrap();
            }
            there += piece;
            assert_eq!(gpu.count(), there);
            let expected = crate::exact::top_k(&query, &rows[..there * dimension], dimension, None, 12);
            assert_same(&gpu.top_k(&mut lane, &[&query], None, 12).unwrap()[0], &expected, 1e-5);
        }
    }

    #[test]
    fn rows_of_any_length_take_turns_with_one_lane() {
        let machine = Arc::new(Emulator::new(5));
        let mut lane = SearchLane::new(machine.as_ref(), 130).unwrap();
        for (seed, dimension, count) in [(1, 130, 300), (2, 7, 900), (3, 64, 1), (4, 130, 64)] {
            let rows = crate::exact::to_f16(&vectors(seed, count, dimension));
            let mut gpu = GpuRows::new(machine.clone(), dimension);
            gpu.reserve(&mut lane.queue, count).unwrap();
            // What was reserved is all that is taken.
            machine.allocations_left.store(0, std::sync::atomic::Ordering::Relaxed);
            rows.chunks(100 * dimension).for_each(|part| gpu.append(&mut lane.queue, part).unwrap());
            machine.allocations_left.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(gpu.slabs.iter().map(|slab| slab.room).sum::<usize>() * padded(dimension) * 2, bytes_of(count, dimension));
            let query = vectors(seed ^ 9, 1, dimension);
            // Bits beyond the last row, and rows beyond the last bit, are nothing.
            let allowed = vec![u64::MAX; count.div_ceil(128)];
            let few: RoaringBitmap = (0..(allowed.len() * 64) as u32).collect();
            let hits = gpu.top_k(&mut lane, &[&query], Some(&allowed), 10).unwrap();
            assert_same(&hits[0], &crate::exact::top_k(&query, &rows, dimension, Some(&few), 10), 1e-4);
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
