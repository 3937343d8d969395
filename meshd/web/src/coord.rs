//! What stands behind the operations on coordination groups.

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::stream::{self, StreamExt};
use vdc_api::{
    ApiError, BackupHeader, BackupHeaderError, CoordBackup, CoordRecover, CoordStatus, ErrorCode, RecoverView,
    RestoreQuery, RestoreView,
};

use crate::{Call, Pieces};

/// The daemon's coordination groups, as the API sees them; the rules of [`crate::Backend`] hold here too.
///
/// That the caller may change something on this node was judged before; whether this node may do it in the VDC is the
/// backend's to judge, as it is for `vdc_recover`: recovery and restore are for admins, those of a site for its registrar too,
/// and [`ErrorCode::Refused`] tells the others. A home of which there is no group is [`ErrorCode::UnknownGroup`], a group that
/// cannot do it for want of voters [`ErrorCode::NoQuorum`].
#[async_trait]
pub trait CoordBackend: Send + Sync + 'static {
    /// All groups that this node knows of, those that it has no part in too.
    async fn coord_status(&self, vdc: &str) -> Result<CoordStatus, ApiError>;

    /// Founds a group anew from what one node holds; without `confirm` only says what that would cost, and changes nothing. A
    /// group of which a quorum answers is not recovered: [`ErrorCode::Conflict`].
    async fn coord_recover(&self, call: &Call, vdc: &str, request: CoordRecover) -> Result<RecoverView, ApiError>;

    /// All that a group holds at one revision. What can be refused is refused before the first piece: from then on a failure
    /// is only a connection that breaks off.
    async fn coord_backup(&self, call: &Call, vdc: &str, request: CoordBackup) -> Result<Backup, ApiError>;

    /// Replaces all that a group holds, or changes nothing: also where a piece is an error, which means that the client is
    /// gone. It is for the backend to check that the backup is whole ([`ErrorCode::BackupInvalid`]), of this VDC and of this
    /// home ([`ErrorCode::BackupForeign`]). Without `force` a group with changes that the backup does not have is left as it
    /// is, and the view says why. The group's revision never goes back.
    async fn coord_restore(
        &self,
        call: &Call,
        vdc: &str,
        query: RestoreQuery,
        backup: Backup,
    ) -> Result<RestoreView, ApiError>;
}

/// A backup on its way, out or in.
pub struct Backup {
    pub header: BackupHeader,
    /// Everything behind the first line, cut anywhere.
    pub rows: Pieces,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Backup {
    /// The backup as it stands in a file.
    pub(crate) fn into_pieces(self) -> Result<Pieces, ApiError> {
        let line = self.header.to_line().map_err(|error| {
            ApiError::new(ErrorCode::Internal, "the first line of the backup cannot be written").caused_by(&error)
        })?;
        Ok(stream::once(async { Ok(Bytes::from(line)) }).chain(self.rows).boxed())
    }

    /// Takes the first line off.
    pub(crate) async fn read(mut pieces: Pieces) -> Result<Self, ApiError> {
        let mut begin = Vec::new();
        loop {
            if let Some((header, length)) = BackupHeader::read(&begin).map_err(|error| invalid(&error))? {
                let mut rest = Bytes::from(begin);
                rest.advance(length);
                let rest = stream::iter((!rest.is_empty()).then_some(Ok(rest)));
                return Ok(Self { header, rows: rest.chain(pieces).boxed() });
            }
            let piece = pieces.next().await.unwrap_or_else(|| {
                let error = ApiError::new(ErrorCode::BackupInvalid, "this is no backup of a coordination group");
                Err(error.cause("it ends within its first line"))
            })?;
            begin.extend_from_slice(&piece);
        }
    }
}

fn invalid(error: &BackupHeaderError) -> ApiError {
    ApiError::new(ErrorCode::BackupInvalid, "this is no backup of a coordination group")
        .caused_by(error)
        .hint("restore what `meshctl coord backup` wrote")
}
