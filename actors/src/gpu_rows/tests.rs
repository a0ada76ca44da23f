//! What rows on GPUs promise: they come behind searches, leave when others need room, and whatever fails, the processor answers.

use super::fake::{FakeDevice, FakeGpu};
use super::*;
use half::f16;
use std::sync::atomic::AtomicUsize;

const DIMENSION: usize = 2;
const TENANT: TenantId = TenantId(7);
/// A quarter of the fake's free memory below is just enough for two sets of rows.
const PERCENT: u8 = 25;

struct Numbers(Vec<f16>);

impl Vectors for Numbers {
    fn values(&self) -> &[f16] {
        &self.0
    }
}

/// Rows 0 to `count`, of which the last is the nearest to (1, 0).
fn numbers(count: usize) -> Arc<dyn Vectors> {
    Arc::new(Numbers((0..count).flat_map(|row| [f16::from_f32(row as f32), f16::ONE]).collect()))
}

const ROWS: usize = 100;
const SET_BYTES: u64 = (ROWS * DIMENSION * 2) as u64;

struct Node {
    rows: TenantRows,
    fake: Arc<FakeGpu>,
}

impl Node {
    fn new(in_use: Duration) -> Node {
        let metrics = GpuRowsMetrics::register(&Registry::new()).unwrap();
        let node = Node { rows: TenantRows::new(Arc::new(GpuRows::new(PERCENT, in_use, metrics)), TENANT), fake: Arc::default() };
        node.host();
        node
    }

    fn host(&self) {
        self.rows.gpus.host(0, 11, Box::new(FakeDevice(self.fake.clone(), 800 * SET_BYTES / 100 + 100)));
    }

    fn metrics(&self) -> &GpuRowsMetrics {
        &self.rows.gpus.metrics
    }

    /// The two best rows, when the GPU finds them.
    fn find(&self, seat: &Arc<Seat>) -> Option<Vec<u32>> {
        self.find_of(seat, None, 1.0)
    }

