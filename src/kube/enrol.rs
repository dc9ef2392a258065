//! The controller's half of enrolment: who a token is, the cluster says (TokenReview); what machine it is, the node that the
//! token is bound to. Nothing that a caller says of itself is believed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::authority::ClusterAuthority;
use crate::domain::error::chain;
use crate::domain::{Malformed, NodeName};
use crate::peer::certs::SignerError;
use crate::peer::enrol::LARGEST_MESSAGE;
use crate::peer::{GuestInfo, Tls, guest_server};
use crate::proto::internal::enrolment_server::{Enrolment, EnrolmentServer};
use crate::proto::internal::{EnrolRequest, EnrolResponse};

/// What a token must be for.
const AUDIENCE: &str = "cistern.dev";
/// The service account of nodes' pods.
const ACCOUNT: &str = "cistern-node";
/// Where the cluster tells which node a token is bound to.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// How many tokens are shown to the cluster at a time; whoever comes later waits for a turn.
const TURNS: usize = 16;
/// How long a caller waits for its turn and for the cluster.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a refusal is held back: it cost the cluster a question, and whoever asks again at once may wait.
const REFUSAL: Duration = Duration::from_secs(1);
/// Of how many addresses it is known why they were refused last.
const REMEMBERED: usize = 1024;

/// Why nobody is enrolled.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the token is not good: {0}")]
    Token(String),
    #[error("the token is not for the audience {AUDIENCE}")]
    Audience,
    #[error("the token is that of {0}, and not of the service account {ACCOUNT}")]
    Account(String),
    #[error("the token is bound to no node")]
    NoNode,
    #[error("the node cannot be a machine of cistern")]
    Name(#[source] Malformed),
    #[error("the signing request is no good")]
    Request(#[source] SignerError),
    #[error("no certificate can be made")]
    Sign(#[source] SignerError),
    #[error("the cluster cannot be asked who the token is")]
    Cluster(#[source] Box<kube::Error>),
    #[error("the cluster does not answer in time who the token is")]
    Late,
}

impl Refused {
    fn status(&self) -> Status {
        let text = chain(self);
        match self {
            Refused::Token(_) | Refused::Audience => Status::unauthenticated(text),
            Refused::Account(_) | Refused::NoNode | Refused::Name(_) => Status::permission_denied(text),
            Refused::Request(_) => Status::invalid_argument(text),
            Refused::Sign(_) | Refused::Cluster(_) | Refused::Late => Status::unavailable(text),
        }
    }
}

/// Enrols the cluster's nodes.
struct EnrolmentService {
    reviews: Api<TokenReview>,
    account: String,
    authority: Arc<ClusterAuthority>,
    turns: Semaphore,
    /// Why each address was refused last: it is logged once.
    refused: Mutex<HashMap<IpAddr, String>>,
}

/// Serves enrolment, and nothing else, to those who have no certificate yet; until the stop.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    client: Client,
    authority: Arc<ClusterAuthority>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let account = account_in(authority.namespace());
    let (turns, refused) = (Semaphore::new(TURNS), Mutex::default());
    let service = EnrolmentService { reviews: Api::all(client), account, authority, turns, refused };
    let service = EnrolmentServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
    let router = guest_server().add_service(service);
    router.serve_with_incoming_shutdown(tls.incoming_guests(listener), stop).await
}

impl EnrolmentService {
    async fn node(&self, token: &str) -> Result<NodeName, Refused> {
        let reviewed = tokio::time::timeout(ANSWER, async {
            // the semaphore is never closed
            let _turn = self.turns.acquire().await.map_err(|_| Refused::Late)?;
            review(&self.reviews, token).await
        });
        node_of(&reviewed.await.map_err(|_| Refused::Late)??, &self.account)
    }

    async fn answer(
        &self,
        EnrolRequest { request, token }: EnrolRequest,
    ) -> Result<(NodeName, EnrolResponse), Refused> {
        let node = self.node(&token).await?;
        let signed = self.authority.sign(&request, &node).map_err(|error| match error {
            SignerError::RequestPem(_) | SignerError::Request(_) => Refused::Request(error),
            error => Refused::Sign(error),
        })?;
        Ok((node, EnrolResponse { certificates: signed.certificate, authorities: signed.authorities }))
    }

    /// Whether this is another reason than the last one for this address.
    fn is_news(&self, address: IpAddr, why: &str) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.get(&address).is_some_and(|last| last == why) {
            return false;
        }
        if refused.len() >= REMEMBERED {
            refused.clear();
        }
        refused.insert(address, why.to_owned());
        true
    }

    fn forget(&self, address: IpAddr) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let guest = request.extensions().get::<GuestInfo>().copied();
        let address = guest.ok_or_else(|| Status::permission_denied("this is for another door"))?.address;
        match self.answer(request.into_inner()).await {
            Ok((node, answer)) => {
                self.forget(address.ip());
                tracing::info!(%node, %address, "a machine was enrolled");
                Ok(Response::new(answer))
            }
            Err(refused) => {
                let status = refused.status();
                if self.is_news(address.ip(), status.message()) {
                    tracing::warn!(%address, reason = status.message(), "a machine was not enrolled");
                }
                tokio::time::sleep(REFUSAL).await;
                Err(status)
            }
        }
    }
}

