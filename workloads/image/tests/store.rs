//! The store: what is shared, what is given back, what a crash leaves.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use workloads_image::{Digest, ImageError, Images, Limits, Platform, StoreOptions};

use crate::build::{Blob, Tarball, documents, put, store};

fn base() -> Vec<u8> {
    Tarball::new()
        .directory("./")
        .directory("etc/")
        .file("etc/hostname", b"base\n")
        .directory("bin/")
        .file("bin/tool", &vec![7; 70_000])
        .symlink("bin/other", "tool")
        .hard_link("bin/same", "bin/tool")
        .end()
}

fn blob(content: &str) -> Blob {
    Blob::gzip(&Tarball::new().file("file", content.as_bytes()).end())
}

fn count(directory: &Path, folder: &str) -> usize {
    fs::read_dir(directory.join(folder)).expect("a folder").count()
}

/// How many entries there are in layers, configs, manifests, references and tmp.
fn counts(directory: &Path) -> [usize; 5] {
    ["layers", "configs", "manifests", "references", "tmp"].map(|folder| count(directory, folder))
}

#[test]
fn image_in_each_compression_has_the_same_layers() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let tar = base();
    let image = put(&images, &[Blob::gzip(&tar)], Some("app:1")).expect("gzip");
    let root = image.layers_directory.join(&image.layers[0]);
    assert_eq!(fs::read(root.join("etc/hostname")).expect("a file"), b"base\n");
    assert_eq!(fs::read_link(root.join("bin/other")).expect("a link").to_str(), Some("tool"));
    assert_eq!(fs::metadata(root.join("bin/tool")).expect("a file").nlink(), 2);
    assert_eq!(image.references, ["docker.io/library/app:1"]);
    assert_eq!(image.size_bytes, 70_005);
    assert_eq!(image.root_layer.as_ref(), Some(&image.layers[0]));
    for blob in [Blob::zstd(&tar), Blob::tar(&tar)] {
        let again = put(&images, &[blob], None).expect("stored");
        assert_eq!(again.layers, image.layers);
    }
    assert_eq!(images.list().len(), 3);
    assert_eq!(images.resolve("app:1"), Some(image));
}

#[test]
fn images_share_layers_and_stored_ones_are_not_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let shared = Blob::gzip(&base());
    put(&images, std::slice::from_ref(&shared), Some("one")).expect("stored");
    assert!(images.has_layer(&shared.diff_id));
    let layers = [shared.clone(), blob("two")];
    let (manifest, config) = documents(&layers, "two");
    let mut ingest = images.begin(manifest, config).expect("it begins");
    let stored: Vec<bool> = ingest.layers().iter().map(|layer| layer.stored).collect();
    assert_eq!(stored, [true, false]);
    assert!(ingest.has_layer(&shared.diff_id));
    ingest.layer(0, std::io::empty()).expect("nothing is read");
    ingest.layer(1, layers[1].bytes.as_slice()).expect("stored");
    let image = ingest.commit(Some("two")).expect("stored");
    assert_eq!(image.layers[0], shared.diff_id.hex());
    assert_eq!(count(directory.path(), "layers"), 2);
}

#[test]
fn layer_that_needs_what_is_below_is_shared_only_over_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let dependent = Blob::gzip(&Tarball::new().hard_link("name", "file").end());
    let stacks = [[blob("a"), dependent.clone()], [blob("b"), dependent.clone()], [blob("a"), dependent]];
    let contents: Vec<_> = stacks
        .iter()
        .map(|stack| {
            let image = put(&images, stack, None).expect("stored");
            let layer = image.layers[1].clone();
            (fs::read(image.layers_directory.join(&layer).join("name")).expect("a file"), layer)
        })
        .collect();
    assert_eq!((contents[0].0.as_slice(), contents[1].0.as_slice()), (&b"a"[..], &b"b"[..]));
    assert_eq!(contents[0], contents[2]);
    assert_ne!(contents[0].1, contents[1].1);
    assert_eq!(count(directory.path(), "layers"), 4);
}

#[test]
fn images_are_found_by_name_digest_and_prefix() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let image = put(&images, &[blob("1")], Some("registry.example:5000/team/app:1")).expect("stored");
    put(&images, &[blob("2")], Some("other")).expect("stored");
    let digest = image.manifest.to_string();
    let hex = image.manifest.hex();
    for text in [
        "registry.example:5000/team/app:1",
        &digest,
        &format!("registry.example:5000/team/app@{digest}"),
        hex,
        &hex[..12],
        &digest[..25],
    ] {
        assert_eq!(images.resolve(text).as_ref(), Some(&image), "{text}");
    }
    for text in ["registry.example:5000/team/app", "team/app:1", &hex[..11], "", "@", "sha256:", &"0".repeat(64)] {
        assert_eq!(images.resolve(text), None, "{text}");
    }
}

