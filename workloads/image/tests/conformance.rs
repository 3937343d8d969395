//! Images that other tools made, unpacked by them and by us: no path may differ in anything that lstat, the list of
//! extended attributes, the content and the classes of hard links say.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use rustix::fs::XattrFlags;
use workloads_image::{Digest, Images};

use crate::build::{Blob, Header, Tarball, layout, run, store};
use crate::tree;

/// A root of a small system with one of everything.
fn populate(root: &Path) {
    for directory in ["bin", "etc/deep/er", "usr/lib", "var/log", "tmp", "dev", "home/häuser", "empty"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("/bin/busybox is of the Debian package busybox-static");
    for name in ["sh", "ls", "cat"] {
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(name)).expect("a link");
    }
    symlink("../bin/busybox", root.join("usr/lib/relative")).expect("a link");
    symlink("/bin/busybox", root.join("usr/lib/absolute")).expect("a link");
    symlink("usr/lib", root.join("lib")).expect("a link");
    lchown(root.join("lib"), Some(5), Some(6)).expect("root");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("a file");
    fs::write(root.join("etc/shadow"), "root:*:\n").expect("a file");
    chown(root.join("etc/shadow"), Some(0), Some(42)).expect("root");
    mode(&root.join("etc/shadow"), 0o640);
    fs::write(root.join("home/häuser").join("x".repeat(200)), "long").expect("a file");
    fs::write(root.join("etc/deep/er/file"), vec![3; 100_001]).expect("a file");
    chown(root.join("home/häuser"), Some(1_000), Some(3_000_000)).expect("root");
    mode(&root.join("tmp"), 0o1777);
    fs::write(root.join("bin/su"), "setuid").expect("a file");
    mode(&root.join("bin/su"), 0o6755);
    let log = fs::File::create(root.join("var/log/lastlog")).expect("a file");
    log.set_len(50 << 20).expect("a hole");
    for offset in [0, 4 << 20, (30 << 20) + 4_096] {
        log.write_all_at(b"login", offset).expect("written");
    }
    mkfifo(&root.join("dev/initctl"), Mode::from_bits_truncate(0o600)).expect("root");
    mknod(&root.join("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).expect("root");
    mknod(&root.join("dev/loop0"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(7, 0)).expect("root");
    fs::write(root.join("bin/ping"), "caps").expect("a file");
    mode(&root.join("bin/ping"), 0o755);
    // cap_net_raw+ep, in the second version of the attribute.
    attribute(
        &root.join("bin/ping"),
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    attribute(&root.join("etc/passwd"), "user.note", b"two\nlines = \0 and more");
    attribute(&root.join("empty"), "user.empty", b"");
    fs::File::open(root.join("etc/passwd"))
        .and_then(|file| {
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789))
        })
        .expect("a time");
}

/// What a second layer changes.
fn change(root: &Path) {
    fs::remove_file(root.join("bin/cat")).expect("removed");
    fs::remove_dir_all(root.join("etc/deep")).expect("removed");
    fs::create_dir_all(root.join("etc/deep")).expect("a directory");
    fs::write(root.join("etc/deep/new"), "new").expect("a file");
    fs::remove_dir_all(root.join("empty")).expect("removed");
    fs::write(root.join("empty"), "a file now").expect("a file");
    fs::remove_file(root.join("lib")).expect("removed");
    fs::create_dir(root.join("lib")).expect("a directory");
    fs::write(root.join("lib/own"), "own").expect("a file");
    fs::hard_link(root.join("etc/shadow"), root.join("etc/shadow-")).expect("a link");
    mode(&root.join("tmp"), 0o1770);
    attribute(&root.join("etc/passwd"), "user.note", b"changed");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root");
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("root, and a disk with attributes");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A tar of a directory by GNU tar.
fn tar(of: &Path, into: &Path, options: &[&str]) -> Vec<u8> {
    let mut arguments = vec!["--create", "--numeric-owner", "--sparse", "--file", text(into), "--directory", text(of)];
    arguments.extend_from_slice(options);
    arguments.push(".");
    run("tar", "tar", &arguments);
    fs::read(into).expect("the tar")
}

const ATTRIBUTES: [&str; 3] = ["--format=pax", "--xattrs", "--xattrs-include=*"];

#[test]
fn tars_of_gnu_tar_unpack_to_the_tree_they_were_made_of() {
    let work = tempfile::tempdir().expect("a directory");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("a directory");
    populate(&root);
    let expected = tree::read(&root);
    for version in ["0.0", "0.1", "1.0"] {
        let sparse = format!("--sparse-version={version}");
        let bytes = tar(&root, &work.path().join("tar"), &[&ATTRIBUTES[..], &[&sparse]].concat());
        let scratch = tempfile::tempdir().expect("a directory");
        let images = store(&scratch.path().join("images"));
        let image = crate::build::put(&images, &[Blob::gzip(&bytes)], None).expect("it unpacks");
        let log = image.layers_directory.join(&image.layers[0]).join("var/log/lastlog");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(log).expect("a file"));
        assert!(blocks < 1_000, "version {version}: the holes are holes, not {blocks} blocks");
        tree::assert_same(&tree::of_image(&image, scratch.path()), &expected);
    }
    // GNU's own form knows neither attributes nor parts of seconds.
    let bytes = tar(&root, &work.path().join("tar"), &["--format=gnu"]);
    let scratch = tempfile::tempdir().expect("a directory");
    let images = store(&scratch.path().join("images"));
    let image = crate::build::put(&images, &[Blob::tar(&bytes)], None).expect("it unpacks");
    let plain = work.path().join("plain");
    fs::create_dir(&plain).expect("a directory");
    run(
        "tar",
        "tar",
        &[
            "--extract",
            "--numeric-owner",
            "--preserve-permissions",
            "--file",
            text(&work.path().join("tar")),
            "--directory",
            text(&plain),
        ],
    );
    tree::assert_same(&tree::of_image(&image, scratch.path()), &tree::read(&plain));
}

#[test]
fn layers_by_hand_show_the_tree_that_umoci_unpacks() {
    let base = Tarball::new()
        .directory("./")
        .entry(Header::new("usr/", b'5', 0).mode(0o711).owner(1, 2), b"")
        .entry(Header::new("usr/lib/", b'5', 0).mode(0o750).owner(3, 4), b"")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .file("usr/lib/old", b"old")
        .entry(Header::new("usr/lib/tool", b'0', 4).mode(0o4711).owner(5, 6), b"tool")
        .directory("data/")
        .file("data/a", b"a")
        .directory("data/sub/")
        .file("data/sub/b", b"b")
        .directory("gone/")
        .file("gone/x", b"x")
        .directory("anew/")
        .file("anew/x", b"x")
        .file("plain", b"plain")
        .end();
    let upper = Tarball::new()
        // Through links of the layer below, relative, absolute and upwards.
        .file("lib/new", b"new")
        .file("abs/absolute", b"absolute")
        .symlink("usr/up", "../../..")
        .file("usr/up/at-the-root", b"root")
        .hard_link("usr/tool", "lib/tool")
        .file("lib/.wh.old", b"")
        .file("data/.wh..wh..opq", b"")
        .file("data/c", b"c")
        .file(".wh.gone", b"")
        .file(".wh.anew", b"")
        .directory("anew/")
        .file("anew/y", b"y")
        .directory("plain")
        .file("plain/z", b"z")
        .end();
    let work = tempfile::tempdir().expect("a directory");
    let layout_path = work.path().join("layout");
    layout(&layout_path, "hand", &[Blob::gzip(&base), Blob::tar(&upper)]);
    let images = store(&work.path().join("images"));
    let image = images.import_layout(&layout_path, Some("hand"), &mut |_| {}).expect("it is imported");
    let theirs = work.path().join("theirs");
    run("umoci", "umoci", &["unpack", "--image", &format!("{}:hand", text(&layout_path)), text(&theirs)]);
    let (ours, theirs) = (tree::of_image(&image, work.path()), tree::read(&theirs.join("rootfs")));
    assert_eq!(tree::shown(&ours).get("usr/lib/absolute").map(String::as_str), Some("file absolute"));
    tree::assert_same(&ours, &theirs);
}

/// A layout with a base by GNU tar and a second layer by umoci.
fn two_layers(work: &Path) -> String {
    let (root, layout_path, bundle) = (work.join("root"), work.join("layout"), work.join("bundle"));
    fs::create_dir(&root).expect("a directory");
    populate(&root);
    let base = tar(&root, &work.join("tar"), &ATTRIBUTES);
    layout(&layout_path, "base", &[Blob::gzip(&base)]);
    let image = |tag: &str| format!("{}:{tag}", text(&layout_path));
    run("umoci", "umoci", &["unpack", "--image", &image("base"), text(&bundle)]);
    change(&bundle.join("rootfs"));
    run("umoci", "umoci", &["repack", "--image", &image("changed"), text(&bundle)]);
    image("changed")
}

#[test]
fn layers_of_umoci_show_the_tree_that_umoci_unpacks() {
    let work = tempfile::tempdir().expect("a directory");
    let image_name = two_layers(work.path());
    let images = store(&work.path().join("images"));
    let mut told = Vec::new();
    let image = images
        .import_layout(&work.path().join("layout"), Some("changed"), &mut |progress| told.push(progress))
        .expect("it is imported");
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.references, ["localhost/layout:changed"]);
    assert!(told.len() >= 2, "{told:?}");
    let theirs = work.path().join("theirs");
    run("umoci", "umoci", &["unpack", "--image", &image_name, text(&theirs)]);
    tree::assert_same(&tree::of_image(&image, work.path()), &tree::read(&theirs.join("rootfs")));
}

#[test]
fn archives_of_skopeo_hold_the_same_layers() {
    let work = tempfile::tempdir().expect("a directory");
    let source = format!("oci:{}", two_layers(work.path()));
    let images = store(&work.path().join("images"));
    let layout_path = work.path().join("layout");
    let from_layout = images.import_layout(&layout_path, Some("changed"), &mut |_| {}).expect("it is imported");
    let path = |name: &str| work.path().join(name);
    let docker = format!("docker-archive:{}:bb:1", text(&path("docker.tar")));
    run("skopeo", "skopeo", &["copy", "--insecure-policy", &source, &docker]);
    let image = images.import_archive(&path("docker.tar"), None, &mut |_| {}).expect("it is imported");
    assert_eq!((&image.layers, &image.config), (&from_layout.layers, &from_layout.config));
    assert_eq!(image.references, ["docker.io/library/bb:1"]);
    let oci = format!("oci-archive:{}:example.org/a/b:2", text(&path("oci.tar")));
    run("skopeo", "skopeo", &["copy", "--insecure-policy", &source, &oci]);
    let image = images.import_archive(&path("oci.tar"), None, &mut |_| {}).expect("it is imported");
    assert_eq!(image.layers, from_layout.layers);
    // The manifest is the layout's own, so it is the same image with one name more.
    assert_eq!(image.manifest, from_layout.manifest);
    assert_eq!(image.references, ["example.org/a/b:2", "localhost/layout:changed"]);
    // Compressed as a whole, from nothing: every layer is read.
    run("gzip", "gzip", &["--keep", "--fast", text(&path("docker.tar"))]);
    let fresh = store(&work.path().join("fresh"));
    let again = fresh.import_archive(&path("docker.tar.gz"), Some("bb:1"), &mut |_| {}).expect("it is imported");
    assert_eq!(again.layers, from_layout.layers);
    assert_eq!(fs::read_dir(work.path().join("fresh/tmp")).expect("a folder").count(), 0);
}

#[test]
fn manifest_of_an_archive_is_the_same_each_time() {
    let work = tempfile::tempdir().expect("a directory");
    let source = format!("oci:{}", two_layers(work.path()));
    let archive = work.path().join("docker.tar");
    run(
        "skopeo",
        "skopeo",
        &["copy", "--insecure-policy", &source, &format!("docker-archive:{}:bb:1", text(&archive))],
    );
    let digest = |images: Images| -> Digest {
        images.import_archive(&archive, None, &mut |_| {}).expect("it is imported").manifest
    };
    assert_eq!(digest(store(&work.path().join("one"))), digest(store(&work.path().join("two"))));
}
