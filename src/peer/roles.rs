//! Which roles may make which call on the mTLS door. What has no row here reaches no service.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Extensions, Request, Response};
use tonic::transport::server::UdsConnectInfo;
use tower::{Layer, Service};

use super::PeerInfo;
use crate::domain::{NodeName, Role};

/// Calls of one service that the same roles may make.
struct Row {
    service: &'static str,
    roles: &'static [Role],
    calls: &'static [&'static str],
}

/// Every call of every service on this door. A new one is refused until its row says who may make it.
const TABLE: [Row; 4] = [
    Row {
        service: "csi.v1.Identity",
        roles: &[Role::Controller],
        calls: &["GetPluginCapabilities", "GetPluginInfo", "Probe"],
    },
    Row {
        service: "csi.v1.Controller",
        roles: &[Role::Controller],
        calls: &[
            "ControllerExpandVolume",
            "ControllerGetCapabilities",
            "ControllerGetVolume",
            "ControllerGetVolumeHealth",
            "ControllerListVolumeHealth",
            "ControllerModifyVolume",
            "ControllerPublishVolume",
            "ControllerUnpublishVolume",
            "CreateSnapshot",
            "CreateVolume",
            "DeleteSnapshot",
            "DeleteVolume",
            "GetCapacity",
            "GetSnapshot",
            "ListSnapshots",
            "ListVolumes",
            "ValidateVolumeCapabilities",
        ],
    },
    Row {
        service: "cistern.v1.Host",
        roles: &[Role::Controller],
        calls: &["Apply", "Confirm", "Describe", "Find", "Read", "Settle", "Watch"],
    },
    // the secret of the node's own grant: the handler also compares the node's name
    Row { service: "cistern.v1.Host", roles: &[Role::Node], calls: &["Reveal"] },
];

/// The paths of the calls on this door, and the roles that may make them.
pub fn calls() -> impl Iterator<Item = (String, &'static [Role])> {
    TABLE.iter().flat_map(|row| row.calls.iter().map(|call| (format!("/{}/{call}", row.service), row.roles)))
}

/// The roles that may make the call of this path; none when no row names it.
fn roles(path: &str) -> Option<&'static [Role]> {
    let (service, call) = path.strip_prefix('/')?.split_once('/')?;
    TABLE.iter().find(|row| row.service == service && row.calls.contains(&call)).map(|row| row.roles)
}

/// Who calls; none on a unix socket, where the kernel says who it is.
pub fn caller<T>(request: &tonic::Request<T>) -> Option<&PeerInfo> {
    request.extensions().get()
}

/// On a unix socket the kernel says who calls, and only root and the server's own user are answered; who comes by any other
/// way is refused.
pub fn only_owner<T>(request: &tonic::Request<T>) -> Result<(), Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match caller {
        Some(caller) if is_owner(caller.uid(), rustix::process::geteuid().as_raw()) => Ok(()),
        _ => Err(Status::permission_denied("only root and the server's own user are answered")),
    }
}

/// Whether this user owns a server that runs as `own`: a controller's pod has a user of its own, and no root.
fn is_owner(caller: u32, own: u32) -> bool {
    caller == 0 || caller == own
}

/// The caller's name in this role, for calls that answer each by its name.
pub fn name_as<T>(request: &tonic::Request<T>, role: Role) -> Result<NodeName, Status> {
    let name = caller(request).and_then(|peer| peer.identity.name_as(role)).cloned();
    name.ok_or_else(|| Status::permission_denied(format!("the caller is no {role}")))
}

fn check(path: &str, extensions: &Extensions) -> Result<(), Status> {
    let Some(peer) = extensions.get::<PeerInfo>() else {
        return Err(Status::permission_denied(format!("{path} is for those who show a certificate")));
    };
    // an older release is told from a refusal: whoever knows more calls than we do goes on without this one
    let Some(roles) = roles(path) else {
        return Err(Status::unimplemented(format!("there is no {path} here")));
    };
    if roles.iter().any(|role| peer.identity.is(*role)) {
        return Ok(());
    }
    let wanted: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    let (wanted, identity) = (wanted.join(" or "), &peer.identity);
    tracing::warn!(path, %identity, address = %peer.address, "a call was refused: it is for the role {wanted}");
    Err(Status::permission_denied(format!("{path} is for the role {wanted}; the certificate is that of {identity}")))
}

