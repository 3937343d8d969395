//! Images from a directory in the form of the OCI image layout: `oci-layout`, `index.json`, `blobs/ALGORITHM/HEX`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{self, Descriptor, Document, Index, MANIFEST_BYTES_MAX, Platform};
use crate::store::{Image, Images, at, canonical, verify};

/// Indexes in indexes: one for the names, one for the machines, one to spare.
const INDEX_DEPTH_MAX: usize = 3;
/// Longest `oci-layout` file.
const MARK_BYTES_MAX: u64 = 4_096;
/// How often progress is told.
pub(crate) const PROGRESS_BYTES: u64 = 1 << 20;

/// How far an image is on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A layer is here already and is not read.
    Stored {
        /// Which one, bottom first.
        index: usize,
        /// How many there are.
        count: usize,
        /// Its digest.
        digest: Digest,
    },
    /// A layer is being read; the last time all of it was.
    Layer {
        /// Which one, bottom first.
        index: usize,
        /// How many there are.
        count: usize,
        /// Its digest.
        digest: Digest,
        /// Compressed bytes that were read.
        bytes_done: u64,
        /// Compressed bytes in all.
        bytes_total: u64,
    },
}

/// Where progress is told.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// Content and its size in bytes.
pub(crate) type Stream<'a> = (Box<dyn Read + 'a>, u64);

/// Content by its digest.
pub(crate) trait Blobs {
    /// The content as a stream and its size, or `None` if it is not there.
    fn open<'a>(&'a self, digest: &Digest) -> Result<Option<Stream<'a>>, ImageError>;
    /// What is imported, for messages.
    fn path(&self) -> &Path;

    /// Content that is small, verified.
    fn read(&self, descriptor: &Descriptor, what: &'static str, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
        let digest = &descriptor.digest;
        let (stream, found) = self.open(digest)?.ok_or_else(|| self.missing(what, digest))?;
        let announced = descriptor.size_bytes;
        if found != announced || announced > bytes_max {
            return Err(ImageError::Size { digest: digest.clone(), announced, found });
        }
        let mut bytes = Vec::new();
        at(self.path(), "reading it", stream.take(bytes_max).read_to_end(&mut bytes))?;
        verify(digest, &bytes).map_err(|source| ImageError::Digest { what, source })?;
        Ok(bytes)
    }

    fn missing(&self, what: &str, digest: &Digest) -> ImageError {
        self.wrong(format!("{what} {digest} is not in it"))
    }

    fn wrong(&self, why: String) -> ImageError {
        ImageError::Import { path: self.path().to_owned(), why }
    }
}

/// A layout on disk.
struct Directory {
    path: PathBuf,
}

impl Blobs for Directory {
    fn open<'a>(&'a self, digest: &Digest) -> Result<Option<Stream<'a>>, ImageError> {
        let path = self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex());
        Ok(open_regular(&path)?.map(|(file, size)| (Box::new(file) as Box<dyn Read>, size)))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a file that is one: nothing that could wait for somebody else, as a pipe does. Links are the host's own.
pub(crate) fn open_regular(path: &Path) -> Result<Option<(File, u64)>, ImageError> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return at(path, "opening the file", Err(error)),
    };
    let metadata = at(path, "looking at the file", file.metadata())?;
    if !metadata.is_file() {
        return Err(ImageError::Import { path: path.to_owned(), why: "it is no regular file".to_owned() });
    }
    Ok(Some((file, metadata.len())))
}

/// Reads a file of which there is no more than a bound.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let Some((file, size)) = open_regular(path)? else { return Ok(None) };
    if size > bytes_max {
        return Err(ImageError::Import { path: path.to_owned(), why: format!("it has more than {bytes_max} bytes") });
    }
    let mut bytes = Vec::new();
    at(path, "reading the file", file.take(bytes_max).read_to_end(&mut bytes))?;
    Ok(Some(bytes))
}

impl Images {
    /// Stores an image of a layout: the one that the layout calls `tag`, or the only one for this machine. It is named
    /// `localhost/DIRECTORY:TAG`, or as the layout says if that is a whole name.
    ///
    /// # Errors
    ///
    /// [`ImageError::Import`] if the layout is none or says not which image, and whatever storing can end with.
    pub fn import_layout(
        &self,
        directory: &Path,
        tag: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        let blobs = Directory { path: directory.to_owned() };
        let mark = read_small(&directory.join("oci-layout"), MARK_BYTES_MAX)?;
        let mark = mark.ok_or_else(|| blobs.wrong("it has no file oci-layout, so it is no image layout".to_owned()))?;
        check_mark(&blobs, &mark)?;
        let index = read_small(&directory.join("index.json"), MANIFEST_BYTES_MAX)?;
        let index = index.ok_or_else(|| blobs.wrong("it has no index.json".to_owned()))?;
        let chosen = choose(&blobs, &index, tag, self.platform())?;
        let name = name(directory, chosen.name.as_deref(), tag);
        store(self, &blobs, chosen.manifest, name.as_deref(), progress)
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.shared().options.platform
    }
}

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// Checks the file that makes a directory a layout.
pub(crate) fn check_mark(blobs: &dyn Blobs, bytes: &[u8]) -> Result<(), ImageError> {
    match serde_json::from_slice::<Mark>(bytes) {
        Ok(mark) if mark.version.starts_with("1.") => Ok(()),
        Ok(mark) => Err(blobs.wrong(format!("it is a layout of version {:?}, not 1", mark.version.get(..16)))),
        Err(_) => Err(blobs.wrong("its file oci-layout cannot be read".to_owned())),
    }
}

