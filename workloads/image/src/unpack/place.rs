//! Where a name of the tar leads: resolved within the image as seen so far, with its own links followed inside of it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{
    DEPTH_MAX, LINKS_MAX, Layer, NAME_BYTES_MAX, PATH_BYTES_MAX, Problem, UnpackError, copy_metadata, host, modified,
    refuse,
};
use crate::lower::{Found, open_beneath};

/// Where an entry goes: a directory without any link in its path, and a name in it.
pub(super) struct Place {
    pub(super) parent: Rc<OwnedFd>,
    /// Path of the directory, without a slash at either end.
    pub(super) directory: Vec<u8>,
    pub(super) name: Vec<u8>,
}

impl Place {
    pub(super) fn path(&self) -> Vec<u8> {
        join(&self.directory, &self.name)
    }
}

/// What is at some path of the image as seen so far.
pub(super) enum Seen {
    Directory,
    Symlink(Vec<u8>),
    Other,
    Nothing,
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Directory and last part of a path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The parts of a name in the tar. One that begins with a slash is meant from the image's root.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return refuse(path, Problem::Traversal);
    }
    if path.len() > PATH_BYTES_MAX || parts.len() > DEPTH_MAX || parts.iter().any(|part| part.len() > NAME_BYTES_MAX) {
        return refuse(path, Problem::TooLong);
    }
    Ok(parts)
}

