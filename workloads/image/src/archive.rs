//! Images from one file: what `docker save` and `podman save` write, old and new, and a layout in a tar.
//!
//! The file is scanned once for what is where in it and then read in place. A compressed one is unpacked beside the
//! store first, because layers stand in it in no particular order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config;
use crate::decompress::{Bomb, Proportion, plain};
use crate::digest::{Digest, DigestError, Verifier};
use crate::error::ImageError;
use crate::layout::{Blobs, OnProgress, Stream, check_mark, choose, open_regular, store};
use crate::manifest::{CONFIG_BYTES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX};
use crate::store::{Image, Images, at, canonical, random_name};
use crate::tar::{Kind, Tar, TarError};

/// Most members of an archive: six for each layer of each image, and many images.
const MEMBERS_MAX: usize = 65_536;
/// Most bytes of all their names.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// Most images of an archive.
const IMAGES_MAX: usize = 1_024;
/// Most names of an image.
const NAMES_MAX: usize = 1_024;
/// As old archives write a layer that comes again.
const LINKS_MAX: usize = 8;

/// An archive and what is where in it.
#[derive(Debug)]
pub struct Archive<F> {
    path: PathBuf,
    file: F,
    members: BTreeMap<String, Member>,
    /// Content of Docker archives by the digests that it was found to have.
    known: BTreeMap<Digest, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    /// Content and where it is.
    File { offset: u64, size: u64 },
    /// Another name.
    Link(String),
}

/// One image of a Docker archive, as its `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ArchivedImage {
    /// The member that is its configuration.
    pub config: String,
    /// Its names.
    pub repo_tags: Option<Vec<String>>,
    /// The members that are its layers, bottom first.
    pub layers: Vec<String>,
}

/// Reads a Docker archive's `manifest.json`.
///
/// # Errors
///
/// What is wrong with it.
pub fn decode_manifest(bytes: &[u8]) -> Result<Vec<ArchivedImage>, String> {
    let images: Vec<ArchivedImage> =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest.json cannot be read: {error}"))?;
    let names = |image: &ArchivedImage| image.repo_tags.as_ref().map_or(0, Vec::len);
    if images.len() > IMAGES_MAX {
        return Err(format!("it has more than {IMAGES_MAX} images"));
    }
    if images.iter().any(|image| image.layers.len() > LAYERS_MAX || names(image) > NAMES_MAX) {
        return Err(format!("it has an image with more than {LAYERS_MAX} layers or {NAMES_MAX} names"));
    }
    Ok(images)
}

/// Reads at a place, as files and bytes in memory do.
pub trait ReadAt {
    /// Reads at an offset.
    ///
    /// # Errors
    ///
    /// What the file says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// A part of a file, from where it is read on.
struct Part<'a, F> {
    file: &'a F,
    offset: u64,
    left: u64,
}

impl<F: ReadAt> Read for Part<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        let read = u64::try_from(count).unwrap_or(0);
        self.offset += read;
        self.left = self.left.saturating_sub(read);
        Ok(count)
    }
}

impl<F: ReadAt> Part<'_, F> {
    /// Passes over bytes without reading them.
    fn leap(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.offset += bytes;
        self.left -= bytes;
    }
}

impl<F: ReadAt> Archive<F> {
    /// Scans a tar of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`ImageError::Import`] with what is wrong with it.
    pub fn scan(path: &Path, file: F, size: u64) -> Result<Self, ImageError> {
        let wrong = |why: String| ImageError::Import { path: path.to_owned(), why };
        let unread = |error: TarError| match error {
            TarError::Io(source) => ImageError::Io { path: path.to_owned(), step: "reading the archive", source },
            other => wrong(other.to_string()),
        };
        let mut members = BTreeMap::new();
        let mut names_bytes = 0;
        let mut tar = Tar::new(Part { file: &file, offset: 0, left: size });
        while let Some(entry) = tar.next_entry().map_err(unread)? {
            let Some(name) = clean("", &String::from_utf8_lossy(&entry.path)) else {
                return Err(wrong("it has a member with \"..\" in its name".to_owned()));
            };
            let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
            let member = match &entry.kind {
                Kind::File if entry.pieces.is_some() => {
                    return Err(wrong("it has a sparse member, which no tool writes".to_owned()));
                }
                Kind::File => {
                    let offset = tar.source().offset;
                    if entry.size_bytes > tar.source().left {
                        return Err(wrong("it was cut off".to_owned()));
                    }
                    tar.leap(|part, bytes| part.leap(bytes));
                    Some(Member::File { offset, size: entry.size_bytes })
                }
                Kind::Symlink(target) => clean(&directory, &String::from_utf8_lossy(target)).map(Member::Link),
                Kind::HardLink(target) => clean("", &String::from_utf8_lossy(target)).map(Member::Link),
                _ => None,
            };
            let Some(member) = member else { continue };
            names_bytes += name.len();
            members.insert(name, member);
            if members.len() > MEMBERS_MAX || names_bytes > NAMES_BYTES_MAX {
                return Err(wrong(format!("it has more than {MEMBERS_MAX} members")));
            }
        }
        drop(tar);
        Ok(Self { path: path.to_owned(), file, members, known: BTreeMap::new() })
    }

