//! What the layers below show at a path, when one layer cannot be unpacked without knowing it: a hard link to a file
//! further down, a directory that a layer uses and does not list, a whiteout.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How a directory says that nothing below it shows.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Opens below a directory, and nowhere else: no link of any kind is followed.
pub(crate) fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile, anywhere on the machine: the kernel asks to be asked again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The unpacked layers under the one at hand, topmost first.
#[derive(Debug, Default)]
pub struct Lower {
    layers: Vec<OwnedFd>,
}

/// Something that the layers below show.
pub(crate) struct Found {
    /// In which of the layers.
    pub(crate) layer: usize,
    pub(crate) stat: Stat,
}

enum Probe {
    Found(Stat),
    /// Nothing is there, and nothing further down shows through.
    Hidden,
    Absent,
}

impl Lower {
    /// Layers by their open directories, topmost first.
    #[must_use]
    pub fn new(layers: Vec<OwnedFd>) -> Self {
        Self { layers }
    }

    /// The directory of a layer in which something was found.
    pub(crate) fn layer(&self, found: &Found) -> &OwnedFd {
        &self.layers[found.layer]
    }

    /// What shows at a path, which has no link in it before its last part.
    pub(crate) fn find(&self, path: &[u8]) -> io::Result<Option<Found>> {
        for (layer, root) in self.layers.iter().enumerate() {
            match probe(root, path)? {
                Probe::Found(stat) => return Ok(Some(Found { layer, stat })),
                Probe::Hidden => return Ok(None),
                Probe::Absent => {}
            }
        }
        Ok(None)
    }
}

fn probe(root: &OwnedFd, path: &[u8]) -> io::Result<Probe> {
    let mut directory = open_beneath(root, b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    let mut opaque = is_opaque(&directory)?;
    while let Some(part) = parts.next() {
        let stat = match rustix::fs::statat(&directory, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(if opaque { Probe::Hidden } else { Probe::Absent }),
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(Probe::Hidden);
        }
        if parts.peek().is_none() {
            return Ok(Probe::Found(stat));
        }
        if kind != FileType::Directory {
            return Ok(Probe::Hidden);
        }
        directory = open_beneath(&directory, part, OFlags::RDONLY | OFlags::DIRECTORY)?;
        opaque |= is_opaque(&directory)?;
    }
    Ok(Probe::Absent)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let mut value = [0_u8; 4];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value) {
        Ok(count) => Ok(value.get(..count) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies a file's content with its holes; returns how many bytes of content there were.
pub(crate) fn copy_content(from: &File, to: &File, size_bytes: u64) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;

    use rustix::fs::SeekFrom;

    to.set_len(size_bytes)?;
    let mut buffer = vec![0; 128 << 10];
    let (mut position, mut copied) = (0, 0);
    while position < size_bytes {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size_bytes);
        position = start;
        while position < end {
            let most = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
            let count = from.read_at(&mut buffer[..most], position)?;
            if count == 0 {
                return Ok(copied);
            }
            to.write_all_at(&buffer[..count], position)?;
            position += u64::try_from(count).unwrap_or(0);
            copied += u64::try_from(count).unwrap_or(0);
        }
    }
    Ok(copied)
}
