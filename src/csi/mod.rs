//! The door that CSI comes in by: parse, Status table, the services, telemetry. It is where async ends: each operation runs
//! on a blocking thread, in a task of its own that ends when the operation does, whether its caller waits or not.

mod controller;
mod identity;
mod node;
pub mod parse;
mod registration;
mod status;
mod telemetry;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tonic::{Request, Status};

pub use controller::{Controller, capabilities, listed_snapshot, listed_volume};
pub use identity::Identity;
pub use node::NodeService;
pub use registration::Registration;
pub use telemetry::{Telemetry, register as register_metrics};

pub use status::Coded;

use crate::pool::tasks::Tasks;

/// The largest CSI message that is read or written, in bytes: gRPC's own default.
pub const LARGEST_MESSAGE: usize = 4 << 20;

/// How long before a caller's deadline it is told that the work goes on without it.
const MARGIN: Duration = Duration::from_millis(500);
/// How long a caller waits that named no deadline.
const NO_DEADLINE: Duration = Duration::from_secs(120);

/// When the caller stops waiting (gRPC over HTTP/2, `grpc-timeout`: at most eight digits and a unit).
pub fn deadline<T>(request: &Request<T>) -> Instant {
    let text = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let left = text.and_then(parse_timeout).unwrap_or(NO_DEADLINE);
    Instant::now() + left.saturating_sub(MARGIN.min(left / 4))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Runs an operation in a task of its own, after it got its turn. A caller whose deadline comes first is told ABORTED and
/// asks again; the operation goes on.
async fn run<T, E>(
    tasks: &Tasks,
    turns: Arc<Semaphore>,
    deadline: Instant,
    operation: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Status>
where
    T: Send + 'static,
    E: Coded + Send,
{
    let until = tokio::time::Instant::from_std(deadline);
    let late = || Status::aborted("it is still under way");
    let turn = tokio::time::timeout_at(until, turns.acquire_owned()).await.map_err(|_| late())?;
    let turn = turn.map_err(|_| Status::unavailable("shutting down"))?;
    let task = tasks.begin();
    let span = tracing::Span::current();
    let running = tokio::task::spawn_blocking(move || {
        let (_turn, _task) = (turn, task);
        span.in_scope(operation).map_err(|error| error.status())
    });
    match tokio::time::timeout_at(until, running).await {
        Ok(Ok(done)) => done,
        // what it left is brought to an end by the next call, so the caller must make one
        Ok(Err(panicked)) => Err(Status::unavailable(format!("the operation ended without an answer: {panicked}"))),
        Err(_) => Err(late()),
    }
}

/// Runs what may touch a disk, and is short, where it holds up nobody else.
pub async fn run_apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|panicked| Err(Status::unavailable(format!("it ended without an answer: {panicked}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        for (text, timeout) in [
            ("10S", Some(Duration::from_secs(10))),
            ("1H", Some(Duration::from_secs(3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("", None),
            ("S", None),
            ("10", None),
            ("10ä", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text}");
        }
    }
}
