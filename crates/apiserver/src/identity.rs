//! Who asks: users from client certificates, service accounts from tokens, and impersonation.

use crate::authorize::Attributes;
use crate::error::Status;
use http::HeaderMap;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As `kubernetes-admin` or `system:serviceaccount:<namespace>:<name>`.
    pub name: String,
    /// Always with `system:authenticated` or `system:unauthenticated`.
    pub groups: Vec<String>,
    /// Identity of the account, for service accounts.
    pub uid: Option<String>,
}

/// Groups whose members may do everything.
const ALMIGHTY: [&str; 2] = ["system:masters", "kubeadm:cluster-admins"];

impl User {
    /// Somebody who showed nothing.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], uid: None }
    }

    /// Whether nothing was shown.
    pub fn is_anonymous(&self) -> bool {
        self.name == "system:anonymous"
    }

    /// Whether everything is allowed to them.
    pub fn is_almighty(&self) -> bool {
        self.groups.iter().any(|group| ALMIGHTY.contains(&group.as_str()))
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        Self { name: format!("system:serviceaccount:{namespace}:{name}"), groups, uid: Some(uid.to_owned()) }
    }

    /// The user of a client certificate that the handshake verified: common name and organizations.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let organizations = subject.iter_organization().filter_map(|one| one.as_str().ok());
        let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { name, groups, uid: None })
    }

    /// Whether a request says that it is to be made as somebody else.
    pub fn is_to_be_impersonated(headers: &HeaderMap) -> bool {
        headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
    }

    /// Who the request is to be made as, when it says so.
    ///
    /// # Errors
    /// 403 for those who may not impersonate; 400 when it is not said whom. Taken for its sender's own, a request that
    /// asks to be allowed less would be allowed everything.
    pub fn impersonate(
        &self,
        headers: &HeaderMap,
        may: impl Fn(&Attributes<'_>) -> bool,
    ) -> Result<Self, Status> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let Some(name) = text("impersonate-user").filter(|name| !name.is_empty()) else {
            let message =
                "the request has headers Impersonate-…, but none that names a user: add Impersonate-User";
            return Err(Status::bad_request(message));
        };
        let groups = headers.get_all("impersonate-group").iter();
        let mut groups: Vec<String> =
            groups.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let uid = text("impersonate-uid");
        let asked = |resource, namespace, name| Attributes {
            verb: "impersonate",
            resource,
            namespace,
            name,
            ..Attributes::default()
        };
        let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let mut all = vec![match account {
            Some((namespace, account)) => asked("serviceaccounts", namespace, account),
            None => asked("users", "", &name),
        }];
        all.extend(groups.iter().map(|group| asked("groups", "", group)));
        all.extend(
            uid.iter().map(|uid| Attributes { group: "authentication.k8s.io", ..asked("uids", "", uid) }),
        );
        // What a request says besides is not known here, and would be taken for granted.
        let further = headers.keys().find(|key| key.as_str().starts_with("impersonate-extra-"));
        if let Some(refused) = all.iter().find(|what| !may(what)) {
            return Err(refused.forbidden(self));
        }
        if let Some(header) = further {
            let message = format!("the header {header} is not taken: users have no further attributes here");
            return Err(Status::bad_request(message));
        }
        if let Some((namespace, _)) = account
            && groups.is_empty()
        {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        groups.push("system:authenticated".to_owned());
        Ok(Self { name, groups, uid })
    }
}

/// Why the server's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read, or is no PEM of what it should be.
    #[error("{path} is not a readable PEM file with a {what}: make the lab's certificates anew", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// What is wrong.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The files do not fit together.
    #[error("the certificates in {path} do not fit together: make the lab's certificates anew", path = .path.display())]
    Mismatch {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The server's side of TLS: its certificate, and the authority of the clients'. Clients without one are let in as
/// nobody.
///
/// # Errors
/// [`PkiError`] when `ca.crt`, `apiserver.crt` or `apiserver.key` is missing or wrong.
pub fn tls(pki: &Path) -> Result<Arc<rustls::ServerConfig>, PkiError> {
    let read = |name: &str| -> Result<Vec<CertificateDer<'static>>, PkiError> {
        let path = pki.join(name);
        let wrap = |source| PkiError::File { path: path.clone(), what: "certificate", source };
        CertificateDer::pem_file_iter(&path).map_err(wrap)?.collect::<Result<_, _>>().map_err(wrap)
    };
    let mismatch =
        |source: Box<dyn std::error::Error + Send + Sync>| PkiError::Mismatch { path: pki.into(), source };
    let mut roots = RootCertStore::empty();
    for authority in read("ca.crt")? {
        roots.add(authority).map_err(|error| mismatch(error.into()))?;
    }
    let path = pki.join("apiserver.key");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|source| PkiError::File {
        path,
        what: "private key",
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| mismatch(error.into()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| mismatch(error.into()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(read("apiserver.crt")?, key)
        .map_err(|error| mismatch(error.into()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
