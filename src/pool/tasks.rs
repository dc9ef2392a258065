//! What runs apart from the call that began it, counted so that a stop can wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The work under way in this process.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    running: Mutex<usize>,
    ended: Condvar,
    stopping: AtomicBool,
}

/// One piece of work, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Task(Tasks);

impl Tasks {
    /// Counts one more, until the answer is dropped.
    pub fn begin(&self) -> Task {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Task(self.clone())
    }

    /// Runs work on a thread of its own. A panic in it ends that thread alone.
    pub fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let task = self.begin();
        std::thread::Builder::new().name(name).spawn(move || {
            let _task = task;
            work();
        })?;
        Ok(())
    }

    /// Whether jobs are to stop at their next checkpoint.
    pub fn are_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Asks jobs to stop and waits for all work to end, at most this long. Answers what still runs.
    pub fn drain(&self, patience: Duration) -> usize {
        self.0.stopping.store(true, Ordering::Relaxed);
        let end = Instant::now() + patience;
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            running = self.0.ended.wait_timeout(running, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *running
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        *self.0.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.0.ended.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_waits_for_work_and_only_so_long() {
        let tasks = Tasks::default();
        let job = tasks.clone();
        let finish = move || while !job.are_stopping() {};
        tasks.spawn("job".into(), finish).unwrap();
        assert_eq!(tasks.drain(Duration::from_secs(60)), 0);
        let _stuck = tasks.begin();
        assert_eq!(tasks.drain(Duration::from_millis(1)), 1);
    }
}
