//! One layer's tar, unpacked into a directory in the form that overlayfs stacks: what the layer deletes becomes a
//! character device 0:0, a directory that hides what is below it carries `trusted.overlay.opaque`.
//!
//! Names in the tar are foreign. They are resolved here, against what the layer and those below show, with the image's
//! own links followed inside of the image as every other tool of the field does; what comes out is opened by the kernel
//! beneath the layer's directory with no link followed at all. So no name leads out, whatever the tar says.

mod place;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use self::place::{Place, parts, split};
use crate::lower::{Found, Lower, OPAQUE, copy_content, open_beneath};
use crate::tar::{Entry, Kind, Name, Tar, TarError};

/// What files that stand for a deletion begin with.
const WHITEOUT: &[u8] = b".wh.";
/// The file that makes its directory opaque.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Files of AUFS for itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// As many links as the kernel follows in one name.
const LINKS_MAX: u32 = 40;
/// Longest name of a file and longest path, as the kernel has them.
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4_096;
/// Deepest directory: so deep a tree can still be walked with one open directory for each level.
const DEPTH_MAX: usize = 256;
/// Largest file, holes included.
const FILE_BYTES_MAX: u64 = 8 << 40;
/// Largest numbers of a device on Linux.
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;
/// How often the space left is asked for.
const SPACE_CHECK_BYTES: u64 = 32 << 20;

/// How much one layer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the tar.
    pub entries: u64,
    /// Plain bytes of the tar.
    pub bytes: u64,
    /// Plain bytes for each compressed one, after the first 16 MiB.
    pub ratio: u64,
    /// Bytes of names that are kept to the end: of directories, for their times, and of whiteouts.
    pub kept_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30, ratio: 1_000, kept_bytes: 64 << 20 }
    }
}

/// What came of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of content that were written.
    pub bytes: u64,
    /// Whether the layers below had a say in it: over others it would have become something else.
    pub used_lower: bool,
    /// Whether the layer says whose the root is; if not, the one below decides.
    pub has_root: bool,
    /// Whether nothing of the layers below shows at all. Overlayfs does not look for that mark on a root, so the layers
    /// below must be left out of the stack.
    pub hides_all: bool,
    /// Extended attributes that no image may set here, and were left out.
    pub attributes_dropped: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar itself cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that must not be.
    #[error("{entry} {problem}")]
    Entry {
        /// The entry.
        entry: Name,
        /// What is wrong with it, and what to do.
        problem: Problem,
    },
    /// More of something than a layer may have.
    #[error("the layer has more than {max} {of}: it is refused as a bomb; split it into several layers if it is not")]
    TooMuch {
        /// Of what.
        of: &'static str,
        /// How many are taken.
        max: u64,
    },
    /// This machine could not make an entry.
    #[error("{entry}: {step}")]
    Host {
        /// The entry.
        entry: Name,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It has `..` in its name or in the name of its target.
    #[error(
        "has \"..\" in a name and would lead out of the image: build the image with a tool that writes clean names"
    )]
    Traversal,
    /// A name longer than files have.
    #[error(
        "has a name longer than {NAME_BYTES_MAX} bytes, or a path longer than {PATH_BYTES_MAX} or deeper than {DEPTH_MAX}"
    )]
    TooLong,
    /// Links that lead in a circle.
    #[error("goes through more than {LINKS_MAX} symbolic links")]
    Links,
    /// It is below something that is no directory.
    #[error("is below something that is no directory")]
    NoDirectory,
    /// A hard link to nothing.
    #[error("is another name of a file that is neither in its layer nor below: the layers are not of one image")]
    NoTarget,
    /// A hard link to a directory.
    #[error("is another name of a directory, which no filesystem has")]
    DirectoryTarget,
    /// A character device 0:0.
    #[error("is the device 0:0, by which overlayfs deletes: write a file with the prefix .wh. in its place")]
    WhiteoutDevice,
    /// A device with a number beyond what there is.
    #[error("is a device with a number that Linux does not have")]
    Device,
    /// A whiteout of nothing, or a name inside of a whiteout.
    #[error("has the prefix .wh. where it deletes nothing that can be named")]
    Whiteout,
    /// The root as something else than a directory.
    #[error("would make the root of the image something else than a directory")]
    Root,
    /// A file larger than filesystems take.
    #[error("is larger than {FILE_BYTES_MAX} bytes")]
    Size,
    /// A symbolic link with no target, or one too long.
    #[error("is a symbolic link with a target that is empty or longer than {PATH_BYTES_MAX} bytes")]
    Target,
}

