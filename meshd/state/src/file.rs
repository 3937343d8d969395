//! Crash-safe writing of small files.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::StateError;

/// Replaces `path` with `bytes` so that after a crash it holds the old or the new content, whole: write a sibling,
/// fsync it, rename it over, fsync the directory. Mode 0600.
///
/// # Errors
/// [`StateError`] naming the path; the old content is then untouched.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut sibling = path.as_os_str().to_owned();
    sibling.push(".new");
    let sibling = Path::new(&sibling);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(sibling)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(sibling, path)
    };
    if let Err(source) = write() {
        let _ = fs::remove_file(sibling); // the sibling is ours alone; losing this error loses nothing
        return Err(StateError::io("write", path, source));
    }
    sync_directory(directory)
}

/// Makes a rename or creation inside `directory` survive a crash.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StateError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| StateError::io("sync", directory, e))
}

/// Creates `path` and its parents, mode 0700, and makes that durable.
pub(crate) fn create_directory(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| StateError::io("create", path, e))?;
    path.parent().map_or(Ok(()), sync_directory)
}
