//! The wide-area network between the sites: a user-space router with a TUN for each uplink.
//!
//! [`network::Network`] decides, without sockets or clocks; this module's thread moves frames between it and the TUNs.

mod dns;
mod frame;
pub(crate) mod network;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use self::frame::{FRAME_LEN_MAX, Frame};
use self::network::{Network, PortId};
use crate::link::{LinkOptions, Prefixes};
use crate::sys;

/// Frames read from one uplink before the others get their turn.
const BATCH_FRAMES: usize = 64;

/// The WAN and its thread; ends when dropped.
#[derive(Debug)]
pub(crate) struct Wan {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    network: Mutex<Network>,
    /// The TUN of each port, by its number.
    tuns: Mutex<Vec<Arc<File>>>,
    /// Interrupts the thread's wait: there is a new TUN, or it is over.
    wake: EventFd,
    is_over: AtomicBool,
}

impl Wan {
    pub(crate) fn start(seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            network: Mutex::new(Network::new(seed)),
            tuns: Mutex::default(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            is_over: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new().name("wan".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                // Both only sharpen the timing; a container may forbid them.
                let _ = sys::raise_priority();
                let _ = nix::sys::prctl::set_timerslack(1);
                shared.run();
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Connects a router's TUN.
    pub(crate) fn connect(&self, tun: File, prefixes: Prefixes, options: LinkOptions) -> io::Result<PortId> {
        let mut tuns = lock(&self.shared.tuns);
        let port = self.network().add_port(prefixes, options);
        tuns.push(Arc::new(tun));
        self.shared.wake.write(1)?;
        Ok(port)
    }

    /// The network, for knobs and counters; do not hold it for long.
    pub(crate) fn network(&self) -> MutexGuard<'_, Network> {
        lock(&self.shared.network)
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        // The counter of an eventfd is full only after 2⁶⁴ - 2 wakes.
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut tuns = Vec::new();
        let mut buffer = vec![0; FRAME_LEN_MAX];
        let mut received: Vec<(PortId, Frame)> = Vec::new();
        let mut transmits = VecDeque::new();
        while !self.is_over.load(Ordering::Acquire) {
            let timeout = lock(&self.network).poll_timeout();
            let ready = self.wait(&mut tuns, timeout);
            for port in ready {
                if !receive(port, &tuns[port.0], &mut buffer, &mut received) {
                    // Its interface is gone for good, and would keep the wait from waiting.
                    tuns[port.0] = None;
                }
            }
            let now = Instant::now();
            let mut network = lock(&self.network);
            for (port, frame) in received.drain(..) {
                network.handle_frame(now, port, frame);
            }
            network.handle_timeout(now);
            while let Some(transmit) = network.poll_transmit() {
                transmits.push_back(transmit);
            }
            drop(network);
            for (port, frame) in transmits.drain(..) {
                // A router whose interface is down loses packets like any other.
                if let Some(mut tun) = tuns.get(port.0).and_then(Option::as_deref) {
                    let _ = tun.write(frame.as_bytes());
                }
            }
        }
    }

    /// Waits for frames, a wake or the timeout; returns the ports with something to read.
    fn wait(&self, tuns: &mut Vec<Option<Arc<File>>>, timeout: Option<Instant>) -> Vec<PortId> {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        let mut ports = Vec::new();
        for (index, tun) in tuns.iter().enumerate() {
            if let Some(tun) = tun {
                fds.push(PollFd::new(tun.as_fd(), PollFlags::POLLIN));
                ports.push(PortId(index));
            }
        }
        let timeout = timeout.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
        // An error is an interrupted wait: everything is simply tried again.
        if ppoll(&mut fds, timeout, None).is_err() {
            return Vec::new();
        }
        let is_woken = fds[0].any() == Some(true);
        let ready = ports.into_iter().zip(&fds[1..]).filter(|(_, fd)| fd.any() == Some(true)).map(|(p, _)| p).collect();
        if is_woken {
            let _ = self.wake.read();
            let all = lock(&self.tuns);
            tuns.extend(all[tuns.len()..].iter().cloned().map(Some));
        }
        ready
    }
}

/// Reads a batch of frames; false if the TUN has lost its interface.
fn receive(port: PortId, tun: &Option<Arc<File>>, buffer: &mut [u8], received: &mut Vec<(PortId, Frame)>) -> bool {
    let Some(mut tun) = tun.as_deref() else { return true };
    for _ in 0..BATCH_FRAMES {
        match tun.read(buffer) {
            Ok(len) => received.extend(Frame::from_bytes(&buffer[..len]).map(|frame| (port, frame))),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted,
        }
    }
    true
}

/// A poisoned lock means that a tap panicked in a test that has failed anyway; counters and cables are still sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