/// Where the space left is asked for: with the bytes written since the last time.
pub type SpaceCheck<'a> = &'a mut dyn FnMut() -> io::Result<()>;

/// Unpacks a layer into an empty directory, which must be on a filesystem with extended attributes.
///
/// # Errors
///
/// [`UnpackError`]. What was unpacked until then stays, for the caller to remove.
pub fn unpack(
    tar: impl Read,
    into: OwnedFd,
    lower: &Lower,
    limits: &Limits,
    space: SpaceCheck<'_>,
) -> Result<Unpacked, UnpackError> {
    let mut tar = Tar::new(tar);
    let mut layer = Layer {
        root: Rc::new(into),
        lower,
        limits,
        space,
        unchecked_bytes: 0,
        last_parent: None,
        whiteouts: BTreeSet::new(),
        opaque: BTreeSet::new(),
        implied: BTreeSet::new(),
        directories: Vec::new(),
        kept_bytes: 0,
        buffer: vec![0; 128 << 10],
        done: Unpacked::default(),
    };
    while let Some(entry) = tar.next_entry()? {
        layer.done.entries += 1;
        if layer.done.entries > limits.entries {
            return Err(UnpackError::TooMuch { of: "entries", max: limits.entries });
        }
        layer.take(&entry, &mut tar)?;
    }
    // What follows the end of the tar belongs to the layer's digest.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
    layer.finish()
}

struct Layer<'a> {
    root: Rc<OwnedFd>,
    lower: &'a Lower,
    limits: &'a Limits,
    space: SpaceCheck<'a>,
    unchecked_bytes: u64,
    /// The directory that was opened last: entries come directory by directory.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Paths that the layer deletes from those below.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Directories below which nothing of the lower layers shows.
    opaque: BTreeSet<Vec<u8>>,
    /// What the layer itself does not list and is here all the same: directories on the way to what it lists, files that
    /// it gives another name. A whiteout of them deletes them.
    implied: BTreeSet<Vec<u8>>,
    /// Directories and their times, which change with every entry in them and are set at the end.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    kept_bytes: usize,
    buffer: Vec<u8>,
    done: Unpacked,
}