impl Layer<'_> {
    /// Resolves where an entry goes. Directories on the way that only lower layers have are made, with all that they
    /// are there; with `create` also those that nobody has, and otherwise there is no place.
    pub(super) fn place(
        &mut self,
        entry: &[u8],
        above: &[&[u8]],
        name: &[u8],
        create: bool,
    ) -> Result<Option<Place>, UnpackError> {
        let directory = above.join(&b'/');
        if let Some((path, parent)) = &self.last_parent
            && *path == directory
        {
            return Ok(Some(Place { parent: Rc::clone(parent), directory, name: name.to_vec() }));
        }
        // Mostly the directory is there, and no link on the way.
        let opened = open_beneath(&self.root, &directory, OFlags::PATH | OFlags::DIRECTORY);
        let (directory, parent) = match opened {
            Ok(parent) => (directory, parent),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let Some(resolved) = self.resolve(entry, above, create)? else { return Ok(None) };
                let opened = open_beneath(&self.root, &resolved, OFlags::PATH | OFlags::DIRECTORY);
                let parent = host(entry, "opening its directory", opened)?;
                (resolved, parent)
            }
            Err(error) => return host(entry, "opening its directory", Err(error)),
        };
        let parent = Rc::new(parent);
        self.last_parent = Some((directory.clone(), Rc::clone(&parent)));
        Ok(Some(Place { parent, directory, name: name.to_vec() }))
    }

    /// Follows links through what the image shows until a path of directories is left, and makes those missing.
    pub(super) fn resolve(
        &mut self,
        entry: &[u8],
        above: &[&[u8]],
        create: bool,
    ) -> Result<Option<Vec<u8>>, UnpackError> {
        let mut ahead: VecDeque<Vec<u8>> = above.iter().map(|part| part.to_vec()).collect();
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    resolved.pop();
                    continue;
                }
                _ => {}
            }
            if resolved.len() >= DEPTH_MAX || part.len() > NAME_BYTES_MAX {
                return refuse(entry, Problem::TooLong);
            }
            let directory = resolved.join(&b'/');
            let path = join(&directory, &part);
            if path.len() > PATH_BYTES_MAX {
                return refuse(entry, Problem::TooLong);
            }
            match self.look(entry, &path)? {
                Seen::Directory => resolved.push(part),
                Seen::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return refuse(entry, Problem::Links);
                    }
                    if target.first() == Some(&b'/') {
                        resolved.clear();
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        ahead.push_front(part.to_vec());
                    }
                }
                Seen::Other => return refuse(entry, Problem::NoDirectory),
                Seen::Nothing if create => {
                    self.keep(&path)?;
                    let parent = host(entry, "opening its directory", self.open_directory(&directory))?;
                    host(
                        entry,
                        "making its directory",
                        rustix::fs::mkdirat(&parent, &part, Mode::from_raw_mode(0o755)),
                    )?;
                    let made = host(entry, "opening its directory", self.open_directory(&path))?;
                    host(entry, "making its directory", rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)))?;
                    self.directories.push((path.clone(), (0, 0)));
                    self.implied.insert(path);
                    resolved.push(part);
                }
                Seen::Nothing => return Ok(None),
            }
        }
        Ok(Some(resolved.join(&b'/')))
    }

    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// What the image shows at a path of directories and a last part. A directory of a lower layer is made in this one.
    pub(super) fn look(&mut self, entry: &[u8], path: &[u8]) -> Result<Seen, UnpackError> {
        let (directory, name) = split(path);
        let parent = host(entry, "opening its directory", self.open_directory(directory))?;
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                return match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Ok(Seen::Directory),
                    FileType::Symlink => {
                        let target = host(entry, "reading a link", rustix::fs::readlinkat(&parent, name, Vec::new()))?;
                        Ok(Seen::Symlink(target.into_bytes()))
                    }
                    _ => Ok(Seen::Other),
                };
            }
            Err(Errno::NOENT) => {}
            Err(error) => return host(entry, "looking at a directory", Err(error)),
        }
        let Some(found) = self.find_lower(entry, path)? else { return Ok(Seen::Nothing) };
        match FileType::from_raw_mode(found.stat.st_mode) {
            FileType::Directory => {
                self.copy_directory(entry, path, &found)?;
                Ok(Seen::Directory)
            }
            FileType::Symlink => {
                let target = host(entry, "reading a link of a lower layer", self.read_lower_link(path, &found))?;
                Ok(Seen::Symlink(target))
            }
            _ => Ok(Seen::Other),
        }
    }

    pub(super) fn read_lower_link(&self, path: &[u8], found: &Found) -> Result<Vec<u8>, Errno> {
        let (directory, name) = split(path);
        let parent = open_beneath(self.lower.layer(found), directory, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(rustix::fs::readlinkat(&parent, name, Vec::new())?.into_bytes())
    }

    /// What the lower layers show at a path, as far as this layer lets it through.
    pub(super) fn find_lower(&mut self, entry: &[u8], path: &[u8]) -> Result<Option<Found>, UnpackError> {
        self.done.used_lower = true;
        let mut end = 0;
        loop {
            if self.opaque.contains(&path[..end]) {
                return Ok(None);
            }
            if end == path.len() {
                break;
            }
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..].iter().position(|byte| *byte == b'/').map_or(path.len(), |slash| start + slash);
            if self.whiteouts.contains(&path[..end]) {
                return Ok(None);
            }
            // An opaque directory hides what is in it, not itself.
            if end == path.len() {
                break;
            }
        }
        host(entry, "looking at the layers below", self.lower.find(path))
    }

    /// Makes a directory of a lower layer in this one, so that something can be put into it. It keeps all it was.
    pub(super) fn copy_directory(&mut self, entry: &[u8], path: &[u8], found: &Found) -> Result<(), UnpackError> {
        self.keep(path)?;
        let (directory, name) = split(path);
        let parent = host(entry, "opening its directory", self.open_directory(directory))?;
        host(entry, "making its directory", rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)))?;
        let made = host(entry, "opening its directory", self.open_directory(path))?;
        let from = open_beneath(self.lower.layer(found), path, OFlags::RDONLY | OFlags::DIRECTORY);
        let from = host(entry, "opening its directory in a lower layer", from)?;
        host(entry, "copying its directory", copy_metadata(&from, &made, &found.stat))?;
        self.directories.push((path.to_vec(), modified(&found.stat)));
        self.implied.insert(path.to_vec());
        Ok(())
    }
}
