//! What a running program prints: read as it comes, so that the program never waits for us, and kept up to a bound.

use std::io::{ErrorKind, Read};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long the pipe of a program that has ended is still read: what it wrote is there already, and a process that it
/// left behind may hold the pipe open for ever.
const GRACE: Duration = Duration::from_secs(1);

/// A thread that reads a pipe to its end.
pub struct Capture {
    kept: Arc<Mutex<Tail>>,
    ended: Receiver<()>,
}

impl Capture {
    /// Reads the pipe from now on and keeps its last `bound` bytes; without a pipe there is nothing to keep.
    pub fn start(pipe: Option<impl Read + Send + 'static>, bound: usize) -> Capture {
        let kept = Arc::new(Mutex::new(Tail::new(bound)));
        let (end, ended) = channel();
        if let Some(mut pipe) = pipe {
            let kept = Arc::clone(&kept);
            thread::spawn(move || {
                read_all(&mut pipe, &kept);
                // nobody waits any more when the grace is over
                let _ = end.send(());
            });
        }
        Capture { kept, ended }
    }

    /// What the program printed, to be asked when it has ended.
    pub fn finish(self) -> Tail {
        // an end of the pipe and the end of the grace are treated alike
        let _ = self.ended.recv_timeout(GRACE);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = kept.bound;
        std::mem::replace(&mut *kept, Tail::new(bound))
    }
}

/// Moves all that comes out of the pipe into the tail.
fn read_all(pipe: &mut impl Read, kept: &Mutex<Tail>) {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => kept.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The last bytes of a stream.
pub struct Tail {
    bound: usize,
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn new(bound: usize) -> Tail {
        Tail { bound, bytes: Vec::new(), cut: false }
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // cut seldom, so that a long stream costs no more than twice its copying
        if self.bytes.len() > self.bound.saturating_mul(2) {
            self.cut_to_bound();
        }
    }

    fn cut_to_bound(&mut self) {
        if let Some(excess) = self.bytes.len().checked_sub(self.bound).filter(|excess| *excess > 0) {
            self.bytes.drain(..excess);
            self.cut = true;
        }
    }

    /// The last bytes as text, and whether more came before them.
    pub fn into_text(mut self) -> (String, bool) {
        self.cut_to_bound();
        (String::from_utf8_lossy(&self.bytes).into_owned(), self.cut)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        for (pushes, text, cut) in [
            (vec![], "", false),
            (vec!["abc"], "abc", false),
            (vec!["abcd"], "abcd", false),
            (vec!["abcde"], "bcde", true),
            (vec!["abcd", "efgh", "i"], "fghi", true),
            (vec!["abcdefghijklm"], "jklm", true),
        ] {
            let mut tail = Tail::new(4);
            pushes.iter().for_each(|push: &&str| tail.push(push.as_bytes()));
            assert_eq!(tail.into_text(), (text.to_owned(), cut), "{pushes:?}");
        }
    }

    #[test]
    fn a_pipe_that_stays_open_is_waited_for_no_longer_than_the_grace() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let capture = Capture::start(Some(reader), 16);
        std::io::Write::write_all(&mut writer, b"said").unwrap();
        assert_eq!(capture.finish().into_text(), ("said".to_owned(), false));
        drop(writer);
    }
}
