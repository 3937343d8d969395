//! Files out of a container and into it, as a tar stream.
//!
//! The tree belongs to the container, which may change it at any moment. So no path of it is ever looked up from the
//! outside: each step is one name below an open directory, links are not followed beyond the root, and nothing is read but
//! what turned out to be a plain file after it was opened.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::idmap::RANGE_IDS;

/// Directories within directories; each holds one descriptor open.
const DEPTH_MAX: usize = 256;
/// Entries of one stream.
const ENTRIES_MAX: usize = 2_000_000;

/// How names below the copied path are looked up: no links, no other mount.
const STEP: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A container's tree and how its ids are told.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// First id of the range; 0 where the container has the host's ids.
    base: u32,
}

impl Tree {
    /// # Errors
    /// There is no such directory.
    pub(crate) fn open(root: &Path, base: u32) -> io::Result<Self> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, base })
    }

    fn inside(&self, host: u32) -> u64 {
        // An id outside the range is nobody's.
        let inside = host.checked_sub(self.base).filter(|id| self.base == 0 || *id < RANGE_IDS);
        u64::from(inside.unwrap_or(65_534))
    }

    fn host(&self, inside: u64) -> io::Result<u32> {
        let limit = if self.base == 0 { u64::from(u32::MAX) } else { u64::from(RANGE_IDS) };
        let id = u32::try_from(inside).ok().filter(|_| inside < limit);
        id.and_then(|id| self.base.checked_add(id)).ok_or_else(|| invalid("an owner beyond the container's ids"))
    }

    /// The directory that `path` is in, links followed within the root, and its last name; none for the root itself.
    fn find(&self, path: &Path) -> io::Result<(OwnedFd, Option<PathBuf>)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within)
        };
        match (path.parent(), path.components().next_back()) {
            (Some(parent), Some(Component::Normal(name))) => Ok((open(parent)?, Some(name.into()))),
            _ => Ok((open(path)?, None)),
        }
    }

    /// Writes the file or directory at `path` as a tar stream whose first name is the last of `path`.
    ///
    /// # Errors
    /// There is nothing at `path`, or it cannot be read or written.
    pub(crate) fn write(&self, path: &Path, out: impl Write) -> io::Result<()> {
        let (directory, name) = self.find(path)?;
        let mut walk = Walk { tree: self, tar: tar::Builder::new(out), entries: 0 };
        match name {
            Some(name) => walk.entry(directory.as_fd(), &name, &name, 0)?,
            None => walk.contents(&reopen(directory.as_fd())?, Path::new("."), 0)?,
        }
        walk.tar.into_inner()?.flush()
    }

    /// Unpacks a tar stream below the directory at `path`.
    ///
    /// # Errors
    /// No such directory; a stream that names what lies outside of it, or a device.
    pub(crate) fn read(&self, path: &Path, input: impl Read) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let target = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within)?;
        let mut archive = tar::Archive::new(input);
        for (number, entry) in archive.entries()?.enumerate() {
            if number >= ENTRIES_MAX {
                return Err(invalid("too many entries"));
            }
            self.unpack(target.as_fd(), &mut entry?)?;
        }
        Ok(())
    }

    fn unpack<R: Read>(&self, target: BorrowedFd<'_>, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let path = plain(&entry.path()?)?;
        let header = entry.header();
        let (uid, gid) = (self.host(header.uid()?)?, self.host(header.gid()?)?);
        let owner = (Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)));
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        let kind = header.entry_type();
        let Some(name) = path.file_name().map(PathBuf::from) else { return Ok(()) };
        let parent = self.parents(target, path.parent().unwrap_or(Path::new("")))?;
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        if kind.is_dir() {
            match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let made = rustix::fs::openat2(&parent, &name, flags, Mode::empty(), STEP)?;
            rustix::fs::fchown(&made, owner.0, owner.1)?;
            return Ok(rustix::fs::fchmod(&made, mode)?);
        }
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if kind.is_symlink() {
            let link = entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?;
            rustix::fs::symlinkat(link.as_ref(), &parent, &name)?;
            return Ok(rustix::fs::chownat(&parent, &name, owner.0, owner.1, no_follow)?);
        }
        if kind.is_hard_link() {
            let link = plain(&entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?)?;
            let old = link.file_name().ok_or_else(|| invalid("a link to nothing"))?;
            let from = self.parents(target, link.parent().unwrap_or(Path::new("")))?;
            return Ok(rustix::fs::linkat(&from, old, &parent, &name, AtFlags::empty())?);
        }
        if !kind.is_file() && !kind.is_contiguous() && !kind.is_gnu_sparse() {
            return Err(invalid("neither a file, a directory nor a link"));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = fs::File::from(rustix::fs::openat2(&parent, &name, flags, Mode::RUSR | Mode::WUSR, STEP)?);
        io::copy(entry, &mut file)?;
        // The owner first: giving a file away takes its set-user bits.
        rustix::fs::fchown(&file, owner.0, owner.1)?;
        Ok(rustix::fs::fchmod(&file, mode)?)
    }

    /// The directory at `path` below `target`, made where it is missing.
    fn parents(&self, target: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::openat2(target, ".", flags, Mode::empty(), STEP)?;
        for (depth, name) in path.components().enumerate() {
            if depth >= DEPTH_MAX {
                return Err(invalid("directories nested too deeply"));
            }
            let name: &Path = name.as_ref();
            let open = |directory: &OwnedFd| rustix::fs::openat2(directory, name, flags, Mode::empty(), STEP);
            directory = match open(&directory) {
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                    let made = open(&directory)?;
                    let (uid, gid) = (rustix::fs::Uid::from_raw(self.base), rustix::fs::Gid::from_raw(self.base));
                    rustix::fs::fchown(&made, Some(uid), Some(gid))?;
                    made
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }
}

struct Walk<'a, W: Write> {
    tree: &'a Tree,
    tar: tar::Builder<W>,
    entries: usize,
}

