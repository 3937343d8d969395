//! Layouts and archives that are not what they should be.

use std::fs;
use std::path::Path;

use workloads_image::{Digest, Image, ImageError, Images};

use crate::build::{Blob, Tarball, documents, layout, store};

fn layer(content: &[u8]) -> Blob {
    Blob::gzip(&Tarball::new().file("file", content).end())
}

fn import(images: &Images, path: &Path, tag: Option<&str>) -> Result<Image, ImageError> {
    images.import_layout(path, tag, &mut |_| {})
}

fn why(error: ImageError) -> String {
    match error {
        ImageError::Import { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn layout_with_several_images_wants_a_tag() {
    let work = tempfile::tempdir().expect("a directory");
    let (path, images) = (work.path().join("apps"), store(&work.path().join("images")));
    layout(&path, "v1", &[layer(b"1")]);
    assert_eq!(import(&images, &path, None).expect("the only one").references, ["localhost/apps:v1"]);
    layout(&path, "v2", &[layer(b"2")]);
    assert!(why(import(&images, &path, None).expect_err("two")).contains("v1, v2"));
    assert!(why(import(&images, &path, Some("v3")).expect_err("no such")).contains("v1, v2"));
    assert_eq!(import(&images, &path, Some("v2")).expect("stored").references, ["localhost/apps:v2"]);
}

#[test]
fn layout_that_is_none_is_said_to_be_none() {
    let work = tempfile::tempdir().expect("a directory");
    let (path, images) = (work.path().join("x"), store(&work.path().join("images")));
    assert!(why(import(&images, &path, None).expect_err("nothing")).contains("oci-layout"));
    layout(&path, "v1", &[layer(b"1")]);
    fs::write(path.join("oci-layout"), "{}").expect("written");
    assert!(why(import(&images, &path, None).expect_err("no version")).contains("oci-layout"));
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"2.0"}"#).expect("written");
    assert!(why(import(&images, &path, None).expect_err("version 2")).contains("version"));
}

#[test]
fn layout_whose_content_was_exchanged_or_is_missing_is_refused() {
    let work = tempfile::tempdir().expect("a directory");
    let images = store(&work.path().join("images"));
    let blob = layer(b"1");
    let (manifest, config) = documents(std::slice::from_ref(&blob), "v1");
    for bytes in [&manifest, &config, &blob.bytes] {
        let path = work.path().join(Digest::of(bytes).hex());
        layout(&path, "v1", std::slice::from_ref(&blob));
        let file = path.join("blobs/sha256").join(Digest::of(bytes).hex());
        let mut other = bytes.clone();
        let middle = other.len() / 2;
        other[middle] ^= 1;
        fs::write(&file, other).expect("written");
        let error = import(&images, &path, None).expect_err("exchanged");
        assert!(matches!(error, ImageError::Digest { .. }), "{error:?}");
        fs::write(&file, &bytes[..middle]).expect("written");
        let error = import(&images, &path, None).expect_err("cut off");
        assert!(matches!(error, ImageError::Size { .. }), "{error:?}");
        fs::remove_file(&file).expect("removed");
        assert!(why(import(&images, &path, None).expect_err("missing")).contains(Digest::of(bytes).hex()));
        // A pipe would wait for a writer for ever.
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(why(import(&images, &path, None).expect_err("a pipe")).contains("regular"));
    }
    assert_eq!(images.list(), []);
    assert_eq!(fs::read_dir(work.path().join("images/tmp")).expect("a folder").count(), 0);
}

/// An archive as Docker wrote it before it knew OCI: a folder for each layer, a link for one that comes again.
fn old_archive(layers: &[Vec<u8>], tags: &[&str], damage: impl Fn(String) -> String) -> Vec<u8> {
    let blobs: Vec<Blob> = layers.iter().map(|tar| Blob::tar(tar)).collect();
    let (_, config) = documents(&blobs, "old");
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut tar = Tarball::new().file(&config_name, &config);
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("{index}/layer.tar");
        tar = tar.directory(&format!("{index}/")).file(&format!("{index}/VERSION"), b"1.0");
        tar = match layers[..index].iter().position(|earlier| earlier == layer) {
            Some(earlier) => tar.symlink(&name, &format!("../{earlier}/layer.tar")),
            None => tar.file(&name, layer),
        };
        names.push(name);
    }
    let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    tar.file("manifest.json", damage(manifest.to_string()).as_bytes()).file("repositories", b"{}").end()
}

fn import_archive(images: &Images, path: &Path, bytes: &[u8]) -> Result<Image, ImageError> {
    assert!(fs::write(path, bytes).is_ok(), "{} cannot be written", path.display());
    images.import_archive(path, None, &mut |_| {})
}

#[test]
fn old_archive_with_a_layer_that_comes_again_is_stored_under_all_its_names() {
    let work = tempfile::tempdir().expect("a directory");
    let images = store(&work.path().join("images"));
    let tars = [b"1", b"2"].map(|content| Tarball::new().file("file", content).end());
    let layers = [tars[0].clone(), tars[1].clone(), tars[0].clone()];
    let bytes = old_archive(&layers, &["bb:1", "example.org/bb:2"], |text| text);
    let image = import_archive(&images, &work.path().join("a.tar"), &bytes).expect("it is imported");
    assert_eq!(image.references, ["docker.io/library/bb:1", "example.org/bb:2"]);
    let names: Vec<String> = [&tars[1], &tars[0]].map(|tar| Digest::of(tar).hex().to_owned()).to_vec();
    assert_eq!(image.layers, names, "the upper one of two equal layers does all that the lower did");
}

#[test]
fn archive_that_contradicts_itself_is_refused() {
    let work = tempfile::tempdir().expect("a directory");
    let images = store(&work.path().join("images"));
    let path = work.path().join("a.tar");
    let tars = [Tarball::new().file("file", b"1").end()];
    let whole = old_archive(&tars, &["bb:1"], |text| text);
    let attempt = |bytes: &[u8]| import_archive(&images, &path, bytes).expect_err("it is refused");
    // The layer's content is named by the configuration, and the configuration by its member.
    let at = whole.windows(5).position(|window| window == b"file\0").expect("the layer") + 1_024 - 512;
    let mut other = whole.clone();
    other[at] ^= 1;
    assert!(matches!(attempt(&other), ImageError::Digest { .. }));
    let at = whole.windows(5).position(|window| window == b"\"old\"").expect("the configuration") + 1;
    let mut other = whole.clone();
    other[at] ^= 1;
    assert!(matches!(attempt(&other), ImageError::Digest { .. }));
    assert!(why(attempt(&whole[..2_000])).contains("cut off"));
    assert!(why(attempt(b"")).contains("manifest.json"));
    assert!(why(attempt(&[b'x'; 2_048])).contains("header"));
    let missing = old_archive(&tars, &["bb:1"], |text| text.replace("0/layer.tar", "1/layer.tar"));
    assert!(why(attempt(&missing)).contains("1/layer.tar"));
    let traversal = old_archive(&tars, &["bb:1"], |text| text.replace("0/layer.tar", "../etc/passwd"));
    assert!(why(attempt(&traversal)).contains("etc/passwd"));
    let more = old_archive(&tars, &["bb:1"], |text| text.replace("0/layer.tar", "0/layer.tar\",\"0/layer.tar"));
    assert!(matches!(attempt(&more), ImageError::LayerCount { layers: 2, diff_ids: 1 }));
    let circle = Tarball::new().symlink("manifest.json", "manifest.json").end();
    assert!(why(attempt(&circle)).contains("manifest.json"));
    assert_eq!(images.list(), []);
    assert_eq!(fs::read_dir(work.path().join("images/tmp")).expect("a folder").count(), 0);
}
