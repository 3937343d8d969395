//! Layers that no honest tool makes, and those that honest tools make strangely.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use workloads_image::unpack::Problem;
use workloads_image::{Bomb, Digest, DigestError, ImageError, Images, Limits, StoreOptions, UnpackError};

use crate::build::{Blob, Header, Tarball, documents, gzip, gzip_best, put, store};

/// A store and the layers of what was put into it.
struct Bench {
    directory: tempfile::TempDir,
    images: Images,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let images = store(directory.path());
        Self { directory, images }
    }

    /// Unpacks layers, bottom first, and returns the directory of the topmost one.
    fn unpack(&self, tars: &[Vec<u8>]) -> Result<PathBuf, ImageError> {
        let blobs: Vec<Blob> = tars.iter().map(|tar| Blob::tar(tar)).collect();
        let image = put(&self.images, &blobs, None)?;
        Ok(image.layers_directory.join(image.layers.last().expect("a layer")))
    }

    fn refused(&self, tars: &[Vec<u8>]) -> ImageError {
        let error = self.unpack(tars).expect_err("it is refused");
        self.is_empty();
        error
    }

    fn problem(&self, tar: Vec<u8>) -> Problem {
        match self.refused(&[tar]) {
            ImageError::Layer { source: UnpackError::Entry { problem, .. }, .. } => problem,
            other => panic!("{other:?}"),
        }
    }

    /// After a refusal nothing is left.
    fn is_empty(&self) {
        for folder in ["layers", "manifests", "configs", "references", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.directory.path().join(folder)).expect("a folder").collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
    }
}

/// Every path below a directory with what it is: `d`, `f CONTENT`, `l TARGET`, `w` for a whiteout, `p`; `+o` is opaque.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("it is there");
            let kind = metadata.file_type();
            let shown = if kind.is_dir() {
                walk(root, &path, found);
                format!("d{}", if opaque(&path) { "+o" } else { "" })
            } else if kind.is_symlink() {
                format!("l {}", fs::read_link(&path).expect("a link").display())
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                "w".to_owned()
            } else if kind.is_fifo() {
                "p".to_owned()
            } else {
                format!("f {}", String::from_utf8_lossy(&fs::read(&path).expect("a file")))
            };
            found.insert(path.strip_prefix(root).expect("below").display().to_string(), shown);
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn opaque(path: &Path) -> bool {
    let mut value = [0_u8; 8];
    rustix::fs::lgetxattr(path, "trusted.overlay.opaque", value.as_mut_slice())
        .is_ok_and(|count| value[..count] == *b"y")
}

fn check(layers: &[Vec<u8>], expected: &[(&str, &str)]) {
    let bench = Bench::new();
    let found = tree(&bench.unpack(layers).expect("it unpacks"));
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn names_that_lead_out_are_refused() {
    let bench = Bench::new();
    for path in ["../evil", "a/../../evil", "/../evil", "a/..", "..", "./../x"] {
        assert_eq!(bench.problem(Tarball::new().file(path, b"x").end()), Problem::Traversal, "{path}");
    }
    let target = Tarball::new().file("a", b"x").hard_link("b", "../../etc/passwd").end();
    assert_eq!(bench.problem(target), Problem::Traversal);
}

#[test]
fn absolute_names_are_of_the_image() {
    check(
        &[Tarball::new().directory("/etc").file("/etc/x", b"1").hard_link("y", "/etc/x").end()],
        &[("etc", "d"), ("etc/x", "f 1"), ("y", "f 1")],
    );
}

#[test]
fn links_out_of_the_image_lead_into_it() {
    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().to_str().expect("UTF-8");
    for link in [target.to_owned(), format!("../../../../../../../../../../..{target}")] {
        let bench = Bench::new();
        let root = bench
            .unpack(&[Tarball::new()
                .symlink("evil", &link)
                .file("evil/passwd", b"x")
                .hard_link("own", "evil/passwd")
                .end()])
            .expect("it unpacks");
        assert_eq!(fs::read(root.join(&target[1..]).join("passwd")).expect("inside"), b"x");
        assert_eq!(fs::read(root.join("own")).expect("inside"), b"x");
        assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0, "nothing went out");
    }
}

