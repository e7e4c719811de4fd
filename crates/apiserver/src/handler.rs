//! From a request to its answer: paths, permission, verbs.

use crate::answer;
use crate::authorize::{self, Attributes};
use crate::delete::DeleteOptions;
use crate::discovery;
use crate::error::{FieldError, Status};
use crate::form::Form;
use crate::identity::User;
use crate::negotiation;
use crate::objects;
use crate::openapi;
use crate::patch::{self, PatchError, PatchType};
use crate::path::{Query, Target};
use crate::registry::Registry;
use crate::request::{self, Call, WriteOptions};
use crate::resource::Style;
use crate::server::Server;
use crate::write::{Aspect, Written};
use crate::{apply, node_restriction, readiness, review, token};
use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;

/// Answers a request of a connection whose certificate named `user`.
///
/// # Errors
/// None: refusals are answers.
pub(crate) async fn handle(
    server: Arc<Server>,
    user: Arc<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let request = request.map(Body::new);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = if matches!(method, Method::GET | Method::HEAD) {
        server.route(&user, request).await
    } else {
        // A write that has begun is brought to its end although its client goes away: what was taken for it is
        // given back, what follows from it is done.
        let task = tokio::spawn(async move { server.route(&user, request).await });
        task.await
            .unwrap_or_else(|error| Err(Status::internal(format_args!("the request broke off: {error}"))))
    };
    Ok(answered.unwrap_or_else(|status| {
        tracing::debug!(%method, path, code = status.code, message = status.message, "refused a request");
        answer::status(&status)
    }))
}