/// Puts the name of the entry to what the kernel says.
fn host<T>(path: &[u8], step: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, UnpackError> {
    result.map_err(|error| UnpackError::Host { entry: Name::new(path), step, source: error.into() })
}

fn refuse<T>(path: &[u8], problem: Problem) -> Result<T, UnpackError> {
    Err(UnpackError::Entry { entry: Name::new(path), problem })
}

impl Layer<'_> {
    fn take(&mut self, entry: &Entry, tar: &mut Tar<impl Read>) -> Result<(), UnpackError> {
        let parts = parts(&entry.path)?;
        let Some((name, above)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return refuse(&entry.path, Problem::Root);
            }
            self.done.has_root = true;
            let root = Rc::clone(&self.root);
            return self.finish_directory(entry, Vec::new(), &root);
        };
        if above.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if above.iter().any(|part| part.starts_with(WHITEOUT)) {
            return refuse(&entry.path, Problem::Whiteout);
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(entry, above, name);
        }
        let Some(place) = self.place(&entry.path, above, name, true)? else {
            return refuse(&entry.path, Problem::NoDirectory);
        };
        match &entry.kind {
            Kind::Directory => self.directory(entry, &place),
            Kind::File => self.file(entry, &place, tar),
            Kind::Symlink(target) => self.symlink(entry, &place, target),
            Kind::HardLink(target) => self.hard_link(entry, &place, target),
            Kind::Character(..) | Kind::Block(..) | Kind::Fifo => self.node(entry, &place),
        }
    }

    /// Counts names that are kept to the end.
    fn keep(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.kept_bytes += path.len() + 64;
        if self.kept_bytes > self.limits.kept_bytes {
            let max = u64::try_from(self.limits.kept_bytes).unwrap_or(u64::MAX);
            return Err(UnpackError::TooMuch { of: "bytes of names of directories and whiteouts", max });
        }
        Ok(())
    }

    /// Counts content, and asks for the space left now and then.
    fn wrote(&mut self, path: &[u8], bytes: u64) -> Result<(), UnpackError> {
        self.done.bytes += bytes;
        if self.done.bytes > self.limits.bytes {
            return Err(UnpackError::TooMuch { of: "bytes", max: self.limits.bytes });
        }
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes >= SPACE_CHECK_BYTES {
            self.unchecked_bytes = 0;
            host(path, "looking at the space left", (self.space)())?;
        }
        Ok(())
    }

    /// Makes way: an entry of the same name that came earlier in this layer goes. Returns whether a directory stays.
    fn make_way(&mut self, entry: &[u8], place: &Place, for_directory: bool) -> Result<bool, UnpackError> {
        self.implied.remove(&place.path());
        let stat = match rustix::fs::statat(&place.parent, place.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return host(entry, "looking for an earlier entry of its name", Err(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let unlinked = rustix::fs::unlinkat(&place.parent, place.name.as_slice(), AtFlags::empty());
            host(entry, "removing an earlier entry of its name", unlinked)?;
            if for_directory {
                // What it hid of the lower layers stays hidden.
                let path = place.path();
                self.keep(&path)?;
                self.whiteouts.insert(path);
            }
            return Ok(false);
        }
        if for_directory {
            return Ok(true);
        }
        self.last_parent = None;
        // Of a directory that is gone, nothing is to be said at the end; what lies below shows neither way.
        let path = place.path();
        self.opaque.remove(&path);
        take_below(&mut self.opaque, &path);
        take_below(&mut self.implied, &path);
        host(entry, "removing an earlier directory of its name", remove_tree(&place.parent, &place.name))?;
        Ok(false)
    }

    fn directory(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        if !self.make_way(&entry.path, place, true)? {
            let made = rustix::fs::mkdirat(&place.parent, place.name.as_slice(), Mode::from_raw_mode(0o700));
            host(&entry.path, "making the directory", made)?;
        }
        let opened = open_beneath(&place.parent, &place.name, OFlags::RDONLY | OFlags::DIRECTORY);
        let directory = host(&entry.path, "opening the directory", opened)?;
        self.finish_directory(entry, place.path(), &directory)
    }

    fn finish_directory(&mut self, entry: &Entry, path: Vec<u8>, directory: &OwnedFd) -> Result<(), UnpackError> {
        self.keep(&path)?;
        host(&entry.path, "setting its owner and mode", own(directory, entry))?;
        self.set_attributes(entry, directory, true)?;
        self.directories.push((path, entry.mtime));
        Ok(())
    }

    fn file(&mut self, entry: &Entry, place: &Place, tar: &mut Tar<impl Read>) -> Result<(), UnpackError> {
        if entry.size_bytes > FILE_BYTES_MAX {
            return refuse(&entry.path, Problem::Size);
        }
        self.make_way(&entry.path, place, false)?;
        let file = host(&entry.path, "making the file", create(place))?;
        match &entry.pieces {
            None => self.write(entry, tar, &file, 0, entry.size_bytes)?,
            Some(pieces) => {
                host(&entry.path, "making the file as long as it is", file.set_len(entry.size_bytes))?;
                for (offset, length) in pieces {
                    self.write(entry, tar, &file, *offset, *length)?;
                }
            }
        }
        let file = OwnedFd::from(file);
        host(&entry.path, "setting its owner and mode", own(&file, entry))?;
        self.set_attributes(entry, &file, false)?;
        host(&entry.path, "setting its time", rustix::fs::futimens(&file, &times(entry.mtime)))
    }

    fn write(
        &mut self,
        entry: &Entry,
        tar: &mut Tar<impl Read>,
        file: &File,
        mut offset: u64,
        length: u64,
    ) -> Result<(), UnpackError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = tar.read_content(&mut self.buffer[..most])?;
            if count == 0 {
                return Err(TarError::Truncated { entry: Name::new(&entry.path) }.into());
            }
            host(&entry.path, "writing the file", file.write_all_at(&self.buffer[..count], offset))?;
            let count = u64::try_from(count).unwrap_or(0);
            offset += count;
            left -= count;
            self.wrote(&entry.path, count)?;
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, place: &Place, target: &[u8]) -> Result<(), UnpackError> {
        if target.is_empty() || target.len() >= PATH_BYTES_MAX {
            return refuse(&entry.path, Problem::Target);
        }
        self.make_way(&entry.path, place, false)?;
        let made = rustix::fs::symlinkat(target, &place.parent, place.name.as_slice());
        host(&entry.path, "making the symbolic link", made)?;
        self.done.attributes_dropped += u64::try_from(entry.attributes.len()).unwrap_or(0);
        self.finish_node(entry, place)
    }

    fn node(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let (kind, device) = match entry.kind {
            Kind::Character(0, 0) => return refuse(&entry.path, Problem::WhiteoutDevice),
            Kind::Character(major, minor) => (FileType::CharacterDevice, (major, minor)),
            Kind::Block(major, minor) => (FileType::BlockDevice, (major, minor)),
            _ => (FileType::Fifo, (0, 0)),
        };
        if device.0 > MAJOR_MAX || device.1 > MINOR_MAX {
            return refuse(&entry.path, Problem::Device);
        }
        self.make_way(&entry.path, place, false)?;
        let name = place.name.as_slice();
        let number = rustix::fs::makedev(device.0, device.1);
        let made = rustix::fs::mknodat(&place.parent, name, kind, Mode::from_raw_mode(0o600), number);
        host(&entry.path, "making the device or pipe", made)?;
        self.done.attributes_dropped += u64::try_from(entry.attributes.len()).unwrap_or(0);
        self.finish_node(entry, place)?;
        let mode = rustix::fs::chmodat(&place.parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty());
        host(&entry.path, "setting its mode", mode)?;
        self.finish_node(entry, place)
    }

    /// Owner and time of what is not opened.
    fn finish_node(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let name = place.name.as_slice();
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        let owned = rustix::fs::chownat(&place.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        host(&entry.path, "setting its owner", owned)?;
        let timed = rustix::fs::utimensat(&place.parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
        host(&entry.path, "setting its time", timed)
    }

    fn hard_link(&mut self, entry: &Entry, place: &Place, target: &[u8]) -> Result<(), UnpackError> {
        let target_parts = parts(target).or_else(|_| refuse(&entry.path, Problem::Traversal))?;
        let Some((name, above)) = target_parts.split_last() else {
            return refuse(&entry.path, Problem::DirectoryTarget);
        };
        let Some(from) = self.place(&entry.path, above, name, false)? else {
            return refuse(&entry.path, Problem::NoTarget);
        };
        if from.path() == place.path() {
            return refuse(&entry.path, Problem::NoTarget);
        }
        match rustix::fs::statat(&from.parent, from.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return refuse(&entry.path, Problem::DirectoryTarget);
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let path = from.path();
                let Some(found) = self.find_lower(&entry.path, &path)? else {
                    return refuse(&entry.path, Problem::NoTarget);
                };
                if FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory {
                    return refuse(&entry.path, Problem::DirectoryTarget);
                }
                self.copy_up(entry, &from, &found)?;
            }
            Err(error) => return host(&entry.path, "looking for the file that it names", Err(error)),
        }
        self.make_way(&entry.path, place, false)?;
        let linked = rustix::fs::linkat(
            &from.parent,
            from.name.as_slice(),
            &place.parent,
            place.name.as_slice(),
            AtFlags::empty(),
        );
        host(&entry.path, "making another name of the file", linked)
    }

    /// Copies a file of a lower layer to its own path in this one, with all that it is.
    fn copy_up(&mut self, entry: &Entry, to: &Place, found: &Found) -> Result<(), UnpackError> {
        const STEP: &str = "copying the file that it names from a lower layer";
        self.keep(&to.path())?;
        self.implied.insert(to.path());
        let root = self.lower.layer(found);
        let stat = &found.stat;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            let from = host(&entry.path, STEP, open_beneath(root, &to.path(), OFlags::RDONLY))?;
            let made = host(&entry.path, STEP, create(to))?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let from = File::from(from);
            let copied = host(&entry.path, STEP, copy_content(&from, &made, size))?;
            self.wrote(&entry.path, copied)?;
            let made = OwnedFd::from(made);
            host(&entry.path, STEP, copy_metadata(&OwnedFd::from(from), &made, stat))?;
            return host(&entry.path, STEP, rustix::fs::futimens(&made, &times(modified(stat))));
        }
        let name = to.name.as_slice();
        if kind == FileType::Symlink {
            let target = host(&entry.path, STEP, self.read_lower_link(&to.path(), found))?;
            host(&entry.path, STEP, rustix::fs::symlinkat(target.as_slice(), &to.parent, name))?;
        } else {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            host(&entry.path, STEP, rustix::fs::mknodat(&to.parent, name, kind, mode, stat.st_rdev))?;
        }
        let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        host(&entry.path, STEP, rustix::fs::chownat(&to.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            host(&entry.path, STEP, rustix::fs::chmodat(&to.parent, name, mode, AtFlags::empty()))?;
        }
        let times = times(modified(stat));
        host(&entry.path, STEP, rustix::fs::utimensat(&to.parent, name, &times, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Sets the extended attributes that an image may set: a file's capabilities, access lists, and its users' own.
    fn set_attributes(&mut self, entry: &Entry, to: &OwnedFd, directory: bool) -> Result<(), UnpackError> {
        for (name, value) in &entry.attributes {
            let text = name.as_slice();
            let allowed = match text {
                b"security.capability" => !directory,
                b"system.posix_acl_access" => true,
                b"system.posix_acl_default" => directory,
                _ => text.starts_with(b"user.") && !text.starts_with(b"user.overlay."),
            };
            if !allowed {
                self.done.attributes_dropped += 1;
                continue;
            }
            let set = rustix::fs::fsetxattr(to, text, value, XattrFlags::empty());
            host(&entry.path, "setting an extended attribute", set)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, entry: &Entry, above: &[&[u8]], name: &[u8]) -> Result<(), UnpackError> {
        if name == OPAQUE_MARK {
            if let Some(place) = self.place(&entry.path, above, b"x", true)? {
                self.keep(&place.directory)?;
                // Whoever says that a directory hides what is below says that it is there.
                self.implied.remove(&place.directory);
                self.opaque.insert(place.directory);
            }
            return Ok(());
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let deleted = &name[WHITEOUT.len()..];
        if matches!(deleted, b"" | b"." | b"..") {
            return refuse(&entry.path, Problem::Whiteout);
        }
        // What is not there need not be deleted, and a deletion of nothing would show as a broken file.
        let Some(place) = self.place(&entry.path, above, deleted, false)? else { return Ok(()) };
        let path = place.path();
        if self.find_lower(&entry.path, &path)?.is_some() {
            self.keep(&path)?;
            self.whiteouts.insert(path);
        }
        Ok(())
    }

    /// Deletions and times: what must not depend on the order of the entries.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        let opaque = std::mem::take(&mut self.opaque);
        for path in &opaque {
            self.prune_below(path)?;
        }
        self.done.hides_all = opaque.contains(b"".as_slice());
        self.opaque = opaque;
        // A directory comes before what is in it.
        for path in std::mem::take(&mut self.whiteouts) {
            self.delete(&path)?;
        }
        for path in &self.opaque {
            let Some(directory) = self.open_if_directory(path)? else { continue };
            let set = rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty());
            host(path, "making the directory opaque", set)?;
        }
        for (path, mtime) in &self.directories {
            let Some(directory) = self.open_if_directory(path)? else { continue };
            host(path, "setting its time", rustix::fs::futimens(&directory, &times(*mtime)))?;
        }
        Ok(self.done)
    }

    /// A directory of this layer, unless a later entry took its place.
    fn open_if_directory(&self, path: &[u8]) -> Result<Option<OwnedFd>, UnpackError> {
        match self.open_directory(path) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => host(path, "opening the directory", Err(error)),
        }
    }

    /// Makes a whiteout good: deletes what is below, and keeps what the layer itself lists.
    fn delete(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let (directory, name) = split(path);
        let Some(parent) = self.open_if_directory(directory)? else { return Ok(()) };
        if self.implied.remove(path) {
            self.prune_below(path)?;
            self.prune(&parent, path)?;
        }
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                // In an opaque directory there is nothing to delete, and a deletion would show as a broken file.
                let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
                if std::iter::once(0).chain(slashes).any(|end| self.opaque.contains(&path[..end])) {
                    return Ok(());
                }
                let made = rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0);
                host(path, "making a whiteout", made)
            }
            // Deleted below and listed here: only a directory would mix with what was.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.opaque.insert(path.to_vec());
                self.prune_below(path)
            }
            Ok(_) => Ok(()),
            Err(error) => host(path, "looking at the path of a whiteout", Err(error)),
        }
    }

    /// Removes what is in a directory and was not listed, but for what something listed needs.
    fn prune_below(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        // Deepest first: a directory may be empty once what was in it is gone.
        for path in take_below(&mut self.implied, path).iter().rev() {
            if let Some(parent) = self.open_if_directory(split(path).0)? {
                self.prune(&parent, path)?;
            }
        }
        Ok(())
    }

    fn prune(&self, parent: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
        let name = split(path).1;
        let flags = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => AtFlags::REMOVEDIR,
            Ok(_) => AtFlags::empty(),
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return host(path, "looking at what a whiteout deletes", Err(error)),
        };
        match rustix::fs::unlinkat(parent, name, flags) {
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => host(path, "removing what a whiteout deletes", Err(error)),
        }
    }
}