    fn find_of(&self, seat: &Arc<Seat>, bits: Option<&[u64]>, otherwise_seconds: f64) -> Option<Vec<u32>> {
        let search = RowSearch {
            query: &[1.0, 0.0],
            wanted: 2,
            rows: ROWS,
            vectors: &|| numbers(ROWS),
            allowed: [bits.map_or(0, |bits| bits.as_ptr() as usize), 0],
            bits: &|| bits.map(Cow::Borrowed),
            bits_seconds: 0.0,
            otherwise_seconds,
        };
        self.rows.find(seat, &search).map(|found| found[..2].to_vec())
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(20), "never seen: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Searches until the rows are there.
    fn bring(&self, seat: &Arc<Seat>) {
        self.until("the rows on the GPU", || self.find(seat) == Some(vec![99, 98]));
    }

    fn sets(&self) -> usize {
        self.fake.sets.load(Ordering::SeqCst)
    }
}

#[test]
fn rows_come_behind_searches_and_are_searched_then() {
    let (node, seat) = (Node::new(IN_USE), Arc::default());
    node.fake.stop();
    assert_eq!(node.find(&seat), None);
    node.until("the upload", || node.sets() == 1);
    // Nobody waits for it, and nobody asks twice.
    assert_eq!(node.find(&seat), None);
    node.fake.go_on();
    node.bring(&seat);
    assert_eq!(node.sets(), 1);
    assert_eq!(node.find_of(&seat, Some(&[0b1011]), 1.0), Some(vec![3, 1]));
    assert_eq!(node.rows.gpus.memory()[0].rows_bytes, SET_BYTES);
    assert_eq!((node.rows.gpus.memory()[0].encoder_bytes, node.metrics().failures.get()), (11, 0));
    assert!(node.metrics().batch_queries.get_sample_count() >= 2);
    assert!(node.metrics().busy_seconds.with_label_values(&["0"]).get() > 0.0);
}

#[test]
fn without_a_gpu_nothing_is_done() {
    let rows = GpuRows::register(PERCENT, &Registry::new()).unwrap();
    assert!(rows.memory().is_empty());
    assert!(!TenantRows::new(Arc::new(rows), TENANT).is_there());
}

#[test]
fn the_sooner_of_processor_and_gpu_searches() {
    let (node, seat) = (Node::new(IN_USE), Arc::default());
    node.fake.micros.store(100, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(node.find_of(&seat, None, 50e-6), None);
    }
    assert_eq!((node.sets(), seat.ask()), (0, true), "nobody has asked for the rows");
    seat.refuse(Instant::now());
    node.bring(&seat);
    assert_eq!(node.find_of(&seat, None, 50e-6), None);
    assert_eq!(node.find_of(&seat, None, 200e-6), Some(vec![99, 98]));
}

#[test]
fn those_leave_that_were_searched_least_lately_when_others_need_room() {
    let node = Node::new(Duration::ZERO);
    let seats: [Arc<Seat>; 3] = Default::default();
    node.bring(&seats[0]);
    node.bring(&seats[1]);
    assert!(node.find(&seats[0]).is_some());
    node.bring(&seats[2]);
    assert!(seats[0].is_taken() && !seats[1].is_taken() && seats[2].is_taken());
    assert_eq!((node.sets(), node.metrics().evictions.get()), (2, 1));
    assert_eq!(node.rows.gpus.memory()[0].rows_bytes, 2 * SET_BYTES);
}

#[test]
fn rows_that_are_in_use_do_not_leave_for_others() {
    let node = Node::new(Duration::from_secs(3600));
    let seats: [Arc<Seat>; 3] = Default::default();
    node.bring(&seats[0]);
    node.bring(&seats[1]);
    assert_eq!(node.find(&seats[2]), None);
    node.until("a refusal", || seats[2].is_left_alone());
    assert!(seats[0].is_taken() && seats[1].is_taken() && !seats[2].is_taken());
    assert_eq!(node.metrics().evictions.get(), 0);
}

#[test]
fn no_rows_leave_in_vain() {
    let node = Node::new(Duration::ZERO);
    let seats: [Arc<Seat>; 2] = Default::default();
    seats.iter().for_each(|seat| node.bring(seat));
    let host = node.rows.gpus.hosts.read().here[0].clone();
    let all = host.bytes_max;
    assert!(host.hold(all + 1, Duration::ZERO).is_none());
    assert!(host.hold(all, Duration::from_secs(3600)).is_none());
    assert!(seats.iter().all(|seat| seat.is_taken()));
    assert!(host.hold(all, Duration::ZERO).is_some());
    assert_eq!((node.sets(), node.metrics().evictions.get(), host.held_bytes()), (0, 2, 0));
}

#[test]
fn a_failure_is_counted_takes_all_rows_off_and_they_come_again_later() {
    for by_panic in [false, true] {
        let (node, seats) = (Node::new(IN_USE), [Arc::default(), Arc::default()]);
        node.bring(&seats[0]);
        node.bring(&seats[1]);
        let how = if by_panic { &node.fake.panics } else { &node.fake.fails };
        how.store(true, Ordering::SeqCst);
        assert_eq!(node.find(&seats[0]), None);
        assert_eq!(node.metrics().failures.get(), 1);
        assert!(!seats[0].is_taken() && !seats[1].is_taken());
        node.until("freed", || node.sets() == 0);
        // As long as it fails it is tried less and less often.
        node.until("tried again", || {
            node.find(&seats[0]);
            node.metrics().failures.get() >= 3
        });
        assert!(seats[0].failed() >= 3);
        how.store(false, Ordering::SeqCst);
        node.bring(&seats[0]);
        node.bring(&seats[1]);
        assert_eq!(seats[0].failed(), 1, "counted from the beginning again");
    }
}

#[test]
fn waits_after_failures_grow_up_to_a_limit() {
    let waits: Vec<Duration> = (1..40).map(hosted::backoff).collect();
    assert!(waits.is_sorted() && waits[1] == 2 * waits[0] && waits[38] == Duration::from_secs(300));
}

#[test]
fn rows_for_which_the_gpu_has_no_memory_take_nothing_from_others() {
    let (node, seats) = (Node::new(IN_USE), [Arc::default(), Arc::default()]);
    node.bring(&seats[0]);
    node.fake.is_full.store(true, Ordering::SeqCst);
    assert_eq!(node.find(&seats[1]), None);
    node.until("a failure", || node.metrics().failures.get() == 1);
    assert!(seats[0].is_taken());
    assert_eq!(node.rows.gpus.memory()[0].rows_bytes, SET_BYTES);
    // A search that finds no memory leaves with its rows.
    assert_eq!(node.find(&seats[0]), None);
    node.until("freed", || node.sets() == 0);
    node.fake.is_full.store(false, Ordering::SeqCst);
    node.bring(&seats[1]);
}

#[test]
fn a_gpu_that_hangs_in_an_upload_holds_up_no_other() {
    let node = Node::new(IN_USE);
    let roomier: Arc<FakeGpu> = Arc::default();
    node.rows.gpus.host(1, 0, Box::new(FakeDevice(roomier.clone(), 1_000 * SET_BYTES / 100 + 100)));
    let seats: [Arc<Seat>; 4] = Default::default();
    roomier.stop();
    assert_eq!(node.find(&seats[0]), None);
    node.until("the upload that hangs", || roomier.sets.load(Ordering::SeqCst) == 1);
    node.bring(&seats[1]);
    // The one that hangs has more room again, until these wait for it.
    assert_eq!(node.find(&seats[2]), None);
    node.bring(&seats[3]);
    assert_eq!((node.sets(), roomier.sets.load(Ordering::SeqCst)), (2, 1));
    roomier.go_on();
    node.bring(&seats[0]);
    node.bring(&seats[2]);
    assert_eq!((node.sets(), roomier.sets.load(Ordering::SeqCst)), (2, 2));
}

#[test]
fn rows_that_nobody_knows_any_more_are_freed_even_while_they_come() {
    let node = Node::new(IN_USE);
    let seat: Arc<Seat> = Arc::default();
    node.bring(&seat);
    drop(seat);
    node.until("freed", || node.sets() == 0 && node.rows.gpus.memory()[0].rows_bytes == 0);
    let seat: Arc<Seat> = Arc::default();
    node.fake.stop();
    assert_eq!(node.find(&seat), None);
    node.until("the upload", || node.sets() == 1);
    drop(seat);
    node.fake.go_on();
    node.until("freed", || node.sets() == 0 && node.rows.gpus.memory()[0].rows_bytes == 0);
}

#[test]
fn a_gpu_that_is_to_be_opened_again_is_given_back_once_nothing_of_it_is_in_use() {
    let (node, seat) = (Node::new(IN_USE), Arc::default());
    node.bring(&seat);
    let closed_in_vain = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        node.fake.stop();
        let searches = node.fake.searches.load(Ordering::SeqCst);
        let search = scope.spawn(|| node.find(&seat));
        node.until("a search", || node.fake.searches.load(Ordering::SeqCst) > searches);
        for _ in 0..3 {
            assert!(node.rows.gpus.close(0).is_err());
            closed_in_vain.fetch_add(1, Ordering::SeqCst);
            assert!(!node.rows.is_there());
        }
        node.fake.go_on();
        assert_eq!(search.join().unwrap(), Some(vec![99, 98]), "what was under way is answered");
    });
    let gauges = || prometheus::core::Collector::collect(&node.metrics().rows_bytes)[0].get_metric().len();
    assert_eq!(gauges(), 1);
    node.until("closed", || node.rows.gpus.close(0).is_ok());
    assert_eq!(gauges(), 0, "nothing is said of a GPU that is not there");
    assert_eq!((closed_in_vain.into_inner(), node.sets(), Arc::strong_count(&node.fake)), (3, 0, 1));
    assert!(node.rows.gpus.memory().is_empty());
    node.host();
    node.bring(&seat);
}

