//! A little of Kubernetes' API, in memory: objects that are made, read, changed and removed, and tokens that are known.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tonic::codegen::http::{Method, Request, Response};

/// The namespace that clients are in.
pub const NAMESPACE: &str = "cistern";

/// A cluster's API. Its clones are the same.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// What TokenReview answers, by token.
    tokens: BTreeMap<String, Value>,
    /// The tokens that were shown.
    shown: Vec<String>,
    is_away: bool,
    /// Where those who found nothing wait for each other.
    meeting: Option<Arc<Barrier>>,
}

impl Api {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let answer = move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        };
        kube::Client::new(tower::service_fn(answer), NAMESPACE)
    }

    /// A token of the nodes' service account, bound to this node.
    pub fn token_of(&self, node: &str) -> String {
        let account = format!("system:serviceaccount:{NAMESPACE}:cistern-node");
        self.token(&["cistern.dev"], &account, json!({ "authentication.kubernetes.io/node-name": [node] }))
    }

    /// A token of whomever.
    pub fn token(&self, audiences: &[&str], user: &str, extra: Value) -> String {
        let mut state = self.0.lock().unwrap();
        let token = format!("token-{}-of-{user}", state.tokens.len());
        let status = json!({
            "authenticated": audiences.contains(&"cistern.dev"),
            "audiences": audiences,
            "user": { "username": user, "extra": extra },
        });
        state.tokens.insert(token.clone(), status);
        token
    }

    /// How many times a token was shown.
    pub fn times_shown(&self) -> usize {
        self.0.lock().unwrap().shown.len()
    }

    /// Nobody is answered, or everybody is again.
    pub fn set_away(&self, is_away: bool) {
        self.0.lock().unwrap().is_away = is_away;
    }

    /// So many who look for what is not there find so at once, before any of them goes on.
    pub fn meet(&self, number: usize) {
        self.0.lock().unwrap().meeting = Some(Arc::new(Barrier::new(number)));
    }

    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(&path(kind, name)).cloned()
    }

    pub fn set_object(&self, kind: &str, name: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.put(&path(kind, name), &mut object);
    }

    pub fn remove(&self, kind: &str, name: &str) {
        self.0.lock().unwrap().objects.remove(&path(kind, name)).unwrap();
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
        let answer = self.0.lock().unwrap().answer(&parts.method, parts.uri.path(), body);
        let meeting = self.0.lock().unwrap().meeting.clone().filter(|_| matches!(answer, Err((404, _))));
        if let Some(meeting) = meeting {
            meeting.wait().await;
        }
        let (code, body) = match answer {
            Ok(body) => (200, body),
            Err((code, reason)) => (
                code,
                json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "code": code, "reason": reason, "message": format!("{} {reason}", parts.uri.path()),
                }),
            ),
        };
        Response::builder().status(code).body(serde_json::to_vec(&body).unwrap().into()).unwrap()
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, mut body: Value) -> Result<Value, (u16, &'static str)> {
        if self.is_away {
            return Err((503, "ServiceUnavailable"));
        }
        if path.ends_with("/tokenreviews") {
            body["status"] = self.review(body["spec"]["token"].as_str().unwrap());
            return Ok(body);
        }
        let version_of = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match *method {
            Method::GET => self.objects.get(path).cloned().ok_or((404, "NotFound")),
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    Err((409, "AlreadyExists"))
                } else {
                    Ok(self.put(&path, &mut body))
                }
            }
            Method::PUT => match self.objects.get(path) {
                None => Err((404, "NotFound")),
                Some(there) if version_of(there) != version_of(&body) => Err((409, "Conflict")),
                Some(_) => Ok(self.put(path, &mut body)),
            },
            _ => Err((405, "MethodNotAllowed")),
        }
    }

    fn put(&mut self, path: &str, object: &mut Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object.clone()
    }

    /// A cluster that says too much: the token is in what it answers.
    fn review(&mut self, token: &str) -> Value {
        self.shown.push(token.to_owned());
        let unknown = || json!({ "authenticated": false, "error": format!("invalid bearer token {token}") });
        self.tokens.get(token).cloned().unwrap_or_else(unknown)
    }
}

fn path(kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{kind}/{name}")
}
