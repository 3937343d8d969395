//! An image from a registry into the store: downloads run ahead, layers are unpacked in their order.
//!
//! ```text
//! manifest ── config ── begin ─┬─ download 0 ═ channel ═╗
//!                              ├─ download 1 ═ channel ═╬═ one blocking thread: layer 0, 1, 2 … ── commit
//!                              └─ …            (bounded)╝
//! ```
//!
//! All that runs in the background is that thread. It ends with the channels, which end with the future of the pull.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::auth::Credentials;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::fault::{Fault, RegistryError};
use crate::ingest::{Ingest, PlannedLayer};
use crate::layout::{PROGRESS_BYTES, Progress};
use crate::manifest::{self, Document, Manifest};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::{Image, Images};
use crate::transport::PIECE_BYTES_MAX;

/// Layers that are downloaded before it is their turn, beside the one whose turn it is.
const AHEAD_MAX: usize = 3;
/// Pieces of a download that wait to be unpacked. When full, the download waits, and so does its server.
const PIECES_MAX: usize = 64;
/// Indexes in indexes: one for the machines, and two to spare.
const INDEX_DEPTH_MAX: usize = 3;
// A pull holds at most this much of layers in memory.
const _: () = assert!((AHEAD_MAX + 1) * PIECES_MAX * PIECE_BYTES_MAX <= 16 << 20);

/// How to get an image from a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullOptions {
    /// The registry is asked in plain HTTP. Without, only this very host is.
    pub plain_http: bool,
    /// Certificates of authorities beside those of the host, PEM. With any, this very host is asked in HTTPS as well.
    pub ca_pem: Vec<Vec<u8>>,
    /// Who asks. Without, the files are looked at when the registry wants to know.
    pub credentials: Option<Credentials>,
    /// Files as Docker has them, the first that knows the registry counts; those that are not there are passed over.
    pub credential_files: Vec<PathBuf>,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long an answer may bring nothing.
    pub stall: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        let own = std::env::home_dir().map(|home| home.join(".docker/config.json"));
        Self {
            plain_http: false,
            ca_pem: Vec::new(),
            credentials: None,
            credential_files: own.into_iter().chain([PathBuf::from("/etc/docker/config.json")]).collect(),
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
        }
    }
}

impl Images {
    /// Gets an image from its registry and stores it by its whole name. What is stored already is not fetched.
    ///
    /// # Errors
    ///
    /// [`ImageError::Registry`] if the registry does not hand it out, and whatever storing can end with.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it stops its downloads at once and its unpacking soon after, and leaves nothing in the store; if all was
    /// unpacked already, it may leave the image.
    pub async fn pull<F>(&self, reference: &str, options: &PullOptions, progress: Arc<F>) -> Result<Image, ImageError>
    where
        F: Fn(Progress) + Send + Sync + ?Sized + 'static,
    {
        let parsed: Result<Reference, _> = reference.parse();
        let parsed =
            parsed.map_err(|source| ImageError::Reference { text: reference.chars().take(600).collect(), source })?;
        let name = parsed.to_string();
        let registry = Registry::new(&parsed, options);
        let (manifest_bytes, manifest) = self.find_manifest(&registry, &parsed).await?;
        if let Some(image) = self.name_stored(&Digest::of(&manifest_bytes), &name).await? {
            for (index, layer) in manifest.layers.iter().enumerate() {
                progress(Progress::Stored { index, count: manifest.layers.len(), digest: layer.digest.clone() });
            }
            return Ok(image);
        }
        let config = &manifest.config;
        let config_bytes = registry.small_blob("the configuration", &config.digest, config.size_bytes).await?;
        let images = self.clone();
        let ingest = blocking(move || images.begin(manifest_bytes, config_bytes)).await?;
        let ingest = fetch(&registry, ingest, progress).await?;
        blocking(move || ingest.commit(Some(&name))).await
    }

    /// Goes from the name to the manifest for this machine.
    async fn find_manifest(
        &self,
        registry: &Registry,
        reference: &Reference,
    ) -> Result<(Vec<u8>, Manifest), ImageError> {
        let tag = reference.tag().unwrap_or("latest");
        let mut wanted = reference.digest().cloned();
        let mut announced_bytes = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let fetched = registry.manifest(tag, wanted.as_ref()).await?;
            let found = u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX);
            if let (Some(announced), Some(digest)) = (announced_bytes, &wanted)
                && announced != found
            {
                return Err(ImageError::Size { digest: digest.clone(), announced, found });
            }
            match manifest::decode(&fetched.bytes, fetched.media_type.as_deref())? {
                Document::Manifest(manifest) => return Ok((fetched.bytes, manifest)),
                Document::Index(index) => {
                    let chosen = index.choose(self.platform())?;
                    wanted = Some(chosen.digest.clone());
                    announced_bytes = Some(chosen.size_bytes);
                }
            }
        }
        Err(registry.error(&format!("the manifest of {reference}"), Fault::Nested).into())
    }

    /// Gives the name to an image that is here already.
    async fn name_stored(&self, digest: &Digest, name: &str) -> Result<Option<Image>, ImageError> {
        let digest = digest.to_string();
        if self.resolve(&digest).is_none() {
            return Ok(None);
        }
        let (images, name) = (self.clone(), name.to_owned());
        match blocking(move || images.tag(&digest, &name)).await {
            Ok(image) => Ok(Some(image)),
            // It was collected meanwhile.
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Runs what waits for the disk where that is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ImageError::Interrupted),
        },
    }
}

