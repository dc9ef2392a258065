//! One line of log for each call, and what is counted of it: its method, its code, its time. No request is ever logged as it
//! is.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::{Code, Status};
use tracing::Instrument;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// What is counted of all calls of this process.
static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    ended: Family::default(),
    // from 1 ms to a minute and more
    seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 9))),
    under_way: Family::default(),
});

struct Metrics {
    ended: Family<Ended, Counter>,
    seconds: Family<Called, Histogram>,
    under_way: Family<Called, Gauge>,
}

/// A method of CSI or of ours; there are some fifty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    method: &'static str,
    code: &'static str,
}

/// Has what is counted of calls shown with the rest.
pub fn register(registry: &mut Registry) {
    let Metrics { ended, seconds, under_way } = &*METRICS;
    registry.register("rpcs", "Calls that were answered, by their gRPC code", ended.clone());
    registry.register_with_unit("rpc_duration", "How long calls took", Unit::Seconds, seconds.clone());
    registry.register("rpcs_under_way", "Calls that were not answered yet", under_way.clone());
}

/// A call under way. One whose caller has gone, so that nobody answers it any more, counts as cancelled.
struct Call {
    method: &'static str,
    begun: Instant,
    code: Code,
}

impl Call {
    fn begin(method: &'static str) -> Call {
        METRICS.under_way.get_or_create(&Called { method }).inc();
        Call { method, begun: Instant::now(), code: Code::Cancelled }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (method, code) = (self.method, code_name(self.code));
        METRICS.under_way.get_or_create(&Called { method }).dec();
        METRICS.ended.get_or_create(&Ended { method, code }).inc();
        METRICS.seconds.get_or_create(&Called { method }).observe(self.begun.elapsed().as_secs_f64());
    }
}

/// The code as the gRPC specification writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

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
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("call", method, call = number, about);
        let mut call = Call::begin(method);
        let answered = handler.instrument(span.clone()).await;
        call.code = answered.as_ref().err().map_or(Code::Ok, Status::code);
        let milliseconds = call.begun.elapsed().as_millis();
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
