//! The node's one UDP socket ("magic socket"): WireGuard, probes and QUIC share its port, over IPv6 and IPv4.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use crate::metrics::Counters;
use crate::sys::{self, Family, MESSAGES_MAX, ReceiveArrays, Run, SendArrays, UDP_PAYLOAD_MAX};

/// Kernel buffers of the socket in bytes: about 6 ms of 10 Gbit/s. The kernel books twice that for its own overhead.
const KERNEL_BUFFER_BYTES: usize = 7 * 1024 * 1024;

/// Frames in one GSO send: `UDP_MAX_SEGMENTS` of kernels before 6.9.
const RUN_FRAMES_MAX: usize = 64;

/// Bytes of sealed frames collected before they must leave.
const OUTBOX_BYTES: usize = 256 * 1024;

/// Longest frame: a whole IP packet and WireGuard's 32 bytes.
const FRAME_BYTES_MAX: usize = 65_535 + 32;

/// Remembered addresses whose path takes no GSO send (its MTU is below our frames). The oldest is forgotten.
const UNSEGMENTED_MAX: usize = 16;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("UDP port {port} is in use by another program")]
    PortInUse { port: u16 },
    #[error("no permission to open UDP port {port}")]
    NoPermission { port: u16 },
    #[error("cannot open UDP port {port}")]
    Open {
        port: u16,
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::PortInUse { port } => format!(
                "see who holds it with `ss -lunp sport = :{port}`, then stop that program or configure another listen port"
            ),
            Self::NoPermission { .. } => "run meshd as root or with CAP_NET_ADMIN and CAP_NET_BIND_SERVICE".to_owned(),
            Self::Open { .. } => "see the cause above".to_owned(),
        }
    }

    fn new(port: u16, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse { port },
            io::ErrorKind::PermissionDenied => Self::NoPermission { port },
            _ => Self::Open { port, source },
        }
    }
}

/// What the kernel's UDP can do for us, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOffloads {
    /// One send carries many datagrams (`UDP_SEGMENT`).
    pub segmentation: bool,
    /// One receive brings many datagrams (`UDP_GRO`).
    pub receive: bool,
    /// The socket carries IPv6 besides IPv4.
    pub ipv6: bool,
}

/// The socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct MagicSocket {
    socket: Socket,
    family: Family,
    port: u16,
    receive_offload: bool,
    /// Cleared for good when the network card turns out to be unable (`EIO`).
    segmentation: AtomicBool,
}

impl MagicSocket {
    /// Opens `port` (0 lets the kernel choose) on all addresses.
    pub(crate) fn bind(port: u16) -> Result<Self, SocketError> {
        let open = |domain| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
        let (socket, family) = match open(Domain::IPV6) {
            Ok(socket) => (socket, Family::Dual),
            // EAFNOSUPPORT: the kernel runs without IPv6.
            Err(_) => (open(Domain::IPV4).map_err(|source| SocketError::new(port, source))?, Family::V4),
        };
        let address: SocketAddr = match family {
            Family::Dual => (Ipv6Addr::UNSPECIFIED, port).into(),
            Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        let bound = || -> io::Result<u16> {
            if family == Family::Dual {
                socket.set_only_v6(false)?;
            }
            let forced = libc::c_int::try_from(KERNEL_BUFFER_BYTES).expect("7 MiB fits an int");
            if sys::force_buffers(socket.as_fd(), forced).is_err() {
                socket.set_recv_buffer_size(KERNEL_BUFFER_BYTES)?;
                socket.set_send_buffer_size(KERNEL_BUFFER_BYTES)?;
            }
            socket.bind(&address.into())?;
            let local = socket.local_addr()?.as_socket();
            Ok(local.map_or(port, |local| local.port()))
        };
        let port = bound().map_err(|source| SocketError::new(port, source))?;
        let receive_offload = sys::enable_udp_gro(socket.as_fd()).is_ok();
        let segmentation = AtomicBool::new(sys::probe_udp_segment(socket.as_fd()).is_ok());
        Ok(Self { socket, family, port, receive_offload, segmentation })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn offloads(&self) -> SocketOffloads {
        SocketOffloads {
            segmentation: self.segmentation.load(Ordering::Relaxed),
            receive: self.receive_offload,
            ipv6: self.family == Family::Dual,
        }
    }

    pub(crate) fn receive_arrays(&self) -> ReceiveArrays {
        ReceiveArrays::new(self.family)
    }

    /// Waits for datagrams. After [`Self::stop`] it returns 1 with an empty entry, at once.
    pub(crate) fn receive(&self, arrays: &mut ReceiveArrays, wanted: usize) -> io::Result<usize> {
        arrays.receive(self.socket.as_fd(), wanted)
    }

    /// Ends the receiving thread's wait, now and for ever.
    pub(crate) fn stop(&self) {
        // Linux answers ENOTCONN for an unconnected UDP socket, but wakes its readers all the same.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Sealed frames on their way out: a flat buffer that is filled in place, and the runs in it.
pub(crate) struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// Frames in the last run.
    run_frames: usize,
    arrays: SendArrays,
    unsegmented: Vec<SocketAddr>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; OUTBOX_BYTES].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(MESSAGES_MAX),
            run_frames: 0,
            arrays: SendArrays::new(),
            unsegmented: Vec::with_capacity(UNSEGMENTED_MAX),
        }
    }

    /// Bytes waiting.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Makes room for a frame, sending what waits if it must.
    pub(crate) fn reserve(&mut self, socket: &MagicSocket, counters: &Counters) -> &mut [u8] {
        if self.used + FRAME_BYTES_MAX > self.buffer.len() || self.runs.len() == MESSAGES_MAX {
            self.flush(socket, counters);
        }
        &mut self.buffer[self.used..]
    }

