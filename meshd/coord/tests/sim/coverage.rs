//! What happened in simulations, and how often: one in which something never happens says nothing about it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Counts by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(Arc<Mutex<BTreeMap<String, u64>>>);

impl Coverage {
    pub(crate) fn count(&self, what: &str) {
        self.count_many(what, 1);
    }

    pub(crate) fn count_many(&self, what: &str, times: u64) {
        *self.0.lock().expect("unpoisoned").entry(what.to_owned()).or_default() += times;
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().expect("unpoisoned").clone()
    }
}
