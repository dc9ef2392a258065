//! One line of log for each call: its method, its code, its time. No request is ever logged as it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::{Code, Status};
use tracing::Instrument;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// Wraps the handlers of one service.
#[derive(Debug, Clone, Copy)]
pub struct Telemetry;

impl Telemetry {
    /// Runs a handler within a span that bears the method and the id of what it is about, and logs how it ended.
    pub async fn observe<T>(
        self,
        method: &'static str,
        about: String,
        handler: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("call", method, call, about);
        let begun = Instant::now();
        let answered = handler.instrument(span.clone()).await;
        let milliseconds = begun.elapsed().as_millis();
        span.in_scope(|| match &answered {
            Ok(_) => tracing::info!(milliseconds, "ok"),
            Err(status) if is_ours(status.code()) => {
                tracing::error!(milliseconds, code = ?status.code(), message = status.message(), "failed");
            }
            Err(status) => {
                tracing::info!(milliseconds, code = ?status.code(), message = status.message(), "refused");
            }
        });
        answered
    }
}

/// Whether an error of this code is the driver's or the machine's fault, and not the caller's.
fn is_ours(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Unknown | Code::DataLoss)
}
