//! One-way traffic between two hosts of a lab, with the moment at which each piece arrived: what gaps and last packets
//! are measured with.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use meshlab::{Host, wait_until};

/// Pause between two pieces: what a measured gap is exact to.
pub const PACE: Duration = Duration::from_millis(5);
/// How long a read waits before it looks whether the flow was stopped.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of one piece.
const PIECE_BYTES: usize = 200;
/// Arrivals kept: an hour of them.
const ARRIVALS_MAX: usize = 720_000;

/// A sender and a receiver, running until it is dropped.
#[derive(Debug)]
pub struct Flow {
    arrivals: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// Datagrams from one host to a port of the other, which never sends any back.
    ///
    /// # Errors
    /// If the sockets cannot be had.
    pub fn udp(from: &Host, to: &Host, address: &str, port: u16) -> Result<Self> {
        let target = SocketAddr::new(address.parse().context("an address")?, port);
        let receiver = to.enter(|| UdpSocket::bind(SocketAddr::new(any(target.ip()), port)))??;
        let sender = from.enter(|| UdpSocket::bind(SocketAddr::new(any(target.ip()), 0)))??;
        receiver.set_read_timeout(Some(LOOK))?;
        let mut flow = Self::new();
        flow.spawn_sender(move || {
            // A refusal (no tunnel at the moment, port closed) is what the receiver's gap shows.
            let _ = sender.send_to(&[7; PIECE_BYTES], target);
            true
        });
        let arrivals = Arc::clone(&flow.arrivals);
        flow.spawn(move || {
            if receiver.recv_from(&mut [0; 2048]).is_ok() {
                note(&arrivals);
            }
            true
        });
        Ok(flow)
    }

    /// One TCP connection from one host to a port of the other, which never writes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn tcp(from: &Host, to: &Host, address: &str, port: u16) -> Result<Self> {
        const CONNECT: Duration = Duration::from_secs(10);
        let target = SocketAddr::new(address.parse().context("an address")?, port);
        let listener = to.enter(|| TcpListener::bind(SocketAddr::new(any(target.ip()), port)))??;
        let mut sender = from.enter(|| TcpStream::connect_timeout(&target, CONNECT))??;
        let (mut receiver, _) = listener.accept()?;
        sender.set_nodelay(true)?;
        sender.set_write_timeout(Some(Duration::from_secs(60)))?;
        receiver.set_read_timeout(Some(LOOK))?;
        let mut flow = Self::new();
        flow.spawn_sender(move || sender.write_all(&[7; PIECE_BYTES]).is_ok());
        let arrivals = Arc::clone(&flow.arrivals);
        flow.spawn(move || match receiver.read(&mut [0; 65_536]) {
            Ok(0) => false,
            Ok(_) => {
                note(&arrivals);
                true
            }
            Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        });
        Ok(flow)
    }

    fn new() -> Self {
        Self { arrivals: Arc::default(), stop: Arc::default(), threads: vec![] }
    }

    /// Repeats `step` until it says no or the flow is dropped.
    fn spawn(&mut self, mut step: impl FnMut() -> bool + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || while !stop.load(Ordering::Relaxed) && step() {}));
    }

    /// Like [`Self::spawn`], once per [`PACE`] by the clock: a step that was late is made up for by the next ones, up to a
    /// second, so that the number of pieces tells how long the flow ran.
    fn spawn_sender(&mut self, mut step: impl FnMut() -> bool + Send + 'static) {
        let mut due = Instant::now();
        self.spawn(move || {
            due = (due + PACE).max(Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(due));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            step()
        });
    }

    /// Waits until ten more pieces have arrived.
    ///
    /// # Errors
    /// If they do not.
    pub fn wait_flowing(&self, timeout: Duration) -> Result<()> {
        let before = self.arrived();
        Ok(wait_until(timeout, "traffic arrives", || {
            let more = self.arrived() - before;
            if more >= 10 { Ok(()) } else { Err(format!("{more} pieces, {before} before")) }
        })?)
    }

    /// Pieces (of a TCP connection: reads) that arrived so far.
    #[must_use]
    pub fn arrived(&self) -> usize {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// When the last piece arrived.
    #[must_use]
    pub fn last_arrival(&self) -> Option<Instant> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// The longest time without a piece that ended after `start`, one that still lasts included.
    #[must_use]
    pub fn longest_gap(&self, start: Instant) -> Duration {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        longest_gap(&arrivals, start, Instant::now())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic of it was printed already
        }
    }
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn note(arrivals: &Mutex<Vec<Instant>>) {
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    if arrivals.len() < ARRIVALS_MAX {
        arrivals.push(Instant::now());
    }
}

fn longest_gap(arrivals: &[Instant], start: Instant, now: Instant) -> Duration {
    let from = arrivals.partition_point(|at| *at < start).saturating_sub(1);
    let rest = &arrivals[from.min(arrivals.len())..];
    let between = rest.windows(2).map(|pair| pair[1] - pair[0]);
    let open = now.saturating_duration_since(rest.last().copied().unwrap_or(start));
    between.chain([open]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_gap_counts_from_the_piece_before_the_start_to_now() {
        let zero = Instant::now();
        let at = |ms: &[u64]| ms.iter().map(|ms| zero + Duration::from_millis(*ms)).collect::<Vec<_>>();
        let gap = |ms: &[u64], start: u64, now: u64| {
            let point = |ms| zero + Duration::from_millis(ms);
            longest_gap(&at(ms), point(start), point(now)).as_millis()
        };
        assert_eq!(gap(&[0, 900, 905, 910, 1_500, 1_505], 907, 1_510), 590, "the gap before the start does not count");
        assert_eq!(gap(&[0, 5, 10], 7, 800), 790, "it still lasts");
        assert_eq!(gap(&[], 100, 300), 200);
        assert_eq!(gap(&[0, 50], 200, 300), 250, "nothing came since the start");
    }
}
