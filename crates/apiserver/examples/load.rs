//! How many writes a second a server takes: `cargo run --release -p apiserver --example load -- FOLDER [CLIENTS] [WRITES]`.
//!
//! FOLDER is that of a running `serve`. Each client creates its own ConfigMaps and changes each twice, one request
//! after the other on one connection.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().ok_or("usage: load FOLDER [CLIENTS] [WRITES]")?.clone();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (clients, writes) = (number(1, 32)?, number(2, 6000)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let each = writes.div_ceil(clients * 3);
        let tasks: Vec<_> =
            (0..clients).map(|client| tokio::spawn(work(folder.clone(), client, each))).collect();
        for task in tasks {
            task.await??;
        }
        let seconds = started.elapsed().as_secs_f64();
        let done = f64::from(u32::try_from(each * clients * 3)?);
        eprintln!("{done} writes by {clients} clients in {seconds:.2} s: {:.0} a second", done / seconds);
        Ok(())
    })
}

async fn work(folder: String, client: usize, count: usize) -> Outcome<()> {
    let mut sender = connect(Path::new(&folder)).await?;
    let run = std::process::id();
    let maps = "/api/v1/namespaces/default/configmaps";
    for number in 0..count {
        let name = format!("load-{run}-{client}-{number}");
        let filler = "x".repeat(1000);
        let map = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"a":"{filler}"}}}}"#);
        let patch = |value: u8| format!(r#"{{"data":{{"b":"{value}"}}}}"#);
        for (method, path, media_type, body) in [
            (Method::POST, maps.to_owned(), "application/json", map),
            (Method::PATCH, format!("{maps}/{name}"), "application/merge-patch+json", patch(1)),
            (Method::PATCH, format!("{maps}/{name}"), "application/merge-patch+json", patch(2)),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .header("content-type", media_type)
                .body(Full::new(Bytes::from(body)))?;
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            if !answer.status().is_success() {
                return Err(format!("refused: {}", answer.status()).into());
            }
            answer.into_body().collect().await?;
        }
    }
    Ok(())
}

async fn connect(folder: &Path) -> Outcome<hyper::client::conn::http1::SendRequest<Full<Bytes>>> {
    let port: u16 = std::fs::read_to_string(folder.join("port"))?.trim().parse()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(folder.join("admin.crt"))?],
            PrivateKeyDer::from_pem_file(folder.join("admin.key"))?,
        )?;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost")?, stream)
        .await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
