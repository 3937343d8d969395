//! The host's own addresses, as candidates that peers may try, and word when they change.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::Instant;

use crate::netlink::OWNER_MARK;

/// How long changes are collected before they are told: an interface that comes up sends several.
const SETTLE: Duration = Duration::from_millis(200);

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Watches the addresses of the network namespace it was made in.
///
/// Drive order: await [`AddressWatch::changed`] in a loop; the first one answers at once.
pub struct AddressWatch {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    handle: Handle,
    messages: Messages,
    last: Option<Vec<(IpAddr, u8)>>,
    /// When the list is read: something has changed since it was read last.
    read_at: Option<Instant>,
}

impl std::fmt::Debug for AddressWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatch").field("last", &self.last).finish_non_exhaustive()
    }
}

impl AddressWatch {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the netlink socket cannot be opened.
    pub fn new() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Link];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(Self { connection: Box::pin(connection), handle, messages, last: None, read_at: None })
    }

    /// Waits until the list differs from the one told last, and returns it: addresses with the prefix lengths of their
    /// networks, IPv6 first, then by value.
    ///
    /// # Errors
    /// If the kernel closes the connection. The watch is of no use then.
    ///
    /// # Cancel safety
    /// Safe: what was not told yet is told by the next call.
    pub async fn changed(&mut self) -> io::Result<Vec<(IpAddr, u8)>> {
        loop {
            if self.last.is_some() {
                self.wait_for_message().await?;
            }
            let addresses = self.list().await?;
            self.read_at = None;
            if self.last.as_ref() != Some(&addresses) {
                self.last = Some(addresses.clone());
                return Ok(addresses);
            }
        }
    }

    async fn wait_for_message(&mut self) -> io::Result<()> {
        let closed = || io::Error::other("the netlink connection ended");
        if self.read_at.is_none() {
            tokio::select! {
                // cancel-safe: the future is kept and polled again.
                () = &mut self.connection => return Err(closed()),
                // cancel-safe: an unbounded receiver loses nothing.
                message = self.messages.next() => if message.is_none() { return Err(closed()) },
            }
        }
        // The message is taken: whoever drops this future from here on finds it noted.
        let settled = tokio::time::sleep_until(*self.read_at.get_or_insert_with(|| Instant::now() + SETTLE));
        tokio::pin!(settled);
        loop {
            tokio::select! {
                // cancel-safe: as above. The list is read after the last message, so losing some is harmless.
                () = &mut self.connection => return Err(closed()),
                message = self.messages.next() => if message.is_none() { return Err(closed()) },
                () = &mut settled => return Ok(()),
            }
        }
    }

    async fn list(&mut self) -> io::Result<Vec<(IpAddr, u8)>> {
        let handle = self.handle.clone();
        tokio::select! {
            // cancel-safe: kept and polled again.
            () = &mut self.connection => Err(io::Error::other("the netlink connection ended")),
            // cancel-safe: only reads.
            addresses = list_addresses(&handle) => addresses,
        }
    }
}

async fn list_addresses(handle: &Handle) -> io::Result<Vec<(IpAddr, u8)>> {
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(io::Error::other)?;
    let usable: Vec<u32> = links
        .iter()
        .filter(|link| {
            let ours = link.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::IfAlias(alias) => alias.starts_with(OWNER_MARK),
                _ => false,
            });
            let flags = link.header.flags;
            !ours && flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback)
        })
        .map(|link| link.header.index)
        .collect();
    let messages: Vec<_> = handle.address().get().execute().try_collect().await.map_err(io::Error::other)?;
    let mut addresses: Vec<(IpAddr, u8)> = messages
        .iter()
        .filter(|message| usable.contains(&message.header.index))
        .filter_map(|message| Some((candidate_address(message)?, message.header.prefix_len)))
        .collect();
    addresses.sort_by_key(|(address, length)| (address.is_ipv4(), *address, *length));
    addresses.dedup();
    Ok(addresses)
}

/// The address of a message, if a peer could reach it and it is here to stay.
fn candidate_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut local = None;
    let mut address = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Address(found) => address = Some(*found),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated) {
        return None;
    }
    local.or(address).filter(|address| is_reachable_from_elsewhere(*address))
}

fn is_reachable_from_elsewhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()),
        IpAddr::V6(v6) => {
            let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            !(link_local || v6.is_loopback() || v6 == Ipv6Addr::UNSPECIFIED || v6.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_use_are_candidates() {
        for (text, usable) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_reachable_from_elsewhere(text.parse().expect("an address")), usable, "{text}");
        }
    }
}
