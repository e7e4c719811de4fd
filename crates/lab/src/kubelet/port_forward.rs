//! Port-forward: each connection is a pair of SPDY streams, copied to and from a port in the pod's network.

use super::pod::namespaces;
use super::shared::PodEntry;
use super::spdy::{Session, Stream};
use crate::holder::NETNS_DIRECTORY;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::debug;

/// Name of the protocol.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";

/// Longest wait for the port to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Halves of connections that wait for the other half.
const HALVES: usize = 64;

/// Serves a connection that was switched to SPDY/3.1 until the client closes it.
pub(super) async fn serve<T>(connection: T, target: PodEntry)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(connection);
    let mut halves: BTreeMap<String, Stream> = BTreeMap::new();
    while let Some(stream) = session.next().await {
        let request = stream.header("requestid").to_owned();
        let Some(other) = halves.remove(&request) else {
            if halves.len() < HALVES {
                halves.insert(request, stream);
            }
            continue;
        };
        let (data, error) =
            if stream.header("streamtype") == "data" { (stream, other) } else { (other, stream) };
        let network = (!target.pod.host_network).then(|| network(&target.pod.uid));
        tokio::spawn(async move {
            let port = data.header("port").to_owned();
            if let Err(reason) = forward(data, network).await {
                debug!(port, reason = format!("{reason:#}"), "did not forward a port");
                let text = format!("error forwarding port {port} to the pod: {reason:#}");
                error.sender.send(Bytes::from(text)).await;
            }
            error.sender.finish().await;
        });
    }
}

fn network(uid: &str) -> PathBuf {
    let name = namespaces(uid);
    PathBuf::from(NETNS_DIRECTORY).join(name.rsplit('/').next().unwrap_or_default())
}

async fn forward(mut data: Stream, network: Option<PathBuf>) -> Result<()> {
    let port: u16 = data.header("port").parse().context("the port is no number")?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A namespace is entered on a thread that ends afterwards.
    std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || {
            // Nobody waits when the client has gone.
            let _ = sender.send(connect(network, port));
        })
        .context("starting a thread")?;
    let stream = receiver.await.context("connecting")??;
    stream.set_nonblocking(true).context("connecting")?;
    let (mut read, mut write) = tokio::net::TcpStream::from_std(stream).context("connecting")?.into_split();
    let sender = data.sender.clone();
    let upward = async {
        while let Some(bytes) = data.received.recv().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let downward = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = read.read(&mut buffer).await?;
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            if count == 0 || !sender.send(bytes).await {
                sender.finish().await;
                return Ok::<(), std::io::Error>(());
            }
        }
    };
    let (up, down) = tokio::join!(upward, downward);
    up.context("sending")?;
    down.context("receiving")
}

fn connect(network: Option<PathBuf>, port: u16) -> Result<TcpStream> {
    if let Some(path) = network {
        let file = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the pod's network")?;
    }
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), DEADLINE)
        .with_context(|| format!("connecting to 127.0.0.1:{port} in the pod"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_port_is_reached_and_a_closed_one_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut stream = connect(None, port).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        drop(listener);
        let error = connect(None, port).unwrap_err();
        assert!(format!("{error:#}").contains(&format!("127.0.0.1:{port}")), "{error:#}");
    }
}
