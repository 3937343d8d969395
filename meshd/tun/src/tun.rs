//! The persistent TUN interface of one VDC.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

/// The interface's name; it is alone in its VDC's network namespace.
pub const TUN_INTERFACE: &str = "mesh0";

/// What the kernel hands over and takes in super-packets, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOffloads {
    /// Checksums are ours to finish.
    pub checksum: bool,
    pub tcp4: bool,
    pub tcp6: bool,
    /// UDP segmentation (Linux 6.2 and newer), both families.
    pub udp: bool,
}

/// An attached TUN. Dropping it leaves the interface, its routes and its addresses in place.
#[derive(Debug)]
pub struct Tun {
    file: File,
    mtu_bytes: u32,
    offloads: TunOffloads,
}

impl Tun {
    /// Attaches to (or makes) the interface in the calling thread's network namespace and makes it persistent.
    pub(crate) fn open(name: &str, mtu_bytes: u32) -> io::Result<Self> {
        let file = sys::tun_open(name)?;
        sys::tun_persist(&file, true)?;
        let offloads = probe_offloads(|flags| sys::tun_offload(&file, flags).is_ok());
        Ok(Self { file, mtu_bytes, offloads })
    }

    /// Longest packet in bytes.
    #[must_use]
    pub fn mtu_bytes(&self) -> u32 {
        self.mtu_bytes
    }

    #[must_use]
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Tells the kernel to hand over wire-sized packets with finished checksums (for comparison and for odd kernels).
    ///
    /// # Errors
    /// Those of the `ioctl`.
    pub fn disable_offloads(&mut self) -> io::Result<()> {
        sys::tun_offload(&self.file, 0)?;
        self.offloads = TunOffloads { checksum: false, tcp4: false, tcp6: false, udp: false };
        Ok(())
    }

    /// Reads one packet with its virtio header. `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet with its virtio header.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(slices)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Asks for everything, then for less and less: old kernels and containers refuse unknown bits as a whole.
fn probe_offloads(mut accepts: impl FnMut(u32) -> bool) -> TunOffloads {
    let tcp = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    for wanted in [tcp | udp, tcp, libc::TUN_F_TSO4, libc::TUN_F_TSO6, 0] {
        if accepts(libc::TUN_F_CSUM | wanted) {
            return TunOffloads {
                checksum: true,
                tcp4: wanted & libc::TUN_F_TSO4 != 0,
                tcp6: wanted & libc::TUN_F_TSO6 != 0,
                udp: wanted & udp != 0,
            };
        }
    }
    TunOffloads { checksum: false, tcp4: false, tcp6: false, udp: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_falls_back_one_by_one() {
        let refuse = |bits: u32| probe_offloads(|flags| flags & bits == 0);
        assert_eq!(refuse(0), TunOffloads { checksum: true, tcp4: true, tcp6: true, udp: true });
        assert_eq!(refuse(libc::TUN_F_USO6), TunOffloads { checksum: true, tcp4: true, tcp6: true, udp: false });
        assert_eq!(
            refuse(libc::TUN_F_USO4 | libc::TUN_F_TSO6),
            TunOffloads { checksum: true, tcp4: true, tcp6: false, udp: false }
        );
        assert!(!refuse(libc::TUN_F_CSUM).checksum);
    }
}
