//! What is known of a workload beyond the life of this process: one JSON file each.
//!
//! A workload that is to be forgotten when it ends is kept where the host's restart forgets it, and nothing is synced.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use meshd_state::{StateError, write_durably};
use serde::{Deserialize, Serialize};
use vdc::VdcId;
use vdc_api as api;
use workloads_container::WorkloadId;

use super::addresses::Held;

/// The version of the file's form; others are not touched.
const VERSION: u32 = 1;
/// Bytes of one file: the largest specification is a request of 64 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A workload as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    version: u32,
    /// 32 hexadecimal digits.
    id: String,
    /// The VDC's id.
    vdc: String,
    /// Digest of the manifest that it runs, whatever its image's name means by now.
    pub(crate) manifest: String,
    pub(crate) created_at: String,
    /// Whether it is to run; a stop by a user lasts.
    pub(crate) wanted: bool,
    pub(crate) uid_base: u32,
    /// In the node's prefix.
    pub(crate) offset: u32,
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Link-local, for asking names, where there is no IPv4 in the VDC.
    pub(crate) link_local: Option<Ipv4Addr>,
    pub(crate) restarts: u32,
    pub(crate) exit: Option<api::ExitView>,
    /// What the host could not do for it when it was started.
    pub(crate) degraded: Vec<api::DegradedView>,
    pub(crate) spec: api::WorkloadRun,
}

/// What is decided when a workload is made.
pub(crate) struct Made {
    pub(crate) id: WorkloadId,
    pub(crate) vdc: VdcId,
    pub(crate) manifest: String,
    pub(crate) created_at: String,
    pub(crate) uid_base: u32,
    pub(crate) offset: u32,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) link_local: Option<Ipv4Addr>,
}

impl Kept {
    /// A workload that is to run. Secrets of registries are left out.
    pub(crate) fn new(made: Made, spec: &api::WorkloadRun) -> Self {
        Self {
            version: VERSION,
            id: made.id.to_string(),
            vdc: made.vdc.to_string(),
            manifest: made.manifest,
            created_at: made.created_at,
            wanted: true,
            uid_base: made.uid_base,
            offset: made.offset,
            ipv4: made.ipv4,
            link_local: made.link_local,
            restarts: 0,
            exit: None,
            degraded: vec![],
            spec: api::WorkloadRun { registry: api::RegistryAccess::default(), ..spec.clone() },
        }
    }

    /// The workload's addresses.
    pub(crate) fn held(&self) -> Held {
        Held { offset: self.offset, ipv4: self.ipv4, link_local: self.link_local }
    }

    pub(crate) fn vdc(&self) -> &str {
        &self.vdc
    }
}

/// The directories of such files.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    durable: PathBuf,
    volatile: PathBuf,
}

impl Shelf {
    /// Makes the directories.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn open(durable: PathBuf, volatile: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&durable)?;
        fs::create_dir_all(&volatile)?;
        Ok(Self { durable, volatile })
    }

    fn path(&self, id: WorkloadId, volatile: bool) -> PathBuf {
        let directory = if volatile { &self.volatile } else { &self.durable };
        directory.join(format!("{id}.json"))
    }

    /// Writes it down; durably unless it is to be forgotten anyway.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn save(&self, id: WorkloadId, kept: &Kept) -> Result<(), StateError> {
        let path = self.path(id, kept.spec.remove);
        let failed = |source: io::Error| StateError::Io { action: "write", path: path.clone(), source };
        let bytes = serde_json::to_vec_pretty(kept).map_err(|error| failed(error.into()))?;
        if !kept.spec.remove {
            return write_durably(&path, &bytes);
        }
        let fresh = path.with_extension("tmp");
        fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)).map_err(failed)
    }

    /// Forgets it. Not knowing it is fine.
    pub(crate) fn forget(&self, id: WorkloadId) -> io::Result<()> {
        for volatile in [true, false] {
            match fs::remove_file(self.path(id, volatile)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// All of them, and what is wrong with those that cannot be read.
    pub(crate) fn load(&self) -> (Vec<(WorkloadId, Kept)>, Vec<String>) {
        let (mut kept, mut wrong) = (vec![], vec![]);
        for directory in [&self.durable, &self.volatile] {
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) => {
                    wrong.push(format!("{}: {error}", directory.display()));
                    continue;
                }
            };
            for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "json") {
                    match read(&path) {
                        Ok(found) => kept.push(found),
                        Err(why) => wrong.push(format!("{}: {why}", path.display())),
                    }
                }
            }
        }
        (kept, wrong)
    }
}

fn read(path: &Path) -> Result<(WorkloadId, Kept), String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("it has {size} bytes, which no workload needs"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if kept.version != VERSION {
        return Err(format!("it is of version {}, and this daemon knows version {VERSION}", kept.version));
    }
    let id: WorkloadId = kept.id.parse().map_err(|()| format!("{:?} is no workload's id", kept.id))?;
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(&kept.id) {
        return Err(format!("it holds workload {}", kept.id));
    }
    Ok((id, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: WorkloadId, remove: bool) -> Kept {
        let made = Made {
            id,
            vdc: VdcId([7; 32]),
            manifest: "sha256:00".into(),
            created_at: "2026-03-01T12:00:00Z".into(),
            uid_base: 1 << 30,
            offset: 0x1_0000,
            ipv4: Some(Ipv4Addr::new(10, 64, 0, 2)),
            link_local: None,
        };
        let registry = api::RegistryAccess { password: Some("secret".into()), ..api::RegistryAccess::default() };
        Kept::new(made, &api::WorkloadRun { image: "a".into(), remove, registry, ..api::WorkloadRun::default() })
    }

    #[test]
    fn what_was_saved_is_loaded_without_secrets_and_can_be_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let (durable, volatile) = (directory.path().join("a"), directory.path().join("b"));
        let shelf = Shelf::open(durable.clone(), volatile.clone()).expect("opens");
        for (byte, remove, home) in [(1, false, &durable), (2, true, &volatile)] {
            let id = WorkloadId([byte; 16]);
            shelf.save(id, &kept(id, remove)).expect("saves");
            let text = fs::read_to_string(home.join(format!("{id}.json"))).expect("it is where it belongs");
            assert!(!text.contains("secret"));
        }
        let (mut found, wrong) = shelf.load();
        found.sort_by_key(|(id, _)| *id);
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(found, [1, 2].map(|b| (WorkloadId([b; 16]), kept(WorkloadId([b; 16]), b == 2))));
        shelf.forget(WorkloadId([1; 16])).expect("forgets");
        shelf.forget(WorkloadId([1; 16])).expect("forgets again");
        assert_eq!(shelf.load().0.len(), 1);
    }

    #[test]
    fn files_that_are_no_workloads_are_told_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::open(directory.path().join("a"), directory.path().join("b")).expect("opens");
        let id = WorkloadId([3; 16]);
        let good = serde_json::to_string(&kept(id, false)).expect("plain");
        for (name, text) in [
            (format!("{id}.json"), good.replace("\"version\":1", "\"version\":9")),
            (format!("{}.json", WorkloadId([4; 16])), good),
            ("torn.json".to_owned(), "{".to_owned()),
        ] {
            fs::write(directory.path().join("a").join(name), text).expect("writes");
        }
        let (found, wrong) = shelf.load();
        assert!(found.is_empty());
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong.iter().any(|why| why.contains("version 9")), "{wrong:?}");
    }
}
