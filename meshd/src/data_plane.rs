//! draft
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tokio::sync::mpsc;
use vdc::roster::MemberView;
use vdc::{Ipv4Block, Key, Name, NodePrefix, VdcId};
use vdc_api::{self as api, ApiError};
use crate::config::Config;
use crate::views::TunnelInfo;

#[derive(Debug)]
pub(crate) struct Fabric {}
impl Fabric {
    pub(crate) fn start(_c: &Config) -> anyhow::Result<Self> { Ok(Self {}) }
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> { vec![] }
    pub(crate) fn shutdown(&self) {}
}
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) vdc: VdcId,
    pub(crate) alias: Name,
    pub(crate) prefix: NodePrefix,
    pub(crate) ipv4: Option<Ipv4Block>,
    pub(crate) ipv4_ranges: Vec<Ipv4Block>,
    pub(crate) host_ipv4: bool,
    pub(crate) wg_secret: [u8; 32],
    pub(crate) last_paths: Vec<(Key, SocketAddr)>,
    pub(crate) door_port: u16,
}
#[derive(Debug)]
pub(crate) enum DataEvent { EndpointsWanted(Key), PathChanged, AddressesChanged(Vec<IpAddr>) }
#[derive(Debug)]
pub(crate) struct DataPlane {}
impl DataPlane {
    pub(crate) async fn attach(_f: &Fabric, _n: Network) -> Result<(Self, mpsc::Receiver<DataEvent>, Vec<IpAddr>), ApiError> { let (_a, b) = mpsc::channel(4); Ok((Self {}, b, vec![])) }
    pub(crate) fn detach(&self) {}
    pub(crate) async fn remove(_a: &Name, _v: VdcId) -> Result<(), ApiError> { Ok(()) }
    pub(crate) fn namespace(&self) -> PathBuf { PathBuf::new() }
    pub(crate) fn bind_tcp(&self, a: SocketAddr) -> std::io::Result<std::net::TcpListener> { std::net::TcpListener::bind(a) }
    pub(crate) fn set_members(&self, _p: &[&MemberView]) {}
    pub(crate) fn set_candidates(&self, _n: Key, _c: &[SocketAddr]) {}
    pub(crate) fn endpoints_failed(&self, _n: Key, _w: String) {}
    pub(crate) fn boot_nonce(&self, _n: Key, _b: [u8; 16]) {}
    pub(crate) fn tunnels(&self) -> BTreeMap<Key, TunnelInfo> { BTreeMap::new() }
    pub(crate) fn last_paths(&self) -> Vec<(Key, SocketAddr)> { vec![] }
    pub(crate) fn network_changed(&self) {}
    pub(crate) fn port(&self) -> u16 { 0 }
    pub(crate) fn door_port(&self) -> u16 { 0 }
    pub(crate) fn view(&self) -> api::DataPathView { unreachable!() }
    pub(crate) fn host_interface_index(&self) -> Option<u32> { None }
    pub(crate) fn host_addresses(&self) -> Vec<IpAddr> { vec![] }
    pub(crate) fn set_host_ipv4(&self, _on: bool) -> Result<(), ApiError> { Ok(()) }
}
pub(crate) async fn ipv4_routes() -> Vec<Ipv4Block> { vec![] }
