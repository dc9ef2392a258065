//! Work that grows with bytes. One engine for all media: it copies or zeroes in chunks, notes in the record how far it has
//! come, stops between chunks when it is asked to, and goes on from there.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use super::record::{Job, Record, Work};
use super::records::{Entry, RecordError};
use super::store::Store;
use crate::domain::size::MIB;
use crate::domain::{Clean, Key, Kind, Outcome};
use crate::machine::file::{self, FileError};
use crate::medium::{Layout, MediumError};
use crate::step;

/// What is done between two looks at whether to stop.
const CHUNK: u64 = 16 * MIB;
/// How long work may go on without a checkpoint: what a crash costs at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// What is read or written at a time, in bytes.
const BUFFER: usize = 1 << 20;

/// A job did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// It was asked to stop; its record says how far it has come.
    #[error("stopped, to be continued")]
    Stopped,
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The bytes could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes could not be brought to the disk.
    #[error("bringing bytes to the disk")]
    Sync(#[source] std::io::Error),
    /// The bytes could not be opened.
    #[error("opening {}", path.display())]
    Open {
        /// What.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JobError {
    /// Whether it would go on if there were more space.
    pub fn is_for_want_of_space(&self) -> bool {
        matches!(self, JobError::Medium(MediumError::NoSpace(_)) | JobError::File(FileError::NoSpace { .. }))
    }
}

/// Does the job that the record under this key holds, to its end, and takes it out of the record. The caller holds the
/// key's guard, and one on the source; `stop` is asked between chunks.
pub fn run(store: &Store, key: &Key, stop: &dyn Fn() -> bool) -> Result<(), JobError> {
    let Some(Entry { state, record }) = store.records.get(key)? else { return Ok(()) };
    let Some(job) = record.job.clone() else { return Ok(()) };
    let mut progress = Progress { store, key, record: (*record).clone(), state, stop, noted: Instant::now() };
    match &job.work {
        // a copy that is whole may have lost its temporary source already
        Work::Copy { from, size } if job.done < *size => {
            let source = open(store, from, false)?;
            let (target, done) = prepare_copy(store, key, &record, &job)?;
            let mut buffer = vec![0; BUFFER];
            progress.work(&target, done, *size, |range| {
                file::copy_range(&source, &target, range, &mut buffer).map(|_written| ())
            })?;
        }
        Work::Copy { .. } => {}
        Work::Zero { until } => {
            let target = open(store, key, true)?;
            let zeros = vec![0; BUFFER];
            progress.work(&target, job.done, *until, |range| file::overwrite(&target, range, &zeros))?;
        }
    }
    if let Work::Copy { from, size } = &job.work
        && from.kind() == Kind::Temporary
    {
        progress.note(Some(*size))?;
        step!("job.drop-temporary");
        let _ = store.medium.remove(from)?;
    }
    step!("job.done");
    progress.note(None)?;
    store.ledger.release(record.promised().saturating_sub(record.size));
    Ok(())
}

/// Makes the target of a copy, reading as zero: only data is copied, holes stay holes. Answers it, and where to begin.
fn prepare_copy(store: &Store, key: &Key, record: &Record, job: &Job) -> Result<(File, u64), JobError> {
    step!("job.make-target");
    let made = store.medium.make(key, record.size, &Layout { allocation: record.allocation })?;
    // what was done before is in the target that was there before
    let done = if matches!(made, Outcome::Made(_)) { 0 } else { job.done };
    let target = open(store, key, true)?;
    if let (Clean::NeedsZeroing(range), 0) = (made.get(), done) {
        file::zero_range(&target, range)?;
    }
    Ok((target, done))
}

fn open(store: &Store, key: &Key, write: bool) -> Result<File, JobError> {
    let bytes = store.medium.open(key)?;
    open_path(bytes.path(), write)
}

fn open_path(path: &Path, write: bool) -> Result<File, JobError> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map_err(|source| JobError::Open { path: path.to_owned(), source })
}

/// A job under way.
struct Progress<'a> {
    store: &'a Store,
    key: &'a Key,
    record: Record,
    state: super::records::State,
    stop: &'a dyn Fn() -> bool,
    noted: Instant,
}

impl Progress<'_> {
    /// Does the work chunk by chunk, from where it was left to its end, and brings it to the disk.
    fn work(
        &mut self,
        target: &File,
        from: u64,
        to: u64,
        mut act: impl FnMut(std::ops::Range<u64>) -> Result<(), FileError>,
    ) -> Result<(), JobError> {
        let mut done = from;
        while done < to {
            let end = to.min(done + CHUNK);
            act(done..end)?;
            done = end;
            step!("job.chunk");
            let stop = (self.stop)() || self.store.tasks.are_stopping();
            if stop || self.noted.elapsed() >= CHECKPOINT_EVERY {
                sync(target)?;
                self.note(Some(done))?;
            }
            if stop {
                return Err(JobError::Stopped);
            }
        }
        sync(target)
    }

    /// Writes into the record how far the job has come; `None` takes the job out of it.
    fn note(&mut self, done: Option<u64>) -> Result<(), JobError> {
        let job = self.record.job.take();
        self.record.job = job.zip(done).map(|(job, done)| Job { done, ..job });
        self.store.records.put(self.key, self.state, self.record.clone())?;
        self.noted = Instant::now();
        Ok(())
    }
}

fn sync(target: &File) -> Result<(), JobError> {
    file::sync("job.file", target).map_err(JobError::Sync)
}
