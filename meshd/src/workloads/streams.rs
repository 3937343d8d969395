//! Bytes between the API's clients and what runs in a workload.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use vdc_api::{self as api, ApiError, ErrorCode};
use workloads_container::{Copy, StreamPoint};

use super::network::blocking;
use super::{Handle, Workloads, driver_error, spec};
use crate::error::system;

impl Workloads {
    /// Runs one more program and connects its streams.
    pub(crate) async fn exec(&self, handle: &Handle, request: &api::ExecRequest) -> Result<UnixStream, ApiError> {
        let (driver, id, request) = (Arc::clone(&self.driver), handle.id, spec::exec(request)?);
        let point = blocking(move || driver.exec(id, &request)).await?;
        connect(point.map_err(|error| driver_error(&error))?).await
    }

    /// Connects the streams of the workload's own program, also of one that is just being started and waits for that.
    pub(crate) async fn attach(&self, handle: &Handle) -> Result<UnixStream, ApiError> {
        let held = handle.status.borrow().held.clone();
        if let Some(point) = held {
            return connect(point).await;
        }
        let (driver, id) = (Arc::clone(&self.driver), handle.id);
        let point = blocking(move || driver.attach(id)).await?;
        connect(point.map_err(|error| driver_error(&error))?).await
    }

    /// Connects a tar stream of a path in the workload.
    pub(crate) async fn copy(&self, handle: &Handle, request: &api::CopyRequest) -> Result<UnixStream, ApiError> {
        if !request.path.starts_with('/') {
            return Err(ApiError::bad_request("path", "the path in the container begins with /"));
        }
        let direction = match request.direction {
            api::CopyDirection::Out => Copy::Out,
            api::CopyDirection::In => Copy::In,
        };
        let (driver, id, path) = (Arc::clone(&self.driver), handle.id, request.path.clone());
        let point = blocking(move || driver.copy(id, direction, Path::new(&path))).await?;
        connect(point.map_err(|error| driver_error(&error))?).await
    }
}

/// Connects and shows the token.
async fn connect(point: StreamPoint) -> Result<UnixStream, ApiError> {
    let connected = async {
        let directory = point.socket.parent().unwrap_or(Path::new("/"));
        let name = point.socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // By the directory's descriptor: a long path does not fit into a socket's address.
        let opened = std::fs::File::open(directory)?;
        let path = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(name);
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&point.token).await?;
        Ok::<_, io::Error>(stream)
    };
    connected.await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ApiError::new(ErrorCode::NotRunning, "the workload has just ended")
        }
        _ => system("the workload's streams cannot be reached", &error),
    })
}