#[test]
fn links_of_lower_layers_are_followed_inside_of_the_image() {
    let base = Tarball::new().directory("usr/").directory("usr/lib/").symlink("lib", "usr/lib").end();
    let upper = Tarball::new().file("lib/new", b"1").end();
    check(&[base, upper], &[("usr", "d"), ("usr/lib", "d"), ("usr/lib/new", "f 1")]);
}

#[test]
fn links_in_a_circle_are_refused() {
    let bench = Bench::new();
    let circle = Tarball::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end();
    assert_eq!(bench.problem(circle), Problem::Links);
}

#[test]
fn what_is_below_a_file_is_refused() {
    let bench = Bench::new();
    assert_eq!(bench.problem(Tarball::new().file("a", b"").file("a/b", b"").end()), Problem::NoDirectory);
    let error = bench.refused(&[Tarball::new().file("a", b"").end(), Tarball::new().file("a/b", b"").end()]);
    assert!(matches!(
        error,
        ImageError::Layer { source: UnpackError::Entry { problem: Problem::NoDirectory, .. }, .. }
    ));
}

#[test]
fn names_beyond_the_kernels_are_refused() {
    let bench = Bench::new();
    let long = "n".repeat(256);
    let deep = "d/".repeat(300);
    for path in [long.as_str(), deep.as_str(), &format!("{}x", "long-directory/".repeat(280))] {
        let tar = Tarball::new().pax(&[("path", path.as_bytes())]).file("x", b"").end();
        assert_eq!(bench.problem(tar), Problem::TooLong, "{path}");
    }
    // Links make names longer than they are written.
    let mut tar = Tarball::new();
    let directory = "d/".repeat(100);
    tar = tar.pax(&[("path", directory.as_bytes())]).directory("x");
    for level in 0..3 {
        let parent = directory.repeat(level);
        tar = tar
            .pax(&[("path", format!("{parent}{directory}up").as_bytes()), ("linkpath", directory.as_bytes())])
            .symlink("x", "y");
    }
    let path = format!("{directory}up/{directory}up/{directory}up/x");
    tar = tar.pax(&[("path", path.as_bytes())]).file("x", b"");
    assert_eq!(bench.problem(tar.end()), Problem::TooLong);
}

#[test]
fn device_that_deletes_is_refused_and_others_are_made() {
    let bench = Bench::new();
    let device = |flag, major, minor| Tarball::new().entry(Header::new("dev", flag, 0).device(major, minor), b"").end();
    assert_eq!(bench.problem(device(b'3', 0, 0)), Problem::WhiteoutDevice);
    assert_eq!(bench.problem(device(b'3', 0x1000, 0)), Problem::Device);
    assert_eq!(bench.problem(device(b'4', 1, 0x10_0000)), Problem::Device);
    let root = bench
        .unpack(&[Tarball::new()
            .entry(Header::new("null", b'3', 0).device(1, 3).mode(0o666), b"")
            .entry(Header::new("disk", b'4', 0).device(8, 1).owner(0, 6), b"")
            .entry(Header::new("pipe", b'6', 0).mode(0o622), b"")
            .end()])
        .expect("it unpacks");
    let null = fs::symlink_metadata(root.join("null")).expect("a device");
    assert!(null.file_type().is_char_device() && null.rdev() == 0x103 && null.mode() & 0o7777 == 0o666);
    let disk = fs::symlink_metadata(root.join("disk")).expect("a device");
    assert!(disk.file_type().is_block_device() && disk.rdev() == 0x801 && disk.gid() == 6);
    let pipe = fs::symlink_metadata(root.join("pipe")).expect("a pipe");
    assert!(pipe.file_type().is_fifo() && pipe.mode() & 0o7777 == 0o622);
}

