//! A server in this process, and clients that speak HTTP to it.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// A certificate authority.
pub(crate) struct Authority {
    certificate: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        Self { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    fn sign(&self, mut params: CertificateParams, name: &str, groups: &[&str]) -> (String, String) {
        let key = KeyPair::from_pem(&self.key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, key).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }

    fn client(&self, name: &str, groups: &[&str]) -> (String, String) {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, name, groups)
    }

    fn write(&self, folder: &Path) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let (certificate, key) = self.sign(params, "kube-apiserver", &[]);
        std::fs::write(folder.join("ca.crt"), &self.certificate).unwrap();
        std::fs::write(folder.join("apiserver.crt"), certificate).unwrap();
        std::fs::write(folder.join("apiserver.key"), key).unwrap();
    }
}

/// A running server.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    /// The object of a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Code and message of a refusal.
    #[track_caller]
    pub(crate) fn refused(&self) -> (u16, String) {
        assert!(self.code >= 400, "not refused: {}", String::from_utf8_lossy(&self.body));
        (self.code, self.json()["message"].as_str().unwrap().to_owned())
    }
}

fn options(folder: &Path, listener: &TcpListener) -> apiserver::Options {
    apiserver::Options {
        data_file: folder.join("store"),
        pki_dir: folder.to_owned(),
        listeners: vec![listener.try_clone().unwrap()],
        kubelet_socket_dir: folder.join("kubelet"),
        service_cidr: "10.96.0.0/16".into(),
        server_version: "v1.28.0".into(),
        advertise: None,
        guards: Vec::new(),
    }
}

fn serve(folder: &Path, listener: TcpListener) -> tokio::task::JoinHandle<()> {
    let folder = folder.to_owned();
    tokio::spawn(async move {
        // The tasks of a server that was stopped end one after the other; until the last did, the file is in use.
        while let Err(error) = apiserver::run(options(&folder, &listener)).await {
            assert!(matches!(error, apiserver::ServeError::Store(_)), "{error}");
            tokio::task::yield_now().await;
        }
    })
}

impl Lab {
    /// Stops the server and starts another one on the same file and port.
    pub(crate) async fn restart(&mut self) {
        self.serving.abort();
        let stopped = (&mut self.serving).await;
        assert!(stopped.is_err_and(|error| error.is_cancelled()));
        // The stopped server's socket is closed by the last of its tasks too.
        let listener = loop {
            match TcpListener::bind(self.address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                bound => break bound.unwrap(),
            }
        };
        self.serving = serve(self.folder.path(), listener);
    }

    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.write(folder.path());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = serve(folder.path(), listener);
        Self { folder, authority, address, serving }
    }

    /// Writes a configuration by which kubectl comes as somebody.
    pub(crate) fn kubeconfig(&self, name: &str, groups: &[&str]) -> PathBuf {
        use base64::Engine;
        let pack = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (certificate, key) = self.authority.client(name, groups);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority-data": pack(&self.authority.certificate)}}],
            "users": [{"name": "user", "user": {
                "client-certificate-data": pack(&certificate), "client-key-data": pack(&key)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
        });
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A client with all rights.
    pub(crate) fn admin(&self) -> Client {
        self.client("admin", &["system:masters"])
    }

    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Client {
        self.client_of(&self.authority, Some((name, groups)))
    }

    pub(crate) fn client_of(&self, authority: &Authority, user: Option<(&str, &[&str])>) -> Client {
        self.connecting(user.map(|(name, groups)| authority.client(name, groups)))
    }

    /// A client whose certificate was valid until yesterday.
    pub(crate) fn expired_client(&self, name: &str, groups: &[&str]) -> Client {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.connecting(Some(self.authority.sign(params, name, groups)))
    }

    fn connecting(&self, certificate: Option<(String, String)>) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        Client { address: self.address, connector: TlsConnector::from(Arc::new(config)), bearer: None }
    }
}

/// A client; every request has its own connection.
#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    connector: TlsConnector,
    pub(crate) bearer: Option<String>,
}

/// Media types of patches.
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";

impl Client {
    /// The same client at another server.
    pub(crate) fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// A connection on which anything can be said.
    pub(crate) async fn raw(
        &self,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        self.connector.connect(name, stream).await
    }

    pub(crate) async fn connect(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        let stream = self.raw().await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.bearer {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::new(body)).unwrap()
    }

    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error>> {
        let mut sender = self.connect().await?;
        let response = sender.send_request(self.request(method, path, headers, body)).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], object.to_string().into())
            .await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::PUT, path, &[], object.to_string().into()).await
    }

    pub(crate) async fn patch(&self, path: &str, media_type: &str, patch: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", media_type)], patch.to_string().into()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// A connection for many requests, one after the other.
    pub(crate) async fn session(&self) -> Session {
        Session { client: self.clone(), sender: self.connect().await.unwrap() }
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, path: &str, accept: &str) -> Events {
        let mut sender = self.connect().await.unwrap();
        let request = self.request(Method::GET, path, &[("accept", accept)], Bytes::new());
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Events { _sender: sender, body: response.into_body(), buffer: Vec::new() }
    }
}

/// A client that keeps its connection.
pub(crate) struct Session {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Session {
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        self.sender.ready().await.unwrap();
        let response =
            self.sender.send_request(self.client.request(method, path, headers, body)).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&mut self, path: &str, object: &Value) -> Answer {
        self.send(Method::POST, path, &[], object.to_string().into()).await
    }

    pub(crate) async fn put(&mut self, path: &str, object: &Value) -> Answer {
        self.send(Method::PUT, path, &[], object.to_string().into()).await
    }

    pub(crate) async fn patch(&mut self, path: &str, media_type: &str, patch: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", media_type)], patch.to_string().into()).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }
}

/// Events of a watch.
pub(crate) struct Events {
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event, or none when the stream ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn told(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch ended");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}