#[test]
fn name_moves_to_the_image_that_was_stored_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let first = put(&images, &[blob("1")], Some("app")).expect("stored");
    let second = put(&images, &[blob("2")], Some("app")).expect("stored");
    assert_eq!(images.resolve("app").map(|image| image.manifest), Some(second.manifest.clone()));
    images.tag(first.manifest.hex(), "app:old").expect("named");
    let error = images.tag("app:none", "x").expect_err("no such image");
    assert!(matches!(error, ImageError::NotFound { .. }));
    assert!(matches!(images.tag("app", "No Name"), Err(ImageError::Reference { .. })));
    drop(images);
    let images = store(directory.path());
    assert_eq!(images.resolve("app").map(|image| image.manifest), Some(second.manifest));
    assert_eq!(images.resolve("app:old").map(|image| image.manifest), Some(first.manifest));
}

#[test]
fn collection_takes_what_has_no_name_and_no_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let shared = Blob::gzip(&base());
    let kept = put(&images, &[shared.clone(), blob("kept")], Some("kept")).expect("stored");
    let used = put(&images, &[shared.clone(), blob("used")], None).expect("stored");
    let gone = put(&images, &[shared, blob("gone")], Some("gone")).expect("stored");
    let removed = images.remove("gone").expect("it was there");
    assert_eq!((removed.references, removed.manifest), (gone.references.clone(), gone.manifest.clone()));
    assert!(matches!(images.remove("gone"), Err(ImageError::NotFound { .. })));
    // Another image counts on a layer of the one that goes.
    let (manifest, config) = documents(&[blob("gone"), blob("new")], "new");
    let mut ingest = images.begin(manifest, config).expect("it begins");
    let freed = images.gc(&BTreeSet::from([used.manifest.clone()])).expect("collected");
    assert_eq!((freed.images, freed.layers), (vec![gone.manifest], 0));
    ingest.layer(1, blob("new").bytes.as_slice()).expect("stored");
    let new = ingest.commit(None).expect("the layer below was kept");
    assert!(new.layers_directory.join(&new.layers[0]).join("file").exists());
    let freed = images.gc(&BTreeSet::new()).expect("collected");
    assert_eq!((freed.images.len(), freed.layers, freed.bytes), (2, 3, 11));
    assert_eq!(images.list(), std::slice::from_ref(&kept));
    assert_eq!(counts(directory.path()), [2, 1, 1, 1, 0]);
    drop(images);
    assert_eq!(store(directory.path()).list(), [kept]);
}

#[test]
fn layer_that_hides_all_is_the_bottom_and_the_hidden_ones_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let hiding = Blob::gzip(&Tarball::new().file(".wh..wh..opq", b"").file("new", b"1").end());
    let image = put(&images, &[blob("hidden"), hiding.clone(), blob("above")], Some("app")).expect("stored");
    assert_eq!(image.layers, [hiding.diff_id.hex(), blob("above").diff_id.hex()]);
    for _ in 0..2 {
        assert_eq!(images.gc(&BTreeSet::new()).expect("collected").layers, 0);
    }
    drop(images);
    for _ in 0..2 {
        assert_eq!(store(directory.path()).resolve("app").as_ref(), Some(&image));
    }
}

#[test]
fn removal_by_digest_takes_all_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let image = put(&images, &[blob("1")], Some("a")).expect("stored");
    images.tag("a", "b").expect("named");
    let removed = images.remove(&image.manifest.hex()[..12]).expect("it was there");
    assert_eq!(removed.references, ["docker.io/library/a:latest", "docker.io/library/b:latest"]);
    assert_eq!(images.resolve(image.manifest.hex()).map(|image| image.references), Some(Vec::new()));
}

#[test]
fn image_in_progress_that_is_dropped_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let layers = [Blob::gzip(&base()), blob("2")];
    let (manifest, config) = documents(&layers, "x");
    let mut ingest = images.begin(manifest, config).expect("it begins");
    ingest.layer(0, layers[0].bytes.as_slice()).expect("stored");
    assert_eq!(count(directory.path(), "tmp"), 1);
    drop(ingest);
    assert_eq!(counts(directory.path()), [0; 5]);
}