#[test]
fn layers_cannot_be_reached_by_others() {
    let bench = Bench::new();
    bench.unpack(&[Tarball::new().file("x", b"").end()]).expect("it unpacks");
    for folder in ["layers", "tmp"] {
        let mode = fs::metadata(bench.directory.path().join(folder)).expect("a folder").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{folder}");
    }
}

#[test]
fn hard_links_to_nothing_and_to_directories_are_refused() {
    let bench = Bench::new();
    let links = [
        (Tarball::new().hard_link("a", "b"), Problem::NoTarget),
        (Tarball::new().hard_link("a", "a"), Problem::NoTarget),
        (Tarball::new().file("a", b"").hard_link("a", "a"), Problem::NoTarget),
        (Tarball::new().hard_link("a", "x/y"), Problem::NoTarget),
        (Tarball::new().directory("d").hard_link("a", "d"), Problem::DirectoryTarget),
        (Tarball::new().hard_link("a", "/"), Problem::DirectoryTarget),
    ];
    for (tar, problem) in links {
        assert_eq!(bench.problem(tar.end()), problem);
    }
}

#[test]
fn hard_link_to_a_lower_layer_copies_with_all_that_the_file_is() {
    let bench = Bench::new();
    let base = Tarball::new()
        .entry(Header::new("opt/", b'5', 0).mode(0o1710).owner(7, 8), b"")
        .pax(&[("SCHILY.xattr.user.mark", b"yes"), ("mtime", b"1000.25")])
        .entry(Header::new("opt/file", b'0', 5).mode(0o4755).owner(70_000, 9), b"hello")
        .end();
    let root = bench.unpack(&[base, Tarball::new().hard_link("name", "opt/file").end()]).expect("it unpacks");
    assert_eq!(
        tree(&root),
        BTreeMap::from(
            [("opt", "d"), ("opt/file", "f hello"), ("name", "f hello")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        )
    );
    let (file, name) =
        (fs::metadata(root.join("opt/file")).expect("a file"), fs::metadata(root.join("name")).expect("a file"));
    assert_eq!((file.ino(), file.nlink()), (name.ino(), 2));
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4755, 70_000, 9));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_000, 250_000_000));
    let directory = fs::metadata(root.join("opt")).expect("a directory");
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.gid()), (0o1710, 7, 8));
    assert_eq!(directory.mtime(), 1_700_000_000, "the directory is as it was");
    let mut value = [0_u8; 8];
    let count = rustix::fs::lgetxattr(root.join("name"), "user.mark", value.as_mut_slice()).expect("an attribute");
    assert_eq!(&value[..count], b"yes");
}

#[test]
fn later_entries_of_a_name_replace_earlier_ones() {
    check(
        &[Tarball::new()
            .file("a", b"1")
            .file("a", b"2")
            .symlink("b", "a")
            .file("b", b"3")
            .directory("d")
            .file("d/x", b"4")
            .file("d", b"5")
            .file("e", b"6")
            .directory("e")
            .file("e/y", b"7")
            .directory("g")
            .file("g/z", b"8")
            .directory("g")
            .end()],
        // The directory that was a file is opaque: what the file hid stays hidden.
        &[("a", "f 2"), ("b", "f 3"), ("d", "f 5"), ("e", "d+o"), ("e/y", "f 7"), ("g", "d"), ("g/z", "f 8")],
    );
}

#[test]
fn file_is_not_written_through_a_link_of_its_name() {
    let bench = Bench::new();
    let outside = bench.directory.path().join("outside");
    fs::write(&outside, b"safe").expect("written");
    let link = outside.to_str().expect("UTF-8");
    let tar = Tarball::new().symlink("x", link).file("x", b"evil").symlink("y", link).directory("y").end();
    let root = bench.unpack(&[tar]).expect("it unpacks");
    assert_eq!(fs::read(outside).expect("a file"), b"safe");
    assert_eq!(tree(&root).get("x").map(String::as_str), Some("f evil"));
}

