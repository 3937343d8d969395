//! What stands behind the operations on workloads and images.

use async_trait::async_trait;
use vdc_api::{
    ApiError, AttachRequest, Capacity, CopyRequest, ExecRequest, ImageList, ImagePull, ImageTag, ImageView,
    ImagesFreed, LogEvent, LogsQuery, PullEvent, RemoveQuery, RunEvent, SignalRequest, StatsEvent, StatsQuery,
    StopRequest, WaitQuery, Waited, WorkloadList, WorkloadRemoved, WorkloadRun, WorkloadView,
};

use crate::{Call, Items, Pipe};

/// The daemon's workloads, as the API sees them; the rules of [`crate::Backend`] hold here too.
#[async_trait]
pub trait WorkloadBackend: Send + Sync + 'static {
    /// Pulls what is missing and starts a container. The stream goes on to its end if the client goes away.
    async fn workload_run(&self, call: &Call, vdc: &str, request: WorkloadRun) -> Result<Items<RunEvent>, ApiError>;
    async fn workload_list(&self, vdc: &str) -> Result<WorkloadList, ApiError>;
    async fn workload_show(&self, vdc: &str, workload: &str) -> Result<WorkloadView, ApiError>;
    async fn workload_start(&self, call: &Call, vdc: &str, workload: &str) -> Result<WorkloadView, ApiError>;
    async fn workload_stop(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: StopRequest,
    ) -> Result<WorkloadView, ApiError>;
    async fn workload_signal(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: SignalRequest,
    ) -> Result<WorkloadView, ApiError>;
    async fn workload_remove(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        query: RemoveQuery,
    ) -> Result<WorkloadRemoved, ApiError>;
    async fn workload_wait(&self, vdc: &str, workload: &str, query: WaitQuery) -> Result<Waited, ApiError>;
    async fn workload_logs(&self, vdc: &str, workload: &str, query: LogsQuery) -> Result<Items<LogEvent>, ApiError>;
    async fn workload_stats(&self, vdc: &str, workload: &str, query: StatsQuery)
    -> Result<Items<StatsEvent>, ApiError>;

    /// The streams of one more program; ends with its last frame.
    async fn workload_exec(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: ExecRequest,
    ) -> Result<Pipe, ApiError>;
    async fn workload_attach(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: AttachRequest,
    ) -> Result<Pipe, ApiError>;
    async fn workload_copy(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: CopyRequest,
    ) -> Result<Pipe, ApiError>;

    async fn capacity(&self, vdc: &str) -> Result<Capacity, ApiError>;

    async fn image_list(&self, vdc: &str) -> Result<ImageList, ApiError>;
    async fn image_pull(&self, call: &Call, vdc: &str, request: ImagePull) -> Result<Items<PullEvent>, ApiError>;
    async fn image_tag(&self, call: &Call, vdc: &str, request: ImageTag) -> Result<ImageView, ApiError>;
    async fn image_remove(&self, call: &Call, vdc: &str, image: &str) -> Result<ImagesFreed, ApiError>;
    async fn image_clean(&self, call: &Call, vdc: &str) -> Result<ImagesFreed, ApiError>;
}
