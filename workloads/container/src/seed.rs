//! The first contents of a volume: what the image has where the volume is mounted.
//!
//! The image's path is resolved within its root; below it nothing is followed, and what is no directory, file or link is
//! left out. Owners in the volume are the image's own ids, as everywhere in the store.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Uid};

/// Directories within directories; deeper ones are left out, as no image has them.
const DEPTH_MAX: u32 = 64;

/// Copies `root`/`target` into the directory `volume` if that is empty. `base` is the first id of the container's range
/// where the root shows shifted ids, else 0. No such path in the image: nothing to do.
pub(crate) fn fill(root: &Path, target: &str, volume: &Path, base: u32) -> io::Result<()> {
    let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let into = rustix::fs::open(volume, directory | OFlags::NOFOLLOW, Mode::empty())?;
    let is_empty = Dir::read_from(&into)?.filter_map(Result::ok).all(|entry| is_dot(entry.file_name().to_bytes()));
    if !is_empty {
        return Ok(());
    }
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from = match rustix::fs::openat2(&root, target, directory, Mode::empty(), inside) {
        Ok(from) => from,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    copy_directory(from.as_fd(), into.as_fd(), base, DEPTH_MAX)
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// Copies what is in the directory, then the directory's own owner, mode and times.
fn copy_directory(from: BorrowedFd<'_>, into: BorrowedFd<'_>, base: u32, depth: u32) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name: CString = entry.file_name().to_owned();
        if !is_dot(name.to_bytes()) {
            copy_entry(from, into, &name, base, depth)?;
        }
    }
    let stat = rustix::fs::fstat(from)?;
    give(into, &stat, base)
}

fn copy_entry(from: BorrowedFd<'_>, into: BorrowedFd<'_>, name: &CString, base: u32, depth: u32) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let plain = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(into, name, Mode::RWXU)?;
            let below = rustix::fs::openat(from, name, OFlags::DIRECTORY | plain, Mode::empty())?;
            let fresh = rustix::fs::openat(into, name, OFlags::DIRECTORY | plain, Mode::empty())?;
            copy_directory(below.as_fd(), fresh.as_fd(), base, depth - 1)
        }
        FileType::RegularFile => {
            let source: OwnedFd =
                rustix::fs::openat(from, name, OFlags::RDONLY | OFlags::NONBLOCK | plain, Mode::empty())?;
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | plain;
            let fresh = File::from(rustix::fs::openat(into, name, create, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut File::from(source), &mut &fresh)?;
            give(fresh.as_fd(), &stat, base)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, into, name)?;
            let (uid, gid) = owner(&stat, base);
            rustix::fs::chownat(into, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The ids in the image of what the root shows; those that are outside of the container's range are its root's.
fn owner(stat: &Stat, base: u32) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid.saturating_sub(base)), Gid::from_raw(stat.st_gid.saturating_sub(base)))
}

fn give(file: BorrowedFd<'_>, stat: &Stat, base: u32) -> io::Result<()> {
    let (uid, gid) = owner(stat, base);
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    // After the owner: a change of that takes set-user-id away.
    let mode: RawMode = stat.st_mode & 0o7777;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn empty_volume_gets_what_the_image_has_with_its_own_ids() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, volume) = (directory.path().join("root"), directory.path().join("volume"));
        fs::create_dir_all(root.join("data/sub")).expect("makes");
        fs::create_dir(&volume).expect("makes");
        fs::write(root.join("data/file"), "text").expect("writes");
        symlink("/etc/shadow", root.join("data/link")).expect("links");
        fs::set_permissions(root.join("data/file"), fs::Permissions::from_mode(0o4750)).expect("sets");
        chown(root.join("data/file"), Some(1033), Some(1034)).expect("root may");
        fs::set_permissions(root.join("data/file"), fs::Permissions::from_mode(0o4750)).expect("sets");
        fill(&root, "/data", &volume, 1000).expect("fills");
        let file = fs::metadata(volume.join("file")).expect("copied");
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (33, 34, 0o4750));
        assert_eq!(fs::read_link(volume.join("link")).expect("a link"), Path::new("/etc/shadow"));
        assert!(volume.join("sub").is_dir());
        fs::write(root.join("data/later"), "").expect("writes");
        fill(&root, "/data", &volume, 1000).expect("nothing to do");
        assert!(!volume.join("later").exists(), "a volume with files is left alone");
    }

    #[test]
    fn path_of_the_image_stays_in_its_root() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, volume) = (directory.path().join("root"), directory.path().join("volume"));
        fs::create_dir_all(root.join("etc")).expect("makes");
        fs::create_dir(&volume).expect("makes");
        fs::write(root.join("etc/own"), "").expect("writes");
        symlink("/etc", root.join("data")).expect("links");
        fill(&root, "/data", &volume, 0).expect("fills");
        assert!(volume.join("own").exists() && !volume.join("passwd").exists());
        fill(&root, "/none", &directory.path().join("volume"), 0).expect("no such path is fine");
    }
}
