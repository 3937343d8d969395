//! An image on its way into the store: layer by layer, bottom first, each verified twice, and at the end all at once.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use crate::config::{self, Config};
use crate::decompress::{Bomb, Proportion, plain};
use crate::digest::{Digest, DigestError, Verifier};
use crate::error::ImageError;
use crate::lower::Lower;
use crate::manifest::{self, Descriptor, Document, Manifest, ManifestError, Platform};
use crate::store::{
    Image, LayerFacts, Shared, Stored, at, canonical, chain_ids, chain_name, free_name, random_name, verify,
};
use crate::tar::TarError;
use crate::unpack::{UnpackError, unpack};

/// A layer of an image in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLayer {
    /// What is to be fetched.
    pub descriptor: Descriptor,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// Whether it is there: it was stored before, or handed in. Then it need not be fetched.
    pub stored: bool,
}

/// An image on its way into the store. Dropped before [`Self::commit`], it leaves nothing.
///
/// ```text
/// begin ── layer(i, reader) for each planned layer that is not stored, bottom first ── commit
/// ```
#[derive(Debug)]
pub struct Ingest {
    shared: Arc<Shared>,
    digest: Digest,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config: Config,
    config_bytes: Vec<u8>,
    planned: Vec<PlannedLayer>,
    /// Of each planned layer its directory's name, and if it is new, what it is.
    layers: Vec<Option<(String, Option<LayerFacts>)>>,
    /// Where new layers are unpacked, once there is one.
    folder: Option<PathBuf>,
    /// What the image was expected to need in all.
    needed_bytes: u64,
}

