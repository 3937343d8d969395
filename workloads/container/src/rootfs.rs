//! A container's root: an overlay of its image's layers and its own upper directory, mounted without a program's help.
//!
//! Layers are stored with the ids of the image. A container in a user namespace sees them through one clone of the
//! layer directory that carries its id map; the clone stands for as long as the mount takes, because the overlay keeps
//! its own clones. Upper and work stay plain directories owned by the container's root: behind an id map the overlay
//! would be read-only without a word.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::error::{AtStep, StepError};
use crate::idmap::host_id;
use crate::sys;

/// Longest value that `fsconfig` takes as a string, without its end.
const FSCONFIG_BYTES_MAX: usize = 255;
/// Layers that one overlay takes; the kernel's own limit is 500.
const LAYERS_MAX: usize = 400;
/// Longest option string of the old mount call: a page less what the kernel keeps for itself.
const OPTIONS_BYTES_MAX: usize = 4_000;

/// What one root is made of. `directory` is the container's run directory; the root appears at `directory/root`.
#[derive(Debug)]
pub(crate) struct Root<'a> {
    pub(crate) directory: &'a Path,
    /// The directory of all layers, and the names in it, bottom first.
    pub(crate) layer_directory: &'a Path,
    pub(crate) layers: &'a [String],
    /// The layer that the root directory looks like.
    pub(crate) root_layer: Option<&'a str>,
    /// Where `upper` and `work` are kept.
    pub(crate) state: &'a Path,
    /// The user namespace and the first id, where the container has one.
    pub(crate) id_map: Option<(BorrowedFd<'a>, u32)>,
    /// Nothing of this root needs to survive the host: writes are never synced.
    pub(crate) volatile: bool,
}

