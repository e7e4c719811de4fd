//! The node agent: one process per node that owns the node's allocations and its dataplane.
//!
//! ```text
//!   plugins ──unix socket──► service ──► driver (ipam::agent) ──► datastore
//!                                          │ ▲                         ▲
//!                                          │ └► releases ──► the node's disk, while the datastore is away
//!                                          │ what is known             │ watches
//!                                          ▼                           │
//!                       dataplane_sync ──► kernel, Node object, network configuration
//! ```
//!
//! What decides is elsewhere and pure: [`ipam::agent`] which request gets which address, [`dataplane::plan`] which routes
//! there are. This crate wires them, and runs on one thread.

mod annotations;
mod cni_conf;
mod dataplane_sync;
pub mod direct;
mod driver;
mod health;
mod host_address;
mod listen;
pub mod log;
mod node_object;
mod registry;
mod release_log;
mod releases;
mod service;
mod silence;
mod tunnel;
mod upkeep;

pub use cni_conf::FILE as CNI_CONF_FILE;
pub use listen::{Listen, ListenError};
pub use release_log::LogError;

use dataplane_sync::DataplaneSync;
use datastore::backend::{Backend, Settings, SettingsError};
use datastore::gate::Gate;
use driver::Driver;
use futures::FutureExt as _;
use health::Health;
use registry::Registry;
use releases::Releases;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing::info;

/// What the agent has to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the node, as its Node object has it.
    pub node_name: String,
    /// Which datastore, and how it is reached.
    pub datastore: Settings,
    /// The socket to serve on.
    pub listen: Listen,
    /// Directory that the network configuration is written to.
    pub cni_conf_dir: PathBuf,
    /// Path at which plugins find the socket; it is written into the network configuration.
    pub cni_plugin_socket: PathBuf,
    /// Directory in which releases are kept that the datastore could not take; its path is this node's alone. `None`: none
    /// are kept, and a DEL fails while the datastore is away.
    pub state_dir: Option<PathBuf>,
    /// MTU of pods' interfaces in bytes; `None`: what the host's network leaves.
    pub mtu: Option<u32>,
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no socket to serve on.
    #[error("the agent has no socket to serve on")]
    Listen(#[from] ListenError),
    /// There is no way to the datastore.
    #[error("the agent cannot use its datastore settings")]
    Connect(#[from] SettingsError),
    /// There is nowhere to keep releases.
    #[error("the agent has nowhere to keep releases")]
    Releases(#[from] LogError),
    /// The kernel cannot be reached.
    #[error("the agent cannot talk to the kernel about routes: it must run as root of its namespaces")]
    Kernel(#[from] dataplane::ApplyError),
    /// Something else that the system did not give.
    #[error("the agent could not {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Runs the agent until it is asked to end by SIGTERM or SIGINT. One thread is enough for it.
///
/// It logs to standard output unless a log is set up already.
///
/// # Errors
/// [`RunError`] if it could not start. A store or kernel that fails later is tried again.
pub async fn run(options: Options) -> Result<(), RunError> {
    log::init();
    let store = options.datastore.connect().await?;
    serve(options, store).await
}

/// As [`run`], with a store that is there already, and without setting up a log.
///
/// # Errors
/// As [`run`].
pub async fn serve(options: Options, store: Backend) -> Result<(), RunError> {
    let listener = listen::listen(&options.listen)?;
    let system = |what| move |source| RunError::System { what, source };
    let listener = tokio::net::UnixListener::from_std(listener).map_err(system("listen on its socket"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for signals"))?;
    info!(node = options.node_name, "starting");
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(system("open a netlink socket"))?;
    tokio::spawn(connection);
    let health = Arc::new(Health::default());
    let registry = Registry::new(store.clone(), options.datastore.client(&store).await?);
    let releases = Releases::open(options.state_dir.as_deref(), store.clone(), Arc::clone(&health)).await?;
    let upkeep = service::Upkeep {
        store: Gate::new(store.clone()),
        node: options.node_name.clone(),
        registry: registry.clone(),
    };
    let (driver, door) =
        Driver::new(&options.node_name, store, registry.clone(), releases, Arc::clone(&health));
    let sync = DataplaneSync::new(options.clone(), door.clone(), Arc::clone(&health), registry, netlink)?;
    // They end with this call, also where it is dropped: the next agent takes over what they hold.
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run().map(|()| "keep its state"));
    tasks.spawn(sync.run().map(|()| "keep the dataplane"));
    let server = axum::serve(listener, service::router(door, health, upkeep));
    tokio::select! {
        served = server => served.map_err(system("serve its socket"))?,
        _ = terminate.recv() => info!(node = options.node_name, "asked to end"),
        _ = tokio::signal::ctrl_c() => info!(node = options.node_name, "interrupted"),
        // Neither ends by itself: without either the node is of no use, and whoever supervises starts it anew.
        Some(ended) = tasks.join_next() => return Err(ended_early(ended)),
    }
    Ok(())
}

fn ended_early(ended: Result<&'static str, tokio::task::JoinError>) -> RunError {
    match ended {
        Ok(what) => RunError::System { what, source: io::Error::other("a task ended by itself") },
        Err(error) => RunError::System { what: "go on", source: io::Error::other(error) },
    }
}