fn not_found() -> Response<Body> {
    answer::text(404, "404 page not found\n")
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Server {
    async fn route(
        self: &Arc<Self>,
        user: &Arc<User>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let user = match text(request.headers(), header::AUTHORIZATION) {
            Some(authorization) if user.is_anonymous() => Arc::new(token::authenticate(self, authorization)?),
            _ => Arc::clone(user),
        };
        let user = if User::is_to_be_impersonated(request.headers()) {
            let policy = self.policy();
            let may = |what: &Attributes<'_>| authorize::allowed(&user, what, &policy);
            Arc::new(user.impersonate(request.headers(), may)?)
        } else {
            user
        };
        let path = request.uri().path().to_owned();
        let registry = self.registry();
        match Target::parse(&path) {
            Some(target) => self.resource(user, &registry, target, request).await,
            None => {
                let answered = self.other(&user, &registry, &path, &request)?;
                let is_ready = path.split('/').nth(1) == Some("readyz");
                Ok(if is_ready { readiness::answer(self).await } else { answered })
            }
        }
    }

    /// What is no resource: versions, health, discovery, OpenAPI.
    fn other(
        &self,
        user: &User,
        registry: &Arc<Registry>,
        path: &str,
        request: &Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let verb = request.method().as_str().to_ascii_lowercase();
        let attributes = Attributes { verb: &verb, path, ..Attributes::default() };
        if !authorize::allowed(user, &attributes, &self.policy()) {
            return Err(if user.is_anonymous() {
                Status::unauthorized()
            } else {
                attributes.forbidden(user)
            });
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let accept = text(request.headers(), header::ACCEPT).unwrap_or_default();
        let root = path.split('/').nth(1).unwrap_or_default();
        match root {
            "healthz" | "livez" | "readyz" => return Ok(answer::text(200, "ok")),
            "version" if path == "/version" || path == "/version/" => {
                return Ok(answer::json(200, &version(&self.version)));
            }
            "" if path == "/" => return Ok(answer::json(200, &self.paths(registry))),
            "openapi" => return Ok(openapi_document(registry, path, request)),
            "metrics" if path == "/metrics" => {
                let text = self.metrics.render(&self.store);
                return Ok(answer::bytes(200, "text/plain; version=0.0.4", text));
            }
            "backup" if path == "/backup" => {
                let chunks = self.store.backup().into_chunks().map(Ok::<_, Infallible>);
                let body = Body::from_stream(futures::stream::iter(chunks));
                return Ok(answer::bytes(200, "application/octet-stream", body));
            }
            _ => {}
        }
        let documents = registry.discovery.get_or_init(|| discovery::documents(registry));
        let Some(document) = documents.find(path, accept) else { return Ok(not_found()) };
        let etag = HeaderValue::from_str(&document.etag).ok();
        let known = request.headers().get(header::IF_NONE_MATCH);
        let mut response = if known.is_some() && known == etag.as_ref() {
            answer::bytes(304, document.media_type, Body::empty())
        } else {
            answer::bytes(200, document.media_type, document.body.clone())
        };
        if let Some(etag) = etag {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(response)
    }

    /// The list of paths at the root.
    fn paths(&self, registry: &Registry) -> Value {
        let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
        for (group, versions) in registry.groups().into_iter().filter(|(group, _)| !group.is_empty()) {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
        }
        paths.extend(
            [
                "/backup",
                "/healthz",
                "/livez",
                "/metrics",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ]
            .map(str::to_owned),
        );
        json!({"paths": paths})
    }

    async fn resource(
        self: &Arc<Self>,
        user: Arc<User>,
        registry: &Registry,
        target: Target,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let method = request.method().clone();
        let name = target.name.clone().unwrap_or_default();
        let subresource = target.subresource.clone().unwrap_or_default();
        let verb = verb(&method, &query, &name).ok_or_else(Status::method_not_allowed)?;
        let attributes = Attributes {
            verb,
            group: &target.group,
            resource: &target.resource,
            subresource: &subresource,
            namespace: target.namespace.as_deref().unwrap_or_default(),
            name: &name,
            path: "",
        };
        if user.is_anonymous() {
            return Err(Status::unauthorized());
        }
        if !authorize::allowed(&user, &attributes, &self.policy())
            || !node_restriction::may_read(self, &user, &attributes)
        {
            return Err(attributes.forbidden(&user));
        }
        let Some(resource) = registry.find(&target.group, &target.version, &target.resource) else {
            // Of a group that Kubernetes brings itself it says so in a status.
            let is_ours = registry.resources().iter().any(|resource| {
                resource.custom.is_none()
                    && (&resource.group, &resource.version) == (&target.group, &target.version)
            });
            return if is_ours { Err(Status::no_such_resource()) } else { Ok(not_found()) };
        };
        // Collections of namespaced kinds can be read over all namespaces; everything else must fit.
        let fits = match (&target.namespace, resource.namespaced) {
            (Some(_), namespaced) => namespaced,
            (None, true) => name.is_empty() && matches!(verb, "list" | "watch" | "deletecollection"),
            (None, false) => true,
        };
        if !fits {
            let is_creation = verb == "create" && target.namespace.is_none();
            return if is_creation { Err(Status::method_not_allowed()) } else { Ok(not_found()) };
        }
        let call = Call {
            resource: Arc::clone(resource),
            namespace: target.namespace,
            name,
            form: Form::negotiate(text(request.headers(), header::ACCEPT), query.get("includeObject"))
                .or_else(|status| if subresource.is_empty() { Err(status) } else { Ok(Form::Json) })?,
            options: WriteOptions::parse(&query)?.of(&user),
            query,
            user,
        };
        let counted = Arc::clone(resource);
        let answered = match (counted.style, verb) {
            (Style::CreateOnly, "create") if call.name.is_empty() => {
                review::answer(self, call, request).await
            }
            (Style::CreateOnly, _) => Err(Status::method_not_allowed()),
            _ if subresource.is_empty() => self.object(call, verb, request).await,
            _ => self.subresource(call, &subresource, request).await,
        };
        let code = answered.as_ref().map_or_else(|status| status.code, |answer| answer.status().as_u16());
        self.metrics.count(verb, &counted.group, &counted.plural, code);
        answered
    }

    /// Verbs on objects and collections.
    async fn object(
        self: &Arc<Self>,
        call: Call,
        verb: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        match verb {
            "get" => self.get(&call),
            "list" => self.list(&call),
            "watch" => self.watch(call),
            "create" if call.name.is_empty() => {
                let (headers, body) = request::body(request).await?;
                let object = request::object(&headers, &body)?;
                let created =
                    self.create(&call.resource, call.namespace(), object, &call.user, &call.options).await?;
                let answer = answer::object(&call, 201, &created);
                Ok(answer::with_warnings(answer, &call.options.warnings()))
            }
            "update" => self.update(&call, Aspect::Main, request).await,
            "patch" => self.patch(&call, Aspect::Main, request).await,
            "delete" | "deletecollection" => {
                let (headers, body) = request::body(request).await?;
                let body = if body.is_empty() { None } else { Some(request::object(&headers, &body)?) };
                let options = DeleteOptions::parse(body.as_ref(), &call.query)?.by(&call.user);
                if verb == "delete" {
                    self.delete_one(&call, &options).await
                } else {
                    self.delete_collection(&call, &options).await
                }
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// Answers a PUT.
    pub(crate) async fn update(
        &self,
        call: &Call,
        aspect: Aspect,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let (headers, body) = request::body(request).await?;
        let object = request::object(&headers, &body)?;
        let resource = &call.resource;
        let version = objects::meta(&object, "resourceVersion");
        if version.is_empty() && resource.custom.is_some() {
            let error = FieldError {
                message: "Invalid value: 0x0: must be specified for an update".into(),
                ..FieldError::invalid("metadata.resourceVersion", &Value::Null, "")
            };
            return Err(Status::invalid(&resource.group, &resource.kind, &call.name, &[error]));
        }
        let written = self
            .modify(resource, call.namespace(), &call.name, aspect, &call.options, |_| Ok(object.clone()))
            .await?;
        Ok(answer_write(call, 200, &written))
    }

    /// Answers a PATCH.
    pub(crate) async fn patch(
        &self,
        call: &Call,
        aspect: Aspect,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let (headers, body) = request::body(request).await?;
        let resource = &call.resource;
        let kind = negotiation::patch(text(&headers, header::CONTENT_TYPE));
        let kind = kind.filter(|kind| *kind != PatchType::Strategic || resource.custom.is_none());
        let Some(kind) = kind else {
            let mut accepted = vec![PatchType::Json, PatchType::Merge];
            if resource.custom.is_none() {
                accepted.push(PatchType::Strategic);
            }
            accepted.push(PatchType::Apply);
            let accepted: Vec<&str> = accepted.into_iter().map(PatchType::media_type).collect();
            return Err(Status::unsupported_media_type(&accepted.join(", ")));
        };
        if kind == PatchType::Apply {
            return self.apply(call, aspect, &body).await;
        }
        let patch = request::json(&body)?;
        let written = self
            .modify(resource, call.namespace(), &call.name, aspect, &call.options, |current| {
                patched(call, kind, current, &patch)
            })
            .await?;
        Ok(answer_write(call, 200, &written))
    }

    async fn apply(&self, call: &Call, aspect: Aspect, body: &[u8]) -> Result<Response<Body>, Status> {
        let resource = &call.resource;
        let Some(manager) = call.query.get("fieldManager") else {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        };
        let wanted = request::yaml(body)?;
        let force = call.query.is_true("force");
        let subresource = if aspect == Aspect::Status { "status" } else { "" };
        let applied = |current: Option<&Value>| {
            let schema = resource.custom.as_ref().and_then(|custom| custom.schema.as_ref());
            apply::apply(&apply::Request {
                manager,
                subresource,
                force,
                api_version: &resource.api_version(),
                kind: &resource.kind,
                now: &objects::now(),
                schema,
                current,
                applied: &wanted,
            })
        };
        let key = resource.key(call.namespace(), &call.name);
        if self.store.get(&key).is_none() && aspect == Aspect::Main {
            let mut object = applied(None)?;
            objects::metadata_mut(&mut object).insert("name".into(), call.name.clone().into());
            let created = self.create(resource, call.namespace(), object, &call.user, &call.options).await;
            match created {
                Ok(created) => {
                    let answer = answer::object(call, 201, &created);
                    return Ok(answer::with_warnings(answer, &call.options.warnings()));
                }
                // Somebody else was faster: apply to theirs.
                Err(status) if status.reason == "AlreadyExists" => {}
                Err(status) => return Err(status),
            }
        }
        let written = self
            .modify(resource, call.namespace(), &call.name, aspect, &call.options, |current| {
                applied(Some(current))
            })
            .await?;
        Ok(answer_write(call, 200, &written))
    }
}

/// The answer to a change.
pub(crate) fn answer_write(call: &Call, code: u16, written: &Written) -> Response<Body> {
    let answer = answer::object(call, code, written.entry());
    answer::with_warnings(answer, &call.options.warnings())
}

/// The present object with a patch applied.
pub(crate) fn patched(call: &Call, kind: PatchType, current: &Value, patch: &Value) -> Result<Value, Status> {
    let resource = &call.resource;
    let mut patched = patch::apply(kind, current, patch).map_err(|error| match error {
        PatchError::Malformed(message) => Status::bad_request(message),
        PatchError::Refused(_) => {
            Status { details: json!({}), ..Status::new(422, "Invalid", error.to_string()) }
        }
        PatchError::Unsupported => Status::unsupported_media_type("application/merge-patch+json"),
    })?;
    // Without a version of its own the patch is unconditional, whatever it was applied to.
    let conditional = match kind {
        PatchType::Merge | PatchType::Strategic => patch["metadata"]["resourceVersion"].is_string(),
        PatchType::Json | PatchType::Apply => {
            objects::meta(&patched, "resourceVersion") != objects::meta(current, "resourceVersion")
        }
    };
    if !conditional {
        objects::metadata_mut(&mut patched).remove("resourceVersion");
    }
    for field in ["kind", "apiVersion"] {
        if patched[field] != current[field] {
            return Err(Status::bad_request(format!("a patch cannot change {field} of {}", resource.plural)));
        }
    }
    Ok(patched)
}

fn verb(method: &Method, query: &Query, name: &str) -> Option<&'static str> {
    Some(match *method {
        Method::GET | Method::HEAD if query.is_true("watch") => "watch",
        Method::GET | Method::HEAD if name.is_empty() => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT if !name.is_empty() => "update",
        Method::PATCH if !name.is_empty() => "patch",
        Method::DELETE if name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => return None,
    })
}

fn version(git: &str) -> Value {
    let mut numbers = git.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next().unwrap_or("1"),
        "minor": numbers.next().unwrap_or("28"),
        "gitVersion": git,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-11-21T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

fn openapi_document(registry: &Arc<Registry>, path: &str, request: &Request<Body>) -> Response<Body> {
    let accept = text(request.headers(), header::ACCEPT);
    match path.trim_end_matches('/') {
        "/openapi/v2" if negotiation::wants_openapi_protobuf(accept) => {
            answer::bytes(200, negotiation::OPENAPI_V2_PROTOBUF, openapi::v2_protobuf(registry))
        }
        "/openapi/v2" => answer::json(200, &openapi::v2_json()),
        "/openapi/v3" => answer::json(200, &openapi::v3_index(registry)),
        other => {
            let document =
                other.strip_prefix("/openapi/v3/").and_then(|path| openapi::v3_document(registry, path));
            document.map_or_else(not_found, |document| answer::json(200, &document))
        }
    }
}
