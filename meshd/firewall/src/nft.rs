//! Loading a compiled table and reading its counters, through `nft -j` inside the VDC's namespace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use nftables::helper::{self, NftablesError};
use serde_json::Value;

use crate::{Counter, TABLE, Table};

/// Why the kernel's table could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot run nft inside {namespace}; install the packages nftables and util-linux")]
    NotRunnable {
        namespace: PathBuf,
        #[source]
        source: Box<NftablesError>,
    },
    #[error("nft refused the policy table of {namespace}")]
    Refused {
        namespace: PathBuf,
        #[source]
        source: Box<NftablesError>,
    },
    #[error("nft printed a listing that is not JSON")]
    Listing {
        #[source]
        source: serde_json::Error,
    },
}

/// The table of one VDC namespace.
#[derive(Clone, Debug)]
pub struct Firewall {
    namespace: PathBuf,
}

impl Firewall {
    /// `namespace` is the pinned network namespace, for example `/run/netns/meshd-acme`.
    #[must_use]
    pub fn new(namespace: &Path) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// Replaces the whole table in one transaction: packets see the old one or the new one.
    ///
    /// # Errors
    /// [`FirewallError`]; the old table then still stands.
    pub fn load(&self, table: &Table) -> Result<(), FirewallError> {
        // The crate's typed schema has no verdict maps (libnftables-json(5) does), so the document goes as it is.
        let net = self.net_argument();
        helper::apply_ruleset_raw(&table.commands.to_string(), Some("nsenter"), [net.as_str(), "nft"])
            .map(|_| ())
            .map_err(|e| self.error(e))
    }

    /// Packets counted so far, by counter. Counters restart at zero with each [`Firewall::load`].
    ///
    /// # Errors
    /// [`FirewallError`] if there is no table or nft cannot run.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, FirewallError> {
        let output = Command::new("nsenter")
            .arg(self.net_argument())
            .args(["nft", "-j", "list", "counters", "table", "inet", TABLE])
            .output()
            .map_err(|inner| self.error(NftablesError::NftExecution { program: "nsenter".into(), inner }))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if !output.status.success() {
            let (stdout, stderr) = (text(output.stdout), text(output.stderr));
            let hint = "listing counters".to_owned();
            return Err(self.error(NftablesError::NftFailed { program: "nsenter".into(), hint, stdout, stderr }));
        }
        // Read by hand: the crate's counter type overflows at 4 GiB.
        let listing: Value =
            serde_json::from_slice(&output.stdout).map_err(|source| FirewallError::Listing { source })?;
        let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(objects
            .iter()
            .filter_map(|object| {
                let counter = &object["counter"];
                Some((Counter::parse(counter["name"].as_str()?)?, counter["packets"].as_u64()?))
            })
            .collect())
    }

    fn net_argument(&self) -> String {
        format!("--net={}", self.namespace.display())
    }

    fn error(&self, error: NftablesError) -> FirewallError {
        let (namespace, refused) = (self.namespace.clone(), matches!(error, NftablesError::NftFailed { .. }));
        let source = Box::new(error);
        if refused {
            FirewallError::Refused { namespace, source }
        } else {
            FirewallError::NotRunnable { namespace, source }
        }
    }
}
