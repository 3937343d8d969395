//! Taking the socket: one daemon per path, no window with wrong permissions, no trouble with what a crash left behind.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::{Access, Limits};

/// How the API is served.
#[derive(Clone, Debug)]
pub struct WebConfig {
    pub socket: PathBuf,
    /// File mode of the socket where the group of [`Access`] exists; without the group it is for its owner alone.
    pub mode: u32,
    pub access: Access,
    pub limits: Limits,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(vdc_api::SOCKET_PATH),
            mode: 0o660,
            access: Access::default(),
            limits: Limits::default(),
        }
    }
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another meshd{} already serves {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    AlreadyRunning { path: PathBuf, pid: Option<u32> },
    #[error("{} is in the way: it is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot make the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    /// A socket's path has at most 107 bytes (unix(7)).
    #[error("the socket path {} is longer than 103 bytes", path.display())]
    PathTooLong { path: PathBuf },
}

/// The socket, taken. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Listener {
    pub(crate) socket: UnixListener,
    pub(crate) config: WebConfig,
    /// Held for as long as the socket is served. The file stays: removing it would let two daemons lock two files.
    _lock: File,
}

impl Listener {
    /// Takes the socket of the config. What a dead daemon left at its path is replaced.
    ///
    /// # Errors
    /// [`ListenError`] if another daemon has it, or the system refuses.
    pub fn bind(config: WebConfig) -> Result<Self, ListenError> {
        let path = config.socket.as_path();
        // The name under which the socket is prepared is four bytes longer.
        if path.as_os_str().len() > 103 {
            return Err(ListenError::PathTooLong { path: path.to_owned() });
        }
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(directory)
                .map_err(|source| ListenError::Directory { path: directory.to_owned(), source })?;
        }
        let lock = lock(path)?;
        check_path_is_free(path)?;
        let socket =
            bind_prepared(path, &config).map_err(|source| ListenError::Bind { path: path.to_owned(), source })?;
        Ok(Self { socket, config, _lock: lock })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.config.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The next daemon replaces it anyway; there is nobody to tell.
        let _removed = fs::remove_file(&self.config.socket);
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(socket: &Path) -> Result<File, ListenError> {
    let path = with_suffix(socket, ".lock");
    let error = |source| ListenError::Lock { path: path.clone(), source };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = (&file).take(32).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(ListenError::AlreadyRunning { path: socket.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(error(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(error)?;
    Ok(file)
}

/// The lock is ours, but a daemon whose lock file was removed may still be there: ask the socket itself.
fn check_path_is_free(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ListenError::Bind { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ListenError::NotASocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(ListenError::AlreadyRunning { path: path.to_owned(), pid: None }),
            Err(_) => Ok(()),
        },
    }
}

/// Binds under another name, sets owner and mode, and moves it into place: nobody ever meets a socket with wrong rights.
fn bind_prepared(path: &Path, config: &WebConfig) -> io::Result<UnixListener> {
    let prepared = with_suffix(path, ".new");
    match fs::remove_file(&prepared) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(&prepared)?;
    // A machine without the file has no groups.
    let group = config.access.group_id().unwrap_or(None);
    let mode = if group.is_some() { config.mode } else { config.mode & 0o700 };
    if group.is_some() {
        chown(&prepared, None, group)?;
    }
    fs::set_permissions(&prepared, fs::Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    fs::rename(&prepared, path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn config(directory: &tempfile::TempDir) -> WebConfig {
        WebConfig { socket: directory.path().join("run/meshd.sock"), ..WebConfig::default() }
    }

    #[test]
    fn second_daemon_is_told_about_the_first() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = Listener::bind(config(&directory)).expect("free");
        let error = Listener::bind(config(&directory)).expect_err("taken");
        assert!(matches!(&error, ListenError::AlreadyRunning { pid: Some(pid), .. } if *pid == std::process::id()));
        assert!(error.to_string().contains("already serves"), "{error}");
        // The first one still answers.
        UnixStream::connect(first.path()).expect("alive");
        drop(first);
        assert!(!directory.path().join("run/meshd.sock").exists(), "the socket file went with its listener");
        drop(Listener::bind(config(&directory)).expect("free again"));
    }

    #[test]
    fn daemon_without_lock_file_is_noticed_by_its_socket() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = Listener::bind(config(&directory)).expect("free");
        fs::remove_file(directory.path().join("run/meshd.sock.lock")).expect("the lock file is there");
        let error = Listener::bind(config(&directory)).expect_err("taken");
        assert!(matches!(error, ListenError::AlreadyRunning { pid: None, .. }), "{error}");
        drop(first);
    }

    #[test]
    fn stale_socket_is_replaced_and_other_files_are_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = config(&directory);
        fs::create_dir_all(directory.path().join("run")).expect("writable");
        drop(UnixListener::bind(&config.socket).expect("a socket file without a listener"));
        assert!(config.socket.exists());
        let listener = Listener::bind(config.clone()).expect("stale sockets are replaced");
        UnixStream::connect(listener.path()).expect("alive");
        drop(listener);

        fs::write(&config.socket, "precious").expect("writable");
        let error = Listener::bind(config.clone()).expect_err("not ours to remove");
        assert!(matches!(error, ListenError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(&config.socket).expect("still there"), "precious");
    }

    #[test]
    fn mode_depends_on_the_group() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let groups = directory.path().join("group");
        let own_gid = fs::metadata(directory.path()).expect("there").gid();
        let mut config = config(&directory);
        config.access.group_file = groups.clone();

        fs::write(&groups, "other:x:4:\n").expect("writable");
        let listener = Listener::bind(config.clone()).expect("free");
        assert_eq!(fs::metadata(listener.path()).expect("there").mode() & 0o777, 0o600);
        drop(listener);

        fs::write(&groups, format!("meshd:x:{own_gid}:\n")).expect("writable");
        let listener = Listener::bind(config).expect("free");
        let metadata = fs::metadata(listener.path()).expect("there");
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, own_gid));
    }

    #[test]
    fn overlong_path_is_refused_by_name() {
        let socket = PathBuf::from(format!("/tmp/{}", "x".repeat(100)));
        let error = Listener::bind(WebConfig { socket, ..WebConfig::default() }).expect_err("too long");
        assert!(matches!(error, ListenError::PathTooLong { .. }));
    }
}
