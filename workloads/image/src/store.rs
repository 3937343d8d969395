//! Images on disk: layers unpacked once for all images that have them, manifests and configurations as they came, names.
//!
//! ```text
//! layers/NAME/       one layer, unpacked; the parent is open to root only
//! manifests/DIGEST   configs/DIGEST    raw bytes as verified
//! references/HASH    two lines: the manifest's digest and the name
//! tmp/RANDOM/        what is in progress, and what is being removed; emptied by opening the store
//! ```
//!
//! What is written appears by rename, bottom first: layers, configuration, manifest, name. So whatever is there has all
//! it needs, and a crash leaves at most things that nobody names, which opening the store removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::config::{self, Config, ImageConfig};
use crate::digest::{Algorithm, Digest, DigestError};
use crate::error::ImageError;
use crate::ingest::Ingest;
use crate::manifest::{self, CONFIG_BYTES_MAX, Document, MANIFEST_BYTES_MAX, Manifest, Platform};
use crate::reference::Reference;
use crate::unpack::{Limits, Unpacked};

const LAYERS: &str = "layers";
const MANIFESTS: &str = "manifests";
const CONFIGS: &str = "configs";
const REFERENCES: &str = "references";
const TMP: &str = "tmp";
/// How a layer's directory says that it is whole, and what it is: bytes of content, and the marks of [`LayerFacts`].
const FACTS: &str = "trusted.meshd.layer";
/// Fewest digits by which a manifest is found.
const PREFIX_DIGITS_MIN: usize = 12;

/// How a store is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// For which machine images must be.
    pub platform: Platform,
    /// How much one layer may be.
    pub limits: Limits,
    /// What is left free for the rest of the host; on a disk smaller than ten times this, a tenth of the disk.
    pub reserve_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { platform: Platform::host(), limits: Limits::default(), reserve_bytes: 512 << 20 }
    }
}

/// A stored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// All its names, ascending.
    pub references: Vec<String>,
    /// The digest of its manifest, by which it is known.
    pub manifest: Digest,
    /// Bytes of content in its layers, shared ones included.
    pub size_bytes: u64,
    /// Where the layers are.
    pub layers_directory: PathBuf,
    /// Names of the layers in [`Self::layers_directory`], bottom first and each once.
    pub layers: Vec<String>,
    /// Which of the layers says whose the root is and with which mode, if one does: overlayfs takes that from the
    /// uppermost directory, whatever the layers say.
    pub root_layer: Option<String>,
    /// How to run it.
    pub config: ImageConfig,
    /// When it was made, as it says.
    pub created: Option<String>,
}

/// What taking a name away did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The names that are gone.
    pub references: Vec<String>,
    /// The image that had them. It stays until the next [`Images::gc`] if it has no other name.
    pub manifest: Digest,
}

/// What a collection gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Images that had no name and were not in use.
    pub images: Vec<Digest>,
    /// Layers that no image has any more.
    pub layers: u64,
    /// Bytes of content in them.
    pub bytes: u64,
}

/// The images of a node. Cheap to clone; all calls block on the disk except where they say that they do not.
#[derive(Clone, Debug)]
pub struct Images {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) options: StoreOptions,
    /// Held by whoever changes the disk and then the index, so that answers from memory wait for no disk.
    pub(crate) changes: Mutex<()>,
    pub(crate) index: Mutex<Index>,
    /// Held as long as the store is open.
    _lock: File,
}

/// What is on disk, in memory.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<Digest, Arc<Stored>>,
    pub(crate) references: BTreeMap<String, Digest>,
    pub(crate) layers: BTreeMap<String, LayerFacts>,
    /// Layers that an image in progress counts on, and how many of those.
    pub(crate) pinned: BTreeMap<String, usize>,
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    /// Those that overlayfs stacks, bottom first.
    pub(crate) layers: Vec<String>,
    /// All, as the configuration lists them. What another layer hides is kept: a registry is not asked for it again.
    pub(crate) kept: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerFacts {
    pub(crate) bytes: u64,
    pub(crate) has_root: bool,
    pub(crate) hides_all: bool,
}