/// What the layer below shows in the tests of whiteouts.
fn below() -> Vec<u8> {
    Tarball::new()
        .directory("d/")
        .file("d/old", b"old")
        .directory("d/sub/")
        .file("d/sub/deep", b"deep")
        .file("f", b"f")
        .end()
}

#[test]
fn whiteouts_in_any_order() {
    let upper = |tar: Tarball| vec![below(), tar.end()];
    let table: [(Tarball, &[(&str, &str)]); 12] = [
        (Tarball::new().file(".wh.f", b""), &[("f", "w")]),
        (Tarball::new().file(".wh.d", b""), &[("d", "w")]),
        (Tarball::new().file("d/.wh.old", b""), &[("d", "d"), ("d/old", "w")]),
        // A deletion of nothing leaves nothing.
        (Tarball::new().file(".wh.none", b"").file("none/.wh.x", b"").file("d/.wh.none", b""), &[("d", "d")]),
        // Deleted and made anew, as a file and as a directory, in both orders.
        (Tarball::new().file(".wh.f", b"").file("f", b"new"), &[("f", "f new")]),
        (Tarball::new().file("f", b"new").file(".wh.f", b""), &[("f", "f new")]),
        (Tarball::new().file(".wh.d", b"").directory("d").file("d/new", b"n"), &[("d", "d+o"), ("d/new", "f n")]),
        (Tarball::new().directory("d").file("d/new", b"n").file(".wh.d", b""), &[("d", "d+o"), ("d/new", "f n")]),
        // Opaque before and after what comes into it; a deletion in it is one too many.
        (Tarball::new().file("d/.wh..wh..opq", b"").file("d/new", b"n"), &[("d", "d+o"), ("d/new", "f n")]),
        (
            Tarball::new().file("d/new", b"n").file("d/.wh.old", b"").file("d/.wh..wh..opq", b""),
            &[("d", "d+o"), ("d/new", "f n")],
        ),
        // What a file hid, a directory of its name does not show again.
        (Tarball::new().file("d", b"x").directory("d"), &[("d", "d+o")]),
        // What AUFS keeps for itself is nobody's.
        (Tarball::new().directory(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"").directory(".wh..wh.orph"), &[]),
    ];
    for (tar, expected) in table {
        check(&upper(tar), expected);
    }
}

#[test]
fn whiteouts_that_name_nothing_are_refused() {
    let bench = Bench::new();
    for path in [".wh.", ".wh..", ".wh...", "a/.wh.", ".wh.d/x"] {
        assert_eq!(bench.problem(Tarball::new().file(path, b"").end()), Problem::Whiteout, "{path}");
    }
}

#[test]
fn opaque_directory_hides_from_later_lookups() {
    // Without the mark, "d/sub" would be copied from below with its owner.
    let base = Tarball::new().directory("d").entry(Header::new("d/sub/", b'5', 0).owner(5, 5), b"").end();
    let upper = Tarball::new().file("d/.wh..wh..opq", b"").file("d/sub/x", b"").end();
    let bench = Bench::new();
    let root = bench.unpack(&[base, upper]).expect("it unpacks");
    assert_eq!(fs::metadata(root.join("d/sub")).expect("a directory").uid(), 0);
}

#[test]
fn hard_link_to_what_the_layer_deletes_is_refused() {
    let bench = Bench::new();
    let error = bench.refused(&[below(), Tarball::new().file(".wh.f", b"").hard_link("x", "f").end()]);
    assert!(matches!(error, ImageError::Layer { source: UnpackError::Entry { problem: Problem::NoTarget, .. }, .. }));
}

