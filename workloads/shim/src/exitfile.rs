//! Writes how the container ended, so that it is known even if nobody listened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file under another name and renames it, so that a reader sees all of it or none.
///
/// # Errors
/// The directory cannot be written.
pub(crate) fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durable {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_replaces_its_predecessor_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("exit");
        for (bytes, durable) in [(b"one", true), (b"two", false)] {
            write(&path, bytes, durable).expect("written");
            assert_eq!(fs::read(&path).expect("read"), bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
    }
}