/// Puts the path to what the kernel says.
pub(crate) fn at<T>(path: &Path, step: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, ImageError> {
    result.map_err(|error| ImageError::Io { path: path.to_owned(), step, source: error.into() })
}

impl Images {
    /// Opens a store, and makes it if there is none. What a crash left half done is removed, and so is what nobody could
    /// ever find: names without their image, images without their layers, layers of no image.
    ///
    /// # Errors
    ///
    /// [`ImageError::Busy`] if another process has it open, [`ImageError::Io`].
    pub fn open(directory: &Path, options: StoreOptions) -> Result<Self, ImageError> {
        for name in ["", LAYERS, MANIFESTS, CONFIGS, REFERENCES, TMP] {
            let path = directory.join(name);
            at(&path, "making the directory", fs::DirBuilder::new().recursive(true).mode(0o700).create(&path))?;
        }
        let lock_path = directory.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = at(&lock_path, "opening the lock", lock)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(ImageError::Busy { directory: directory.to_owned() }),
            Err(error) => return at(&lock_path, "locking the store", Err(error)),
        }
        let shared = Shared {
            root: directory.to_owned(),
            options,
            changes: Mutex::default(),
            index: Mutex::default(),
            _lock: lock,
        };
        shared.empty_tmp()?;
        let index = shared.load()?;
        *shared.index.lock() = index;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins to store an image, of which manifest and configuration are at hand. Both are read strictly, the
    /// configuration is held against the manifest's digest of it, and layers that are stored already are kept from
    /// being collected.
    ///
    /// The manifest's own digest is the caller's to compare with what it asked for; see [`Ingest::manifest`].
    ///
    /// # Errors
    ///
    /// [`ImageError`]: one of the two cannot be used, the image is for another machine, or there is not enough room.
    pub fn begin(&self, manifest_bytes: Vec<u8>, config_bytes: Vec<u8>) -> Result<Ingest, ImageError> {
        Ingest::begin(&self.shared, manifest_bytes, config_bytes)
    }

    /// Whether a layer with this digest of its tar is stored in the form that fits on any other. Does not block.
    #[must_use]
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.shared.index.lock().layers.contains_key(&free_name(diff_id))
    }

    /// The image of a name, of a manifest's digest, or of at least twelve digits that only one digest begins with.
    /// Answers from memory.
    #[must_use]
    pub fn resolve(&self, text: &str) -> Option<Image> {
        let index = self.shared.index.lock();
        index.find(text).and_then(|digest| self.shared.view(&index, &digest))
    }

    /// All images, ascending by digest. Answers from memory.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        let index = self.shared.index.lock();
        index.images.keys().filter_map(|digest| self.shared.view(&index, digest)).collect()
    }

    /// Gives an image another name, and takes it from the image that had it.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotFound`], [`ImageError::Reference`], [`ImageError::Io`].
    pub fn tag(&self, text: &str, name: &str) -> Result<Image, ImageError> {
        let name = canonical(name)?;
        let _changes = self.shared.changes.lock();
        let found = self.shared.index.lock().find(text);
        let digest = found.ok_or_else(|| ImageError::NotFound { text: text.to_owned() })?;
        self.shared.write_reference(&name, &digest)?;
        let mut index = self.shared.index.lock();
        index.references.insert(name, digest.clone());
        self.shared.view(&index, &digest).ok_or_else(|| ImageError::NotFound { text: text.to_owned() })
    }

    /// Takes a name away; by a digest, all names of that image. The space comes back with [`Self::gc`].
    ///
    /// # Errors
    ///
    /// [`ImageError::NotFound`], [`ImageError::Io`].
    pub fn remove(&self, text: &str) -> Result<Removed, ImageError> {
        let _changes = self.shared.changes.lock();
        let (references, manifest) = {
            let index = self.shared.index.lock();
            match index.reference(text) {
                Some((name, digest)) => (vec![name], digest),
                None => {
                    let digest = index.find(text).ok_or_else(|| ImageError::NotFound { text: text.to_owned() })?;
                    (index.names(&digest), digest)
                }
            }
        };
        for name in &references {
            self.shared.remove_reference(name)?;
            self.shared.index.lock().references.remove(name);
        }
        Ok(Removed { references, manifest })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Index {
    /// A name as it is written, or as it is meant.
    fn reference(&self, text: &str) -> Option<(String, Digest)> {
        let name = if self.references.contains_key(text) { text.to_owned() } else { canonical(text).ok()? };
        self.references.get(&name).map(|digest| (name, digest.clone()))
    }

    pub(crate) fn find(&self, text: &str) -> Option<Digest> {
        if let Some((_, digest)) = self.reference(text) {
            return Some(digest);
        }
        // A digest says which content it is, whatever the name before it.
        let digest = text.rsplit_once('@').map_or(text, |(_, digest)| digest);
        if let Ok(digest) = digest.parse::<Digest>() {
            return self.images.contains_key(&digest).then_some(digest);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let hexadecimal = prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() < PREFIX_DIGITS_MIN || prefix.len() > 64 || !hexadecimal {
            return None;
        }
        // Manifests are named by SHA-256, so the lowest digest of the prefix is the prefix with zeros.
        let lowest = format!("sha256:{prefix:0<64}").parse::<Digest>().ok()?;
        let mut fitting = self.images.range(lowest..).take_while(|(digest, _)| digest.hex().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some((digest, _)), None) => Some(digest.clone()),
            _ => None,
        }
    }

    pub(crate) fn names(&self, digest: &Digest) -> Vec<String> {
        self.references.iter().filter(|(_, named)| *named == digest).map(|(name, _)| name.clone()).collect()
    }

    /// The layers as overlayfs takes them, bottom first. It takes none twice: of one that comes again the upper one does
    /// all that the lower would. And it looks for no mark on a root, so what a root hides is left out.
    pub(crate) fn stack(&self, names: Vec<String>) -> Vec<String> {
        let hides_all = |name: &String| self.layers.get(name).is_some_and(|facts| facts.hides_all);
        let bottom = names.iter().rposition(hides_all).unwrap_or(0);
        let mut seen = BTreeSet::new();
        let mut kept: Vec<String> =
            names.into_iter().skip(bottom).rev().filter(|name| seen.insert(name.clone())).collect();
        kept.reverse();
        kept
    }

    pub(crate) fn pin(&mut self, name: &str) {
        *self.pinned.entry(name.to_owned()).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, name: &str) {
        if let Some(count) = self.pinned.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.pinned.remove(name);
            }
        }
    }

    /// Which of the layers on disk are those of an image, bottom first; `None` for one that is not there.
    pub(crate) fn layers_of(&self, diff_ids: &[Digest]) -> Vec<Option<String>> {
        let chain = chain_ids(diff_ids);
        let names = diff_ids.iter().zip(&chain).map(|(diff_id, chain)| [free_name(diff_id), chain_name(chain)]);
        names.map(|names| names.into_iter().find(|name| self.layers.contains_key(name))).collect()
    }
}