#[test]
fn attributes_of_overlay_and_of_the_host_are_left_out() {
    let capability: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bench = Bench::new();
    let tar = Tarball::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.trusted.meshd.layer", b"0 root")])
        .directory("d")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.security.selinux", b"system_u:object_r:x_t:s0"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.user.overlay.origin", b"x"),
            ("SCHILY.xattr.user.kept", b"a\nb=c\0d"),
        ])
        .entry(Header::new("ping", b'0', 0).mode(0o755), b"")
        .end();
    let root = bench.unpack(&[tar]).expect("it unpacks");
    let names = |path: &str| {
        let mut list = [0_u8; 512];
        let count = rustix::fs::llistxattr(root.join(path), list.as_mut_slice()).expect("a list");
        let mut names: Vec<String> = list[..count]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("d"), Vec::<String>::new());
    assert_eq!(names("ping"), ["security.capability", "user.kept"]);
    let mut value = [0_u8; 64];
    let count = rustix::fs::lgetxattr(root.join("ping"), "user.kept", value.as_mut_slice()).expect("an attribute");
    assert_eq!(&value[..count], b"a\nb=c\0d");
    let count = rustix::fs::lgetxattr(root.join("ping"), "security.capability", value.as_mut_slice()).expect("one");
    assert_eq!(&value[..count], capability);
}

#[test]
fn owners_modes_and_times_are_as_written() {
    let bench = Bench::new();
    let tar = Tarball::new()
        .pax(&[("mtime", b"-1.5"), ("uid", b"3000000"), ("gid", b"4000000")])
        .entry(Header::new("old", b'0', 1).mode(0o6751), b"x")
        .pax(&[("mtime", b"1234567890.123456789")])
        .entry(Header::new("link", b'2', 0).link("old").owner(11, 12), b"")
        .entry(Header::new("d/", b'5', 0).mode(0o3777).owner(1, 2), b"")
        .file("d/inside", b"later")
        .pax(&[("mtime", b"77")])
        .entry(Header::new("./", b'5', 0).mode(0o700).owner(3, 4), b"")
        .file("after", b"")
        .end();
    let root = bench.unpack(&[tar]).expect("it unpacks");
    let facts = |path: &str| {
        let found = fs::symlink_metadata(root.join(path)).expect("it is there");
        (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime(), found.mtime_nsec())
    };
    assert_eq!(facts("old"), (0o6751, 3_000_000, 4_000_000, -2, 500_000_000));
    assert_eq!(facts("link"), (0o777, 11, 12, 1_234_567_890, 123_456_789));
    assert_eq!(facts("d"), (0o3777, 1, 2, 1_700_000_000, 0), "setgid, sticky and the time are the entry's");
    assert_eq!(facts(""), (0o700, 3, 4, 77, 0));
}

#[test]
fn nobody_in_particular_owns_nothing() {
    let bench = Bench::new();
    for pax in [("uid", "4294967295"), ("gid", "4294967296"), ("uid", "-1"), ("mtime", "x"), ("size", "1k")] {
        let tar = Tarball::new().pax(&[(pax.0, pax.1.as_bytes())]).file("x", b"").end();
        let error = bench.refused(&[tar]);
        assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{pax:?}: {error:?}");
    }
}

#[test]
fn tar_that_is_cut_off_is_refused_wherever_it_is_cut() {
    let bench = Bench::new();
    let whole = Tarball::new()
        .directory("d")
        .pax(&[("SCHILY.xattr.user.a", b"b")])
        .file("d/file", &[9; 1_500])
        .hard_link("x", "d/file")
        .cut();
    for length in (1..whole.len()).step_by(97).filter(|length| length % 512 != 0) {
        let error = bench.refused(&[whole[..length].to_vec()]);
        assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{length}: {error:?}");
    }
}

