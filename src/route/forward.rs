//! Handing a message on to a host, byte for byte, and its answer back. Only failures of the way are mapped, here.

use std::error::Error;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use super::link::Link;
use crate::csi::LARGEST_MESSAGE;
use crate::domain::error::chain;

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// Hands a message on, with what is sent along, and waits for the answer until the caller's deadline.
pub async fn forward(
    link: &Link,
    path: &'static str,
    message: Bytes,
    metadata: MetadataMap,
    deadline: Instant,
) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(link.channel()).max_decoding_message_size(LARGEST_MESSAGE);
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata;
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    let call = async {
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        grpc.unary(request, PathAndQuery::from_static(path), RawCodec).await
    };
    match tokio::time::timeout_at(deadline.into(), call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(mapped(link, status)),
        Err(_) => Err(late(link)),
    }
}

fn late(link: &Link) -> Status {
    Status::aborted(format!("it is still under way on host {}", link.name))
}

/// What a caller is told where there is no answer of the host: the sidecars ask again after both.
fn mapped(link: &Link, status: Status) -> Status {
    match Way::of(&status) {
        // the host's own words; its headers are not for the caller
        Way::Answered => {
            Status::with_details(status.code(), status.message(), Bytes::copy_from_slice(status.details()))
        }
        Way::Late => late(link),
        Way::Broken => {
            let why = status.source().map_or_else(|| status.message().to_owned(), chain);
            Status::unavailable(format!("host {} cannot be reached: {why}", link.name))
        }
    }
}

/// Whether the host did not say it.
pub fn is_of_the_way(status: &Status) -> bool {
    Way::of(status) != Way::Answered
}

/// How a status came about.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// The host said it.
    Answered,
    /// The message or the answer did not arrive: the host may have done it or not.
    Broken,
    /// The time was over.
    Late,
}

impl Way {
    /// A status that was made on this side has an error as its source, one that a host sent has none.
    fn of(status: &Status) -> Way {
        match (status.source(), status.code()) {
            (None, Code::Cancelled | Code::DeadlineExceeded) => Way::Late,
            // no host says that: it stands for an answer of HTTP alone
            (None, Code::Unknown) => Way::Broken,
            (None, _) => Way::Answered,
            (Some(source), _) if is_timeout(source) => Way::Late,
            (Some(_), _) => Way::Broken,
        }
    }
}

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_says_is_told_from_what_happens_on_the_way() {
        let broken = std::io::Error::other("reset");
        for (status, way) in [
            (Status::not_found("x"), Way::Answered),
            (Status::unavailable("a pool is down"), Way::Answered),
            (Status::unknown("HTTP 431"), Way::Broken),
            (Status::cancelled("Timeout expired"), Way::Late),
            (Status::from_error(Box::new(broken)), Way::Broken),
        ] {
            assert_eq!(Way::of(&status), way, "{status:?}");
        }
    }
}
