//! The store: what is shared, what is given back, what a crash leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::build::{Blob, Tarball, put, store};

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
    for blob in [Blob::zstd(&tar), Blob::tar(&tar)] {
        let again = put(&images, &[blob], None).expect("stored");
        assert_eq!(again.layers, image.layers);
    }
    assert_eq!(images.list().len(), 3);
    assert_eq!(images.resolve("app:1"), Some(image));
}