/// Mounts the overlay at `directory/root` and returns that path.
///
/// # Errors
/// The step that failed; nothing stays mounted then.
pub(crate) fn mount_root(root: &Root<'_>) -> Result<PathBuf, StepError> {
    if root.layers.len() > LAYERS_MAX
        || root.layers.iter().any(|name| !is_layer_name(name))
        || root.root_layer.is_some_and(|name| !is_layer_name(name))
    {
        return Err(StepError::new("look at the layers", io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let target = root.directory.join("root");
    make_directory(&target, 0o755)?;
    let base = prepare_state(root)?;
    let lower = Lower::open(root)?;
    let overlay = Overlay { lowers: lower.paths(root.layers), upper: base.0, work: base.1, volatile: root.volatile };
    overlay.mount(&target)?;
    let mounted = rustix::fs::statvfs(&target).at("look at the mounted root").and_then(|state| {
        if state.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(StepError::new("mount the root for writing", io::Error::from_raw_os_error(libc::EROFS)));
        }
        Ok(())
    });
    if let Err(error) = mounted {
        unmount(&target).at("unmount a root that cannot be written")?;
        return Err(error);
    }
    Ok(target)
}

/// `upper` and `work`, owned by the container's root; the root directory looks like the one of the root layer.
fn prepare_state(root: &Root<'_>) -> Result<(PathBuf, PathBuf), StepError> {
    let (upper, work) = (root.state.join("upper"), root.state.join("work"));
    let base = root.id_map.map_or(0, |(_, base)| base);
    if !upper.try_exists().at("look for the upper directory")? {
        let (uid, gid, mode) = match root.root_layer {
            Some(top) => {
                let top = fs::metadata(root.layer_directory.join(top)).at("look at the root layer")?;
                (top.uid(), top.gid(), top.mode() & 0o7777)
            }
            None => (0, 0, 0o755),
        };
        let fresh = root.state.join("upper.new");
        make_directory(&fresh, 0o700)?;
        let inside = |id| if root.id_map.is_some() { host_id(base, id) } else { id };
        chown(&fresh, Some(inside(uid)), Some(inside(gid))).at("give the upper directory away")?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).at("set the mode of the upper directory")?;
        // Only a directory with its owner and mode set may carry the name that says so.
        fs::rename(&fresh, &upper).at("name the upper directory")?;
    }
    make_directory(&work, 0o700)?;
    chown(&work, Some(base), Some(base)).at("give the work directory away")?;
    Ok((upper, work))
}

/// The directory that the layers are looked up in: the store's, or a clone of it that shows shifted ids.
struct Lower {
    directory: PathBuf,
    clone: Option<PathBuf>,
    /// What an image without layers stands on.
    empty: PathBuf,
}

impl Lower {
    fn open(root: &Root<'_>) -> Result<Self, StepError> {
        let empty = root.directory.join("empty");
        if root.layers.is_empty() {
            make_directory(&empty, 0o755)?;
        }
        let Some((userns, _)) = root.id_map else {
            return Ok(Self { directory: root.layer_directory.to_path_buf(), clone: None, empty });
        };
        let clone = root.directory.join("l");
        make_directory(&clone, 0o700)?;
        attach_clone(root.layer_directory, &clone, Some(userns), false)?;
        Ok(Self { directory: clone.clone(), clone: Some(clone), empty })
    }

    /// Topmost first, as the overlay wants them.
    fn paths(&self, layers: &[String]) -> Vec<PathBuf> {
        if layers.is_empty() {
            return vec![self.empty.clone()];
        }
        layers.iter().rev().map(|name| self.directory.join(name)).collect()
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        if let Some(clone) = &self.clone
            && let Err(error) = unmount(clone).and_then(|()| fs::remove_dir(clone))
        {
            tracing::warn!(%error, "the clone of the layer directory could not be taken away");
        }
    }
}

struct Overlay {
    lowers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    volatile: bool,
}

impl Overlay {
    /// By the calls of kernel 6.7 (a parameter per layer, so any number of them), else by the old one.
    fn mount(&self, target: &Path) -> Result<(), StepError> {
        let short = |path: &PathBuf| path.as_os_str().len() <= FSCONFIG_BYTES_MAX;
        if self.lowers.iter().chain([&self.upper, &self.work]).all(short) {
            match self.configure() {
                Ok(mount) => {
                    let to = (CWD, target);
                    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    rustix::mount::move_mount(&mount, "", to.0, to.1, how).at("put the root in its place")?;
                    return make_private(target);
                }
                // No such parameter, or no such call: an older kernel.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(StepError::new("mount the root", error.into())),
            }
        }
        self.mount_by_options(target)?;
        make_private(target)
    }

    fn configure(&self) -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", "overlay")?;
        for lower in &self.lowers {
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        rustix::mount::fsconfig_set_string(&context, "upperdir", &self.upper)?;
        rustix::mount::fsconfig_set_string(&context, "workdir", &self.work)?;
        if self.volatile {
            rustix::mount::fsconfig_set_flag(&context, "volatile")?;
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
    }

    /// One string of at most a page, so the layers are named relative to their directory: on a thread with a working
    /// directory of its own.
    fn mount_by_options(&self, target: &Path) -> Result<(), StepError> {
        let step = "mount the root by the old call";
        let invalid = || StepError::new(step, io::Error::from_raw_os_error(libc::E2BIG));
        let directory = self.lowers.first().and_then(|lower| lower.parent()).ok_or_else(invalid)?;
        let names: Option<Vec<&str>> = self.lowers.iter().map(|lower| lower.file_name()?.to_str()).collect();
        let path = |path: &'_ Path| path.to_str().map(escape);
        let (names, upper, work) = match (names, path(&self.upper), path(&self.work)) {
            (Some(names), Some(upper), Some(work)) => (names, upper, work),
            _ => return Err(invalid()),
        };
        let mut options = format!("lowerdir={},upperdir={upper},workdir={work}", names.join(":"));
        if self.volatile {
            options.push_str(",volatile");
        }
        if options.len() > OPTIONS_BYTES_MAX {
            return Err(invalid());
        }
        let options = std::ffi::CString::new(options).map_err(|_| invalid())?;
        thread::scope(|scope| {
            let mounted = scope.spawn(|| -> io::Result<()> {
                sys::own_working_directory()?;
                rustix::process::chdir(directory)?;
                rustix::mount::mount("overlay", target, "overlay", MountFlags::NODEV, options.as_c_str())?;
                Ok(())
            });
            mounted.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked"))).at(step)
        })
    }
}

/// Backslash, comma and colon separate the options of an overlay.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for letter in path.chars() {
        if matches!(letter, '\\' | ',' | ':') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// One path component of letters that mean nothing to anybody.
fn is_layer_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Mounts a clone of the mount at `source` over `target`, shifted by `userns` where given. `recursive` takes what is
/// mounted below along.
///
/// # Errors
/// `EINVAL` at the step "map the ids of a mount" where the filesystem of `source` cannot be idmapped.
pub(crate) fn attach_clone(
    source: &Path,
    target: &Path,
    userns: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> Result<(), StepError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, source, flags).at("clone a mount")?;
    if let Some(userns) = userns {
        sys::set_id_map(tree.as_fd(), userns).at("map the ids of a mount")?;
    }
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, target, how).at("put a clone in its place")?;
    make_private(target)
}

