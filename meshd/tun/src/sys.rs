//! The kernel calls that the standard library does not offer, and the only unsafe code of this crate.
//!
//! Every function here is a thin, checked wrapper: lengths come from slices, descriptors from owned or borrowed types,
//! and no pointer outlives the call that it was made for. Decisions live in the callers.
#![expect(unsafe_code, reason = "this module is the crate's one boundary to raw system calls")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use libc::c_int;

/// Bytes of `struct virtio_net_hdr` in front of every packet on a TUN opened here.
pub(crate) const VNET_HEADER_BYTES: c_int = 10;

/// Datagrams given to one `sendmmsg`, or asked for in one `recvmmsg`.
pub(crate) const MESSAGES_MAX: usize = 64;

/// Longest UDP payload over IPv4, hence the longest run of segments one GSO send may carry (65,535 - 20 - 8).
pub(crate) const UDP_PAYLOAD_MAX: usize = 65_507;

/// Bytes of one receive buffer: a whole UDP GRO super-packet.
pub(crate) const RECEIVE_BUFFER_BYTES: usize = 65_536;

/// Bytes for one control message with an `int`: `CMSG_SPACE(4)` is 24 on 64-bit Linux; a u64 array keeps it aligned.
type Control = [u64; 4];

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A count that the kernel returned, checked to be at least 0.
fn count_of(result: c_int) -> usize {
    usize::try_from(result).unwrap_or(0)
}

/// The length of a value that is passed by pointer.
fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("the structures of system calls are tiny")
}

fn message_count(count: usize) -> libc::c_uint {
    libc::c_uint::try_from(count).expect("at most MESSAGES_MAX")
}

/// `TUNSETIFF`'s flags: no prefix, but a virtio header.
fn tun_flags() -> libc::c_short {
    libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR).expect("the flags fit 15 bits")
}

fn segment_bytes(frame: usize) -> u16 {
    u16::try_from(frame).expect("a frame fits one datagram, which fits 16 bits")
}

/// Opens the TUN interface `name` in the calling thread's network namespace, creating it when it does not exist.
///
/// The descriptor does not block, carries a virtio header in front of each packet and no other prefix.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, `EBUSY` if another process holds the interface, `ENOENT` if the kernel has no TUN.
pub(crate) fn tun_open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = tun_flags();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let size = VNET_HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    Ok(file)
}

/// Makes the interface outlive its descriptors, so that a restarted daemon finds it again.
pub(crate) fn tun_persist(tun: &File, persist: bool) -> io::Result<()> {
    let value = libc::c_ulong::from(persist);
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, value) }).map(drop)
}

/// Announces which super-packets (`TUN_F_*`) this reader understands.
pub(crate) fn tun_offload(tun: &File, flags: u32) -> io::Result<()> {
    let value = libc::c_ulong::from(flags);
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, value) }).map(drop)
}

/// A counter that wakes a poll. It does not block.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer; on success it returns a descriptor that nobody else owns.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Waits without a limit until one of the two descriptors is readable (or has an error); tells which.
pub(crate) fn wait_readable(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> io::Result<[bool; 2]> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(first), entry(second)];
    // SAFETY: the pointer and the count describe `entries`, which outlives the call.
    check(unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) })?;
    Ok(entries.map(|entry| entry.revents != 0))
}

/// Moves the calling thread into a network namespace. Only for threads made for it: it does not move back.
pub(crate) fn enter_netns(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no pointer; the descriptor is open for the borrow's lifetime.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_netns() -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Mounts `source` on `target` (`MS_BIND`).
pub(crate) fn mount_bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    let (source, target) = (path_bytes(source)?, path_bytes(target)?);
    let flags = libc::MS_BIND | if recursive { libc::MS_REC } else { 0 };
    // SAFETY: both strings are terminated and outlive the call; type and data may be null for a bind mount.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
}