    /// Where a member is, links followed.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean("", name)?;
        for _ in 0..=LINKS_MAX {
            match self.members.get(&name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    fn part(&self, name: &str) -> Result<Part<'_, F>, ImageError> {
        let found = self.find(name);
        let shown = || name.chars().take(160).collect::<String>();
        let (offset, left) = found.ok_or_else(|| self.wrong(format!("{:?} is not in it", shown())))?;
        Ok(Part { file: &self.file, offset, left })
    }

    /// A small member, whole.
    fn small(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
        let mut part = self.part(name)?;
        if part.left > bytes_max {
            return Err(self.wrong(format!("its {name} has more than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        at(&self.path, "reading the archive", part.read_to_end(&mut bytes))?;
        Ok(bytes)
    }

    fn is_layout(&self) -> bool {
        self.find("oci-layout").is_some() && self.find("index.json").is_some()
    }

    /// Its images, as its `manifest.json` says; none if it has no such member.
    ///
    /// # Errors
    ///
    /// [`ImageError::Import`] if that cannot be read.
    pub fn images(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        if self.find("manifest.json").is_none() {
            return Ok(Vec::new());
        }
        decode_manifest(&self.small("manifest.json", MANIFEST_BYTES_MAX)?).map_err(|why| self.wrong(why))
    }

    /// The manifest that a Docker archive does not have: made of what its image is, so that the same image has the
    /// same one.
    fn manifest_of(&mut self, image: &ArchivedImage) -> Result<Vec<u8>, ImageError> {
        let config_bytes = self.small(&image.config, CONFIG_BYTES_MAX)?;
        let config = config::decode(&config_bytes)?;
        let digest = Digest::of(&config_bytes);
        // The name of the member is the digest of the configuration.
        let stem = image.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
            && expected != digest
        {
            let source = DigestError::Mismatch { expected, found: digest };
            return Err(ImageError::Digest { what: "the configuration", source });
        }
        if image.layers.len() != config.diff_ids.len() {
            return Err(ImageError::LayerCount { layers: image.layers.len(), diff_ids: config.diff_ids.len() });
        }
        let mut layers = Vec::with_capacity(image.layers.len());
        for (member, diff_id) in image.layers.iter().zip(&config.diff_ids) {
            let (kind, digest, size) = self.layer(member, diff_id)?;
            let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
            layers.push(serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size }));
            self.known.insert(digest, member.clone());
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest.to_string(),
                "size": config_bytes.len(),
            },
            "layers": layers,
        });
        self.known.insert(digest, image.config.clone());
        Ok(manifest.to_string().into_bytes())
    }

    /// How a layer is packed, its digest and size. A plain tar has the digest that the configuration says.
    fn layer(&self, member: &str, diff_id: &Digest) -> Result<(&'static str, Digest, u64), ImageError> {
        let mut part = self.part(member)?;
        let size = part.left;
        let mut head = [0; 4];
        let count = at(&self.path, "reading the archive", self.file.read_at(&mut head, part.offset))?;
        let kind = match head.get(..count.min(part.left.try_into().unwrap_or(4))) {
            Some([0x1f, 0x8b, ..]) => "tar+gzip",
            Some([0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]) => "tar+zstd",
            _ => return Ok(("tar", diff_id.clone(), size)),
        };
        // What is expected does not matter: the digest is wanted.
        let mut verifier = Verifier::new(Digest::of(b""));
        let mut buffer = vec![0; 128 << 10];
        loop {
            match at(&self.path, "reading the archive", part.read(&mut buffer))? {
                0 => break,
                count => verifier.update(&buffer[..count]),
            }
        }
        let digest = match verifier.finish() {
            Ok(digest) | Err(DigestError::Mismatch { found: digest, .. }) => digest,
            Err(source) => return Err(ImageError::Digest { what: "a layer", source }),
        };
        Ok((kind, digest, size))
    }
}

impl<F: ReadAt> Blobs for Archive<F> {
    fn open<'a>(&'a self, digest: &Digest) -> Result<Option<Stream<'a>>, ImageError> {
        let blob = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        let name = self.known.get(digest).unwrap_or(&blob);
        if self.find(name).is_none() {
            return Ok(None);
        }
        let part = self.part(name)?;
        let size = part.left;
        Ok(Some((Box::new(part), size)))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// A name in an archive in one form; `None` if it leads out.
fn clean(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = if name.starts_with('/') { Vec::new() } else { directory.split('/').collect() };
    parts.retain(|part| !part.is_empty());
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}

impl Images {
    /// Stores an image of an archive: the one that has the name `wanted`, or the only one. It gets the names that it
    /// has in the archive.
    ///
    /// # Errors
    ///
    /// [`ImageError::Import`] if the archive is none or says not which image, and whatever storing can end with.
    pub fn import_archive(
        &self,
        path: &Path,
        wanted: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        let missing = || ImageError::Import { path: path.to_owned(), why: "there is no such file".to_owned() };
        let (file, size) = open_regular(path)?.ok_or_else(missing)?;
        let (file, size) = self.unpacked(path, file, size)?;
        let mut archive = Archive::scan(path, file, size)?;
        let listed = archive.images()?;
        if archive.is_layout() {
            let layout = self.import_archived_layout(&archive, &listed, wanted, progress);
            // Some versions of Docker write an index without all that it names; their own manifest is whole.
            match layout {
                Err(ImageError::Import { .. }) if !listed.is_empty() => {}
                other => return other,
            }
        }
        let image = pick(&archive, &listed, wanted)?.clone();
        let manifest = archive.manifest_of(&image)?;
        let stored = store(self, &archive, manifest, None, progress)?;
        self.name_all(stored, image.repo_tags.as_deref().unwrap_or_default())
    }

