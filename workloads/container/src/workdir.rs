//! The directory that a program begins in: made where the image has none, as its author or its user expects.
//!
//! The path is resolved within the container's root, whatever links it has.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// Makes what is missing of the directory `workdir` below `root`, owned by the container's root (`base` where ids are
/// shifted, else 0). A path that leads elsewhere than to a directory is left to whoever enters it.
pub(crate) fn make(root: &Path, workdir: &str, base: u32) -> io::Result<()> {
    let handle = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, handle, Mode::empty())?;
    let enter = |path: &Path| -> Result<OwnedFd, Errno> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, path, handle, Mode::empty(), inside)
    };
    let (mut parent, mut path) = (enter(Path::new("."))?, PathBuf::new());
    for component in Path::new(workdir).components() {
        let Component::Normal(name) = component else { continue };
        path.push(name);
        let entered = match enter(&path) {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let (uid, gid) = (Uid::from_raw(base), Gid::from_raw(base));
                    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    enter(&path)
                }
                // A link to nowhere.
                Err(Errno::EXIST) => return Ok(()),
                Err(error) => Err(error),
            },
            entered => entered,
        };
        parent = match entered {
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            entered => entered?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn missing_directories_are_made_within_the_root() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("srv/app")).expect("makes");
        symlink("/srv/app", root.join("current")).expect("links");
        symlink("../../../..", root.join("srv/up")).expect("links");
        make(&root, "/srv/app", 1_000).expect("it is there");
        assert_eq!(fs::metadata(root.join("srv/app")).expect("there").uid(), rustix::process::geteuid().as_raw());
        make(&root, "/current/new/deep", 1_000).expect("made");
        let made = fs::metadata(root.join("srv/app/new/deep")).expect("made through the link");
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1_000, 1_000, 0o755));
        make(&root, "/srv/up/outside", 0).expect("made");
        assert!(root.join("outside").is_dir() && !directory.path().join("outside").exists());
    }

    #[test]
    fn what_is_no_directory_is_left_to_the_program() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("file"), "").expect("writes");
        symlink("nowhere", directory.path().join("dangling")).expect("links");
        symlink("loop", directory.path().join("loop")).expect("links");
        for path in ["/file", "/file/below", "/dangling", "/dangling/below", "/loop/below", "/"] {
            make(directory.path(), path, 0).expect(path);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 3, "nothing was made");
    }
}
