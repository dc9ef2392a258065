//! CSI Identity. Answers are static: sidecars ask once, at start.

use tonic::{Request, Response, Status};

use crate::proto::csi::v1 as csi;
use csi::plugin_capability::service::Type as Service;
use csi::plugin_capability::volume_expansion::Type as Expansion;

/// The Identity service.
pub struct Identity {
    /// `csi.cistern.dev`, or what `--driver-name` says.
    pub driver_name: String,
    /// Whether calls can be answered now; `None` where nobody is answered before they can.
    pub ready: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

#[tonic::async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _request: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        use csi::plugin_capability::{self as capability, Type};
        let service = |service: Service| Type::Service(capability::Service { r#type: service.into() });
        let expansion =
            |expansion: Expansion| Type::VolumeExpansion(capability::VolumeExpansion { r#type: expansion.into() });
        let types = [
            service(Service::ControllerService),
            service(Service::VolumeAccessibilityConstraints),
            // online includes offline
            expansion(Expansion::Online),
        ];
        let capabilities = types.into_iter().map(|r#type| csi::PluginCapability { r#type: Some(r#type) }).collect();
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _request: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        // a pool that is down is its own volumes' trouble alone
        let ready = self.ready.as_ref().is_none_or(|ready| ready());
        Ok(Response::new(csi::ProbeResponse { ready: Some(ready) }))
    }
}
