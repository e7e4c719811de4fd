//! Subresources: status, scale, bindings, evictions, tokens, finalizers, and what a node's kubelet answers.

use crate::answer;
use crate::delete::{DeleteOptions, Deleted};
use crate::error::{FieldError, Status};
use crate::handler::{answer_write, patched};
use crate::kubelet_tunnel;
use crate::negotiation;
use crate::node_restriction;
use crate::objects::{self, meta, metadata_mut};
use crate::request::{self, Call};
use crate::selector::LabelSelector;
use crate::server::Server;
use crate::token;
use crate::write::{Aspect, replace};
use axum::body::Body;
use http::{Method, Request, Response, header};
use serde_json::{Map, Value, json};

impl Server {
    /// Answers a request below an object.
    pub(crate) async fn subresource(
        &self,
        call: Call,
        subresource: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let resource = &call.resource;
        let method = request.method().clone();
        let is_served =
            resource.subresources.contains(&subresource) || (subresource == "status" && resource.has_status);
        if !is_served {
            return Ok(answer::text(404, "404 page not found\n"));
        }
        match (subresource, &method) {
            ("status", &Method::GET) => self.get(&call),
            ("status", &Method::PUT) => self.update(&call, Aspect::Status, request).await,
            ("status", &Method::PATCH) => self.patch(&call, Aspect::Status, request).await,
            ("scale", _) => self.scale(&call, request).await,
            ("finalize", &Method::PUT) => self.finalize(&call, request).await,
            ("binding", &Method::POST) => {
                let (headers, body) = request::body(request).await?;
                let binding = request::object(&headers, &body)?;
                bind(self, &call, &call.name, &binding).await
            }
            ("eviction", &Method::POST) => self.evict(&call, request).await,
            ("token", &Method::POST) => {
                let (headers, body) = request::body(request).await?;
                let body = if body.is_empty() { json!({}) } else { request::object(&headers, &body)? };
                node_restriction::may_have_token(self, &call.user, (call.namespace(), &call.name), &body)
                    .map_err(|why| Status::forbidden("", "serviceaccounts", &call.name, &why))?;
                let issued = token::issue(self, call.namespace(), &call.name, body)?;
                Ok(answer::value(&call, 201, &issued))
            }
            ("log", &Method::GET) | ("exec" | "attach" | "portforward", &Method::GET | &Method::POST) => {
                self.tunnel(&call, subresource, request).await
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn current(&self, call: &Call) -> Result<Value, Status> {
        let key = call.resource.key(call.namespace(), &call.name);
        self.store.get(&key).map(|entry| objects::decode(&entry)).ok_or_else(|| call.not_found())
    }

    /// Reads, replaces or patches how many replicas are wanted.
    async fn scale(&self, call: &Call, request: Request<Body>) -> Result<Response<Body>, Status> {
        let method = request.method().clone();
        if method == Method::GET {
            return Ok(answer::value(call, 200, &scale_of(call, &self.current(call)?)));
        }
        let (headers, body) = request::body(request).await?;
        let kind =
            negotiation::patch(headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()));
        let sent = match (&method, kind) {
            (&Method::PUT, _) => request::object(&headers, &body)?,
            (&Method::PATCH, Some(_)) => request::yaml(&body)?,
            (&Method::PATCH, None) => return Err(Status::unsupported_media_type(negotiation::READ)),
            _ => return Err(Status::method_not_allowed()),
        };
        let resource = &call.resource;
        let written = self
            .modify(resource, call.namespace(), &call.name, Aspect::Main, &call.options, |current| {
                let scale = scale_of(call, current);
                let wanted = match kind {
                    Some(kind) if method == Method::PATCH => {
                        // An applied scale is a merge: nothing else of it can be owned.
                        let kind = match kind {
                            crate::patch::PatchType::Apply => crate::patch::PatchType::Merge,
                            other => other,
                        };
                        patched(call, kind, &scale, &sent)?
                    }
                    _ => sent.clone(),
                };
                let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
                if replicas < 0 {
                    let detail = "must be greater than or equal to 0";
                    let error = FieldError::invalid("spec.replicas", &replicas.into(), detail);
                    return Err(Status::invalid("autoscaling", "Scale", &call.name, &[error]));
                }
                let mut next = current.clone();
                let path: Vec<&str> = match resource.custom.as_ref().and_then(|custom| custom.scale.as_ref())
                {
                    Some(scale) => scale.spec_replicas.iter().map(String::as_str).collect(),
                    None => vec!["spec", "replicas"],
                };
                set(&mut next, &path, replicas.into());
                match meta(&wanted, "resourceVersion") {
                    "" => drop(metadata_mut(&mut next).remove("resourceVersion")),
                    version => drop(metadata_mut(&mut next).insert("resourceVersion".into(), version.into())),
                }
                Ok(next)
            })
            .await?;
        let now = objects::decode(written.entry());
        Ok(answer::with_warnings(answer::value(call, 200, &scale_of(call, &now)), &call.options.warnings()))
    }

    /// Replaces the finalizers of a namespace; without any a terminating one goes.
    async fn finalize(&self, call: &Call, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (headers, body) = request::body(request).await?;
        let sent = request::object(&headers, &body)?;
        let written = self
            .modify(&call.resource, "", &call.name, Aspect::Server, &call.options, |current| {
                let mut next = current.clone();
                replace(&mut next["spec"], "finalizers", &sent["spec"]["finalizers"]);
                replace(&mut next["metadata"], "resourceVersion", &sent["metadata"]["resourceVersion"]);
                Ok(next)
            })
            .await?;
        Ok(answer_write(call, 200, &written))
    }

    /// Deletes a pod, unless a disruption budget forbids it now.
    async fn evict(&self, call: &Call, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (headers, body) = request::body(request).await?;
        let eviction = if body.is_empty() { json!({}) } else { request::object(&headers, &body)? };
        let pod = self.current(call)?;
        let budgets =
            self.store.list(&format!("/policy/poddisruptionbudgets/{}/", call.namespace()), None, 0);
        for (_, entry) in budgets.entries {
            let budget = objects::decode(&entry);
            let Ok(selector) = LabelSelector::from_value(&budget["spec"]["selector"]) else { continue };
            if selector.matches(&pod["metadata"]["labels"])
                && budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0
            {
                let message = "Cannot evict pod as it would violate the pod's disruption budget.";
                return Err(Status::too_many_requests(message, 10));
            }
        }
        let mut options = DeleteOptions::parse(Some(&eviction["deleteOptions"]), &call.query)?.by(&call.user);
        options.dry_run |= call.options.dry_run;
        match self.delete(&call.resource, call.namespace(), &call.name, &options).await? {
            Deleted::Gone(_) | Deleted::Pending(_) => Ok(answer::value(
                call,
                201,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
            )),
        }
    }

    /// Passes a request on to the kubelet of the pod's node.
    async fn tunnel(
        &self,
        call: &Call,
        subresource: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let pod = self.current(call)?;
        let (namespace, name) = (call.namespace(), call.name.as_str());
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() && subresource == "log" {
            return Ok(answer::text(204, ""));
        }
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let target = if subresource == "portforward" {
            format!("/portForward/{namespace}/{name}{query}")
        } else {
            let container = container(&pod, call.query.get("container"), name)?;
            if subresource == "log" && !has_started(&pod, &container) {
                return Err(Status::bad_request(format!(
                    "container {container:?} in pod {name:?} is waiting to start: {}",
                    waiting_reason(&pod, &container)
                )));
            }
            let verb = if subresource == "log" { "containerLogs" } else { subresource };
            format!("/{verb}/{namespace}/{name}/{container}{query}")
        };
        if node.contains('/') || node.contains("..") {
            return Err(Status::bad_request(format!("{node:?} is not the name of a node")));
        }
        let socket = self.kubelet_socket_dir.join(format!("{node}.sock"));
        kubelet_tunnel::forward(&socket, &target, request).await.map_err(|error| {
            tracing::warn!(node, pod = name, %error, "could not reach a kubelet");
            Status::internal(format_args!("error dialing backend of node {node}: {error}"))
        })
    }
}

/// The container that is meant: the one named, or the only or first one.
fn container(pod: &Value, named: Option<&str>, pod_name: &str) -> Result<String, Status> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let all = lists.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    let mut names = all.filter_map(|container| container["name"].as_str());
    match named {
        Some(named) if names.any(|name| name == named) => Ok(named.to_owned()),
        Some(named) => Err(Status::bad_request(format!("container {named} is not valid for pod {pod_name}"))),
        None => {
            let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
            let first = default.or_else(|| names.next());
            let none = || Status::bad_request(format!("pod {pod_name} has no containers"));
            first.map(str::to_owned).ok_or_else(none)
        }
    }
}

fn container_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .find(|status| status["name"] == container)
}

