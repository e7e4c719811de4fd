//! An API server by itself, for trying things: `cargo run -p apiserver --example serve -- FOLDER [PORT]`.
//!
//! Makes an authority, the server's certificate and `admin.kubeconfig` in FOLDER (those of an earlier run are used
//! again), keeps its data in FOLDER/store, and serves on 127.0.0.1:PORT (0, the default: any free port). Further
//! identities: `cargo run -p apiserver --example serve -- FOLDER user NAME GROUP…` writes `NAME.kubeconfig` for the
//! port that is in `admin.kubeconfig`.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: serve FOLDER [PORT] | serve FOLDER user NAME GROUP…";
    let folder = Path::new(arguments.first().ok_or(usage)?);
    std::fs::create_dir_all(folder)?;
    if arguments.get(1).is_some_and(|word| word == "user") {
        let name = arguments.get(2).ok_or(usage)?;
        let groups: Vec<&str> = arguments.iter().skip(3).map(String::as_str).collect();
        let port: u16 = std::fs::read_to_string(folder.join("port"))?.trim().parse()?;
        return kubeconfig(folder, name, &groups, port);
    }
    let port = arguments.get(1).map_or(Ok(0), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = listener.local_addr()?.port();
    std::fs::write(folder.join("port"), port.to_string())?;
    if !folder.join("ca.crt").exists() {
        authority(folder)?;
    }
    server_certificate(folder)?;
    kubeconfig(folder, "admin", &["system:masters"], port)?;
    let options = apiserver::Options {
        data_file: folder.join("store"),
        pki_dir: folder.to_owned(),
        listeners: vec![listener],
        kubelet_socket_dir: folder.join("kubelet"),
        service_cidr: "10.96.0.0/16".into(),
        server_version: "v1.28.0".into(),
        advertise: None,
        guards: Vec::new(),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(apiserver::run(options))?;
    Ok(())
}

fn authority(folder: &Path) -> Outcome<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    std::fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
    std::fs::write(folder.join("ca.key"), key.serialize_pem())?;
    Ok(())
}

fn signed(
    folder: &Path,
    mut params: CertificateParams,
    name: &str,
    groups: &[&str],
) -> Outcome<(String, String)> {
    let authority_key = KeyPair::from_pem(&std::fs::read_to_string(folder.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(folder.join("ca.crt"))?, authority_key)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn server_certificate(folder: &Path) -> Outcome<()> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "kubernetes".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (certificate, key) = signed(folder, params, "kube-apiserver", &[])?;
    std::fs::write(folder.join("apiserver.crt"), certificate)?;
    std::fs::write(folder.join("apiserver.key"), key)?;
    Ok(())
}

fn kubeconfig(folder: &Path, name: &str, groups: &[&str], port: u16) -> Outcome<()> {
    use base64::Engine;
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = signed(folder, params, name, groups)?;
    std::fs::write(folder.join(format!("{name}.crt")), &certificate)?;
    std::fs::write(folder.join(format!("{name}.key")), &key)?;
    let pack = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let authority = pack(&std::fs::read_to_string(folder.join("ca.crt"))?);
    let (certificate, key) = (pack(&certificate), pack(&key));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: serve\nclusters:\n- name: serve\n  cluster:\n    \
         server: https://127.0.0.1:{port}\n    certificate-authority-data: {authority}\nusers:\n- name: {name}\n  \
         user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: serve\n  \
         context:\n    cluster: serve\n    user: {name}\n"
    );
    std::fs::write(folder.join(format!("{name}.kubeconfig")), text)?;
    Ok(())
}