impl Ingest {
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        manifest_bytes: Vec<u8>,
        config_bytes: Vec<u8>,
    ) -> Result<Self, ImageError> {
        let manifest = match manifest::decode(&manifest_bytes, None)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => {
                let (announced, held) = ("an image".to_owned(), "an index of images".to_owned());
                return Err(ManifestError::Contradiction { announced, held }.into());
            }
        };
        let announced = manifest.config.size_bytes;
        let found = u64::try_from(config_bytes.len()).unwrap_or(u64::MAX);
        if announced != found {
            return Err(ImageError::Size { digest: manifest.config.digest, announced, found });
        }
        verify(&manifest.config.digest, &config_bytes)
            .map_err(|source| ImageError::Digest { what: "the configuration", source })?;
        let config = config::decode(&config_bytes)?;
        check_platform(&shared.options.platform, &config.platform)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(ImageError::LayerCount { layers, diff_ids });
        }
        if layers == 0 {
            return Err(ImageError::NoLayers);
        }
        let mut ingest = Self {
            shared: Arc::clone(shared),
            digest: Digest::of(&manifest_bytes),
            planned: Vec::new(),
            layers: Vec::new(),
            manifest,
            manifest_bytes,
            config,
            config_bytes,
            folder: None,
            needed_bytes: 0,
        };
        ingest.plan();
        ingest.check_space()?;
        Ok(ingest)
    }

    /// Finds and holds what is stored already.
    fn plan(&mut self) {
        let mut index = self.shared.index.lock();
        for (name, (descriptor, diff_id)) in index
            .layers_of(&self.config.diff_ids)
            .into_iter()
            .zip(self.manifest.layers.iter().zip(&self.config.diff_ids))
        {
            let stored = name.is_some();
            self.planned.push(PlannedLayer { descriptor: descriptor.clone(), diff_id: diff_id.clone(), stored });
            if let Some(name) = &name {
                index.pin(name);
            }
            self.layers.push(name.map(|name| (name, None)));
        }
    }

    fn check_space(&mut self) -> Result<(), ImageError> {
        let missing = self.planned.iter().filter(|layer| !layer.stored).map(|layer| {
            let bytes = layer.descriptor.size_bytes;
            // What distributions and toolchains come to when they are unpacked.
            if layer.descriptor.is_plain_tar() { bytes } else { bytes.saturating_mul(5) / 2 }
        });
        let missing = missing.fold(0, u64::saturating_add);
        let (free_bytes, reserve) = at(&self.shared.root, "asking for the space left", self.shared.space())?;
        self.needed_bytes = missing.saturating_add(reserve);
        if missing > 0 && self.needed_bytes > free_bytes {
            return Err(ImageError::DiskFull { needed_bytes: self.needed_bytes, free_bytes });
        }
        Ok(())
    }

    /// The digest of the manifest, by SHA-256.
    #[must_use]
    pub fn manifest(&self) -> &Digest {
        &self.digest
    }

    /// The layers, bottom first.
    #[must_use]
    pub fn layers(&self) -> &[PlannedLayer] {
        &self.planned
    }

    /// Whether a layer need not be fetched: it is stored, or was handed in.
    #[must_use]
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.planned.iter().any(|layer| layer.diff_id == *diff_id && layer.stored)
    }

    /// Takes a layer as its source gives it, compressed or not: unpacks it, and compares both its digests and its size.
    /// Blocks until the source ends. All layers below it must be there; one that is there already is not read.
    ///
    /// # Errors
    ///
    /// [`ImageError`]: after one, the image in progress is only good for dropping.
    ///
    /// # Panics
    ///
    /// If `index` is not below the length of [`Self::layers`].
    pub fn layer(&mut self, index: usize, source: impl Read) -> Result<(), ImageError> {
        if self.planned[index].stored {
            return Ok(());
        }
        if let Some(missing) = self.layers[..index].iter().position(Option::is_none) {
            return Err(ImageError::Order { index: missing });
        }
        let PlannedLayer { descriptor, diff_id, .. } = self.planned[index].clone();
        let lower = self.lower(index)?;
        let path = self.folder()?.join(index.to_string());
        at(&path, "making the layer's directory", fs::DirBuilder::new().mode(0o755).create(&path))?;
        let directory = at(&path, "opening the layer's directory", File::open(&path).map(OwnedFd::from))?;
        at(&path, "setting the layer's mode", rustix::fs::fchmod(&directory, rustix::fs::Mode::from_raw_mode(0o755)))?;
        let handle = at(&path, "opening the layer's directory", directory.try_clone())?;
        let compressed_bytes = Rc::new(Cell::new(0));
        let mut source = Source::new(source, &descriptor, Rc::clone(&compressed_bytes));
        let shared = Arc::clone(&self.shared);
        let result = pour(&mut source, &diff_id, directory, &lower, &shared, &compressed_bytes);
        let done = match result {
            Ok(done) => {
                source.finish()?;
                done
            }
            Err(error) => return Err(self.blame(error, source, &descriptor)),
        };
        let facts = Shared::write_facts(&path, &handle, &done)?;
        let name = if done.used_lower {
            chain_name(&chain_ids(&self.config.diff_ids[..=index])[index])
        } else {
            free_name(&diff_id)
        };
        if done.attributes_dropped > 0 {
            tracing::debug!(count = done.attributes_dropped, "left out extended attributes that images may not set");
        }
        self.shared.index.lock().pin(&name);
        self.layers[index] = Some((name, Some(facts)));
        self.planned[index].stored = true;
        self.same_again(index);
        Ok(())
    }

    /// A layer that comes again further up is there as well, if it is the same over any other.
    fn same_again(&mut self, index: usize) {
        let free = free_name(&self.planned[index].diff_id);
        let is_free = self.layers[index].as_ref().is_some_and(|(name, _)| *name == free);
        if !is_free {
            return;
        }
        let diff_id = self.planned[index].diff_id.clone();
        for upper in index + 1..self.planned.len() {
            if self.planned[upper].diff_id == diff_id && self.layers[upper].is_none() {
                self.shared.index.lock().pin(&free);
                self.layers[upper] = self.layers[index].clone();
                self.planned[upper].stored = true;
            }
        }
    }

    /// What really went wrong: bytes that are not the right ones explain everything that is found in them.
    fn blame(&self, error: LayerError, mut source: Source<impl Read>, descriptor: &Descriptor) -> ImageError {
        let digest = descriptor.digest.clone();
        if let Some(source) = source.failure.take() {
            return ImageError::Source { digest, source };
        }
        let error = match error {
            LayerError::DiffId(found) => {
                let unpacked = ImageError::Digest { what: "a layer, unpacked,", source: found };
                return source.finish().err().unwrap_or(unpacked);
            }
            LayerError::Unpack(error) => error,
        };
        if let UnpackError::Host { source: cause, .. } = &error {
            if matches!(Errno::from_io_error(cause), Some(Errno::NOSPC | Errno::DQUOT)) {
                let free_bytes = self.shared.space().map_or(0, |(free, _)| free);
                return ImageError::DiskFull { needed_bytes: self.needed_bytes, free_bytes };
            }
            return ImageError::Layer { digest, source: error };
        }
        if let UnpackError::Tar(TarError::Io(cause)) = &error
            && let Some(bomb) = cause.get_ref().and_then(|cause| cause.downcast_ref::<Bomb>())
        {
            return ImageError::Bomb { digest, source: *bomb };
        }
        match source.finish() {
            Err(error @ (ImageError::Digest { .. } | ImageError::Size { .. } | ImageError::Source { .. })) => error,
            _ => ImageError::Layer { digest, source: error },
        }
    }

    fn folder(&mut self) -> Result<PathBuf, ImageError> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let folder = self.shared.tmp().join(random_name());
        at(&folder, "making a folder for the image", fs::DirBuilder::new().mode(0o700).create(&folder))?;
        self.folder = Some(folder.clone());
        Ok(folder)
    }

    /// The layers below one, topmost first.
    fn lower(&self, index: usize) -> Result<Lower, ImageError> {
        let mut directories = Vec::new();
        for (below, layer) in self.layers[..index].iter().enumerate().rev() {
            let Some((name, facts)) = layer else { continue };
            let path = match (facts, &self.folder) {
                (Some(_), Some(folder)) => folder.join(self.folder_of(below, name)),
                _ => self.shared.layers_directory().join(name),
            };
            directories.push(at(&path, "opening a layer", File::open(&path).map(OwnedFd::from))?);
        }
        Ok(Lower::new(directories))
    }

    /// Where in the image's folder a new layer is: one that comes again is there once.
    fn folder_of(&self, index: usize, name: &str) -> String {
        let first = self.layers[..index].iter().position(|layer| layer.as_ref().is_some_and(|(n, _)| n == name));
        first.unwrap_or(index).to_string()
    }

    /// Makes the image one of the store's, with a name if one is given, which is taken from the image that had it.
    ///
    /// # Errors
    ///
    /// [`ImageError::Order`] if a layer is missing, [`ImageError::Reference`], [`ImageError::Io`].
    pub fn commit(self, reference: Option<&str>) -> Result<Image, ImageError> {
        let reference = reference.map(canonical).transpose()?;
        if let Some(index) = self.layers.iter().position(Option::is_none) {
            return Err(ImageError::Order { index });
        }
        let layers: Vec<(String, Option<LayerFacts>)> = self.layers.iter().flatten().cloned().collect();
        let mut fresh: Vec<(String, String)> = Vec::new();
        for (index, (name, facts)) in layers.iter().enumerate() {
            if facts.is_some() && !fresh.iter().any(|(_, known)| known == name) {
                fresh.push((index.to_string(), name.clone()));
            }
        }
        if let Some(folder) = &self.folder {
            self.shared.publish_layers(folder, &fresh).map_err(|error| self.full(error))?;
        }
        let changes = self.shared.changes.lock();
        let written = self
            .shared
            .write_config(&self.manifest.config.digest, &self.config_bytes)
            .and_then(|()| self.shared.write_manifest(&self.digest, &self.manifest_bytes))
            .and_then(|()| match &reference {
                Some(reference) => self.shared.write_reference(reference, &self.digest),
                None => Ok(()),
            });
        written.map_err(|error| self.full(error))?;
        let mut index = self.shared.index.lock();
        for (name, facts) in &layers {
            if let Some(facts) = facts {
                index.layers.insert(name.clone(), *facts);
            }
        }
        let kept: Vec<String> = layers.into_iter().map(|(name, _)| name).collect();
        let names = index.stack(kept.clone());
        let stored = Stored { manifest: self.manifest.clone(), config: self.config.clone(), layers: names, kept };
        index.images.insert(self.digest.clone(), Arc::new(stored));
        if let Some(reference) = reference {
            index.references.insert(reference, self.digest.clone());
        }
        let image = self.shared.view(&index, &self.digest);
        drop(index);
        drop(changes);
        Ok(image.expect("it was put into the index above"))
    }

    fn full(&self, error: ImageError) -> ImageError {
        match &error {
            ImageError::Io { source, .. }
                if matches!(Errno::from_io_error(source), Some(Errno::NOSPC | Errno::DQUOT)) =>
            {
                let free_bytes = self.shared.space().map_or(0, |(free, _)| free);
                ImageError::DiskFull { needed_bytes: self.needed_bytes, free_bytes }
            }
            _ => error,
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let mut index = self.shared.index.lock();
        for (name, _) in self.layers.iter().flatten() {
            index.unpin(name);
        }
        drop(index);
        if let Some(folder) = &self.folder
            && let Err(error) = fs::remove_dir_all(folder)
        {
            tracing::warn!(%error, "an image in progress was not removed; opening the store will");
        }
    }
}

