//! User namespaces by their first id, kept open: a map is made once and serves every mount of a workload.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::sys;

/// Ids in the range of one workload.
pub const RANGE_IDS: u32 = 65_536;
/// Namespaces kept open. A further one costs a process of a fraction of a millisecond, so few are enough.
const KEPT_MAX: usize = 32;

/// The user namespaces that idmapped mounts name.
#[derive(Debug, Default)]
pub(crate) struct IdMaps {
    kept: Mutex<VecDeque<(u32, Arc<OwnedFd>)>>,
}

impl IdMaps {
    /// The namespace that maps ids 0 to 65,535 to `base` and up.
    ///
    /// # Errors
    /// As [`sys::user_namespace`].
    pub(crate) fn namespace(&self, base: u32) -> io::Result<Arc<OwnedFd>> {
        if let Some((_, found)) = self.kept.lock().iter().find(|(kept, _)| *kept == base) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(sys::user_namespace(base, RANGE_IDS)?);
        let mut kept = self.kept.lock();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((base, Arc::clone(&made)));
        Ok(made)
    }
}

/// Whether the host's rules let user namespaces be made at all: both limits exist and are not 0.
pub(crate) fn user_namespaces_allowed() -> bool {
    let limit = |path: &str| fs::read_to_string(path).map(|text| text.trim() != "0");
    limit("/proc/sys/user/max_user_namespaces").unwrap_or(false)
}

/// The host id of the container's id `inside`, saturating at the end of the range: an id beyond it is nobody's.
pub(crate) fn host_id(base: u32, inside: u32) -> u32 {
    base.saturating_add(inside.min(RANGE_IDS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_the_range_stay_inside_it() {
        assert_eq!(host_id(1 << 30, 0), 1 << 30);
        assert_eq!(host_id(1 << 30, 1_000), (1 << 30) + 1_000);
        assert_eq!(host_id(1 << 30, u32::MAX), (1 << 30) + 65_535);
    }

    #[test]
    fn a_namespace_is_made_once_per_range() {
        let maps = IdMaps::default();
        let first = maps.namespace(1 << 30).unwrap();
        assert!(Arc::ptr_eq(&first, &maps.namespace(1 << 30).unwrap()));
        assert!(!Arc::ptr_eq(&first, &maps.namespace((1 << 30) + RANGE_IDS).unwrap()));
        for n in 0..40 {
            maps.namespace((1 << 30) + n * RANGE_IDS).unwrap();
        }
        assert_eq!(maps.kept.lock().len(), KEPT_MAX);
    }
}
