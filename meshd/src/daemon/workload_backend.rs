//! The API's operations on workloads and images.

use async_trait::async_trait;
use meshd_web::{Call, Items, Pipe, WorkloadBackend};
use vdc::VdcId;
use vdc_api::{self as api, ApiError};

use super::backend::Operations;
use crate::workloads::Handle;

impl Operations {
    /// The VDC that a request means.
    async fn vdc_of(&self, text: &str) -> Result<VdcId, ApiError> {
        let handle = self.find(text).await?;
        let vdcs = self.vdcs.read().await;
        vdcs.get(handle.alias()).map(|served| served.vdc).ok_or_else(crate::error::unavailable)
    }

    async fn workload(&self, vdc: &str, text: &str) -> Result<Handle, ApiError> {
        self.workloads.find(self.vdc_of(vdc).await?, text)
    }
}

#[async_trait]
impl WorkloadBackend for Operations {
    async fn workload_run(
        &self,
        call: &Call,
        vdc: &str,
        request: api::WorkloadRun,
    ) -> Result<Items<api::RunEvent>, ApiError> {
        if call.node.is_some() {
            crate::workloads::check_remote(&request, &self.shared.config.remote.volumes)?;
        }
        self.workloads.run(self.vdc_of(vdc).await?, request)
    }

    async fn workload_list(&self, vdc: &str) -> Result<api::WorkloadList, ApiError> {
        let handles = self.workloads.of_vdc(self.vdc_of(vdc).await?);
        let workloads: Result<_, _> = handles.iter().map(|handle| self.workloads.view(handle)).collect();
        Ok(api::WorkloadList { workloads: workloads? })
    }

    async fn workload_show(&self, vdc: &str, workload: &str) -> Result<api::WorkloadView, ApiError> {
        self.workloads.view(&self.workload(vdc, workload).await?)
    }

    async fn workload_start(&self, _: &Call, vdc: &str, workload: &str) -> Result<api::WorkloadView, ApiError> {
        self.workloads.start(&self.workload(vdc, workload).await?).await
    }

    async fn workload_stop(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        request: api::StopRequest,
    ) -> Result<api::WorkloadView, ApiError> {
        self.workloads.stop(&self.workload(vdc, workload).await?, &request).await
    }

    async fn workload_signal(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        request: api::SignalRequest,
    ) -> Result<api::WorkloadView, ApiError> {
        self.workloads.signal(&self.workload(vdc, workload).await?, &request).await
    }

    async fn workload_remove(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        query: api::RemoveQuery,
    ) -> Result<api::WorkloadRemoved, ApiError> {
        self.workloads.remove(&self.workload(vdc, workload).await?, query.force).await
    }

    async fn workload_wait(&self, vdc: &str, workload: &str, query: api::WaitQuery) -> Result<api::Waited, ApiError> {
        Ok(self.workloads.wait(&self.workload(vdc, workload).await?, &query).await)
    }

    async fn workload_logs(
        &self,
        vdc: &str,
        workload: &str,
        query: api::LogsQuery,
    ) -> Result<Items<api::LogEvent>, ApiError> {
        self.workloads.logs(&self.workload(vdc, workload).await?, query).await
    }

    async fn workload_stats(
        &self,
        vdc: &str,
        workload: &str,
        query: api::StatsQuery,
    ) -> Result<Items<api::StatsEvent>, ApiError> {
        self.workloads.stats(&self.workload(vdc, workload).await?, query.follow).await
    }

    async fn workload_exec(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        request: api::ExecRequest,
    ) -> Result<Pipe, ApiError> {
        Ok(Box::new(self.workloads.exec(&self.workload(vdc, workload).await?, &request).await?))
    }

    async fn workload_attach(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        _: api::AttachRequest,
    ) -> Result<Pipe, ApiError> {
        Ok(Box::new(self.workloads.attach(&self.workload(vdc, workload).await?).await?))
    }

    async fn workload_copy(
        &self,
        _: &Call,
        vdc: &str,
        workload: &str,
        request: api::CopyRequest,
    ) -> Result<Pipe, ApiError> {
        Ok(Box::new(self.workloads.copy(&self.workload(vdc, workload).await?, &request).await?))
    }

    async fn capacity(&self, vdc: &str) -> Result<api::Capacity, ApiError> {
        let vdc = self.vdc_of(vdc).await?;
        let running = self.workloads.of_vdc(vdc).len();
        let capacity = super::remote::capacity(u32::try_from(running).unwrap_or(u32::MAX));
        let facts = self.workloads.networks.facts(vdc)?;
        Ok(api::Capacity { node: format!("{}.{}", facts.node, facts.site), ..capacity })
    }

    async fn image_list(&self, vdc: &str) -> Result<api::ImageList, ApiError> {
        self.vdc_of(vdc).await?;
        Ok(self.workloads.image_list())
    }

    async fn image_pull(
        &self,
        _: &Call,
        vdc: &str,
        request: api::ImagePull,
    ) -> Result<Items<api::PullEvent>, ApiError> {
        self.vdc_of(vdc).await?;
        Ok(self.workloads.image_pull(request))
    }

    async fn image_tag(&self, _: &Call, vdc: &str, request: api::ImageTag) -> Result<api::ImageView, ApiError> {
        self.vdc_of(vdc).await?;
        self.workloads.image_tag(request).await
    }

    async fn image_remove(&self, _: &Call, vdc: &str, image: &str) -> Result<api::ImagesFreed, ApiError> {
        self.vdc_of(vdc).await?;
        self.workloads.image_remove(image.to_owned()).await
    }

    async fn image_clean(&self, _: &Call, vdc: &str) -> Result<api::ImagesFreed, ApiError> {
        self.vdc_of(vdc).await?;
        self.workloads.image_clean().await
    }
}