    fn import_archived_layout<F: ReadAt>(
        &self,
        archive: &Archive<F>,
        listed: &[ArchivedImage],
        wanted: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        check_mark(archive, &archive.small("oci-layout", 4_096)?)?;
        let index = archive.small("index.json", MANIFEST_BYTES_MAX)?;
        let tag = wanted.map(|wanted| wanted.rsplit_once('/').map_or(wanted, |(_, last)| last));
        let tag = tag.map(|last| last.rsplit_once(':').map_or(last, |(_, tag)| tag));
        let chosen = choose(archive, &index, tag, self.platform())?;
        let names = match listed {
            [only] => only.repo_tags.clone().unwrap_or_default(),
            _ => chosen.name.iter().filter(|name| name.contains('/')).cloned().collect(),
        };
        let stored = store(self, archive, chosen.manifest, None, progress)?;
        self.name_all(stored, &names)
    }

    fn name_all(&self, stored: Image, names: &[String]) -> Result<Image, ImageError> {
        let mut image = stored;
        for name in names {
            image = self.tag(&image.manifest.to_string(), name)?;
        }
        Ok(image)
    }

    /// The archive itself, or a plain copy of it that nobody else can open and that vanishes when it is closed.
    fn unpacked(&self, path: &Path, file: File, size: u64) -> Result<(File, u64), ImageError> {
        let mut head = [0; 4];
        let count = at(path, "reading the archive", file.read_at(&mut head, 0))?;
        let compressed =
            matches!(&head[..count], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
        if !compressed {
            return Ok((file, size));
        }
        let shared = self.shared();
        let limits = &shared.options.limits;
        let count = std::rc::Rc::new(std::cell::Cell::new(size));
        let copy_path = shared.tmp().join(random_name());
        let made = File::options().create_new(true).read(true).write(true).mode(0o600).open(&copy_path);
        let mut copy = at(&copy_path, "making a plain copy of the archive", made)?;
        at(&copy_path, "making a plain copy of the archive", std::fs::remove_file(&copy_path))?;
        let source = at(path, "reading the archive", plain(BufReader::with_capacity(128 << 10, file)))?;
        let mut source = Proportion::new(source, count, limits.bytes, limits.ratio);
        let mut buffer = vec![0; 128 << 10];
        let mut unchecked = 0;
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    return Err(match error.get_ref().and_then(|cause| cause.downcast_ref::<Bomb>()) {
                        Some(bomb) => ImageError::Import { path: path.to_owned(), why: bomb.to_string() },
                        None => ImageError::Io { path: path.to_owned(), step: "decompressing it", source: error },
                    });
                }
            };
            let written = copy.write_all(&buffer[..count]);
            let full = written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull);
            unchecked += count;
            if full || unchecked > 32 << 20 {
                unchecked = 0;
                let (free_bytes, reserve) = at(path, "asking for the space left", shared.space())?;
                if full || free_bytes < reserve {
                    return Err(ImageError::DiskFull { needed_bytes: size.saturating_add(reserve), free_bytes });
                }
            }
            at(&copy_path, "writing a plain copy of the archive", written)?;
        }
        let size = at(&copy_path, "reading the plain copy", copy.seek(SeekFrom::End(0)))?;
        Ok((copy, size))
    }
}

/// The image of a name, or the only one.
fn pick<'a, F: ReadAt>(
    archive: &Archive<F>,
    listed: &'a [ArchivedImage],
    wanted: Option<&str>,
) -> Result<&'a ArchivedImage, ImageError> {
    let names = |image: &ArchivedImage| image.repo_tags.clone().unwrap_or_default();
    let offered = || listed.iter().flat_map(names).collect::<Vec<_>>().join(", ").chars().take(512).collect::<String>();
    let Some(wanted) = wanted else {
        return match listed {
            [only] => Ok(only),
            [] => Err(archive.wrong("it has no manifest.json, so it is no archive of images".to_owned())),
            _ => Err(archive.wrong(format!("it has several images, of which one must be named: {}", offered()))),
        };
    };
    let meant = canonical(wanted)?;
    let fits = |image: &&ArchivedImage| {
        names(image).iter().any(|name| name == wanted || canonical(name).is_ok_and(|name| name == meant))
    };
    listed.iter().find(fits).ok_or_else(|| archive.wrong(format!("it has no image {wanted:?}, only: {}", offered())))
}