impl<W: Write> Walk<'_, W> {
    fn entry(&mut self, directory: BorrowedFd<'_>, name: &Path, path: &Path, depth: usize) -> io::Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(invalid("too many entries"));
        }
        let seen = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut header = tar::Header::new_gnu();
        header.set_uid(self.tree.inside(seen.st_uid));
        header.set_gid(self.tree.inside(seen.st_gid));
        header.set_mode(seen.st_mode & 0o7777);
        header.set_mtime(u64::try_from(seen.st_mtime).unwrap_or(0));
        header.set_size(0);
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                self.tar.append_data(&mut header, path, io::empty())?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match rustix::fs::openat2(directory, name, flags, Mode::empty(), STEP) {
                    Ok(inner) => self.contents(&inner, path, depth + 1),
                    // Something else is mounted there: the directory alone is told.
                    Err(rustix::io::Errno::XDEV) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let file = fs::File::from(rustix::fs::openat2(directory, name, flags, Mode::empty(), within)?);
                let opened = file.metadata()?;
                if !opened.is_file() {
                    return Err(invalid("a file that changed while it was opened"));
                }
                // It may grow or shrink meanwhile; the stream holds as many bytes as it announced.
                let size = opened.size();
                header.set_size(size);
                self.tar.append_data(&mut header, path, file.take(size).chain(io::repeat(0)).take(size))
            }
            FileType::Symlink => {
                header.set_entry_type(tar::EntryType::Symlink);
                let link = rustix::fs::readlinkat(directory, name, Vec::new())?;
                self.tar.append_link(&mut header, path, std::ffi::OsStr::from_bytes(link.as_bytes()))
            }
            FileType::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                self.tar.append_data(&mut header, path, io::empty())
            }
            // Sockets and devices mean nothing elsewhere.
            _ => Ok(()),
        }
    }

    fn contents(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(invalid("directories nested too deeply"));
        }
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
            if names.len() > ENTRIES_MAX {
                return Err(invalid("too many entries"));
            }
        }
        names.sort_unstable();
        for name in names {
            let name = Path::new(std::ffi::OsStr::from_bytes(&name));
            match self.entry(directory.as_fd(), name, &path.join(name), depth) {
                // It was removed between two looks.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }
}

/// A descriptor of the same directory that can be read.
fn reopen(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, ".", flags, Mode::empty())?)
}