/// Makes the mount at `target` propagate to other mount namespaces (`MS_SHARED`).
pub(crate) fn mount_shared(target: &Path) -> io::Result<()> {
    let (none, target) = (c"", path_bytes(target)?);
    let flags = libc::MS_SHARED | libc::MS_REC;
    // SAFETY: both strings are terminated and outlive the call; type and data are ignored when propagation is changed.
    check(unsafe { libc::mount(none.as_ptr(), target.as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
}

/// Detaches the mount at `target`.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = path_bytes(target)?;
    // SAFETY: the string is terminated and outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

fn set_int(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = length_of::<c_int>();
    // SAFETY: pointer and length describe one int on this stack frame.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) }).map(drop)
}

/// Sets a socket buffer beyond the system's limit (needs `CAP_NET_ADMIN`).
pub(crate) fn force_buffers(socket: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?;
    set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

/// Asks for received datagrams of equal size to be handed over together.
pub(crate) fn enable_udp_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows UDP_SEGMENT: 0 switches it off, which every kernel that has it accepts.
pub(crate) fn probe_udp_segment(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// Which addresses a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// An IPv6 socket that also carries IPv4 as mapped addresses.
    Dual,
    /// An IPv4 socket, where the host has no IPv6.
    V4,
}

/// Large and aligned enough for both families; which one it holds is told by `Family`.
type Name = libc::sockaddr_in6;

fn encode_name(family: Family, remote: SocketAddr, name: &mut Name) -> Option<libc::socklen_t> {
    let length = match family {
        Family::Dual => {
            let (ip, scope) = match remote {
                SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
                SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
            };
            name.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).expect("address families fit 16 bits");
            name.sin6_port = remote.port().to_be();
            name.sin6_flowinfo = 0;
            name.sin6_addr.s6_addr = ip.octets();
            name.sin6_scope_id = scope;
            size_of::<libc::sockaddr_in6>()
        }
        Family::V4 => {
            let SocketAddr::V4(v4) = remote else { return None };
            let short = libc::sockaddr_in {
                sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("address families fit 16 bits"),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `Name` is larger than `sockaddr_in` and at least as aligned; both are plain old data.
            unsafe { ptr::from_mut(name).cast::<libc::sockaddr_in>().write(short) };
            size_of::<libc::sockaddr_in>()
        }
    };
    Some(libc::socklen_t::try_from(length).expect("socket address lengths are tiny"))
}

fn decode_name(family: Family, name: &Name) -> SocketAddr {
    match family {
        Family::Dual => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
            }
        }
        Family::V4 => {
            // SAFETY: `Name` is larger than `sockaddr_in` and at least as aligned, and any bytes are a valid one.
            let short = unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(short.sin_addr.s_addr.to_ne_bytes());
            SocketAddr::new(IpAddr::V4(ip), u16::from_be(short.sin_port))
        }
    }
}

/// Consecutive frames in a flat buffer that go to one address as one GSO send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) remote: SocketAddr,
    /// Offset of the first frame in the buffer, in bytes.
    pub(crate) start: usize,
    /// Bytes of all frames together.
    pub(crate) length: usize,
    /// Bytes of every frame but the last, which may be shorter.
    pub(crate) frame: usize,
}

/// Reusable argument arrays of `sendmmsg`.
pub(crate) struct SendArrays {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
}

fn boxed<T: Copy>(value: T) -> Box<[T]> {
    vec![value; MESSAGES_MAX].into_boxed_slice()
}

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_headers() -> Box<[libc::mmsghdr]> {
    // SAFETY: `mmsghdr` is plain old data for which all zeroes (null pointers, lengths of 0) is a valid value.
    boxed(unsafe { mem::zeroed::<libc::mmsghdr>() })
}

fn empty_names() -> Box<[Name]> {
    // SAFETY: `sockaddr_in6` is plain old data for which all zeroes is a valid value.
    boxed(unsafe { mem::zeroed::<Name>() })
}

impl SendArrays {
    pub(crate) fn new() -> Self {
        Self { headers: empty_headers(), vectors: boxed(EMPTY_VECTOR), names: empty_names(), controls: boxed([0; 4]) }
    }

    /// Sends the first runs (at most [`MESSAGES_MAX`]) and returns how many the kernel took.
    ///
    /// A run whose address does not fit the socket's family counts as taken: it could never be sent.
    ///
    /// # Errors
    /// The error of the first run, when not even that one was taken.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        family: Family,
        buffer: &[u8],
        runs: &[Run],
    ) -> io::Result<usize> {
        let mut count = 0;
        for run in runs.iter().take(MESSAGES_MAX) {
            let bytes = &buffer[run.start..run.start + run.length];
            let Some(name_length) = encode_name(family, run.remote, &mut self.names[count]) else {
                if count == 0 {
                    return Ok(1);
                }
                break; // the next call begins with this run and steps over it
            };
            self.vectors[count] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let header = &mut self.headers[count].msg_hdr;
            header.msg_name = (&raw mut self.names[count]).cast();
            header.msg_namelen = name_length;
            header.msg_iov = &raw mut self.vectors[count];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
            if run.length > run.frame {
                let segment = segment_bytes(run.frame);
                header.msg_control = (&raw mut self.controls[count]).cast();
                // SAFETY: CMSG_SPACE only computes. CMSG_SPACE(2) <= size_of::<Control>(), and the array is 8-aligned, so
                // the first header and its two bytes lie inside it; `msg_control` points at it and lives through the call.
                unsafe {
                    header.msg_controllen = libc::CMSG_SPACE(2) as _;
                    let control = libc::CMSG_FIRSTHDR(ptr::from_ref(header));
                    (*control).cmsg_level = libc::SOL_UDP;
                    (*control).cmsg_type = libc::UDP_SEGMENT;
                    (*control).cmsg_len = libc::CMSG_LEN(2) as _;
                    libc::CMSG_DATA(control).cast::<u16>().write_unaligned(segment);
                }
            } else {
                header.msg_control = ptr::null_mut();
                header.msg_controllen = 0;
            }
            count += 1;
        }
        let wanted = message_count(count);
        // SAFETY: the first `count` headers were filled above with pointers into `self` and `buffer`, both borrowed for the
        // whole call; the kernel only reads the payload.
        let sent = check(unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), wanted, 0) })?;
        Ok(count_of(sent))
    }
}

