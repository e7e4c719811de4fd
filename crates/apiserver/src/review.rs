//! What is answered and not stored: who am I, may I, whose token is this; bindings, and commits.

use crate::answer;
use crate::authorize::{self, Attributes};
use crate::error::Status;
use crate::identity::User;
use crate::objects;
use crate::request::{self, Call};
use crate::server::Server;
use crate::{subresource, token};
use axum::body::Body;
use http::{Request, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a POST of a kind that is not stored.
pub(crate) async fn answer(
    server: &Arc<Server>,
    call: Call,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let (headers, body) = request::body(request).await?;
    let mut object = request::object(&headers, &body)?;
    let resource = &call.resource;
    object["kind"] = resource.kind.clone().into();
    object["apiVersion"] = resource.api_version().into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match resource.kind.as_str() {
        "Binding" => {
            let name = objects::meta(&object, "name").to_owned();
            return subresource::bind(server, &call, &name, &object).await;
        }
        "SelfSubjectReview" => {
            object["metadata"]["creationTimestamp"] = objects::now().into();
            object["status"] = json!({"userInfo": user_info(&call.user)});
        }
        "TokenReview" => {
            let token = object["spec"]["token"].as_str().unwrap_or_default();
            object["status"] = match token::verify(server, token) {
                Some(user) => json!({"authenticated": true, "user": user_info(&user)}),
                None => json!({"authenticated": false, "error": "the token is not valid, or no longer"}),
            };
        }
        "SelfSubjectAccessReview" => object["status"] = verdict(server, &call.user, &object["spec"]),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let spec = &object["spec"];
            let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let user = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                groups: groups.map(str::to_owned).collect(),
                uid: None,
            };
            object["status"] = verdict(server, &user, &object["spec"]);
        }
        "Commit" => object = server.commit(&call, object).await?,
        "SelfSubjectRulesReview" => object["status"] = rules(server, &call.user, &object["spec"]),
        _ => return Err(Status::method_not_allowed()),
    }
    Ok(answer::value(&call, 201, &object))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if let Some(uid) = &user.uid {
        info["uid"] = uid.clone().into();
    }
    info
}

fn verdict(server: &Server, user: &User, spec: &Value) -> Value {
    let of = |part: &'static str, field: &'static str| spec[part][field].as_str().unwrap_or_default();
    let attributes = if spec["nonResourceAttributes"].is_object() {
        Attributes {
            verb: of("nonResourceAttributes", "verb"),
            path: of("nonResourceAttributes", "path"),
            ..Attributes::default()
        }
    } else {
        let part = "resourceAttributes";
        Attributes {
            verb: of(part, "verb"),
            group: of(part, "group"),
            resource: of(part, "resource"),
            subresource: of(part, "subresource"),
            namespace: of(part, "namespace"),
            name: of(part, "name"),
            path: "",
        }
    };
    if authorize::allowed(user, &attributes, &server.policy()) {
        json!({"allowed": true})
    } else {
        json!({"allowed": false})
    }
}

fn rules(server: &Server, user: &User, spec: &Value) -> Value {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    let mut resource_rules = Vec::new();
    let mut path_rules = Vec::new();
    if user.is_almighty() {
        resource_rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        path_rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    for mut rule in server.policy().rules(user, namespace).cloned() {
        let paths = rule.as_object_mut().and_then(|rule| rule.remove("nonResourceURLs"));
        if let Some(paths) = paths {
            path_rules.push(json!({"verbs": rule["verbs"], "nonResourceURLs": paths}));
        } else {
            resource_rules.push(rule);
        }
    }
    json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false})
}
