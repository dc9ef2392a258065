//! The host's side of Read: the blocks of what nobody writes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::csi::Coded;
use crate::domain::Id;
use crate::machine::file;
use crate::pool::Host;
use crate::pool::operations::{ReadError, with_quiet_bytes};
use crate::proto::internal::Blocks;

/// How many bytes one message brings at most.
const CHUNK: u64 = 1 << 20;

/// What another host is sent.
pub type BlockStream = ReceiverStream<Result<Blocks, Status>>;

/// How long a reader may take for one message.
const PATIENCE: Duration = Duration::from_secs(30);

/// Begins to send the blocks from this byte on. The guard on the source is held until the last one is on its way, or until
/// nobody listens any more.
pub fn read(host: Arc<Host>, id: Id, from: u64) -> BlockStream {
    let (sender, receiver) = mpsc::channel(4);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let to = Listener { runtime, sender };
        let sent = with_quiet_bytes(&host, id, |bytes| send(bytes, from, &to));
        if let Err(error) = sent {
            to.tell(Err(error.status()));
        }
    });
    ReceiverStream::new(receiver)
}

/// Who reads.
struct Listener {
    runtime: Handle,
    sender: mpsc::Sender<Result<Blocks, Status>>,
}

impl Listener {
    /// Hands a message on; false when nobody takes it in time.
    fn tell(&self, message: Result<Blocks, Status>) -> bool {
        self.runtime.block_on(self.sender.send_timeout(message, PATIENCE)).is_ok()
    }
}

fn send(bytes: &File, from: u64, to: &Listener) -> Result<(), ReadError> {
    for range in file::data_ranges(bytes, from) {
        let range = range?;
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from(CHUNK.min(range.end - at)).unwrap_or(0);
            let mut data = vec![0; length];
            bytes.read_exact_at(&mut data, at).map_err(ReadError::Bytes)?;
            if !to.tell(Ok(Blocks { at, data })) {
                return Ok(());
            }
            at += CHUNK;
        }
    }
    Ok(())
}
