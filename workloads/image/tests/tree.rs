//! Trees of files with all that is known of them, and the tree that the layers of an image show together.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use workloads_image::{Digest, Image};

/// What one path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    size: u64,
    modified: (i64, i64),
    /// Content of a file, target of a link.
    content: String,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first path of the same file.
    same_as: PathBuf,
    /// In short, for trees that are compared by shape alone.
    shown: String,
}

/// All paths below a directory, and the directory itself.
pub(crate) fn read(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut paths = vec![PathBuf::new()];
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory)).expect("a directory") {
            let path = directory.join(entry.expect("an entry").file_name());
            let kind = fs::symlink_metadata(root.join(&path)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            if kind.is_dir() {
                waiting.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    let mut first = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let found = fs::symlink_metadata(&full).expect("it is there");
        let kind = found.file_type();
        let shown = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(&full).expect("a link").display())
        } else if kind.is_file() && found.size() < 100 {
            format!("file {}", String::from_utf8_lossy(&fs::read(&full).expect("a file")))
        } else {
            "something else".to_owned()
        };
        let content = if kind.is_symlink() {
            fs::read_link(&full).expect("a link").display().to_string()
        } else if kind.is_file() {
            Digest::of(&fs::read(&full).expect("a file")).to_string()
        } else {
            String::new()
        };
        let same_as =
            if kind.is_dir() { path.clone() } else { first.entry(found.ino()).or_insert(path.clone()).clone() };
        let node = Node {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            device: found.rdev(),
            size: if kind.is_dir() { 0 } else { found.size() },
            modified: (found.mtime(), found.mtime_nsec()),
            content,
            attributes: attributes(&full),
            same_as,
            shown,
        };
        nodes.insert(path, node);
    }
    nodes
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 4_096];
    let count = rustix::fs::llistxattr(path, names.as_mut_slice()).expect("a list of attributes");
    let names = names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0_u8; 4_096];
            let count = rustix::fs::lgetxattr(path, name.as_str(), value.as_mut_slice()).expect("an attribute");
            (name, value[..count].to_vec())
        })
        .collect()
}

/// The tree that the layers of an image show when overlayfs stacks them.
pub(crate) fn of_image(image: &Image, scratch: &Path) -> BTreeMap<PathBuf, Node> {
    let mount_point = |name: &str| {
        let path = scratch.join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    let (upper, work, merged) = (mount_point("upper"), mount_point("work"), mount_point("merged"));
    // The root shows as the uppermost directory is: whoever stacks the layers gives it what the image says.
    if let Some(root) = image.root_layer.as_ref().map(|name| image.layers_directory.join(name)) {
        let found = fs::metadata(&root).expect("a layer");
        fs::set_permissions(&upper, fs::Permissions::from_mode(found.mode() & 0o7777)).expect("root");
        std::os::unix::fs::chown(&upper, Some(found.uid()), Some(found.gid())).expect("root");
        let time = found.modified().expect("a time");
        fs::File::open(&upper).and_then(|upper| upper.set_modified(time)).expect("root");
    }
    let image = image.clone();
    // A thread of its own may leave the mounts of the machine, and its working directory, without the others.
    let stacked = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("root");
        std::env::set_current_dir(&image.layers_directory).expect("the layers");
        let layers: Vec<&str> = image.layers.iter().rev().map(String::as_str).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).expect("overlayfs");
        read(&merged)
    });
    stacked.join().expect("the layers are stacked and read")
}

/// Says what differs, not only that something does.
pub(crate) fn assert_same(ours: &BTreeMap<PathBuf, Node>, theirs: &BTreeMap<PathBuf, Node>) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (ours, theirs) = (ours.get(path), theirs.get(path));
        if ours != theirs {
            differences.push(format!("{}:\n  ours   {ours:?}\n  theirs {theirs:?}", path.display()));
        }
    }
    let count = differences.len();
    differences.truncate(10);
    assert!(differences.is_empty(), "{count} of {} paths differ\n{}", ours.len(), differences.join("\n"));
}

/// The shape of a tree alone: directories, files by content, links by target.
pub(crate) fn shown(nodes: &BTreeMap<PathBuf, Node>) -> BTreeMap<String, String> {
    let below = nodes.iter().filter(|(path, _)| !path.as_os_str().is_empty());
    below.map(|(path, node)| (path.display().to_string(), node.shown.clone())).collect()
}
