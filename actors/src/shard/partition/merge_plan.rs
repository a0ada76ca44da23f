//! Which vector segments are written again as one.

/// Part of a segment's rows that may be dead before it is written again.
const DEAD_PART_MAX: f64 = 0.3;
/// Up to so many rows, segments are joined as soon as they are of like size: to index them anew is a matter of a tenth of a second.
const FEW_ROWS: u64 = 32_768;
/// Beyond, so many segments of like size become one: while rows come fast, indexing each of them again and again would cost more than storing it, and a
/// search finds quickly in a few segments.
const JOINED_MIN: u64 = 4;
/// So many while rows come so fast that more than [`FEW_ROWS`] of them have gathered: an import that goes on for minutes would otherwise index each of its
/// rows four times, the last time once it has ended and everything is joined ([`when_idle`]).
const JOINED_MIN_FAST: u64 = 16;
/// When nothing else is to do, small segments join the largest once they are together this part of it. A segment that is too small for
/// an index is searched exactly, and a row that is scored exactly costs as much as thirty that the index passes over.
const JOINED_PART_MIN: f64 = 1.0 / 32.0;

/// A segment, as the plan sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentSize {
    /// Rows that are there.
    pub(super) live: u64,
    /// Rows that were written.
    pub(super) written: u64,
}

impl SegmentSize {
    fn is_worn(self) -> bool {
        (self.written - self.live) as f64 > self.written as f64 * DEAD_PART_MAX
    }
}

/// The segments to join with `added` new rows, from the smallest on: one of few rows as long as it is no larger than all before it together, larger ones
/// once there are several of like size. So their number stays logarithmic in the number of rows, and so does how often a row is written.
pub(super) fn with_new_rows(segments: &[SegmentSize], added: u64) -> Vec<usize> {
    let sorted = by_size(segments);
    let joined_min = joined_min(added);
    let mut total = added;
    let mut taken = 0;
    while let Some((_, next)) = sorted.get(taken) {
        let is_small = next.live <= total && next.live + total <= FEW_ROWS;
        let like = sorted[taken..].iter().take_while(|(_, segment)| tier(segment.live) <= tier(total)).count();
        let joined = if is_small { 1 } else { like };
        if !is_small && (like as u64) + 1 < joined_min {
            break;
        }
        total += sorted[taken..taken + joined].iter().map(|(_, segment)| segment.live).sum::<u64>();
        taken += joined;
    }
    let mut joined: Vec<usize> = sorted[..taken].iter().map(|(number, _)| *number).collect();
    joined.sort_unstable();
    joined
}

/// Segments of like size that are to become one when so many rows are added at once.
pub(super) fn joined_min(added: u64) -> u64 {
    if added > FEW_ROWS { JOINED_MIN_FAST } else { JOINED_MIN }
}

/// Segments of the same tier are of like size.
fn tier(rows: u64) -> u32 {
    let many = rows / FEW_ROWS;
    if many == 0 { 0 } else { 1 + many.ilog(JOINED_MIN) }
}

/// The segments to join when no rows came for a while; none when it is not worth it.
pub(super) fn when_idle(segments: &[SegmentSize]) -> Vec<usize> {
    let sorted = by_size(segments);
    let Some(((largest, size), smaller)) = sorted.split_last() else { return Vec::new() };
    let rest: u64 = smaller.iter().map(|(_, segment)| segment.live).sum();
    if size.is_worn() || rest as f64 > size.live as f64 * JOINED_PART_MIN {
        return (0..segments.len()).collect();
    }
    let mut joined: Vec<usize> = smaller.iter().map(|(number, _)| *number).filter(|number| number != largest).collect();
    joined.sort_unstable();
    if joined.len() > 1 || smaller.iter().any(|(_, segment)| segment.is_worn()) { joined } else { Vec::new() }
}

fn by_size(segments: &[SegmentSize]) -> Vec<(usize, SegmentSize)> {
    let mut sorted: Vec<(usize, SegmentSize)> = segments.iter().copied().enumerate().collect();
    sorted.sort_by_key(|(number, segment)| (segment.live, *number));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(rows: u64) -> SegmentSize {
        SegmentSize { live: rows, written: rows }
    }

    /// The segments after so many rounds of so many rows each, the most that there were, and how many rows were written.
    fn after(rounds: u64, added: u64) -> (Vec<SegmentSize>, usize, u64) {
        let (mut segments, mut most, mut written) = (Vec::new(), 0, 0);
        for _ in 0..rounds {
            let joined = with_new_rows(&segments, added);
            let mut size = added;
            for number in joined.into_iter().rev() {
                size += segments.remove(number).live;
            }
            written += size;
            segments.push(whole(size));
            most = most.max(segments.len());
        }
        (segments, most, written)
    }

    #[test]
    fn segments_stay_few_and_rows_are_written_seldom() {
        let (_, most, written) = after(256, 4096);
        assert!(most <= 16 && written <= 256 * 4096 * 8, "{most} {written}");
    }

    #[test]
    fn rows_that_come_fast_are_written_less_often() {
        let (segments, _, written) = after(64, 16_384);
        assert!(segments.len() <= 10 && written <= 64 * 16_384 * 5, "{segments:?} {written}");
    }

    #[test]
    fn an_import_writes_its_rows_once_or_twice() {
        let (segments, most, written) = after(128, 65_536);
        assert!(most <= 24 && written <= 128 * 65_536 * 2, "{most} {written}");
        let few = segments.iter().filter(|segment| segment.live < 1 << 20).count();
        assert_eq!(with_new_rows(&segments, 4096).len(), few, "they are joined once rows come slowly");
    }

    #[test]
    fn an_idle_partition_comes_to_rest() {
        for sizes in [vec![100, 40], vec![4096, 8192, 63_000], vec![1000, 5, 5, 5], vec![7]] {
            let mut segments: Vec<SegmentSize> = sizes.into_iter().map(whole).collect();
            for round in 0.. {
                let joined = when_idle(&segments);
                if joined.is_empty() {
                    break;
                }
                assert!(round < 3, "{segments:?}");
                let size = joined.iter().map(|number| segments[*number].live).sum();
                for number in joined.into_iter().rev() {
                    segments.remove(number);
                }
                segments.push(whole(size));
            }
            assert!(segments.len() <= 2);
        }
    }

    #[test]
    fn dead_rows_are_dropped() {
        assert_eq!(when_idle(&[SegmentSize { live: 10, written: 100 }]), [0]);
        assert!(when_idle(&[SegmentSize { live: 90, written: 100 }]).is_empty());
    }
}