/// A whole name that the layout gives, or one made of the directory's.
fn name(directory: &Path, given: Option<&str>, tag: Option<&str>) -> Option<String> {
    if let Some(whole) = given.filter(|name| name.contains('/')).and_then(|name| canonical(name).ok()) {
        return Some(whole);
    }
    let directory = directory.canonicalize().ok()?;
    let base = directory.file_name()?.to_str()?.to_ascii_lowercase();
    canonical(&format!("localhost/{base}:{}", tag.or(given).unwrap_or("latest"))).ok()
}

/// The manifest that was chosen, and what the layout calls it.
pub(crate) struct Chosen {
    pub(crate) manifest: Vec<u8>,
    pub(crate) name: Option<String>,
}

/// Finds the manifest of a name in an index, and of this machine in what the name means.
pub(crate) fn choose(
    blobs: &dyn Blobs,
    index: &[u8],
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Chosen, ImageError> {
    let Document::Index(index) = manifest::decode(index, None)? else {
        return Err(blobs.wrong("its index.json is no index".to_owned()));
    };
    let named = |entry: &&Descriptor| match (tag, entry.name.as_deref()) {
        (None, _) => true,
        (Some(tag), Some(name)) => name == tag || name.rsplit_once(':').is_some_and(|(_, of)| of == tag),
        (Some(_), None) => false,
    };
    let mut names: Vec<&str> = index.entries.iter().filter_map(|entry| entry.name.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    let offered = names.join(", ").chars().take(512).collect::<String>();
    let entries: Vec<Descriptor> = index.entries.iter().filter(named).cloned().collect();
    match tag {
        Some(tag) if entries.is_empty() => {
            return Err(blobs.wrong(format!("it has no image {tag:?}, only: {offered}")));
        }
        None if names.len() > 1 => {
            return Err(blobs.wrong(format!("it has several images, of which one must be named: {offered}")));
        }
        _ => {}
    }
    let mut entry = match entries.as_slice() {
        [only] => only.clone(),
        _ => Index { entries }.choose(platform)?.clone(),
    };
    let name = entry.name.clone();
    for _ in 0..INDEX_DEPTH_MAX {
        let bytes = blobs.read(&entry, "the manifest", MANIFEST_BYTES_MAX)?;
        let announced = Some(entry.media_type.as_str()).filter(|kind| !kind.is_empty());
        match manifest::decode(&bytes, announced)? {
            Document::Manifest(_) => return Ok(Chosen { manifest: bytes, name }),
            Document::Index(index) => entry = index.choose(platform)?.clone(),
        }
    }
    Err(blobs.wrong("its indexes are of indexes of indexes".to_owned()))
}

/// Stores the image of a manifest, all of whose content is at hand.
pub(crate) fn store(
    images: &Images,
    blobs: &dyn Blobs,
    manifest_bytes: Vec<u8>,
    name: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Image, ImageError> {
    let Document::Manifest(manifest) = manifest::decode(&manifest_bytes, None)? else {
        return Err(blobs.wrong("its manifest is an index".to_owned()));
    };
    let config = blobs.read(&manifest.config, "the configuration", manifest::CONFIG_BYTES_MAX)?;
    let mut ingest = images.begin(manifest_bytes, config)?;
    let count = ingest.layers().len();
    for index in 0..count {
        let layer = ingest.layers()[index].clone();
        let digest = layer.descriptor.digest;
        if layer.stored {
            progress(Progress::Stored { index, count, digest });
            continue;
        }
        let (stream, found) = blobs.open(&digest)?.ok_or_else(|| blobs.missing("layer", &digest))?;
        let announced = layer.descriptor.size_bytes;
        if found != announced {
            return Err(ImageError::Size { digest, announced, found });
        }
        let mut told = Told {
            stream,
            done: 0,
            next: 0,
            tell: &mut |bytes_done| {
                let digest = digest.clone();
                progress(Progress::Layer { index, count, digest, bytes_done, bytes_total: announced });
            },
        };
        ingest.layer(index, &mut told)?;
        let done = told.done;
        (told.tell)(done);
    }
    ingest.commit(name)
}

/// A stream that tells how far it is.
struct Told<'a, R> {
    stream: R,
    done: u64,
    next: u64,
    tell: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.done += u64::try_from(count).unwrap_or(0);
        if count > 0 && self.done >= self.next {
            self.next = self.done + PROGRESS_BYTES;
            (self.tell)(self.done);
        }
        Ok(count)
    }
}