/// An image that says nothing of its machine is taken; variants were looked at when it was chosen.
fn check_platform(wanted: &Platform, found: &Platform) -> Result<(), ImageError> {
    let fits = found.os == wanted.os && (found.architecture.is_empty() || found.architecture == wanted.architecture);
    if fits {
        Ok(())
    } else {
        Err(ImageError::Platform { wanted: Box::new(wanted.clone()), found: Box::new(found.clone()) })
    }
}

enum LayerError {
    Unpack(UnpackError),
    DiffId(DigestError),
}

/// From compressed bytes to a directory, and the digest of what was in between.
fn pour(
    source: &mut Source<impl Read>,
    diff_id: &Digest,
    into: OwnedFd,
    lower: &Lower,
    shared: &Shared,
    compressed_bytes: &Rc<Cell<u64>>,
) -> Result<crate::unpack::Unpacked, LayerError> {
    let limits = &shared.options.limits;
    let unread = |error: io::Error| LayerError::Unpack(UnpackError::Tar(TarError::Io(error)));
    let plain = plain(BufReader::with_capacity(128 << 10, source)).map_err(unread)?;
    let mut hashed = Hashed {
        plain: Proportion::new(plain, Rc::clone(compressed_bytes), limits.bytes, limits.ratio),
        verifier: Verifier::new(diff_id.clone()),
    };
    let mut space = || {
        let (free, reserve) = shared.space()?;
        if free < reserve { Err(Errno::NOSPC.into()) } else { Ok(()) }
    };
    let reader = BufReader::with_capacity(64 << 10, &mut hashed);
    let done = unpack(reader, into, lower, limits, &mut space).map_err(LayerError::Unpack)?;
    hashed.verifier.finish().map_err(LayerError::DiffId)?;
    Ok(done)
}

