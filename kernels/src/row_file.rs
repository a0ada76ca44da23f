//! Rows of a file, read one by one: for who would rather not have them in memory. What was read lies in the system's cache of files, which is nobody's
//! memory; each row costs a system call, less than a microsecond.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Rows that are not asked for and lie between others are read with them when they are so few: that is quicker than another call.
const GAP_ROWS_MAX: u32 = 8;
/// Rows that are read together at most.
const RUN_ROWS_MAX: u32 = 1024;

/// Rows of one length, one after the other in a file.
pub struct RowFile {
    file: File,
    start: u64,
    row_bytes: usize,
}

impl RowFile {
    /// Rows of `row_bytes` bytes, the first of which begins at `start`.
    pub fn new(file: File, start: u64, row_bytes: usize) -> RowFile {
        RowFile { file, start, row_bytes }
    }

    /// Reads the rows of these numbers in their order into `to`, which must have the length of as many. Rows that lie near each other are best asked for
    /// after each other.
    ///
    /// # Errors
    /// If the file cannot be read, or has no such row.
    ///
    /// # Panics
    /// If `to` has another length.
    pub fn read(&self, numbers: &[u32], to: &mut [u8]) -> io::Result<()> {
        assert_eq!(to.len(), numbers.len() * self.row_bytes, "room for another number of rows");
        let (mut numbers, mut to) = (numbers, to);
        let mut between = Vec::new();
        while let Some(first) = numbers.first() {
            let run = run_of(numbers);
            let (own, rest) = numbers.split_at(run);
            let room;
            (room, to) = to.split_at_mut(run * self.row_bytes);
            numbers = rest;
            let span = (own[run - 1] - first) as usize + 1;
            if span == run {
                self.read_at(*first, room)?;
                continue;
            }
            between.resize(span * self.row_bytes, 0);
            self.read_at(*first, &mut between)?;
            for (number, row) in own.iter().zip(room.chunks_exact_mut(self.row_bytes)) {
                row.copy_from_slice(&between[(number - first) as usize * self.row_bytes..][..self.row_bytes]);
            }
        }
        Ok(())
    }

    fn read_at(&self, number: u32, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, self.start + u64::from(number) * self.row_bytes as u64)
    }
}

/// How many of the numbers, from the first on, are read together.
fn run_of(numbers: &[u32]) -> usize {
    let goes_on = |pair: &[u32]| pair[1] > pair[0] && pair[1] - pair[0] <= GAP_ROWS_MAX && pair[1] - numbers[0] < RUN_ROWS_MAX;
    1 + numbers.windows(2).take_while(|pair| goes_on(pair)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const START: usize = 5;
    const ROW_BYTES: usize = 3;
    const ROWS: u32 = 3000;

    fn row(number: u32) -> [u8; ROW_BYTES] {
        [number as u8, (number >> 8) as u8, 7]
    }

    fn file() -> RowFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; START]).unwrap();
        (0..ROWS).for_each(|number| file.write_all(&row(number)).unwrap());
        RowFile::new(file, START as u64, ROW_BYTES)
    }

    proptest! {
        #[test]
        fn rows_are_read_in_the_order_in_which_they_are_asked_for(
            mut numbers in prop::collection::vec(prop_oneof![0..ROWS, 0..40u32], 0..200),
            is_sorted in any::<bool>(),
        ) {
            if is_sorted {
                numbers.sort_unstable();
            }
            let mut read = vec![0; numbers.len() * ROW_BYTES];
            file().read(&numbers, &mut read).unwrap();
            let right: Vec<u8> = numbers.iter().flat_map(|number| row(*number)).collect();
            prop_assert_eq!(read, right);
        }
    }

    #[test]
    fn all_rows_are_read_and_none_that_is_not_there() {
        let numbers: Vec<u32> = (0..ROWS).collect();
        let mut read = vec![0; numbers.len() * ROW_BYTES];
        file().read(&numbers, &mut read).unwrap();
        assert!(read.chunks(ROW_BYTES).zip(numbers).all(|(read, number)| read == row(number)));
        let fault = file().read(&[ROWS], &mut [0; ROW_BYTES]).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::UnexpectedEof);
    }
}
