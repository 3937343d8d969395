//! Host ports that belong to the container: bound, never served. What reaches them is redirected before it gets here; the
//! binding only keeps other programs away, and outlives the daemon.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use workloads_wire::message::Held;

/// Binds one port.
///
/// # Errors
/// The address is none, or somebody else has the port.
pub(crate) fn hold(held: &Held) -> io::Result<OwnedFd> {
    let address = held.address.as_deref().map(str::parse::<IpAddr>).transpose();
    let address = address.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    match address {
        Some(address) => bound(address, held),
        // One socket for both families, if the host has both.
        None => bound(Ipv6Addr::UNSPECIFIED.into(), held).or_else(|error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => bound(Ipv4Addr::UNSPECIFIED.into(), held),
            _ => Err(error),
        }),
    }
}

fn bound(address: IpAddr, held: &Held) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = if held.udp { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // No SO_REUSEADDR and no listen: with the one, two containers could have the port; with the other, it would answer.
    bind(&socket, &SocketAddr::new(address, held.port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_held_port_is_refused_to_others_and_free_afterwards() {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        let held = Held { address: Some("127.0.0.1".to_owned()), port, udp: false };
        assert_eq!(hold(&held).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        drop(free);
        let socket = hold(&held).expect("free");
        assert_eq!(hold(&held).expect_err("held").kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        hold(&held).expect("free again");
        let garbage = Held { address: Some("no address".to_owned()), ..held };
        assert_eq!(hold(&garbage).expect_err("garbage").kind(), io::ErrorKind::InvalidInput);
    }
}
