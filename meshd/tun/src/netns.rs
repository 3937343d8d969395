//! Named network namespaces: `/run/netns/NAME`, as `ip netns` knows them.
//!
//! A thread that enters a namespace never comes back, so everything that happens inside one runs on a thread made for it.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use crate::sys;

const DIRECTORY: &str = "/run/netns";

/// A handle on a network namespace. It keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Where the namespace `name` is pinned.
    #[must_use]
    pub fn path_of(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    /// Opens the namespace pinned as `name`, or makes and pins it.
    ///
    /// # Errors
    /// Whatever the kernel says about directory, mount or namespace; mostly `EPERM`.
    pub fn ensure(name: &str) -> io::Result<Self> {
        if let Some(found) = Self::open(name)? {
            return Ok(found);
        }
        ensure_directory()?;
        let path = Self::path_of(name);
        File::create(&path)?;
        on_own_thread(|| {
            sys::unshare_netns()?;
            sys::mount_bind(Path::new("/proc/thread-self/ns/net"), &path, false)
        })?;
        Self::open(name)?.ok_or_else(|| io::Error::other("the namespace vanished while it was pinned"))
    }

    /// Opens the namespace pinned as `name`, if there is one. A leftover file without a namespace is removed.
    ///
    /// # Errors
    /// If the file cannot be opened or removed.
    pub fn open(name: &str) -> io::Result<Option<Self>> {
        let path = Self::path_of(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match on_own_thread(|| sys::enter_netns(file.as_fd())) {
            Ok(()) => Ok(Some(Self { file, path })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                fs::remove_file(&path)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        Ok(Self { file: File::open(&path)?, path })
    }

    /// Unpins the namespace `name`. It ends when the last socket and process in it do. No such namespace is success.
    ///
    /// # Errors
    /// If it cannot be unmounted or removed.
    pub fn remove(name: &str) -> io::Result<()> {
        let path = Self::path_of(name);
        match sys::unmount(&path) {
            Ok(()) => {}
            // EINVAL: not a mount; ENOENT: no such file.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
            Err(error) => return Err(error),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// If the thread cannot enter, and what `work` returns.
    pub fn run<T: Send, E: From<io::Error> + Send>(&self, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
        on_own_thread(|| {
            sys::enter_netns(self.file.as_fd())?;
            work()
        })
    }

    /// Listens on TCP `address` inside the namespace. The listener does not block, as tokio wants it.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn bind_tcp(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// Binds UDP `address` inside the namespace. The socket does not block, as tokio wants it.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn bind_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.run(|| {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    /// Opens an unconnected TCP socket inside the namespace, for outgoing connections. It does not block.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn tcp_socket(&self, source: SocketAddr) -> io::Result<socket2::Socket> {
        self.run(|| {
            let domain = socket2::Domain::for_address(source);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&source.into())?;
            Ok(socket)
        })
    }
}

/// Runs `work` on a thread that ends with it.
pub(crate) fn on_own_thread<T: Send, E: From<io::Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `/run/netns` a shared mount, so that namespaces pinned there are seen (and freed) in every mount namespace.
fn ensure_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    if sys::mount_shared(directory).is_err() {
        // Not a mount yet: only a mount can be shared, so mount it on itself.
        sys::mount_bind(directory, directory, true)?;
        sys::mount_shared(directory)?;
    }
    Ok(())
}
