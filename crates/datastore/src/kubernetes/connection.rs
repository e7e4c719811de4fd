//! Connections to the API, each of which is asked for a sign of life when nothing moves on it.
//!
//! A watch is quiet for minutes. Where the path to the server died without a word (a machine that is off, a translator of
//! addresses that forgot the connection), only that tells it from one on which nothing happens.

use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use std::time::Duration;
use tower::{BoxError, ServiceBuilder};

/// A connection on which nothing moves is asked this long after the last sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Between two questions that were not answered.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// Questions without an answer after which it is given up.
const KEEP_ALIVE_RETRIES: u32 = 3;

/// How long what was sent may wait for the other side's receipt.
const RECEIPT: Duration = Duration::from_secs(20);

/// A client of the API that `config` describes. It tries nothing twice by itself.
pub(super) fn client(config: Config) -> Result<Client, kube::Error> {
    // How to go through a proxy is the library's business.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEP_ALIVE));
    connector.set_keepalive_interval(Some(KEEP_ALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
    connector.set_tcp_user_timeout(Some(RECEIPT));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: Http<_, Body> = Http::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
