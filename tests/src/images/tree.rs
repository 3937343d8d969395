//! Two trees of files, path by path: all that lstat, extended attributes, content and hard links say.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use workloads_image::Image;

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Paths of our root.
    pub paths: usize,
    /// What differs, a path a line.
    pub differences: Vec<String>,
}

/// What one path is, but for its content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    size: u64,
    modified: (i64, i64),
    target: PathBuf,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same file.
    same_as: PathBuf,
}

/// Stacks an image's layers with overlayfs and compares what they show with a directory.
pub(super) fn compare(image: &Image, theirs: &Path, scratch: &Path) -> Result<Comparison> {
    let (image, theirs, scratch) = (image.clone(), theirs.to_owned(), scratch.to_owned());
    // A thread of its own may leave the mounts of the machine, and its working directory, without the others.
    let compared = std::thread::spawn(move || -> Result<Comparison> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let merged = stack(&image, &scratch)?;
        let comparison = differences(&merged, &theirs)?;
        nix::mount::umount(&merged)?;
        for used in ["upper", "work", "merged"] {
            fs::remove_dir_all(scratch.join(used))?;
        }
        Ok(comparison)
    });
    compared.join().map_err(|_| anyhow!("the comparison panicked"))?
}

fn stack(image: &Image, scratch: &Path) -> Result<PathBuf> {
    let (upper, work, merged) = (scratch.join("upper"), scratch.join("work"), scratch.join("merged"));
    for path in [&upper, &work, &merged] {
        fs::create_dir_all(path)?;
    }
    // The root shows as the uppermost directory is: whoever stacks the layers gives it what the image says.
    if let Some(root) = image.root_layer.as_ref().map(|name| image.layers_directory.join(name)) {
        let found = fs::metadata(&root)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(found.mode() & 0o7777))?;
        std::os::unix::fs::chown(&upper, Some(found.uid()), Some(found.gid()))?;
        File::open(&upper)?.set_modified(found.modified()?)?;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    std::env::set_current_dir(&image.layers_directory)?;
    let layers: Vec<&str> = image.layers.iter().rev().map(String::as_str).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).context("overlayfs")?;
    Ok(merged)
}

fn differences(ours: &Path, theirs: &Path) -> Result<Comparison> {
    let (left, right) = (read(ours)?, read(theirs)?);
    let mut differences = vec![];
    for path in left.keys().chain(right.keys().filter(|path| !left.contains_key(*path))) {
        match (left.get(path), right.get(path)) {
            (Some(left), Some(right)) if left == right => {
                // One path of a class of hard links is enough: the others are the same file.
                let is_first = left.same_as == *path && left.mode & 0o170_000 == 0o100_000;
                if is_first && !same_content(&ours.join(path), &theirs.join(path))? {
                    differences.push(format!("{path:?}: other content"));
                }
            }
            (left, right) => differences.push(format!("{path:?}: ours {left:?}, theirs {right:?}")),
        }
    }
    Ok(Comparison { paths: left.len(), differences })
}

/// All paths below a directory, and the directory itself.
fn read(root: &Path) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut found = vec![PathBuf::new()];
    let mut waiting = found.clone();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                waiting.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    let mut first = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for path in found {
        let full = root.join(&path);
        let lstat = fs::symlink_metadata(&full).with_context(|| format!("{path:?}"))?;
        let kind = lstat.file_type();
        let is_device = kind.is_block_device() || kind.is_char_device();
        let entry = Entry {
            mode: lstat.mode(),
            owner: (lstat.uid(), lstat.gid()),
            device: if is_device { lstat.rdev() } else { 0 },
            // A directory's says how the file system keeps it.
            size: if kind.is_dir() { 0 } else { lstat.size() },
            modified: (lstat.mtime(), lstat.mtime_nsec()),
            target: if kind.is_symlink() { fs::read_link(&full)? } else { PathBuf::new() },
            attributes: attributes(&full).with_context(|| format!("attributes of {path:?}"))?,
            same_as: if kind.is_dir() {
                path.clone()
            } else {
                first.entry(lstat.ino()).or_insert(path.clone()).clone()
            },
        };
        entries.insert(path, entry);
    }
    Ok(entries)
}

fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 65_536];
    let count = rustix::fs::llistxattr(path, names.as_mut_slice())?;
    let names = names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 65_536];
            let count = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), value.as_mut_slice())?;
            Ok((name.to_vec(), value[..count].to_vec()))
        })
        .collect()
}

/// Whether two files of one size hold the same bytes.
fn same_content(left: &Path, right: &Path) -> Result<bool> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = left.read(&mut ours)?;
        if count == 0 {
            return Ok(right.read(&mut theirs)? == 0);
        }
        right.read_exact(&mut theirs[..count])?;
        if ours[..count] != theirs[..count] {
            return Ok(false);
        }
    }
}