    /// Takes over a frame of `length` bytes that was written to the start of [`Self::reserve`]'s slice.
    pub(crate) fn commit(&mut self, socket: &MagicSocket, remote: SocketAddr, length: usize) {
        let start = self.used;
        self.used += length;
        if let Some(run) = self.runs.last_mut()
            && run.remote == remote
            && run.length == self.run_frames * run.frame // all of them full: only the last may be shorter
            && length <= run.frame
            && length > 0
            && self.run_frames < RUN_FRAMES_MAX
            && run.length + length <= UDP_PAYLOAD_MAX
            && socket.segmentation.load(Ordering::Relaxed)
            && !self.unsegmented.contains(&remote)
        {
            run.length += length;
            self.run_frames += 1;
            return;
        }
        self.runs.push(Run { remote, start, length, frame: length });
        self.run_frames = 1;
    }

    /// Sends everything. A datagram that cannot be sent is counted and forgotten, as the network would.
    pub(crate) fn flush(&mut self, socket: &MagicSocket, counters: &Counters) {
        let mut done = 0;
        while done < self.runs.len() {
            match self.arrays.send(socket.socket.as_fd(), socket.family, &self.buffer, &self.runs[done..]) {
                Ok(sent) => done += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let run = self.runs[done];
                    done += 1;
                    if run.length > run.frame && self.refuses_segmentation(socket, run.remote, &error) {
                        self.send_apart(socket, run, counters);
                    } else {
                        counters.send_failed(&error);
                    }
                }
            }
        }
        counters.sent.add(self.runs.len());
        self.runs.clear();
        self.used = 0;
        self.run_frames = 0;
    }

    /// Whether the error speaks about the GSO form of the send rather than about its destination. Remembers it.
    fn refuses_segmentation(&mut self, socket: &MagicSocket, remote: SocketAddr, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO) => {
                // The device can neither segment nor sum: no path over it can.
                socket.segmentation.store(false, Ordering::Relaxed);
                tracing::info!("UDP segmentation offload switched off: the network card refuses it");
                true
            }
            Some(libc::EINVAL | libc::EMSGSIZE) => {
                // The path's MTU is below our frames, so the kernel must fragment each by itself.
                if self.unsegmented.len() == UNSEGMENTED_MAX {
                    self.unsegmented.remove(0);
                }
                self.unsegmented.push(remote);
                true
            }
            _ => false,
        }
    }

    fn send_apart(&mut self, socket: &MagicSocket, run: Run, counters: &Counters) {
        let end = run.start + run.length;
        let mut at = run.start;
        let mut apart = Vec::with_capacity(RUN_FRAMES_MAX);
        while at < end {
            let length = run.frame.min(end - at);
            apart.push(Run { remote: run.remote, start: at, length, frame: length });
            at += length;
        }
        let mut done = 0;
        while done < apart.len() {
            match self.arrays.send(socket.socket.as_fd(), socket.family, &self.buffer, &apart[done..]) {
                Ok(sent) => done += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    done += 1;
                    counters.send_failed(&error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(arrays: &ReceiveArrays, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        for index in 0..count {
            let entry = arrays.entry(index);
            out.extend(entry.bytes.chunks(entry.frame).map(|frame| (entry.remote, frame.to_vec())));
        }
        out
    }

    #[test]
    fn port_in_use_names_the_port() {
        let first = MagicSocket::bind(0).expect("a free port");
        let error = MagicSocket::bind(first.port()).expect_err("taken");
        assert!(matches!(error, SocketError::PortInUse { port } if port == first.port()));
        assert!(error.hint().contains(&first.port().to_string()));
    }

    #[test]
    fn frames_of_mixed_sizes_and_families_arrive_in_order() {
        let (sender, receiver) = (MagicSocket::bind(0).expect("bind"), MagicSocket::bind(0).expect("bind"));
        let counters = Counters::default();
        let v4: SocketAddr = (Ipv4Addr::LOCALHOST, receiver.port()).into();
        let v6: SocketAddr = (Ipv6Addr::LOCALHOST, receiver.port()).into();
        let sizes = [1000, 1000, 1000, 400, 1000, 2000, 7];
        for remote in [v4, v6] {
            let mut outbox = Outbox::new();
            for (index, size) in sizes.into_iter().enumerate() {
                let fill = u8::try_from(index).expect("few");
                outbox.reserve(&sender, &counters)[..size].fill(fill);
                outbox.commit(&sender, remote, size);
            }
            outbox.flush(&sender, &counters);
            let mut arrays = receiver.receive_arrays();
            let mut seen = Vec::new();
            while seen.len() < sizes.len() {
                let count = receiver.receive(&mut arrays, MESSAGES_MAX).expect("receive");
                seen.extend(frames(&arrays, count));
            }
            for (index, (from, frame)) in seen.iter().enumerate() {
                assert_eq!(from.ip(), remote.ip());
                assert_eq!(from.port(), sender.port());
                assert_eq!(frame.len(), sizes[index]);
                assert!(frame.iter().all(|byte| usize::from(*byte) == index));
            }
        }
    }

    #[test]
    fn stop_wakes_the_receiver() {
        let socket = MagicSocket::bind(0).expect("bind");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut arrays = socket.receive_arrays();
                let count = socket.receive(&mut arrays, 1).expect("no error");
                frames(&arrays, count)
            });
            socket.stop();
            assert!(waiting.join().expect("no panic").is_empty());
        });
        let mut arrays = socket.receive_arrays();
        let count = socket.receive(&mut arrays, 1).expect("no error");
        assert!(frames(&arrays, count).is_empty());
    }
}
