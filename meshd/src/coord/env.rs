//! What coordination groups stand on in the daemon: files of the VDC's directory, and connections over the infra plane.

use std::io;

use meshd_coord::env::{Class, Directory, Env, TokioRuntime};
use meshd_coord::lines::{Connect, Lines};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use vdc::Key;

use crate::entropy::random;
use crate::vdc_core::CoreHandle;

/// The place of a VDC's groups.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(super) disk: Directory,
    pub(super) lines: Lines<Infra>,
}

impl Env for Place {
    type Runtime = TokioRuntime;
    type Disk = Directory;
    type Transport = Lines<Infra>;

    fn disk(&self) -> &Directory {
        &self.disk
    }

    fn transport(&self) -> &Lines<Infra> {
        &self.lines
    }

    fn random(&self) -> [u8; 16] {
        random()
    }
}

/// Connects over the infra plane, as the node that the VDC knows.
#[derive(Clone, Debug)]
pub(crate) struct Infra {
    pub(super) core: CoreHandle,
}

impl Connect for Infra {
    type Stream = TlsStream<TcpStream>;

    async fn connect(&self, to: Key, _: Class) -> io::Result<TlsStream<TcpStream>> {
        let key = to.to_string();
        let route = self.core.with(move |core| core.infra_route(&key)).await.flatten();
        route.map_err(|error| io::Error::other(error.message))?.frames().await
    }
}