fn account_in(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
}

/// Asks the cluster who a token is.
async fn review(reviews: &Api<TokenReview>, token: &str) -> Result<TokenReviewStatus, Refused> {
    let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let reviewed = reviews.create(&PostParams::default(), &review).await;
    let reviewed = reviewed.map_err(|error| Refused::Cluster(Box::new(error)))?;
    let mut status = reviewed.status.unwrap_or_default();
    // whatever the cluster says of a token, the token itself is in no log and in no answer
    status.error = status.error.map(|error| if token.is_empty() { error } else { error.replace(token, "…") });
    Ok(status)
}

/// The node whose pod has this token.
fn node_of(status: &TokenReviewStatus, account: &str) -> Result<NodeName, Refused> {
    if status.authenticated != Some(true) {
        return Err(Refused::Token(status.error.clone().unwrap_or_else(|| "it is nobody's".to_owned())));
    }
    // a cluster that knows no audiences answers none, and its tokens are for everything
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Refused::Audience);
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    if name != account {
        return Err(Refused::Account(name.to_owned()));
    }
    let nodes = user.and_then(|user| user.extra.as_ref()?.get(NODE_NAME)).map(Vec::as_slice);
    match nodes {
        Some([node]) => node.parse().map_err(Refused::Name),
        _ => Err(Refused::NoNode),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const GOOD: &str = "system:serviceaccount:cistern:cistern-node";

    fn status(authenticated: Option<bool>, audiences: &[&str], user: &str, nodes: &[&str]) -> TokenReviewStatus {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let extra = BTreeMap::from([(NODE_NAME.to_owned(), texts(nodes))]);
        let user = UserInfo { username: Some(user.to_owned()), extra: Some(extra), ..UserInfo::default() };
        TokenReviewStatus { authenticated, audiences: Some(texts(audiences)), user: Some(user), error: None }
    }

    #[test]
    fn only_the_nodes_own_account_is_enrolled_and_as_the_node_it_is_bound_to() {
        let yes = Some(true);
        let ours = &[AUDIENCE][..];
        let long = "x".repeat(64);
        for (status, expected) in [
            (status(yes, ours, GOOD, &["worker-1"]), Ok("worker-1")),
            (status(yes, &["other", AUDIENCE], GOOD, &["a.example"]), Ok("a.example")),
            (status(Some(false), ours, GOOD, &["a"]), Err("the token is not good: it is nobody's")),
            (status(None, ours, GOOD, &["a"]), Err("the token is not good: it is nobody's")),
            (status(yes, &[], GOOD, &["a"]), Err("the token is not for the audience cistern.dev")),
            (status(yes, &["https://kubernetes"], GOOD, &["a"]), Err("the token is not for the audience cistern.dev")),
            (
                status(yes, ours, "system:serviceaccount:other:cistern-node", &["a"]),
                Err("the token is that of system:ser"),
            ),
            (
                status(yes, ours, "system:serviceaccount:cistern:default", &["a"]),
                Err("the token is that of system:ser"),
            ),
            (status(yes, ours, "", &["a"]), Err("the token is that of ")),
            (status(yes, ours, GOOD, &[]), Err("the token is bound to no node")),
            (status(yes, ours, GOOD, &["a", "b"]), Err("the token is bound to no node")),
            (status(yes, ours, GOOD, &["A"]), Err("the node cannot be a machine of cistern: \"A\" is not")),
            (status(yes, ours, GOOD, &[""]), Err("the node cannot be a machine of cistern: \"\" is not")),
            (status(yes, ours, GOOD, &["a.controller.."]), Err("the node cannot be a machine of cistern")),
            (status(yes, ours, GOOD, &[&long]), Err("the node cannot be a machine of cistern")),
            (TokenReviewStatus::default(), Err("the token is not good")),
        ] {
            match (node_of(&status, &account_in("cistern")), expected) {
                (Ok(node), Ok(expected)) => assert_eq!(node.to_string(), expected),
                (Err(refused), Err(expected)) => assert!(chain(&refused).starts_with(expected), "{refused:?}"),
                (got, expected) => panic!("{got:?}, and not {expected:?}: {status:?}"),
            }
        }
        let bare = TokenReviewStatus { user: None, ..status(yes, ours, GOOD, &["a"]) };
        assert!(matches!(node_of(&bare, GOOD), Err(Refused::Account(_))));
        let extra = UserInfo { username: Some(GOOD.to_owned()), ..UserInfo::default() };
        let unbound = TokenReviewStatus { user: Some(extra), ..status(yes, ours, GOOD, &[]) };
        assert!(matches!(node_of(&unbound, GOOD), Err(Refused::NoNode)));
    }
}