/// Takes all paths out of a set that are below a directory.
fn take_below(paths: &mut BTreeSet<Vec<u8>>, directory: &[u8]) -> BTreeSet<Vec<u8>> {
    if directory.is_empty() {
        return std::mem::take(paths);
    }
    // '0' follows '/', so these two enclose what has the directory before a slash.
    let mut below = paths.split_off([directory, b"/"].concat().as_slice());
    let mut after = below.split_off([directory, b"0"].concat().as_slice());
    paths.append(&mut after);
    below
}

fn create(place: &Place) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.parent, place.name.as_slice(), flags, Mode::from_raw_mode(0o600)).map(File::from)
}

/// Owner first: a change of owner takes setuid bits and capabilities away.
fn own(to: &OwnedFd, entry: &Entry) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(entry.mode))
}

fn copy_metadata(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    // The kernel's own bounds: 64 KiB of names, 64 KiB of a value.
    let mut names = vec![0_u8; 64 << 10];
    let count = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        Ok(count) => count,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let mut value = vec![0_u8; 64 << 10];
    for name in names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") || name == b"security.selinux" {
            continue;
        }
        let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn modified(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// Times with the last change as given; the last access is the same, as nobody looked yet.
fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a directory of a layer with all that is in it.
fn remove_tree(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;

    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    std::fs::remove_dir_all(path)
}
