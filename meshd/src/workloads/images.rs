//! Images as the API sees them: gotten from registries, directories and files; listed, named and removed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use vdc_api::{self as api, ApiError, ErrorCode, PullEvent, PullPolicy, PullProgress};
use workloads_image::{Credentials, Digest, Image, ImageError, Progress, PullOptions, RegistryErrorKind};

use super::Workloads;
use super::network::blocking;
use crate::error::with_causes;

/// Events of one pull that may wait.
const EVENTS_MAX: usize = 64;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Layout { directory: PathBuf, tag: Option<String> },
    Archive { file: PathBuf, name: Option<String> },
    Registry(String),
}

impl Source {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let absolute = |path: &str, form: &str| {
            if path.starts_with('/') {
                return Ok(PathBuf::from(path));
            }
            Err(ApiError::bad_request("image", format!("{text:?} names no absolute path of the node"))
                .hint(format!("write {form} with the whole path")))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, tag) = match rest.rsplit_once(':') {
                Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return Ok(Self::Layout { directory: absolute(directory, "oci:/DIR[:TAG]")?, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) => (file, Some(name.to_owned())),
                None => (rest, None),
            };
            return Ok(Self::Archive { file: absolute(file, "docker-archive:/FILE[:NAME]")?, name });
        }
        Ok(Self::Registry(text.to_owned()))
    }
}

/// Adds steps of layers up to one figure.
#[derive(Debug, Default)]
struct Sum {
    layers: Vec<(u64, u64)>,
    stored: BTreeSet<usize>,
}

impl Sum {
    fn add(&mut self, step: &Progress) -> PullProgress {
        let (index, count) = match step {
            Progress::Stored { index, count, .. } | Progress::Layer { index, count, .. } => (*index, *count),
        };
        self.layers.resize(self.layers.len().max(count), (0, 0));
        match step {
            Progress::Stored { .. } => drop(self.stored.insert(index)),
            Progress::Layer { bytes_done, bytes_total, .. } => {
                if let Some(layer) = self.layers.get_mut(index) {
                    *layer = (*bytes_done, *bytes_total);
                }
            }
        }
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let whole = self.layers.iter().filter(|(done, total)| *total > 0 && done >= total).count();
        PullProgress {
            layers_done: number(whole + self.stored.len()),
            layers_total: number(self.layers.len()),
            bytes_done: self.layers.iter().map(|(done, _)| done).sum(),
            bytes_total: self.layers.iter().map(|(_, total)| total).sum(),
        }
    }
}

impl Workloads {
    /// The image of a text, from here or from where the text says.
    pub(crate) async fn image(
        &self,
        text: &str,
        policy: PullPolicy,
        access: &api::RegistryAccess,
        told: impl Fn(PullProgress) + Send + Sync + 'static,
    ) -> Result<Image, ApiError> {
        let source = Source::parse(text)?;
        if let Source::Registry(name) = &source
            && policy != PullPolicy::Always
        {
            match (self.images.resolve(name), policy) {
                (Some(image), _) => return Ok(image),
                (None, PullPolicy::Never) => {
                    return Err(ApiError::new(
                        ErrorCode::ImageNotFound,
                        format!("there is no image {name} on this node"),
                    )
                    .hint("leave --pull never out, or get it with `meshctl image pull`"));
                }
                (None, _) => {}
            }
        }
        let sum = Mutex::new(Sum::default());
        let step = move |step: Progress| told(sum.lock().unwrap_or_else(PoisonError::into_inner).add(&step));
        let images = self.images.clone();
        let gotten = match source {
            Source::Registry(name) => images.pull(&name, &pull_options(access), Arc::new(step)).await,
            Source::Layout { directory, tag } => {
                blocking(move || images.import_layout(&directory, tag.as_deref(), &mut |p| step(p))).await?
            }
            Source::Archive { file, name } => {
                blocking(move || images.import_archive(&file, name.as_deref(), &mut |p| step(p))).await?
            }
        };
        gotten.map_err(|error| image_error(&error))
    }

    /// Gets an image; tells how far it is.
    pub(crate) fn image_pull(self: &Arc<Self>, request: api::ImagePull) -> super::backend::Items<PullEvent> {
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let workloads = Arc::clone(self);
        drop(self.tasks.spawn(async move {
            let progress = events.clone();
            let told = move |step| {
                // A listener that is too slow misses steps, not the end.
                let _ = progress.try_send(Ok(PullEvent::Progress(step)));
            };
            let pulled = workloads.image(&request.image, PullPolicy::Always, &request.registry, told).await;
            let named = match (pulled, request.tag) {
                (Ok(image), Some(tag)) => {
                    let image = image.manifest.to_string();
                    workloads.image_tag(api::ImageTag { image, tag }).await
                }
                (Ok(image), None) => Ok(workloads.image_view(&image)),
                (Err(error), _) => Err(error),
            };
            let _ = events.send(named.map(PullEvent::Done)).await; // nobody may be listening any more
        }));
        ReceiverStream::new(received).boxed()
    }