#[test]
fn compressed_layer_that_is_cut_off_or_damaged_is_said_to_be_damaged() {
    let bench = Bench::new();
    let tar = Tarball::new().file("x", &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).end();
    for blob in [Blob::gzip(&tar), Blob::zstd(&tar), Blob::tar(&tar)] {
        let (manifest, config) = documents(std::slice::from_ref(&blob), "x");
        let attempt = |bytes: &[u8]| {
            let mut ingest = bench.images.begin(manifest.clone(), config.clone()).expect("it begins");
            ingest.layer(0, bytes).expect_err("it is refused")
        };
        let length = blob.bytes.len();
        assert!(matches!(attempt(&blob.bytes[..length / 2]), ImageError::Size { .. }), "cut");
        assert!(matches!(attempt(&[]), ImageError::Size { found: 0, .. }), "nothing");
        let mut longer = blob.bytes.clone();
        longer.push(0);
        assert!(matches!(attempt(&longer), ImageError::Size { .. }), "longer");
        for at in [3, length / 2, length - 1] {
            let mut damaged = blob.bytes.clone();
            damaged[at] ^= 0x40;
            let error = attempt(&damaged);
            assert!(matches!(error, ImageError::Digest { .. }), "{} {at}: {error:?}", blob.media_type);
        }
        bench.is_empty();
    }
}

#[test]
fn layer_with_another_diff_id_is_refused() {
    let bench = Bench::new();
    let mut blob = Blob::gzip(&Tarball::new().file("x", b"1").end());
    blob.diff_id = Digest::of(b"another");
    let error = put(&bench.images, &[blob], None).expect_err("it is refused");
    assert!(matches!(error, ImageError::Digest { source: DigestError::Mismatch { .. }, .. }), "{error:?}");
    bench.is_empty();
}

#[test]
fn configuration_that_is_not_the_manifests_is_refused() {
    let bench = Bench::new();
    let (manifest, config) = documents(&[Blob::tar(&below())], "x");
    let mut same_length = config.clone();
    let at = same_length.len() - 3;
    same_length[at] ^= 1;
    let error = bench.images.begin(manifest.clone(), same_length).expect_err("it is refused");
    assert!(matches!(error, ImageError::Digest { .. }), "{error:?}");
    let error = bench.images.begin(manifest, [config, vec![b' ']].concat()).expect_err("it is refused");
    assert!(matches!(error, ImageError::Size { .. }), "{error:?}");
}

#[test]
fn source_that_fails_is_not_taken_for_a_bad_layer() {
    struct Stalled<'a>(&'a [u8]);
    impl Read for Stalled<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::TimedOut.into()) } else { self.0.read(buffer) }
        }
    }
    let bench = Bench::new();
    let blob = Blob::gzip(&below());
    let (manifest, config) = documents(std::slice::from_ref(&blob), "x");
    let mut ingest = bench.images.begin(manifest, config).expect("it begins");
    let error = ingest.layer(0, Stalled(&blob.bytes[..20])).expect_err("it is refused");
    let ImageError::Source { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    drop(ingest);
    bench.is_empty();
}

#[test]
fn bombs_are_refused_by_ratio_size_and_number() {
    // 64 MiB of zeros in some 60 KiB.
    let zeros = Tarball::new().file("zeros", &vec![0; 64 << 20]).end();
    let bench = Bench::new();
    let blob = Blob { bytes: gzip_best(&zeros), ..Blob::gzip(&zeros) };
    let error = put(&bench.images, &[blob], None).expect_err("it is refused");
    assert!(matches!(error, ImageError::Bomb { source: Bomb::Ratio { .. }, .. }), "{error:?}");
    bench.is_empty();

    let directory = tempfile::tempdir().expect("a directory");
    let limits = Limits { entries: 10, bytes: 100_000, kept_bytes: 1_000, ..Limits::default() };
    let options = StoreOptions { limits, ..StoreOptions::default() };
    let images = Images::open(directory.path(), options).expect("the store opens");
    let error = put(&images, &[Blob::tar(&Tarball::new().file("x", &[1; 200_000]).end())], None).expect_err("refused");
    assert!(matches!(error, ImageError::Bomb { source: Bomb::Size { .. }, .. }), "{error:?}");
    let many = (0..11).fold(Tarball::new(), |tar, index| tar.file(&format!("{index}"), b""));
    let error = put(&images, &[Blob::gzip(&many.end())], None).expect_err("it is refused");
    assert!(matches!(error, ImageError::Layer { source: UnpackError::TooMuch { of: "entries", .. }, .. }), "{error:?}");
    let deep = "directory/".repeat(60);
    let tar = Tarball::new().pax(&[("path", deep.as_bytes())]).directory("x").end();
    let error = put(&images, &[Blob::gzip(&tar)], None).expect_err("it is refused");
    assert!(matches!(error, ImageError::Layer { source: UnpackError::TooMuch { .. }, .. }), "{error:?}");
}