#[test]
fn two_at_once_store_a_common_layer_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let begin = |name: &str| {
        let layers = [Blob::gzip(&base()), blob(name)];
        let (manifest, config) = documents(&layers, name);
        (images.begin(manifest, config).expect("it begins"), layers)
    };
    let (mut one, one_layers) = begin("one");
    let (mut two, two_layers) = begin("two");
    for index in 0..2 {
        one.layer(index, one_layers[index].bytes.as_slice()).expect("stored");
        two.layer(index, two_layers[index].bytes.as_slice()).expect("stored");
    }
    let (one, two) = (one.commit(Some("one")).expect("stored"), two.commit(Some("two")).expect("stored"));
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(counts(directory.path()), [3, 2, 2, 2, 0]);
}

#[test]
fn store_is_open_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let again = Images::open(directory.path(), StoreOptions::default());
    assert!(matches!(again, Err(ImageError::Busy { .. })));
    drop(images);
    store(directory.path());
}

#[test]
fn image_for_another_machine_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let platform = Platform { os: "linux".to_owned(), architecture: "riscv64".to_owned(), variant: None };
    let options = StoreOptions { platform, ..StoreOptions::default() };
    let images = Images::open(directory.path(), options).expect("the store opens");
    let error = put(&images, &[blob("1")], None).expect_err("it is refused");
    assert!(matches!(error, ImageError::Platform { .. }), "{error:?}");
}

#[test]
fn image_without_layers_and_one_with_too_few_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    assert!(matches!(put(&images, &[], None), Err(ImageError::NoLayers)));
    let (manifest, _) = documents(&[blob("1"), blob("2")], "x");
    let (_, config) = documents(&[blob("1")], "x");
    let manifest = String::from_utf8(manifest).expect("JSON");
    let (_, right) = documents(&[blob("1"), blob("2")], "x");
    let manifest = manifest
        .replace(Digest::of(&right).hex(), Digest::of(&config).hex())
        .replace(&format!("\"size\":{}", right.len()), &format!("\"size\":{}", config.len()));
    let error = images.begin(manifest.into_bytes(), config).expect_err("it is refused");
    assert!(matches!(error, ImageError::LayerCount { layers: 2, diff_ids: 1 }), "{error:?}");
}

/// What it is, how it comes about, and how much is left of an image.
type Damage<'a> = (&'a str, &'a dyn Fn(), [usize; 5]);

#[test]
fn opening_heals_what_a_crash_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let first =
        |folder: &str| fs::read_dir(path.join(folder)).expect("a folder").next().expect("one").expect("one").path();
    let damages: [Damage<'_>; 9] = [
        ("nothing", &|| {}, [1, 1, 1, 1, 0]),
        ("an image in progress", &|| fs::create_dir_all(path.join("tmp/x/0/etc")).expect("made"), [1, 1, 1, 1, 0]),
        ("before the name", &|| fs::remove_file(first("references")).expect("removed"), [1, 1, 1, 0, 0]),
        ("before the manifest", &|| fs::remove_file(first("manifests")).expect("removed"), [0; 5]),
        (
            "before the configuration",
            &|| {
                fs::remove_file(first("manifests")).expect("removed");
                fs::remove_file(first("configs")).expect("removed");
                fs::remove_file(first("references")).expect("removed");
            },
            [0; 5],
        ),
        ("a layer is missing", &|| fs::remove_dir_all(first("layers")).expect("removed"), [0; 5]),
        (
            "a layer without its mark",
            &|| rustix::fs::lremovexattr(first("layers"), "trusted.meshd.layer").expect("root"),
            [0; 5],
        ),
        ("a manifest that a disk damaged", &|| fs::write(first("manifests"), "{}").expect("written"), [0; 5]),
        ("a configuration that a disk damaged", &|| fs::write(first("configs"), "{}").expect("written"), [0; 5]),
    ];
    for (what, damage, expected) in damages {
        let images = store(path);
        let image = put(&images, &[Blob::gzip(&base())], Some("app")).expect("stored");
        drop(images);
        damage();
        let images = store(path);
        assert_eq!(counts(path), expected, "{what}");
        assert_eq!(images.list().len(), expected[2], "{what}");
        assert_eq!(images.resolve("app").is_some(), expected[3] == 1, "{what}");
        assert_eq!(images.resolve(image.manifest.hex()).is_some(), expected[2] == 1, "{what}");
        drop(images);
        let again = store(path);
        assert_eq!(counts(path), expected, "{what}, opened once more");
        assert_eq!(again.list().len(), expected[2], "{what}");
    }
    fs::write(path.join("references/zz"), "rubbish").expect("written");
    fs::write(path.join("manifests/zz"), "rubbish").expect("written");
    fs::create_dir(path.join("layers/zz")).expect("made");
    store(path);
    assert_eq!(counts(path)[3..], [0, 0]);
}

