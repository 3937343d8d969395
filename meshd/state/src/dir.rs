//! The directory tree and its lock.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use vdc::Name;

use crate::file::{create_directory, sync_directory, write_durably};
use crate::key_file::{self, KeyKind};
use crate::{StateError, Store};

/// The state directory of one running daemon.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for as long as this value lives; the kernel drops the lock with the process.
    _lock: File,
}

impl StateDir {
    /// Opens or creates the directory and locks it.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another daemon holds it; otherwise what the file system said.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        create_directory(&path.join("vdcs"))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| StateError::io("open", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => Err(StateError::io("lock", &lock_path, e)),
        }
    }

    /// The VDCs that this node is in, by local name, ascending. One that was half left is removed; one that was half joined
    /// stays invisible until [`StateDir::begin`] takes it up again.
    ///
    /// # Errors
    /// What the file system said.
    pub fn vdcs(&self) -> Result<Vec<VdcDir>, StateError> {
        let root = self.path.join("vdcs");
        let mut found = Vec::new();
        for entry in fs::read_dir(&root).map_err(|e| StateError::io("list", &root, e))? {
            let entry = entry.map_err(|e| StateError::io("list", &root, e))?;
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            if name.ends_with(".new") {
                // A join that was interrupted: its keys are needed when it is tried again.
                tracing::info!(vdc = %name, "a join was interrupted; the same token can be used again");
            } else if let Some(stem) = name.strip_suffix(".gone") {
                tracing::warn!(vdc = stem, "removing what an interrupted leave left behind");
                fs::remove_dir_all(entry.path()).map_err(|e| StateError::io("remove", &entry.path(), e))?;
            } else if let Ok(alias) = Name::new(&name) {
                found.push(VdcDir { alias, path: entry.path() });
            } else {
                tracing::warn!(path = %entry.path().display(), "ignoring a directory that is no VDC's");
            }
        }
        found.sort_by(|a, b| a.alias.cmp(&b.alias));
        Ok(found)
    }

    /// Whether a VDC of this local name exists.
    #[must_use]
    pub fn contains(&self, alias: &Name) -> bool {
        self.path.join("vdcs").join(alias.as_str()).exists()
    }

    /// Begins a VDC under its local name: invisible until [`VdcDir::publish`], so that a crash leaves no half VDC. What
    /// an interrupted attempt wrote is found again: a retried join keeps its keys.
    ///
    /// # Errors
    /// [`StateError::Exists`] if the local name is taken; otherwise what the file system said.
    pub fn begin(&self, alias: &Name) -> Result<VdcDir, StateError> {
        if self.contains(alias) {
            return Err(StateError::Exists { alias: alias.to_string(), path: self.path.clone() });
        }
        let path = self.path.join("vdcs").join(format!("{alias}.new"));
        create_directory(&path)?;
        Ok(VdcDir { alias: alias.clone(), path })
    }
}

/// One VDC's part of the state directory.
#[derive(Clone, Debug)]
pub struct VdcDir {
    alias: Name,
    path: PathBuf,
}

impl VdcDir {
    /// The VDC's local name.
    #[must_use]
    pub fn alias(&self) -> &Name {
        &self.alias
    }

    /// Where coordination groups have their files.
    #[must_use]
    pub fn coordination(&self) -> PathBuf {
        self.path.join("coord")
    }

    /// Makes a VDC begun with [`StateDir::begin`] visible, atomically and durably. Close the store first and open it
    /// again afterwards: it remembers its path.
    ///
    /// # Errors
    /// What the file system said.
    pub fn publish(mut self) -> Result<Self, StateError> {
        let parent = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let path = parent.join(self.alias.as_str());
        sync_directory(&self.path)?;
        fs::rename(&self.path, &path).map_err(|e| StateError::io("rename", &self.path, e))?;
        sync_directory(&parent)?;
        self.path = path;
        Ok(self)
    }

    /// Removes the VDC's keys and records for good. A crash in the middle is completed at the next start.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(self) -> Result<(), StateError> {
        let mut gone = self.path.as_os_str().to_owned();
        gone.push(".gone");
        let gone = PathBuf::from(gone);
        fs::rename(&self.path, &gone).map_err(|e| StateError::io("remove", &self.path, e))?;
        fs::remove_dir_all(&gone).map_err(|e| StateError::io("remove", &gone, e))
    }

    /// Writes a secret key, mode 0600.
    ///
    /// # Errors
    /// What the file system said.
    pub fn write_key(&self, kind: KeyKind, secret: &[u8; 32]) -> Result<(), StateError> {
        key_file::write(&self.path.join(kind.file_name()), kind, secret)
    }

    /// Reads a secret key.
    ///
    /// # Errors
    /// [`StateError::KeyFile`] if it is none, [`StateError::KeyFileMode`] if others can read it.
    pub fn read_key(&self, kind: KeyKind) -> Result<[u8; 32], StateError> {
        key_file::read(&self.path.join(kind.file_name()), kind)
    }

    /// Whether a key of this kind is kept here.
    #[must_use]
    pub fn has_key(&self, kind: KeyKind) -> bool {
        self.path.join(kind.file_name()).exists()
    }

    /// Opens or creates the VDC's store.
    ///
    /// # Errors
    /// [`StateError::Store`] if the file is damaged.
    pub fn open_store(&self) -> Result<Store, StateError> {
        Store::open(&self.path.join("store"))
    }

    /// Replaces a small file that may be lost without harm but not torn (last paths, last-seen addresses).
    ///
    /// # Errors
    /// What the file system said.
    pub fn write_cache(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        write_durably(&self.path.join(name), bytes)
    }

    /// Reads what [`VdcDir::write_cache`] wrote; nothing if it was never written or cannot be read.
    #[must_use]
    pub fn read_cache(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "starting without this cache");
                None
            }
        }
    }
}
