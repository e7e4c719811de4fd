//! What a client can read and what it sends: `Accept` and `Content-Type`.

use crate::patch::PatchType;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

impl Encoding {
    /// Value of the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// Which form of an object or list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `PartialObjectMetadata`, or `PartialObjectMetadataList`.
    Metadata,
}

/// The form and encoding that an answer will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// How it is written.
    pub encoding: Encoding,
    /// What it shows.
    pub form: Form,
}

/// What [`Status::not_acceptable`](crate::error::Status::not_acceptable) names.
pub const SERVED: &str = "application/json, application/yaml";

/// What [`Status::unsupported_media_type`](crate::error::Status::unsupported_media_type) names for whole objects.
pub const READ: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// One element of an `Accept` header.
struct MediaType<'a> {
    name: &'a str,
    parameters: &'a str,
}

impl<'a> MediaType<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
        Self { name: name.trim(), parameters }
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.split(';').find_map(|one| {
            let (key, value) = one.split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
        })
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.name.to_ascii_lowercase().as_str() {
            "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
            "application/yaml" => Some(Encoding::Yaml),
            _ => None,
        }
    }
}

fn elements(accept: &str) -> impl Iterator<Item = MediaType<'_>> {
    // More elements than any client sends are not looked at.
    accept.split(',').take(64).map(MediaType::parse)
}

/// Picks the first element of an `Accept` header that can be served; an absent or empty one means JSON.
/// `None`: nothing in it can be (406).
pub fn accept(header: Option<&str>) -> Option<Accepted> {
    let header = header.unwrap_or_default();
    if header.trim().is_empty() {
        return Some(Accepted { encoding: Encoding::Json, form: Form::Object });
    }
    elements(header).find_map(|element| {
        let encoding = element.encoding()?;
        let form = match element.parameter("as") {
            None => Form::Object,
            Some(form) => {
                if element.parameter("g") != Some("meta.k8s.io") || element.parameter("v") != Some("v1") {
                    return None;
                }
                match form {
                    "Table" => Form::Table,
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Metadata,
                    _ => return None,
                }
            }
        };
        Some(Accepted { encoding, form })
    })
}

/// Which form of `/api` and `/apis` is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// `APIVersions` and `APIGroupList`.
    Plain,
    /// `apidiscovery.k8s.io/v2`.
    AggregatedV2,
    /// `apidiscovery.k8s.io/v2beta1`: the same body.
    AggregatedV2Beta1,
}

impl Discovery {
    /// Value of the `Content-Type` header; clients insist on the exact words.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "application/json",
            Self::AggregatedV2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::AggregatedV2Beta1 => {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            }
        }
    }
}

/// Picks the form of a discovery document.
pub fn discovery(header: Option<&str>) -> Discovery {
    elements(header.unwrap_or_default())
        .find_map(|element| {
            element.encoding()?;
            match (element.parameter("as"), element.parameter("g"), element.parameter("v")) {
                (None, ..) => Some(Discovery::Plain),
                (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                    Some(Discovery::AggregatedV2)
                }
                (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                    Some(Discovery::AggregatedV2Beta1)
                }
                _ => None,
            }
        })
        .unwrap_or(Discovery::Plain)
}

/// Content type of the OpenAPI v2 document in protobuf. It has a dot where the old `Accept` has an at sign: the at
/// sign is not allowed in a media type, and clients that ask with it do not understand it in an answer.
pub const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Whether the OpenAPI v2 document is wanted in protobuf and not in JSON.
pub fn wants_openapi_protobuf(header: Option<&str>) -> bool {
    elements(header.unwrap_or_default())
        .find_map(|element| match element.name {
            OPENAPI_V2_PROTOBUF | "application/com.github.proto-openapi.spec.v2@v1.0+protobuf" => Some(true),
            _ => element.encoding().map(|_| false),
        })
        .unwrap_or(false)
}

/// How the body of a request that holds a whole object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// JSON; also what a missing content type means.
    Json,
    /// YAML.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Reads the `Content-Type` of a whole object. `None`: not one that is understood (415).
pub fn body(header: Option<&str>) -> Option<Body> {
    let name = MediaType::parse(header.unwrap_or_default()).name.to_ascii_lowercase();
    match name.as_str() {
        "" | "application/json" | "*/*" => Some(Body::Json),
        "application/yaml" => Some(Body::Yaml),
        "application/vnd.kubernetes.protobuf" => Some(Body::Protobuf),
        _ => None,
    }
}

/// Reads the `Content-Type` of a patch. `None`: not one that is understood (415).
pub fn patch(header: Option<&str>) -> Option<PatchType> {
    match MediaType::parse(header.unwrap_or_default()).name {
        "application/json-patch+json" => Some(PatchType::Json),
        "application/merge-patch+json" => Some(PatchType::Merge),
        "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
        "application/apply-patch+yaml" => Some(PatchType::Apply),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_gets_its_table() {
        let header = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(Some(header)), Some(Accepted { encoding: Encoding::Json, form: Form::Table }));
    }

    #[test]
    fn protobuf_is_passed_over_for_json() {
        let header = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(Some(header)), Some(Accepted { encoding: Encoding::Json, form: Form::Object }));
        let header = "application/json;as=Table;v=v1beta1;g=meta.k8s.io;q=0.9, */*";
        assert_eq!(accept(Some(header)).map(|one| one.form), Some(Form::Object));
    }

    #[test]
    fn a_client_that_reads_only_protobuf_is_refused() {
        assert_eq!(accept(Some("application/vnd.kubernetes.protobuf")), None);
        assert_eq!(accept(Some("text/html")), None);
    }

    #[test]
    fn no_accept_header_means_json() {
        assert_eq!(accept(None).map(|one| one.encoding), Some(Encoding::Json));
        assert_eq!(accept(Some("application/yaml")).map(|one| one.encoding), Some(Encoding::Yaml));
    }

    #[test]
    fn discovery_echoes_the_first_form_that_is_known() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let old =
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(discovery(Some(new)), Discovery::AggregatedV2);
        assert_eq!(discovery(Some(old)), Discovery::AggregatedV2Beta1);
        assert_eq!(discovery(Some("application/json, */*")), Discovery::Plain);
    }

    #[test]
    fn old_and_new_kubectl_ask_for_the_openapi_document_in_protobuf() {
        assert!(wants_openapi_protobuf(Some("application/com.github.proto-openapi.spec.v2@v1.0+protobuf")));
        assert!(wants_openapi_protobuf(Some(OPENAPI_V2_PROTOBUF)));
        assert!(!wants_openapi_protobuf(Some("application/json")));
        assert!(!wants_openapi_protobuf(None));
    }

    #[test]
    fn a_put_without_content_type_is_json() {
        assert_eq!(body(None), Some(Body::Json));
        assert_eq!(body(Some("application/json; charset=utf-8")), Some(Body::Json));
        assert_eq!(body(Some("text/plain")), None);
    }
}
