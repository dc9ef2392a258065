//! Copying bytes for jobs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{FileError, data_ranges};

/// The unit in which zeros are left out: no file system that matters has a smaller block, some have larger ones.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Copies the range from `src`, a file or device, to the same place in `dst`, where it must read as zero before: holes of
/// `src`, and blocks of 4 KiB that are all zero, are not written. Reads and writes as much at a time as `buffer` holds,
/// which is some blocks. Moves the position of `src`. Returns how many bytes were written; they last after a sync of `dst`.
///
/// # Errors
/// [`FileError::Failed`] also when `src` gets shorter than the range meanwhile. What was written before stays.
pub fn copy_range(src: &File, dst: &File, range: Range<u64>, buffer: &mut [u8]) -> Result<u64, FileError> {
    if buffer.is_empty() {
        return Err(FileError::of("copy without memory from", src, io::ErrorKind::InvalidInput));
    }
    let mut written = 0;
    for data in data_ranges(src, range.start) {
        let data = data?;
        if data.start >= range.end {
            break;
        }
        written += copy_data(src, dst, data.start..data.end.min(range.end), buffer)?;
    }
    Ok(written)
}

fn copy_data(src: &File, dst: &File, data: Range<u64>, buffer: &mut [u8]) -> Result<u64, FileError> {
    let mut written = 0;
    let mut position = data.start;
    while position < data.end {
        let left = usize::try_from(data.end - position).unwrap_or(usize::MAX);
        let room = buffer.len();
        let chunk = &mut buffer[..left.min(room)];
        src.read_exact_at(chunk, position).map_err(|source| FileError::of("read", src, source))?;
        for run in runs_of_data(chunk) {
            let bytes = &chunk[run.clone()];
            dst.write_all_at(bytes, position + length(run.start))
                .map_err(|source| FileError::of("write", dst, source))?;
            written += length(bytes.len());
        }
        position += length(chunk.len());
    }
    Ok(written)
}

/// Writes `bytes`, again and again, over all data of the range. Holes stay holes; blocks that a clone shares stay the
/// clone's, and the file gets others. The bytes last after a sync.
pub fn overwrite(file: &File, range: Range<u64>, bytes: &[u8]) -> Result<(), FileError> {
    for data in data_ranges(file, range.start) {
        let data = data?;
        if data.start >= range.end {
            break;
        }
        let mut position = data.start;
        let end = data.end.min(range.end);
        while position < end {
            let left = usize::try_from(end - position).unwrap_or(usize::MAX);
            let chunk = &bytes[..left.min(bytes.len())];
            file.write_all_at(chunk, position).map_err(|source| FileError::of("write", file, source))?;
            position += length(chunk.len());
        }
    }
    Ok(())
}

/// The longest runs of blocks that are not all zero.
fn runs_of_data(chunk: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for block in chunk.chunks(BLOCK) {
        let end = start + block.len();
        if *block != ZEROS[..block.len()] {
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}

/// A length in memory as a length in a file.
fn length(bytes: usize) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_blocks_that_are_not_zero() {
        const K: usize = BLOCK;
        for (blocks, expected) in [
            ([0, 0, 0, 0], [].as_slice()),
            ([1, 0, 0, 1], &[(0, K), (3 * K, 4 * K)]),
            ([1, 1, 0, 1], &[(0, 2 * K), (3 * K, 4 * K)]),
            ([1, 1, 1, 1], &[(0, 4 * K)]),
        ] {
            // its last byte makes a block one of data
            let chunk: Vec<u8> = blocks.iter().flat_map(|last| [&ZEROS[1..], &[*last]].concat()).collect();
            let runs: Vec<_> = runs_of_data(&chunk).into_iter().map(|run| (run.start, run.end)).collect();
            assert_eq!(runs, expected);
        }
        assert_eq!(runs_of_data(&[0; 100]).len(), 0);
        assert_eq!(runs_of_data(&[1; 100]), std::slice::from_ref(&(0..100)));
    }
}