/// The compressed bytes of a layer, counted and hashed.
struct Source<R> {
    inner: R,
    verifier: Option<Verifier>,
    digest: Digest,
    announced: u64,
    count: Rc<Cell<u64>>,
    /// What the source itself said, which must not be taken for something in the layer.
    failure: Option<io::Error>,
}

impl<R: Read> Source<R> {
    fn new(inner: R, descriptor: &Descriptor, count: Rc<Cell<u64>>) -> Self {
        let digest = descriptor.digest.clone();
        let verifier = Some(Verifier::new(digest.clone()));
        Self { inner, verifier, digest, announced: descriptor.size_bytes, count, failure: None }
    }

    /// Reads what is left and compares size and digest.
    fn finish(mut self) -> Result<(), ImageError> {
        let digest = self.digest.clone();
        let rest = io::copy(&mut self, &mut io::sink());
        if let Some(source) = self.failure.take() {
            return Err(ImageError::Source { digest, source });
        }
        let found = self.count.get();
        if found != self.announced {
            return Err(ImageError::Size { digest, announced: self.announced, found });
        }
        if let Err(source) = rest {
            return Err(ImageError::Source { digest, source });
        }
        let verifier = self.verifier.take().expect("taken only here");
        verifier.finish().map(drop).map_err(|source| ImageError::Digest { what: "a layer", source })
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than announced is enough to know.
        let left = (self.announced + 1).saturating_sub(self.count.get());
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buffer[..most]) {
            Ok(count) => {
                self.count.set(self.count.get() + u64::try_from(count).unwrap_or(0));
                if let Some(verifier) = &mut self.verifier {
                    verifier.update(&buffer[..count]);
                }
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// Plain bytes, hashed.
struct Hashed<R> {
    plain: R,
    verifier: Verifier,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.plain.read(buffer)?;
        self.verifier.update(&buffer[..count]);
        Ok(count)
    }
}