/// A name in the one form that names are kept in.
pub(crate) fn canonical(text: &str) -> Result<String, ImageError> {
    let parsed: Result<Reference, _> = text.parse();
    parsed
        .map(|reference| reference.to_string())
        .map_err(|source| ImageError::Reference { text: text.chars().take(600).collect(), source })
}

/// The directory of a layer that is the same over any other.
pub(crate) fn free_name(diff_id: &Digest) -> String {
    match diff_id.algorithm() {
        Algorithm::Sha256 => diff_id.hex().to_owned(),
        Algorithm::Sha512 => format!("sha512-{}", diff_id.hex()),
    }
}

/// The directory of a layer that took something from those below, so that it is for this stack alone.
pub(crate) fn chain_name(chain_id: &Digest) -> String {
    format!("chain-{}", chain_id.hex())
}

/// The chain ids of the image specification: each layer with all below it.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

fn is_layer_name(name: &str) -> bool {
    let hex = name.strip_prefix("chain-").or_else(|| name.strip_prefix("sha512-")).unwrap_or(name);
    matches!(hex.len(), 64 | 128) && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A random name for something in progress.
pub(crate) fn random_name() -> String {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    HEXLOWER.encode(&bytes)
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    at(path, "making the directory durable", File::open(path).and_then(|directory| directory.sync_all()))
}

fn entries(path: &Path) -> Result<Vec<String>, ImageError> {
    let listed = at(path, "listing the directory", fs::read_dir(path))?;
    let names = listed.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    at(path, "listing the directory", names.collect())
}

/// The bytes of a file that are named by their digest. `None` if the digest is another one, as a disk can do.
fn read_content(path: &Path, digest: &Digest, bytes_max: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let mut bytes = Vec::new();
    let file = at(path, "opening the file", File::open(path))?;
    at(path, "reading the file", file.take(bytes_max + 1).read_to_end(&mut bytes))?;
    Ok((Digest::of(&bytes) == *digest).then_some(bytes))
}

impl Shared {
    pub(crate) fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(name)
    }

    pub(crate) fn layers_directory(&self) -> PathBuf {
        self.root.join(LAYERS)
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join(TMP)
    }

    fn empty_tmp(&self) -> Result<(), ImageError> {
        for name in entries(&self.tmp())? {
            let path = self.path(TMP, &name);
            let removed =
                if path.is_symlink() || !path.is_dir() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
            at(&path, "removing what was in progress", removed)?;
        }
        Ok(())
    }

    /// Reads the store into memory and removes what nobody can find.
    fn load(&self) -> Result<Index, ImageError> {
        let mut index = Index::default();
        let mut broken = 0_u64;
        for name in entries(&self.layers_directory())? {
            match self.read_facts(&name)? {
                Some(facts) => drop(index.layers.insert(name, facts)),
                None => {
                    broken += 1;
                    self.discard(LAYERS, &name)?;
                }
            }
        }
        for name in entries(&self.root.join(MANIFESTS))? {
            let stored = match format!("sha256:{name}").parse::<Digest>() {
                Ok(digest) => self.read_image(&index, &digest)?.map(|stored| (digest, stored)),
                Err(_) => None,
            };
            match stored {
                Some((digest, stored)) => drop(index.images.insert(digest, Arc::new(stored))),
                None => {
                    broken += 1;
                    self.discard(MANIFESTS, &name)?;
                }
            }
        }
        for name in entries(&self.root.join(REFERENCES))? {
            let path = self.path(REFERENCES, &name);
            let text = at(&path, "reading the file", fs::read(&path))?;
            let text = String::from_utf8(text).unwrap_or_default();
            let named = text.trim_end().split_once('\n').and_then(|(digest, reference)| {
                let digest: Digest = digest.parse().ok()?;
                let known = index.images.contains_key(&digest) && reference_file(reference) == name;
                known.then(|| (reference.to_owned(), digest))
            });
            match named {
                Some((reference, digest)) => drop(index.references.insert(reference, digest)),
                None => {
                    broken += 1;
                    self.discard(REFERENCES, &name)?;
                }
            }
        }
        // Between its layers and its manifest an image may have been cut off: that is no damage.
        let configs: BTreeSet<String> =
            index.images.values().map(|stored| stored.manifest.config.digest.hex().to_owned()).collect();
        for name in entries(&self.root.join(CONFIGS))?.into_iter().filter(|name| !configs.contains(name)) {
            self.discard(CONFIGS, &name)?;
        }
        let used: BTreeSet<&String> = index.images.values().flat_map(|stored| &stored.kept).collect();
        let unused: Vec<String> = index.layers.keys().filter(|name| !used.contains(name)).cloned().collect();
        for name in unused {
            self.discard(LAYERS, &name)?;
            index.layers.remove(&name);
        }
        if broken > 0 {
            tracing::warn!(count = broken, "removed images, layers or names that were damaged");
        }
        Ok(index)
    }

    fn read_facts(&self, name: &str) -> Result<Option<LayerFacts>, ImageError> {
        if !is_layer_name(name) {
            return Ok(None);
        }
        let path = self.path(LAYERS, name);
        let mut value = [0_u8; 64];
        let count = match rustix::fs::lgetxattr(&path, FACTS, value.as_mut_slice()) {
            Ok(count) => count,
            Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return at(&path, "reading what the layer is", Err(error)),
        };
        Ok(std::str::from_utf8(&value[..count]).ok().and_then(|text| {
            let mut words = text.split(' ');
            let bytes = words.next()?.parse().ok()?;
            let marks: Vec<&str> = words.collect();
            Some(LayerFacts { bytes, has_root: marks.contains(&"root"), hides_all: marks.contains(&"hides-all") })
        }))
    }

    /// Marks a layer that is whole.
    pub(crate) fn write_facts(path: &Path, directory: &OwnedFd, done: &Unpacked) -> Result<LayerFacts, ImageError> {
        let facts = LayerFacts { bytes: done.bytes, has_root: done.has_root, hides_all: done.hides_all };
        let mut text = facts.bytes.to_string();
        for (mark, is_set) in [(" root", facts.has_root), (" hides-all", facts.hides_all)] {
            text.push_str(if is_set { mark } else { "" });
        }
        let set = rustix::fs::fsetxattr(directory, FACTS, text.as_bytes(), XattrFlags::empty());
        at(path, "marking the layer as whole: the disk must have extended attributes, and this process be root", set)?;
        Ok(facts)
    }

    /// An image with all it needs, or `None` if something of it is missing or damaged.
    fn read_image(&self, index: &Index, digest: &Digest) -> Result<Option<Stored>, ImageError> {
        let path = self.path(MANIFESTS, digest.hex());
        let Some(bytes) = read_content(&path, digest, MANIFEST_BYTES_MAX)? else { return Ok(None) };
        let Ok(Document::Manifest(manifest)) = manifest::decode(&bytes, None) else { return Ok(None) };
        let path = self.path(CONFIGS, &config_file(&manifest.config.digest));
        if !path.exists() {
            return Ok(None);
        }
        let Some(bytes) = read_config(&path, &manifest.config.digest)? else { return Ok(None) };
        let Ok(config) = config::decode(&bytes) else { return Ok(None) };
        let layers: Option<Vec<String>> = index.layers_of(&config.diff_ids).into_iter().collect();
        Ok(layers.map(|kept| Stored { manifest, config, layers: index.stack(kept.clone()), kept }))
    }

    /// Makes something vanish at once; what it holds is removed behind it.
    pub(crate) fn discard(&self, folder: &str, name: &str) -> Result<(), ImageError> {
        let (from, to) = (self.path(folder, name), self.tmp().join(random_name()));
        at(&from, "moving it away", fs::rename(&from, &to))?;
        let removed = if to.is_symlink() || !to.is_dir() { fs::remove_file(&to) } else { fs::remove_dir_all(&to) };
        at(&to, "removing it", removed)
    }

    pub(crate) fn view(&self, index: &Index, digest: &Digest) -> Option<Image> {
        let stored = index.images.get(digest)?;
        let facts = |name: &String| index.layers.get(name).copied();
        Some(Image {
            references: index.names(digest),
            manifest: digest.clone(),
            size_bytes: stored.layers.iter().filter_map(facts).map(|facts| facts.bytes).sum(),
            layers_directory: self.layers_directory(),
            layers: stored.layers.clone(),
            root_layer: stored.layers.iter().rfind(|name| facts(name).is_some_and(|facts| facts.has_root)).cloned(),
            config: stored.config.image.clone(),
            created: stored.config.created.clone(),
        })
    }

    /// Writes a file so that after a crash it is there whole or not at all.
    fn write_file(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let (from, to) = (self.tmp().join(random_name()), self.path(folder, name));
        let written = File::options().create_new(true).write(true).mode(0o600).open(&from).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| fs::rename(&from, &to));
        if let Err(source) = renamed {
            // Best effort: the store's opening empties the folder anyway.
            let _ = fs::remove_file(&from);
            return Err(ImageError::Io { path: to, step: "writing the file", source });
        }
        sync_directory(&self.root.join(folder))
    }

    pub(crate) fn write_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.write_file(MANIFESTS, digest.hex(), bytes)
    }

    pub(crate) fn write_config(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.write_file(CONFIGS, &config_file(digest), bytes)
    }

    pub(crate) fn write_reference(&self, reference: &str, digest: &Digest) -> Result<(), ImageError> {
        self.write_file(REFERENCES, &reference_file(reference), format!("{digest}\n{reference}\n").as_bytes())
    }

    fn remove_reference(&self, reference: &str) -> Result<(), ImageError> {
        let path = self.path(REFERENCES, &reference_file(reference));
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return at(&path, "removing the name", Err(error)),
        }
        sync_directory(&self.root.join(REFERENCES))
    }

    pub(crate) fn remove_configs_except(&self, kept: &BTreeSet<String>) -> Result<(), ImageError> {
        for name in entries(&self.root.join(CONFIGS))?.into_iter().filter(|name| !kept.contains(name)) {
            self.discard(CONFIGS, &name)?;
        }
        Ok(())
    }

    /// Makes a layer vanish at once; what it holds is the caller's to remove.
    pub(crate) fn move_layer_away(&self, name: &str) -> Result<PathBuf, ImageError> {
        let (from, to) = (self.path(LAYERS, name), self.tmp().join(random_name()));
        at(&from, "moving a layer away", fs::rename(&from, &to))?;
        Ok(to)
    }

    pub(crate) fn remove_manifest(&self, digest: &Digest) -> Result<(), ImageError> {
        self.discard(MANIFESTS, digest.hex())?;
        sync_directory(&self.root.join(MANIFESTS))
    }

    /// Moves layers from the folder of an image in progress to where they stay. One that somebody else stored
    /// meanwhile stays as it is.
    pub(crate) fn publish_layers(&self, from: &Path, layers: &[(String, String)]) -> Result<(), ImageError> {
        if layers.is_empty() {
            return Ok(());
        }
        let tmp = at(from, "opening the folder", File::open(from))?;
        at(from, "making the layers durable", rustix::fs::syncfs(&tmp))?;
        let into = self.layers_directory();
        let target = at(&into, "opening the folder", File::open(&into))?;
        for (folder, name) in layers {
            match rustix::fs::renameat_with(&tmp, folder.as_str(), &target, name.as_str(), RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return at(&into.join(name), "moving the layer to its place", Err(error)),
            }
        }
        sync_directory(&into)
    }

    /// Bytes that are free for the store, and bytes to be left free of them.
    pub(crate) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.root)?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), self.options.reserve_bytes.min(total / 10)))
    }
}

/// Names may be longer than names of files.
fn reference_file(reference: &str) -> String {
    Digest::of(reference.as_bytes()).hex().to_owned()
}

fn config_file(digest: &Digest) -> String {
    digest.hex().to_owned()
}

/// A configuration may be named by either hash.
fn read_config(path: &Path, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
    let mut bytes = Vec::new();
    let file = at(path, "opening the file", File::open(path))?;
    at(path, "reading the file", file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes))?;
    Ok(verify(digest, &bytes).is_ok().then_some(bytes))
}

/// Whether bytes are what a digest names.
pub(crate) fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), DigestError> {
    let mut verifier = crate::digest::Verifier::new(digest.clone());
    verifier.update(bytes);
    verifier.finish().map(drop)
}
