//! Space given back: images without a name that nobody uses, and layers that no image has any more.

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::store::{Freed, Images};

impl Images {
    /// Removes images that have no name and are not among those in use, and then layers that no image has.
    ///
    /// Images in progress keep what they count on. Named images are never removed.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`]; what was removed until then stays removed.
    pub fn gc(&self, in_use: &BTreeSet<Digest>) -> Result<Freed, ImageError> {
        let shared = self.shared();
        let mut freed = Freed::default();
        let mut moved = Vec::new();
        {
            let _changes = shared.changes.lock();
            let unused: Vec<Digest> = {
                let index = shared.index.lock();
                let named: BTreeSet<&Digest> = index.references.values().collect();
                let unused = index.images.keys().filter(|digest| !named.contains(digest) && !in_use.contains(digest));
                unused.cloned().collect()
            };
            for digest in unused {
                shared.remove_manifest(&digest)?;
                shared.index.lock().images.remove(&digest);
                freed.images.push(digest);
            }
            let configs: BTreeSet<String> = {
                let index = shared.index.lock();
                index.images.values().map(|stored| stored.manifest.config.digest.hex().to_owned()).collect()
            };
            shared.remove_configs_except(&configs)?;
            // Renames alone, so the index may be held: nothing may pin a layer between the question and the rename.
            let mut index = shared.index.lock();
            let used: BTreeSet<&String> =
                index.images.values().flat_map(|stored| &stored.kept).chain(index.pinned.keys()).collect();
            let unused: Vec<String> = index.layers.keys().filter(|name| !used.contains(name)).cloned().collect();
            for name in unused {
                moved.push(shared.move_layer_away(&name)?);
                if let Some(facts) = index.layers.remove(&name) {
                    freed.bytes += facts.bytes;
                }
                freed.layers += 1;
            }
        }
        // Removing many files takes its time: nobody waits for it.
        for path in moved {
            crate::store::at(&path, "removing a layer", std::fs::remove_dir_all(&path))?;
        }
        Ok(freed)
    }
}
