//! The services that servers have, with their limits on messages.

use std::path::Path;
use std::sync::Arc;

use tonic::service::{Routes, RoutesBuilder};

use cistern::config::PoolFiles;
use cistern::csi::{self, Controller, Identity, NodeService, Registration};
use cistern::node::Node;
use cistern::peer::HostService;
use cistern::pool::Host;
use cistern::pool::tasks::Tasks;
use cistern::proto::csi::v1::controller_server::ControllerServer;
use cistern::proto::csi::v1::identity_server::IdentityServer;
use cistern::proto::csi::v1::node_server::NodeServer;
use cistern::proto::internal::host_server::HostServer;
use cistern::proto::registration::registration_server::RegistrationServer;

/// The services of one door, added one by one.
#[derive(Default)]
pub struct Services(RoutesBuilder);

impl Services {
    /// CSI Identity.
    pub fn identity(mut self, driver_name: &str) -> Services {
        let service = IdentityServer::new(Identity { driver_name: driver_name.to_owned(), ready: None });
        self.0.add_service(service.max_decoding_message_size(csi::LARGEST_MESSAGE));
        self
    }

    /// CSI Controller of a host; `chosen` where it is one of many.
    pub fn controller(mut self, host: &Arc<Host>, tasks: &Tasks, chosen: bool) -> Services {
        let service = ControllerServer::new(Controller { host: Arc::clone(host), tasks: tasks.clone(), chosen });
        self.0.add_service(service.max_decoding_message_size(csi::LARGEST_MESSAGE));
        self
    }

    /// CSI Node, with the stores of its machine.
    pub fn node(mut self, node: Node, host: Option<&Arc<Host>>, tasks: &Tasks) -> Services {
        let service = NodeServer::new(NodeService::new(Arc::new(node), host.cloned(), tasks.clone()));
        self.0.add_service(service.max_decoding_message_size(csi::LARGEST_MESSAGE));
        self
    }

    /// How kubelet learns of the driver: its name, and where CSI Node is served.
    pub fn registration(mut self, driver_name: &str, endpoint: &Path) -> Services {
        let service = Registration { driver_name: driver_name.to_owned(), endpoint: endpoint.to_owned() };
        self.0.add_service(RegistrationServer::new(service));
        self
    }

    /// The internal service of a host.
    pub fn host(mut self, host: &Arc<Host>, tasks: &Tasks, files: PoolFiles, data: &Path) -> Services {
        let (host, data, applying) = (Arc::clone(host), data.to_owned(), Arc::default());
        let service = HostService { host, tasks: tasks.clone(), files, data, applying };
        self.0.add_service(HostServer::new(service).max_decoding_message_size(csi::LARGEST_MESSAGE));
        self
    }

    /// All of them.
    pub fn routes(self) -> Routes {
        self.0.routes()
    }
}
