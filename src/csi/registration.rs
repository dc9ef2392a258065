//! How this driver makes itself known to kubelet: the service that kubelet calls on a socket below its
//! `plugins_registry`. Kubelet asks again whenever it starts, and takes the driver off the node when the socket goes.

use std::path::PathBuf;

use tonic::{Request, Response, Status};

use crate::proto::registration as plugin;
use plugin::registration_server::Registration as Service;

/// What kind of plugin a CSI driver is.
const TYPE: &str = "CSIPlugin";
/// What kubelet compares of CSI's version: the major number.
const VERSIONS: [&str; 1] = ["1.0.0"];

/// The Registration service.
pub struct Registration {
    /// The driver's name.
    pub driver_name: String,
    /// The socket of CSI Node, as kubelet sees it.
    pub endpoint: PathBuf,
}

impl Registration {
    /// The name of the socket, below kubelet's `plugins_registry`.
    ///
    /// Kubelet dials it by its bare path, and grpc-go sends that, with `%2F` for each `/`, as the call's `:authority`; a
    /// server that takes the standard at its word (RFC 3986, 3.2.2) resets such a call before anybody sees it. What stands
    /// before an "@" is user information, where "%" may be: hence the "@".
    pub fn socket_name(driver_name: &str) -> String {
        format!("{driver_name}@reg.sock")
    }
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _request: Request<plugin::InfoRequest>) -> Result<Response<plugin::PluginInfo>, Status> {
        Ok(Response::new(plugin::PluginInfo {
            r#type: TYPE.to_owned(),
            name: self.driver_name.clone(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<plugin::RegistrationStatus>,
    ) -> Result<Response<plugin::RegistrationStatusResponse>, Status> {
        // kubelet tries again by itself for as long as the socket is there
        match request.into_inner() {
            plugin::RegistrationStatus { plugin_registered: true, .. } => tracing::info!("registered with kubelet"),
            plugin::RegistrationStatus { error, .. } => tracing::error!(error, "kubelet did not register the driver"),
        }
        Ok(Response::new(plugin::RegistrationStatusResponse {}))
    }
}