#[test]
fn headers_that_would_fill_the_memory_are_refused() {
    let bench = Bench::new();
    let value = vec![b'a'; 2 << 20];
    let tars = [
        Tarball::new().pax(&[("comment", &value)]).file("x", b"").end(),
        Tarball::new().entry(Header::new("long", b'L', value.len()), &value).file("x", b"").end(),
        (0..20).fold(Tarball::new(), |tar, _| tar.pax(&[("path", b"y")])).file("x", b"").end(),
    ];
    for tar in tars {
        let error = bench.refused(&[tar]);
        assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{error:?}");
    }
}

#[test]
fn huge_sparse_file_takes_no_space_and_an_impossible_one_is_refused() {
    let bench = Bench::new();
    let sparse = |size: &str| {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"var/log/lastlog"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        let mut content = b"1\n1048576\n5\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"login");
        Tarball::new().pax(&records).entry(Header::new("GNUSparseFile.0/lastlog", b'0', content.len()), &content).end()
    };
    let root = bench.unpack(&[sparse("1099511627776")]).expect("it unpacks");
    let file = fs::metadata(root.join("var/log/lastlog")).expect("a file");
    assert_eq!(file.len(), 1 << 40);
    assert!(file.blocks() < 64, "{} blocks", file.blocks());
    use std::os::unix::fs::FileExt as _;
    let mut content = [0; 7];
    let open = fs::File::open(root.join("var/log/lastlog")).expect("a file");
    open.read_exact_at(&mut content, (1 << 20) - 1).expect("read");
    assert_eq!(&content, b"\0login\0");
    let bench = Bench::new();
    assert_eq!(bench.problem(sparse("999999999999999")), Problem::Size);
    let error = bench.refused(&[sparse("1048578")]);
    assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{error:?}");
}