    fn image_view(&self, image: &Image) -> api::ImageView {
        let manifest = image.manifest.to_string();
        let in_use = self.uses_of(&manifest);
        api::ImageView {
            names: image.references.clone(),
            manifest,
            size_bytes: image.size_bytes,
            layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
            created_at: image.created.clone(),
            in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
        }
    }

    /// What is here.
    pub(crate) fn image_list(&self) -> api::ImageList {
        api::ImageList { images: self.images.list().iter().map(|image| self.image_view(image)).collect() }
    }

    /// Gives an image one more name.
    pub(crate) async fn image_tag(&self, request: api::ImageTag) -> Result<api::ImageView, ApiError> {
        let images = self.images.clone();
        let tagged = blocking(move || images.tag(&request.image, &request.tag)).await?;
        Ok(self.image_view(&tagged.map_err(|error| image_error(&error))?))
    }

    /// Takes a name away; what no name and no workload needs is removed.
    pub(crate) async fn image_remove(&self, text: String) -> Result<api::ImagesFreed, ApiError> {
        let images = self.images.clone();
        let removed = blocking(move || images.remove(&text)).await?.map_err(|error| image_error(&error))?;
        let freed = self.image_clean().await?;
        Ok(api::ImagesFreed { names: removed.references, ..freed })
    }

    /// Removes what no name and no workload needs.
    pub(crate) async fn image_clean(&self) -> Result<api::ImagesFreed, ApiError> {
        let in_use: BTreeSet<Digest> = self.manifests().iter().filter_map(|text| text.parse().ok()).collect();
        let images = self.images.clone();
        let freed = blocking(move || images.gc(&in_use)).await?.map_err(|error| image_error(&error))?;
        let layers = u32::try_from(freed.layers).unwrap_or(u32::MAX);
        Ok(api::ImagesFreed { names: vec![], layers, bytes: freed.bytes })
    }
}

fn pull_options(access: &api::RegistryAccess) -> PullOptions {
    PullOptions {
        plain_http: access.plain_http,
        ca_pem: access.ca_pem.clone().map(String::into_bytes).into_iter().collect(),
        credentials: access
            .username
            .clone()
            .map(|username| Credentials { username, password: access.password.clone().unwrap_or_default() }),
        ..PullOptions::default()
    }
}

/// What the API says when an image cannot be had.
fn image_error(error: &ImageError) -> ApiError {
    let (code, hint) = match error {
        ImageError::Reference { .. } => {
            (ErrorCode::BadRequest, "name it as in `debian:12` or `registry.example:5000/team/web@sha256:…`")
        }
        ImageError::NotFound { .. } => (ErrorCode::ImageNotFound, "`meshctl image ls` shows what is here"),
        ImageError::DiskFull { .. } => {
            (ErrorCode::Storage, "remove images with `meshctl image rm` and `meshctl image clean`, or free space")
        }
        ImageError::Import { .. } => {
            (ErrorCode::ImageInvalid, "name a directory with an OCI layout, or a file of `docker save`")
        }
        ImageError::Io { .. } | ImageError::Busy { .. } => {
            (ErrorCode::Storage, "look at the log: `journalctl -u meshd`")
        }
        ImageError::Registry(error) => {
            let code = match error.kind() {
                RegistryErrorKind::NotFound => ErrorCode::ImageNotFound,
                RegistryErrorKind::Unreachable => ErrorCode::RegistryUnreachable,
                RegistryErrorKind::Denied => ErrorCode::RegistryDenied,
                RegistryErrorKind::Invalid => ErrorCode::ImageInvalid,
            };
            (code, error.hint())
        }
        ImageError::Interrupted => (ErrorCode::Unavailable, "try again when the daemon runs"),
        ImageError::Platform { .. } => (ErrorCode::ImageInvalid, "get an image that is made for this machine, too"),
        _ => (ErrorCode::ImageInvalid, "have the image built and pushed again"),
    };
    with_causes(ApiError::new(code, error.to_string()), std::error::Error::source(error)).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_from_three_places() {
        let layout = |directory: &str, tag: Option<&str>| Source::Layout {
            directory: directory.into(),
            tag: tag.map(str::to_owned),
        };
        for (text, expected) in [
            ("oci:/a/b", layout("/a/b", None)),
            ("oci:/a/b:1", layout("/a/b", Some("1"))),
            ("oci:/a:x/b", layout("/a:x/b", None)),
            ("docker-archive:/f.tar:web:1", Source::Archive { file: "/f.tar".into(), name: Some("web:1".into()) }),
            ("debian:12", Source::Registry("debian:12".into())),
        ] {
            assert_eq!(Source::parse(text).expect(text), expected);
        }
        for text in ["oci:a", "docker-archive:./f", "oci:"] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn progress_adds_up() {
        let digest = Digest::of(b"");
        let mut sum = Sum::default();
        sum.add(&Progress::Stored { index: 0, count: 3, digest: digest.clone() });
        let layer = |index, bytes_done| Progress::Layer {
            index,
            count: 3,
            digest: digest.clone(),
            bytes_done,
            bytes_total: 10,
        };
        sum.add(&layer(1, 10));
        let at = sum.add(&layer(2, 4));
        assert_eq!((at.layers_done, at.layers_total, at.bytes_done, at.bytes_total), (2, 3, 14, 20));
    }
}