/// Tries an id map on a clone of the mount at `directory` that is attached nowhere.
///
/// # Errors
/// As [`sys::set_id_map`].
pub(crate) fn try_id_map(directory: &Path, userns: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, directory, flags)?;
    sys::set_id_map(tree.as_fd(), userns)
}

/// Mounts the `sysfs` of the network namespace at `netns` on `target`, so that the container, which binds it, sees its
/// own links only. A user namespace that does not own the network namespace may not mount it itself.
///
/// # Errors
/// The step that failed; nothing stays mounted then.
pub(crate) fn mount_sysfs(netns: &Path, target: &Path) -> Result<(), StepError> {
    make_directory(target, 0o755)?;
    let step = "mount the network namespace's sysfs";
    let namespace = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(step)?;
    let mount = thread::scope(|scope| {
        let made = scope.spawn(|| -> io::Result<OwnedFd> {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?;
            let context = rustix::mount::fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&context, "source", "sysfs")?;
            rustix::mount::fsconfig_create(&context)?;
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
        });
        made.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
    .at(step)?;
    rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(step)?;
    make_private(target)
}

/// Makes `directory` a private mount of its own, once: what is mounted below it is then seen by no other mount
/// namespace, and cannot be kept busy by one.
///
/// # Errors
/// As the calls.
pub(crate) fn ensure_private_mount(directory: &Path) -> Result<(), StepError> {
    let step = "make the run directory a mount of its own";
    if !is_mount(directory).at(step)? {
        rustix::mount::mount_bind(directory, directory).at(step)?;
    }
    make_private(directory)
}

/// Whether something is mounted on `path`.
pub(crate) fn is_mount(path: &Path) -> io::Result<bool> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    Ok(seen.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

fn make_private(path: &Path) -> Result<(), StepError> {
    rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE).at("make a mount private")
}

/// Unmounts everything on `path`, however often it was mounted; nothing there is no error.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount, or no such path.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Names of what is mounted in a container's run directory, outermost first.
const MOUNTED: &[&str] = &["root", "sys", "l"];
/// Where its volumes are mounted, each at its number.
pub(crate) const VOLUMES: &str = "v";

/// Unmounts all that a container's run directory holds; a directory that is not there holds nothing.
pub(crate) fn unmount_all(directory: &Path) -> io::Result<()> {
    for name in MOUNTED {
        unmount(&directory.join(name))?;
    }
    match fs::read_dir(directory.join(VOLUMES)) {
        Ok(volumes) => volumes.filter_map(Result::ok).try_for_each(|volume| unmount(&volume.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory with exactly this mode, whatever the process's mask; one that is there keeps its contents.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), StepError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StepError::new("make a directory", error));
        }
        _ => {}
    }
    set_mode(path, mode)
}

/// Sets exactly this mode.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), StepError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("set a mode")
}

#[cfg(test)]
mod tests;