/// A piece of a layer between its download and the thread that unpacks.
enum Piece {
    /// The download begins. Whoever holds this holds its place among those that are ahead.
    Begin(OwnedSemaphorePermit),
    Bytes(Bytes),
    /// All was there.
    End,
}

/// Gets what is missing of an image and unpacks it.
async fn fetch<F>(registry: &Registry, mut ingest: Ingest, progress: Arc<F>) -> Result<Ingest, ImageError>
where
    F: Fn(Progress) + Send + Sync + ?Sized + 'static,
{
    let layers = ingest.layers().to_vec();
    let count = layers.len();
    let places = Arc::new(Semaphore::new(AHEAD_MAX + 1));
    let (mut downloads, mut pipes) = (Vec::new(), Vec::new());
    for (index, layer) in layers.into_iter().enumerate() {
        if layer.stored {
            progress(Progress::Stored { index, count, digest: layer.descriptor.digest });
            continue;
        }
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        downloads.push((index, layer.clone(), sender));
        pipes.push((index, layer, Pipe { receiver, piece: Bytes::new(), place: None, ended: false }));
    }
    let told = Arc::clone(&progress);
    let unpacking = blocking(move || {
        for (index, layer, mut pipe) in pipes {
            ingest.layer(index, &mut pipe)?;
            let bytes = layer.descriptor.size_bytes;
            let digest = layer.descriptor.digest;
            told(Progress::Layer { index, count, digest, bytes_done: bytes, bytes_total: bytes });
        }
        Ok(ingest)
    });
    let mut unpacking = std::pin::pin!(unpacking);
    let downloading = stream::iter(downloads).map(Ok).try_for_each_concurrent(AHEAD_MAX + 1, |(index, layer, to)| {
        let (places, progress) = (Arc::clone(&places), Arc::clone(&progress));
        async move {
            download(registry, &layer, to, &places, |bytes_done| {
                let (digest, bytes_total) = (layer.descriptor.digest.clone(), layer.descriptor.size_bytes);
                progress(Progress::Layer { index, count, digest, bytes_done, bytes_total });
            })
            .await
        }
    });
    let downloaded = {
        let mut downloading = std::pin::pin!(downloading);
        // cancel-safe: what is dropped is not used again
        tokio::select! {
            biased;
            unpacked = &mut unpacking => return unpacked.map_err(|error| name_registry(registry, error)),
            downloaded = &mut downloading => downloaded,
        }
    };
    // With the downloads their ends of the channels are gone, and the thread sees it at its next read.
    let unpacked = unpacking.await;
    downloaded?;
    unpacked.map_err(|error| name_registry(registry, error))
}

/// A layer that is not what it should be is the registry's doing, and its name belongs into the message.
fn name_registry(registry: &Registry, error: ImageError) -> ImageError {
    match error {
        ImageError::Digest { what: "a layer", source } => {
            let asked = match &source {
                crate::DigestError::Mismatch { expected, .. } => format!("layer {expected}"),
                _ => "a layer".to_owned(),
            };
            registry.error(&asked, Fault::Digest(source)).into()
        }
        other => other,
    }
}

async fn download(
    registry: &Registry,
    layer: &PlannedLayer,
    to: mpsc::Sender<Piece>,
    places: &Arc<Semaphore>,
    tell: impl Fn(u64),
) -> Result<(), RegistryError> {
    let place = Arc::clone(places).acquire_owned().await.expect("nobody closes the semaphore");
    // A layer that comes again was stored with its first; then nobody listens.
    if to.send(Piece::Begin(place)).await.is_err() {
        return Ok(());
    }
    let size_bytes = layer.descriptor.size_bytes;
    let mut blob = registry.blob("layer", &layer.descriptor.digest, size_bytes);
    let (mut done, mut next) = (0, 0);
    loop {
        if done >= next && done < size_bytes {
            tell(done);
            next = done + PROGRESS_BYTES;
        }
        let piece = match blob.piece().await? {
            Some(bytes) => {
                done += u64::try_from(bytes.len()).unwrap_or(0);
                Piece::Bytes(bytes)
            }
            None => Piece::End,
        };
        let ended = matches!(piece, Piece::End);
        if to.send(piece).await.is_err() || ended {
            return Ok(());
        }
    }
}

/// The thread's end of a download.
struct Pipe {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    place: Option<OwnedSemaphorePermit>,
    ended: bool,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Begin(place)) => self.place = Some(place),
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                // Why is the download's to say.
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
