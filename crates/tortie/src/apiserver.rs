//! `tortie apiserver`: the Kubernetes API over one durable file, its backup and its restoration.

use crate::arguments::{Apiserver, ApiserverTask, Serving};
use crate::{inherited, serve};
use anyhow::{Context as _, bail};
use lab::standalone::Home;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(part: Apiserver) -> anyhow::Result<()> {
    match part.task {
        None => serve_api(part.serving),
        Some(ApiserverTask::Kubeconfig { data }) => {
            let path = Home(data).kubeconfig();
            let text = std::fs::read(&path)
                .with_context(|| format!("reading {}; a server makes it when it starts", path.display()))?;
            Ok(std::io::stdout().write_all(&text)?)
        }
        Some(ApiserverTask::Backup { data, to }) => backup(&Home(data), &to),
        Some(ApiserverTask::Restore { data, from }) => restore(&Home(data), &from),
    }
}

/// Sockets that were handed over, or one of our own.
fn listeners(listen: SocketAddr) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = inherited::tcp()?;
    if listeners.is_empty() {
        let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn serve_api(part: Serving) -> anyhow::Result<()> {
    let listeners = listeners(part.listen)?;
    let address = listeners.first().context("no socket to listen on")?.local_addr()?;
    let (data_file, pki_dir, sockets) = match (part.data, part.data_file, part.pki_dir) {
        (Some(data), ..) => {
            let home = Home(data);
            let service = first_address(&part.service_cidr)?;
            home.prepare(address, service.into(), &part.names)?;
            let path = std::path::absolute(home.kubeconfig())?;
            // The way to the key, not the key: what is printed here may be kept in a journal.
            writeln!(std::io::stdout(), "export KUBECONFIG={}", path.display())?;
            (home.data_file(), home.pki(), home.0.join("kubelets"))
        }
        (None, Some(data_file), Some(pki_dir)) => {
            let sockets = part.kubelet_sockets.clone().context("--kubelet-sockets is missing")?;
            (data_file, pki_dir, sockets)
        }
        _ => bail!("say where the data is: --data DIR"),
    };
    serve(async {
        let options = ::apiserver::Options {
            data_file,
            pki_dir,
            listeners,
            kubelet_socket_dir: part.kubelet_sockets.unwrap_or(sockets),
            service_cidr: part.service_cidr,
            server_version: part.server_version,
            advertise: part.advertise,
            guards: vec![Arc::new(lab::records_guard::RecordsGuard)],
        };
        Ok(::apiserver::run(options).await?)
    })
}

/// Address of the service `kubernetes`: the first of the range.
fn first_address(cidr: &str) -> anyhow::Result<Ipv4Addr> {
    let network = cidr.split_once('/').and_then(|(address, _)| address.parse::<Ipv4Addr>().ok());
    let network =
        network.with_context(|| format!("{cidr:?} is not an IPv4 range: write it as 10.96.0.0/16"))?;
    Ok(Ipv4Addr::from(u32::from(network).wrapping_add(1)))
}

fn backup(home: &Home, to: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let taken = runtime.block_on(home.backup(to))?;
    Ok(writeln!(std::io::stdout(), "{} objects at revision {}", taken.len(), taken.revision())?)
}

fn restore(home: &Home, from: &Path) -> anyhow::Result<()> {
    let (count, revision) = home.restore(from)?;
    Ok(writeln!(
        std::io::stdout(),
        "{count} objects; the server begins at revision {revision}: tortie apiserver --data {}",
        home.0.display()
    )?)
}