/// Reusable buffers and argument arrays of `recvmmsg`.
///
/// [`MESSAGES_MAX`] buffers of 64 KiB are reserved; memory is used only as far as datagrams ever reached.
pub(crate) struct ReceiveArrays {
    buffer: Vec<u8>,
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    family: Family,
}

/// What one entry of a `recvmmsg` brought: one datagram, or several of equal size from one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) remote: SocketAddr,
    pub(crate) bytes: &'a [u8],
    /// Bytes of every datagram in `bytes` but the last, which may be shorter. At least 1.
    pub(crate) frame: usize,
}

impl ReceiveArrays {
    pub(crate) fn new(family: Family) -> Self {
        Self {
            buffer: vec![0; MESSAGES_MAX * RECEIVE_BUFFER_BYTES],
            headers: empty_headers(),
            vectors: boxed(EMPTY_VECTOR),
            names: empty_names(),
            controls: boxed([0; 4]),
            family,
        }
    }

    /// Waits for one datagram, then takes what else is there, up to `wanted` (at most [`MESSAGES_MAX`]).
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, wanted: usize) -> io::Result<usize> {
        let wanted = wanted.clamp(1, MESSAGES_MAX);
        for (index, buffer) in self.buffer.chunks_exact_mut(RECEIVE_BUFFER_BYTES).take(wanted).enumerate() {
            self.vectors[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = length_of::<Name>();
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        let wanted = message_count(wanted);
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: the first `wanted` headers were filled above with pointers into `self`, borrowed mutably for the whole
        // call; each buffer, name and control array is distinct and as long as stated. A null timeout waits.
        let taken = check(unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), wanted, flags as _, ptr::null_mut())
        })?;
        Ok(count_of(taken))
    }

    /// The `index`th entry of the last [`Self::receive`].
    pub(crate) fn entry(&self, index: usize) -> Received<'_> {
        let header = &self.headers[index];
        let length = usize::try_from(header.msg_len).expect("usize holds 32 bits").min(RECEIVE_BUFFER_BYTES);
        let start = index * RECEIVE_BUFFER_BYTES;
        let bytes = &self.buffer[start..start + length];
        let mut frame = length;
        // SAFETY: the kernel set `msg_controllen` to what it wrote into the control array that `receive` gave it, and that
        // array is still in place; CMSG_FIRSTHDR returns null unless a whole header fits, and the kernel writes an int.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            if !control.is_null() && (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                frame = usize::try_from(size).unwrap_or(length);
            }
        }
        Received { remote: decode_name(self.family, &self.names[index]), bytes, frame: frame.max(1) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn names_survive_both_families() {
        let mut name = empty_names()[0];
        for (family, text) in [
            (Family::Dual, "192.0.2.7:51820"),
            (Family::Dual, "[2001:db8::7]:51820"),
            (Family::Dual, "[fe80::1%3]:9"),
            (Family::V4, "192.0.2.7:51820"),
        ] {
            let remote: SocketAddr = text.parse().expect("an address");
            assert!(encode_name(family, remote, &mut name).is_some());
            assert_eq!(decode_name(family, &name), remote);
        }
        assert!(encode_name(Family::V4, "[::1]:1".parse().expect("an address"), &mut name).is_none());
    }

    #[test]
    fn gso_run_arrives_with_its_frame_size() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        enable_udp_gro(receiver.as_fd()).expect("gro");
        let remote = receiver.local_addr().expect("address");
        let buffer: Vec<u8> = (0..2500u32).map(|i| i.to_le_bytes()[0]).collect();
        let runs = [
            Run { remote, start: 0, length: 2400, frame: 1000 },
            Run { remote: "[::1]:1".parse().expect("an address"), start: 0, length: 1, frame: 1 },
            Run { remote, start: 2400, length: 100, frame: 100 },
        ];
        let mut send = SendArrays::new();
        let mut done = 0;
        while done < runs.len() {
            done += send.send(sender.as_fd(), Family::V4, &buffer, &runs[done..]).expect("send");
        }
        let mut receive = ReceiveArrays::new(Family::V4);
        let mut seen: Vec<Vec<u8>> = Vec::new();
        while seen.len() < 4 {
            let count = receive.receive(receiver.as_fd(), MESSAGES_MAX).expect("receive");
            for index in 0..count {
                let entry = receive.entry(index);
                assert_eq!(entry.remote, sender.local_addr().expect("address"));
                seen.extend(entry.bytes.chunks(entry.frame).map(<[u8]>::to_vec));
            }
        }
        let sizes: Vec<usize> = seen.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1000, 1000, 400, 100]);
        assert_eq!(seen.concat(), buffer);
    }
}
