//! Files with one value a line, plain or gzipped, read in bounded memory.

use crate::cli::error::CliError;
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BUFFER_BYTES: usize = 1 << 18;

/// What gzip files begin with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A line of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// What it says, without its end.
    Text(Vec<u8>),
    /// It was longer than the limit, and has been skipped.
    TooLong,
}

/// A source of lines that is being read.
pub struct Source {
    /// The lines, unpacked.
    pub reader: Box<dyn BufRead + Send>,
    /// Bytes that were read so far, as the file has them.
    pub position: Arc<AtomicU64>,
    /// Bytes of the file, where it is one.
    pub total_bytes: Option<u64>,
}

/// Opens a file, or standard input for `-`. Gzip is recognised by its content.
pub fn open(path: &Path) -> Result<Source, CliError> {
    let failed = |source| CliError::io(format!("cannot read {}", path.display()), source);
    let (input, total_bytes): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let position = Arc::new(AtomicU64::new(0));
    let counted = Counted { input, position: Arc::clone(&position) };
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, counted);
    let is_gzip = packed.fill_buf().map_err(failed)?.starts_with(&GZIP_MAGIC);
    let reader: Box<dyn BufRead + Send> =
        if is_gzip { Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(packed))) } else { Box::new(packed) };
    Ok(Source { reader, position, total_bytes })
}

struct Counted {
    input: Box<dyn Read + Send>,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The lines of a reader, none longer than a limit.
pub struct Lines<R> {
    reader: R,
    line_bytes_max: usize,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of a reader.
    pub fn new(reader: R, line_bytes_max: usize) -> Lines<R> {
        Lines { reader, line_bytes_max, number: 0 }
    }

    fn read(&mut self) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        let mut began = false;
        let mut too_long = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            began = true;
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.unwrap_or(available.len())];
            too_long |= line.len() + part.len() > self.line_bytes_max;
            if too_long {
                line = Vec::new();
            } else {
                line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(match (began, too_long) {
            (false, _) => None,
            (true, true) => Some(Line::TooLong),
            (true, false) => Some(Line::Text(line)),
        })
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    /// Number of the line, from 1, and what it says.
    type Item = io::Result<(u64, Line)>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.read().transpose()?;
        self.number += 1;
        Some(line.map(|line| (self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(text: &[u8], limit: usize, buffer: usize) -> Vec<(u64, Line)> {
        Lines::new(BufReader::with_capacity(buffer, text), limit).map(Result::unwrap).collect()
    }

    #[test]
    fn lines_are_the_same_whatever_the_buffer_and_long_ones_are_skipped() {
        let text = b"one\n\nthree is too long\nfour\r\nfive";
        for buffer in [1, 2, 3, 7, 100] {
            let lines = all(text, 6, buffer);
            let said = |text: &str| Line::Text(text.as_bytes().to_vec());
            let expected = vec![(1, said("one")), (2, said("")), (3, Line::TooLong), (4, said("four\r")), (5, said("five"))];
            assert_eq!(lines, expected, "buffer of {buffer}");
        }
        assert!(all(b"", 6, 8).is_empty());
        assert_eq!(all(b"123456\n1234567", 6, 8)[1].1, Line::TooLong);
    }

    #[test]
    fn gzip_is_known_by_its_content_and_progress_counts_packed_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let text = "line\n".repeat(10_000);
        let path = folder.path().join("no-extension");
        let mut packer = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap();
        let source = open(&path).unwrap();
        let (position, total) = (Arc::clone(&source.position), source.total_bytes.unwrap());
        assert_eq!(Lines::new(source.reader, 100).count(), 10_000);
        assert_eq!(position.load(Ordering::Relaxed), total);
        assert!(total < 1000);
    }
}