/// Answers calls that the caller's roles do not allow, before any service sees them.
#[derive(Debug, Clone, Copy)]
pub struct RolesLayer;

impl<S> Layer<S> for RolesLayer {
    type Service = RolesService<S>;

    fn layer(&self, inner: S) -> RolesService<S> {
        RolesService { inner }
    }
}

/// What [`RolesLayer`] makes of a service.
#[derive(Debug, Clone)]
pub struct RolesService<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for RolesService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match check(request.uri().path(), request.extensions()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is generated of proto/: each path stands in its server as it is matched.
    const GENERATED: [&str; 3] = [
        include_str!(concat!(env!("OUT_DIR"), "/cistern.v1.rs")),
        include_str!(concat!(env!("OUT_DIR"), "/csi.v1.rs")),
        include_str!(concat!(env!("OUT_DIR"), "/pluginregistration.rs")),
    ];

    /// Services that no host has on this door: they have one of their own, are kubelet's, or not served at all.
    const ELSEWHERE: [&str; 6] = [
        "cistern.v1.Enrolment",
        "cistern.v1.Fleet",
        "csi.v1.GroupController",
        "csi.v1.Node",
        "csi.v1.SnapshotMetadata",
        "pluginregistration.Registration",
    ];

    /// The paths of all calls of all services.
    fn known() -> BTreeSet<String> {
        let quoted = GENERATED.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
        let paths = quoted.filter(|text| text.starts_with('/') && text.matches('/').count() == 2);
        paths.map(str::to_owned).collect()
    }

    fn is_elsewhere(path: &str) -> bool {
        ELSEWHERE.iter().any(|service| path.starts_with(&format!("/{service}/")))
    }

    #[test]
    fn every_call_has_a_row_or_its_service_is_elsewhere() {
        let known = known();
        assert!(known.contains("/cistern.v1.Host/Describe") && known.contains("/csi.v1.Controller/CreateVolume"));
        for path in &known {
            assert_eq!(roles(path).is_none(), is_elsewhere(path), "{path}: say in TABLE who may call it");
        }
        for service in ELSEWHERE {
            assert!(known.iter().any(|path| path.starts_with(&format!("/{service}/"))), "{service} is gone");
        }
    }

    #[test]
    fn every_row_is_a_call_and_says_who_may_make_it() {
        let known = known();
        let mut seen = BTreeSet::new();
        for (path, allowed) in calls() {
            assert!(known.contains(&path), "{path} is in no .proto");
            assert!(!allowed.is_empty() && roles(&path) == Some(allowed), "{path}");
            assert!(seen.insert(path.clone()), "{path} stands twice");
        }
    }

    #[test]
    fn what_is_almost_a_path_is_none() {
        for path in [
            "",
            "/",
            "/cistern.v1.Host",
            "/cistern.v1.Host/",
            "/cistern.v1.Host/describe",
            "/cistern.v1.Host/Describe/",
            "//cistern.v1.Host/Describe",
            "cistern.v1.Host/Describe",
            "/cistern.v1.Host/Describe?",
            "/cistern.v1.Host%2FDescribe",
        ] {
            assert_eq!(roles(path), None, "{path}");
        }
    }

    #[test]
    fn root_and_the_servers_own_user_are_answered() {
        for (caller, own, answered) in
            [(0, 0, true), (0, 65532, true), (65532, 65532, true), (65532, 0, false), (1000, 65532, false)]
        {
            assert_eq!(is_owner(caller, own), answered, "{caller} asks a server that runs as {own}");
        }
    }

    #[test]
    fn nobody_is_let_through_without_a_certificate() {
        let refused = check("/cistern.v1.Host/Describe", &Extensions::new()).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
