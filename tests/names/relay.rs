//! The network between a controller and a host: a relay of the test's own, one for each pair, which loses, holds back and
//! delays what goes either way. What is held back arrives late, as a network's own repetitions do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What becomes of the bytes that go one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    Passes,
    /// They arrive when the network is mended, if anybody still listens.
    Stalls,
    /// They arrive a little later.
    Drags,
}

/// One pair's network.
pub struct Relay {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// To the host, and from it.
    flows: [AtomicU8; 2],
    /// How many bytes have passed, to the host and from it.
    passed: [AtomicU64; 2],
    is_broken: AtomicBool,
    is_over: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

const LOOK: Duration = Duration::from_millis(5);
const DRAG: Duration = Duration::from_millis(150);

impl Relay {
    pub fn to(host: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            flows: Default::default(),
            passed: Default::default(),
            is_broken: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let inner = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if inner.is_over.load(Ordering::SeqCst) {
                    return;
                }
                if inner.is_broken.load(Ordering::SeqCst) {
                    continue;
                }
                let state = Arc::clone(&inner);
                std::thread::spawn(move || state.connect(near, host));
            }
        });
        Relay { address, state }
    }

    /// From now on bytes to the host, and from it, fare like this.
    pub fn flow(&self, to_host: Flow, from_host: Flow) {
        for (at, flow) in [to_host, from_host].into_iter().enumerate() {
            self.state.flows[at].store(flow as u8, Ordering::SeqCst);
        }
    }

    /// How many bytes of the host's have come through.
    pub fn heard(&self) -> u64 {
        self.state.passed[1].load(Ordering::SeqCst)
    }

    /// All connections end, and no new one is let through until it is whole again.
    pub fn break_off(&self, is_broken: bool) {
        self.state.is_broken.store(is_broken, Ordering::SeqCst);
        if is_broken {
            self.state.end_all();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        self.state.end_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn end_all(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn connect(self: Arc<Self>, near: TcpStream, host: SocketAddr) {
        // a knock that is held back reaches nobody
        while self.flow(0) == Flow::Stalls && !self.is_over.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
        }
        let Ok(far) = TcpStream::connect(host) else { return };
        let copies = [near.try_clone(), far.try_clone(), near.try_clone(), far.try_clone()];
        let [Ok(near_in), Ok(far_out), Ok(near_kept), Ok(far_kept)] = copies else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).extend([near_kept, far_kept]);
        let other = Arc::clone(&self);
        std::thread::spawn(move || other.pump(far, near, 1));
        self.pump(near_in, far_out, 0);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, way: usize) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            while self.flow(way) == Flow::Stalls && !self.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
            }
            if self.flow(way) == Flow::Drags {
                std::thread::sleep(DRAG);
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
            self.passed[way].fetch_add(length as u64, Ordering::SeqCst);
        }
        // the last bytes are on their way before the end is seen
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn flow(&self, way: usize) -> Flow {
        match self.flows[way].load(Ordering::SeqCst) {
            0 => Flow::Passes,
            1 => Flow::Stalls,
            _ => Flow::Drags,
        }
    }
}