#[test]
fn members_and_frames_are_read_to_the_last() {
    let tar = Tarball::new().file("x", &vec![5; 300_000]).file("y", b"end").end();
    let (first, second) = tar.split_at(123_456);
    let skippable = [&[0x5a_u8, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let zstd = crate::build::zstd;
    for bytes in [
        [gzip(first), gzip(second)].concat(),
        [gzip(first), gzip(b""), gzip(second)].concat(),
        [zstd(first), zstd(second)].concat(),
        [skippable.clone(), zstd(first), skippable, zstd(second)].concat(),
    ] {
        let bench = Bench::new();
        let blob = Blob { bytes, ..Blob::gzip(&tar) };
        let image = put(&bench.images, &[blob], None).expect("it unpacks");
        let root = image.layers_directory.join(&image.layers[0]);
        assert_eq!(fs::read(root.join("y")).expect("a file"), b"end");
        assert_eq!(fs::metadata(root.join("x")).expect("a file").len(), 300_000);
    }
}

#[test]
fn source_that_gives_one_byte_at_a_time_is_read_all_the_same() {
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }
    let tar = Tarball::new().file("x", b"1").end();
    for blob in [Blob::tar(&tar), Blob::gzip(&tar), Blob::zstd(&tar)] {
        let bench = Bench::new();
        let (manifest, config) = documents(std::slice::from_ref(&blob), "x");
        let mut ingest = bench.images.begin(manifest, config).expect("it begins");
        ingest.layer(0, Slow(&blob.bytes)).expect("it unpacks");
        ingest.commit(None).expect("stored");
    }
}

#[test]
fn what_follows_the_end_of_the_tar_counts_for_its_digest() {
    let mut tar = Tarball::new().file("x", b"1").end();
    tar.extend_from_slice(&[0; 9_000]);
    check(&[tar], &[("x", "f 1")]);
}

#[test]
fn entries_of_no_layer_are_refused() {
    let bench = Bench::new();
    for flag in *b"DMNVAz\xff" {
        let error = bench.refused(&[Tarball::new().entry(Header::new("x", flag, 0), b"").end()]);
        assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{flag}: {error:?}");
    }
    let error = bench.refused(&[Tarball::new().file("", b"x").end()]);
    assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{error:?}");
    assert_eq!(bench.problem(Tarball::new().file("/", b"x").end()), Problem::Root);
    assert_eq!(bench.problem(Tarball::new().entry(Header::new("x", b'2', 0), b"").end()), Problem::Target);
}

#[test]
fn rubbish_after_a_header_is_refused() {
    let bench = Bench::new();
    let error = bench.refused(&[Tarball::new().file("x", b"1").raw(&[0xaa; 512]).end()]);
    assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{error:?}");
    let error = bench.refused(&[Tarball::new().file("x", b"1").raw(&[0; 512]).file("y", b"").end()]);
    assert!(matches!(error, ImageError::Layer { source: UnpackError::Tar(_), .. }), "{error:?}");
}

#[test]
fn layers_come_bottom_first() {
    let bench = Bench::new();
    let blobs = [Blob::tar(&below()), Blob::tar(&Tarball::new().file("x", b"").end())];
    let (manifest, config) = documents(&blobs, "x");
    let mut ingest = bench.images.begin(manifest, config).expect("it begins");
    assert!(matches!(ingest.layer(1, blobs[1].bytes.as_slice()), Err(ImageError::Order { index: 0 })));
    assert!(matches!(ingest.commit(None), Err(ImageError::Order { index: 0 })));
    bench.is_empty();
}

/// Names and targets that try to lead to `outside`.
fn hostile_entry(outside: &str) -> impl Strategy<Value = Header> + use<> {
    let parts = ["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "link", outside];
    let name = prop::collection::vec(prop::sample::select(parts.map(str::to_owned).to_vec()), 1..5)
        .prop_map(|parts| parts.join("/"));
    let up = format!("../../../../../../../..{outside}");
    let target = prop_oneof![Just(outside.to_owned()), Just(up), Just(format!("{outside}/canary")), name.clone()];
    let flag = prop::sample::select(vec![b'0', b'1', b'2', b'2', b'2', b'3', b'5', b'5', b'6']);
    (name, target, flag, 0..8_u64).prop_map(|(name, target, flag, device)| {
        Header::new(&name, flag, 0).link(&target[..target.len().min(100)]).device(device / 4, device % 4)
    })
}

#[test]
fn no_layer_touches_what_is_outside_of_it() {
    let outside = tempfile::tempdir().expect("a directory");
    let canary = outside.path().join("canary");
    fs::write(&canary, b"alive").expect("written");
    let state = || {
        let canary = fs::symlink_metadata(&canary).expect("it is there");
        let around = fs::symlink_metadata(outside.path()).expect("it is there");
        let names: Vec<_> =
            fs::read_dir(outside.path()).expect("a directory").map(|e| e.expect("one").file_name()).collect();
        let facts = |found: &fs::Metadata| {
            (found.mode(), found.uid(), found.ino(), found.nlink(), found.mtime_nsec(), found.ctime_nsec())
        };
        (facts(&canary), facts(&around), names)
    };
    let before = state();
    let entry = hostile_entry(outside.path().to_str().expect("UTF-8"));
    let layers = prop::collection::vec(prop::collection::vec(entry, 1..12), 1..3);
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&layers, |layers| {
        let bench = Bench::new();
        let tars: Vec<Vec<u8>> = layers
            .iter()
            .map(|entries| entries.iter().fold(Tarball::new(), |tar, entry| tar.entry(entry.clone(), b"")).end())
            .collect();
        let refused = bench.unpack(&tars).is_err();
        prop_assert!(state() == before, "something outside was touched");
        if refused {
            bench.is_empty();
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