/// A path of names alone. A leading slash and `.` are left out, as every tar program does; `..` is refused.
fn plain(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a path that leads outside")),
        }
    }
    Ok(plain)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 1 << 30;

    fn tree(base: u32) -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().unwrap();
        let opened = Tree::open(directory.path(), base).unwrap();
        (directory, opened)
    }

    fn own(path: &Path, id: u32) {
        std::os::unix::fs::lchown(path, Some(id), Some(id + 1)).unwrap();
    }

    #[test]
    fn a_tree_goes_out_and_in_with_its_owners() {
        let (from, source) = tree(BASE);
        let at = |path: &str| from.path().join(path);
        fs::create_dir_all(at("srv/data/deep")).unwrap();
        fs::write(at("srv/data/deep/file"), "text").unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", at("srv/data/link")).unwrap();
        let long = format!("srv/data/{}", "n".repeat(200));
        fs::write(at(&long), vec![7; 100_000]).unwrap();
        own(&at("srv/data/deep/file"), BASE + 33);
        fs::set_permissions(at("srv/data/deep/file"), std::os::unix::fs::PermissionsExt::from_mode(0o4750)).unwrap();
        let mut stream = Vec::new();
        source.write(Path::new("/srv/data"), &mut stream).unwrap();

        let (to, target) = tree(BASE + RANGE_IDS);
        fs::create_dir(to.path().join("there")).unwrap();
        target.read(Path::new("/there"), &stream[..]).unwrap();
        let file = fs::metadata(to.path().join("there/data/deep/file")).unwrap();
        // The test's own files, of root, are nobody's in the container.
        assert_eq!((file.uid(), file.gid()), (BASE + RANGE_IDS + 33, BASE + RANGE_IDS + 34));
        assert_eq!(file.mode() & 0o7777, 0o4750);
        assert_eq!(fs::metadata(to.path().join("there/data")).unwrap().uid(), BASE + RANGE_IDS + 65_534);
        assert_eq!(fs::read_link(to.path().join("there/data/link")).unwrap(), Path::new("../../../../etc/passwd"));
        let name = Path::new(&long).file_name().unwrap();
        assert_eq!(fs::read(to.path().join("there/data").join(name)).unwrap(), vec![7; 100_000]);
        target.read(Path::new("/there"), &stream[..]).unwrap();
    }

    #[test]
    fn the_whole_root_and_a_single_file_go_out() {
        let (from, source) = tree(0);
        fs::write(from.path().join("one"), "1").unwrap();
        for (path, expected) in [("/", "one"), ("/one", "one"), ("one", "one")] {
            let mut stream = Vec::new();
            source.write(Path::new(path), &mut stream).unwrap();
            let mut archive = tar::Archive::new(&stream[..]);
            let names: Vec<PathBuf> =
                archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
            assert_eq!(names, [Path::new(expected)], "{path}");
        }
        assert!(source.write(Path::new("/none"), Vec::new()).is_err());
    }

    #[test]
    fn links_of_the_container_lead_nowhere_outside() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let (from, source) = tree(0);
        std::os::unix::fs::symlink(outside.path(), from.path().join("escape")).unwrap();
        assert!(source.write(Path::new("/escape/secret"), Vec::new()).is_err());
        assert!(source.read(Path::new("/escape"), &b""[..]).is_err());
        // A stream that goes through a link of the tree is refused, whoever made the link.
        let mut stream = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        stream.append_data(&mut header, "escape/new", &b"x"[..]).unwrap();
        assert!(source.read(Path::new("/"), &stream.into_inner().unwrap()[..]).is_err());
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn hostile_streams_are_refused() {
        let (into, target) = tree(BASE);
        let entry = |name: &[u8], kind: tar::EntryType, uid: u64| {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(uid);
            header.set_gid(0);
            header.set_size(0);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(bytes.len() + 1_024, 0);
            bytes
        };
        for stream in [
            entry(b"../up", tar::EntryType::Regular, 0),
            entry(b"a/../../up", tar::EntryType::Regular, 0),
            entry(b"device", tar::EntryType::Char, 0),
            entry(b"owner", tar::EntryType::Regular, 65_536),
            entry(b"link", tar::EntryType::Link, 0),
            vec![0xff; 1_024],
        ] {
            assert!(target.read(Path::new("/"), &stream[..]).is_err());
        }
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }
}