#[test]
fn what_a_gpu_does_not_answer_the_processor_does() {
    let node = Node::new(IN_USE);
    let seats: [Arc<Seat>; 2] = Default::default();
    seats.iter().for_each(|seat| node.bring(seat));
    let searches = || node.fake.searches.load(Ordering::SeqCst);
    let before = searches();
    node.fake.stop();
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| node.find(&seats[0]));
        node.until("the search that does not end", || searches() > before);
        let waiting = [0, 0, 1].map(|seat| {
            scope.spawn({
                let (node, seats) = (&node, &seats);
                move || node.find(&seats[seat])
            })
        });
        assert!(waiting.into_iter().all(|waits| waits.join().unwrap().is_none()));
        assert!(seats.iter().all(|seat| !seat.is_taken()), "nobody asks it any more");
        assert!(node.metrics().failures.get() >= 1);
        // Nothing of it is freed as long as it hangs, and what others bring and free goes on.
        assert!(node.fake.is_lost.load(Ordering::SeqCst) && node.sets() == 2);
        assert!(node.rows.gpus.close(0).is_err(), "it is still being searched");
        node.fake.go_on();
        assert_eq!(hung.join().unwrap(), Some(vec![99, 98]));
    });
    node.until("the end of it", || node.rows.gpus.close(0).is_ok());
    assert_eq!((node.metrics().queued.get(), node.sets()), (0, 0));
    node.host();
    seats.iter().for_each(|seat| node.bring(seat));
}