fn has_started(pod: &Value, container: &str) -> bool {
    container_status(pod, container).is_some_and(|status| {
        status["containerID"].as_str().is_some_and(|id| !id.is_empty())
            || status["state"]["running"].is_object()
            || status["state"]["terminated"].is_object()
            || status["lastState"]["terminated"].is_object()
    })
}

fn waiting_reason<'a>(pod: &'a Value, container: &str) -> &'a str {
    container_status(pod, container)
        .and_then(|status| status["state"]["waiting"]["reason"].as_str())
        .unwrap_or("ContainerCreating")
}

/// Puts a pod on a node.
pub(crate) async fn bind(
    server: &Server,
    call: &Call,
    name: &str,
    binding: &Value,
) -> Result<Response<Body>, Status> {
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(Status::invalid("", "Binding", name, &[error]));
    }
    let pods = server.builtin("", "pods")?;
    let wanted_uid = meta(binding, "uid").to_owned();
    server
        .modify(&pods, call.namespace(), name, Aspect::Server, &call.options, |pod| {
            let conflict = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
            if !wanted_uid.is_empty() && meta(pod, "uid") != wanted_uid {
                return conflict(format!("the pod has another uid than {wanted_uid}"));
            }
            if objects::is_terminating(pod) {
                return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(there) = pod["spec"]["nodeName"].as_str().filter(|there| !there.is_empty()) {
                return conflict(format!("pod {name} is already assigned to node {there:?}"));
            }
            let mut next = pod.clone();
            let conditions = &mut next["status"]["conditions"];
            if !conditions.is_array() {
                *conditions = json!([]);
            }
            if let Some(list) = conditions.as_array_mut() {
                list.retain(|condition| condition["type"] != "PodScheduled");
                list.push(json!({
                    "type": "PodScheduled", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": objects::now(),
                }));
            }
            next["spec"]["nodeName"] = node.clone().into();
            Ok(next)
        })
        .await
        .map(drop)?;
    let success =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(call, 201, &success))
}