/// Names the store to the test below when it runs as the process that is killed.
const VICTIM: &str = "IMAGES_OF_THE_VICTIM";

/// Stores one image after the other until it is killed.
fn store_for_ever(path: &Path) -> ! {
    let images = store(path);
    for number in 0_u32.. {
        let layers = [Blob::gzip(&base()), blob(&number.to_string())];
        put(&images, &layers, Some(&format!("app:{number}"))).expect("stored");
    }
    unreachable!("nobody waits that long")
}

#[test]
fn process_that_is_killed_leaves_whole_images_alone() {
    if let Some(path) = std::env::var_os(VICTIM) {
        store_for_ever(Path::new(&path));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let mut seen = 0;
    for folder in ["tmp", "layers", "configs", "manifests", "references", "layers", "tmp"] {
        let program = std::env::current_exe().expect("this test");
        let mut victim = Command::new(program)
            .args(["--exact", "store::process_that_is_killed_leaves_whole_images_alone"])
            .env(VICTIM, path)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        // Killed as soon as there is one more than all before in the folder whose turn it is.
        let wanted = if folder == "tmp" { 0 } else { seen + 1 };
        let deadline = Instant::now() + Duration::from_secs(60);
        let grown = || fs::read_dir(path.join(folder)).is_ok_and(|entries| entries.count() > wanted);
        while !grown() {
            assert!(Instant::now() < deadline, "the victim stores nothing");
            std::thread::yield_now();
        }
        victim.kill().expect("it runs");
        victim.wait().expect("it ended");
        let images = store(path);
        let found = images.list();
        let [layers, configs, manifests, references, tmp] = counts(path);
        assert_eq!(tmp, 0, "{folder}");
        assert_eq!((configs, manifests), (found.len(), found.len()), "{folder}");
        assert_eq!(layers, if found.is_empty() { 0 } else { found.len() + 1 }, "{folder}: each has one of its own");
        assert_eq!(references, found.iter().map(|image| image.references.len()).sum::<usize>(), "{folder}");
        for image in &found {
            let root = |layer: usize| image.layers_directory.join(&image.layers[layer]);
            assert_eq!(fs::metadata(root(0).join("bin/tool")).expect("whole").len(), 70_000);
            let number = fs::read_to_string(root(1).join("file")).expect("whole");
            for name in &image.references {
                assert_eq!(*name, format!("docker.io/library/app:{number}"));
            }
        }
        seen = layers.max(references);
    }
    assert!(seen > 3, "something was stored in between");
}

#[test]
fn full_disk_is_said_before_and_while_unpacking_and_the_space_comes_back() {
    let work = tempfile::tempdir().expect("a directory");
    let path = work.path().to_owned();
    // A filesystem of its own, seen by this thread alone.
    let test = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("root");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=32m")).expect("root");
        let limits = Limits { ratio: u64::MAX, ..Limits::default() };
        let options = StoreOptions { limits, ..StoreOptions::default() };
        let images = Images::open(&path.join("images"), options).expect("the store opens");
        let free = || {
            let stat = rustix::fs::statvfs(&path).expect("a disk");
            stat.f_bavail * stat.f_frsize
        };
        let before = free();
        // Random content is as large as it says: refused before a byte is read.
        let mut noise = vec![0; 30 << 20];
        getrandom::fill(&mut noise).expect("random bytes");
        let error = put(&images, &[Blob::tar(&Tarball::new().file("noise", &noise).end())], None).expect_err("full");
        assert!(matches!(error, ImageError::DiskFull { needed_bytes, free_bytes } if needed_bytes > free_bytes));
        // Zeros compress to nothing, so only writing shows it.
        let zeros = Blob::gzip(&Tarball::new().file("zeros", &vec![0; 40 << 20]).end());
        let error = put(&images, &[blob("below"), zeros], None).expect_err("full");
        assert!(matches!(error, ImageError::DiskFull { .. }), "{error:?}");
        assert!(before - free() < 64 << 10, "{before} bytes were free, {} are", free());
        put(&images, &[blob("small")], None).expect("there is room for this one");
        drop(images);
        umount2(&path, MntFlags::MNT_DETACH).expect("root");
    });
    test.join().expect("it went as described");
}
