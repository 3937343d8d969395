//! The API's operations on coordination groups.

use async_trait::async_trait;
use meshd_web::{Backup, Call, CoordBackend};
use vdc_api::{
    ApiError, CoordBackup, CoordRecover, CoordStatus, ErrorCode, RecoverView, RestoreQuery, RestoreView,
};

use super::backend::Operations;
use crate::coord::Coord;

impl Operations {
    async fn groups(&self, vdc: &str) -> Result<Coord, ApiError> {
        let handle = self.find(vdc).await?;
        handle.coord().cloned().ok_or_else(|| {
            ApiError::new(ErrorCode::Storage, "coordination groups are not looked after on this node")
                .hint("the log says why: `journalctl -u meshd`")
        })
    }
}

#[async_trait]
impl CoordBackend for Operations {
    async fn coord_status(&self, vdc: &str) -> Result<CoordStatus, ApiError> {
        Ok(self.groups(vdc).await?.status().await)
    }

    async fn coord_recover(&self, _: &Call, vdc: &str, request: CoordRecover) -> Result<RecoverView, ApiError> {
        self.groups(vdc).await?.recover(request).await
    }

    async fn coord_backup(&self, _: &Call, vdc: &str, request: CoordBackup) -> Result<Backup, ApiError> {
        self.groups(vdc).await?.backup(request).await
    }

    async fn coord_restore(
        &self,
        _: &Call,
        vdc: &str,
        query: RestoreQuery,
        backup: Backup,
    ) -> Result<RestoreView, ApiError> {
        self.groups(vdc).await?.restore(query, backup).await
    }
}