fn set(object: &mut Value, path: &[&str], value: Value) {
    match path {
        [] => *object = value,
        [first, rest @ ..] => {
            if !object.is_object() {
                *object = Value::Object(Map::new());
            }
            set(&mut object[*first], rest, value);
        }
    }
}

fn dig<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |value, step| &value[step.as_str()])
}

/// The scale of a workload.
fn scale_of(call: &Call, object: &Value) -> Value {
    let (wanted, present, selector) =
        match call.resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
            Some(paths) => (
                dig(object, &paths.spec_replicas).clone(),
                dig(object, &paths.status_replicas).clone(),
                paths
                    .selector
                    .as_ref()
                    .and_then(|path| dig(object, path).as_str())
                    .unwrap_or_default()
                    .to_owned(),
            ),
            None => (
                object["spec"]["replicas"].clone(),
                object["status"]["replicas"].clone(),
                selector_text(&object["spec"]["selector"]),
            ),
        };
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        replace(&mut metadata, field, &object["metadata"][field]);
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": wanted.as_i64().unwrap_or(0)},
        "status": {"replicas": present.as_i64().unwrap_or(0), "selector": selector},
    })
}

fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().or_else(|| {
        // Replication controllers have the labels themselves.
        selector.as_object().filter(|map| !map.contains_key("matchExpressions"))
    });
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}
