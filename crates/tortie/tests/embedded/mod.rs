//! The embedded API server in the test's own process, by TLS with a client's certificate.

use datastore::kubernetes::Kubernetes;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

/// A server with its authority in `folder`; answers the administrator's kubeconfig.
pub(crate) fn serve(folder: &Path) -> PathBuf {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "kubernetes");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&authority_pem, authority_key).unwrap();
    let sign = |name: &str, group: Option<&str>, usage: ExtendedKeyUsagePurpose| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    write("ca.crt", &authority_pem);
    let (certificate, key) = sign("kube-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth);
    write("apiserver.crt", &certificate);
    write("apiserver.key", &key);
    let (certificate, key) = sign("admin", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": folder.join("ca.crt")}}],
        "users": [{"name": "admin", "user": {
            "client-certificate": write("admin.crt", &certificate), "client-key": write("admin.key", &key)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    });
    tokio::spawn(apiserver::run(apiserver::Options {
        data_file: folder.join("store"),
        pki_dir: folder.to_owned(),
        listeners: vec![listener],
        kubelet_socket_dir: folder.join("kubelet"),
        service_cidr: "10.96.0.0/16".to_owned(),
        server_version: "v1.28.0".to_owned(),
        advertise: None,
        guards: Vec::new(),
    }));
    write("kubeconfig", &config.to_string())
}

/// Creates an object.
pub(crate) async fn create(store: &Kubernetes, path: &str, object: &Value) {
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())
        .unwrap();
    store.client().request::<Value>(request).await.unwrap();
}

/// A driver over a fresh server with the definitions that the lesson installs.
pub(crate) async fn installed(folder: &Path) -> Kubernetes {
    let store = Kubernetes::connect(Some(&serve(folder))).await.unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    for document in std::fs::read_to_string(path).unwrap().split("\n---\n").skip(1) {
        let definition: Value = serde_saphyr::from_str(document).unwrap();
        create(&store, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    }
    store
}
