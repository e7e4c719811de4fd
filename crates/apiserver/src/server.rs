//! The server's shared state, and how it listens.

use crate::addresses::Addresses;
use crate::error::Status;
use crate::guard::Guard;
use crate::identity::{self, PkiError, User};
use crate::metrics::Metrics;
use crate::node_restriction::NodeRestriction;
use crate::objects;
use crate::policy::{Policy, Roles};
use crate::registry::Registry;
use crate::resource::Resource;
use crate::stalled::Patient;
use crate::turns::Turns;
use crate::{bootstrap, custom, garbage, handler, lifecycle};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use storage::{CommitError, Limits, Store};
use tokio::task::JoinSet;

/// How a server is run.
#[derive(Debug)]
pub struct Options {
    /// The durable file; made when it is missing.
    pub data_file: PathBuf,
    /// Folder with `ca.crt`, `apiserver.crt` and `apiserver.key`.
    pub pki_dir: PathBuf,
    /// Where to listen.
    pub listeners: Vec<std::net::TcpListener>,
    /// Folder with a unix socket `<node>.sock` for each kubelet.
    pub kubelet_socket_dir: PathBuf,
    /// Addresses of services, as `10.96.0.0/16`.
    pub service_cidr: String,
    /// As `v1.28.0`.
    pub server_version: String,
    /// Address of the API for pods and nodes: the endpoint of the service `kubernetes`.
    pub advertise: Option<SocketAddr>,
    /// What judges changes besides the roles and [`NodeRestriction`].
    pub guards: Vec<Arc<dyn Guard>>,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The durable file.
    #[error("the API server cannot open its data file")]
    Store(#[from] storage::OpenError),
    /// The certificates.
    #[error("the API server cannot use its certificates")]
    Pki(#[from] PkiError),
    /// A listener.
    #[error("the API server cannot listen: pass it sockets that are bound and listening")]
    Listen(#[source] std::io::Error),
    /// The addresses of services.
    #[error("{0:?} is not an IPv4 range for services: write it as 10.96.0.0/16")]
    ServiceCidr(String),
    /// The first objects could not be written.
    #[error("the API server cannot write its first objects: {0}")]
    Bootstrap(Status),
}

/// Where the definitions of custom kinds are kept.
pub(crate) const DEFINITIONS: &str = "/apiextensions.k8s.io/customresourcedefinitions/";

/// State that all requests share.
#[derive(Debug)]
pub struct Server {
    pub(crate) store: Store,
    registry: RwLock<Arc<Registry>>,
    /// Kinds by the name of the definition that serves them.
    definitions: Mutex<BTreeMap<String, Vec<Arc<Resource>>>>,
    pub(crate) addresses: Addresses,
    pub(crate) turns: Turns,
    pub(crate) guards: Vec<Arc<dyn Guard>>,
    pub(crate) metrics: Metrics,
    /// Kept until a role or binding changes.
    policy: RwLock<Option<Arc<Policy>>>,
    pub(crate) kubelet_socket_dir: PathBuf,
    pub(crate) version: String,
    pub(crate) authority: String,
    pub(crate) advertise: Option<SocketAddr>,
}

impl Server {
    /// Opens the store and knows the definitions in it.
    ///
    /// # Errors
    /// [`ServeError`] when the store or an option cannot be used.
    pub fn open(options: &Options) -> Result<Arc<Self>, ServeError> {
        Self::over(Store::open(&options.data_file, Limits::default())?, options)
    }

    /// As [`Server::open`], over a store that is open.
    pub(crate) fn over(store: Store, options: &Options) -> Result<Arc<Self>, ServeError> {
        let addresses = Addresses::new(&options.service_cidr, &store)
            .ok_or_else(|| ServeError::ServiceCidr(options.service_cidr.clone()))?;
        let server = Arc::new(Self {
            store,
            registry: RwLock::default(),
            definitions: Mutex::default(),
            addresses,
            turns: Turns::default(),
            guards: [Arc::new(NodeRestriction) as Arc<dyn Guard>]
                .into_iter()
                .chain(options.guards.iter().cloned())
                .collect(),
            metrics: Metrics::default(),
            policy: RwLock::default(),
            kubelet_socket_dir: options.kubelet_socket_dir.clone(),
            version: options.server_version.clone(),
            authority: std::fs::read_to_string(options.pki_dir.join("ca.crt")).unwrap_or_default(),
            advertise: options.advertise,
        });
        for (key, _) in server.store.list(DEFINITIONS, None, 0).entries {
            server.refresh_definition(key.strip_prefix(DEFINITIONS).unwrap_or_default());
        }
        Ok(server)
    }

    /// Who may do what, as the stored roles and bindings say.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        if let Some(policy) = &*self.policy.read().unwrap_or_else(PoisonError::into_inner) {
            return Arc::clone(policy);
        }
        // Read under the lock: a change that is made meanwhile forgets what is kept here afterwards.
        let mut kept = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        let all = |plural: &str| -> Vec<Value> {
            let listing = self.store.list(&format!("/rbac.authorization.k8s.io/{plural}/"), None, 0);
            listing.entries.iter().map(|(_, entry)| objects::decode(entry)).collect()
        };
        let policy = Arc::new(Policy::new(&Roles {
            cluster_roles: all("clusterroles"),
            cluster_role_bindings: all("clusterrolebindings"),
            roles: all("roles"),
            role_bindings: all("rolebindings"),
        }));
        *kept = Some(Arc::clone(&policy));
        policy
    }

    /// Reads the roles and bindings again before they are asked the next time.
    pub(crate) fn forget_policy(&self) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The kinds served now.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves the kinds of a definition as it is stored now, or no longer.
    ///
    /// Whoever changed a definition calls this afterwards. The store is read under the lock, so that of two changes
    /// the later one is what is served, in whatever order their tasks come here.
    pub(crate) fn refresh_definition(&self, name: &str) {
        let mut definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = self.store.get(&format!("{DEFINITIONS}{name}")).map(|entry| objects::decode(&entry));
        let kinds = match stored.filter(custom::is_established).map(|stored| custom::resources(&stored)) {
            Some(Ok(kinds)) => kinds,
            Some(Err(status)) => {
                tracing::error!(name, error = %status, "a stored definition cannot be served");
                Vec::new()
            }
            None => Vec::new(),
        };
        if kinds.is_empty() {
            definitions.remove(name);
        } else {
            definitions.insert(name.to_owned(), kinds);
        }
        self.serve_only(&definitions);
    }

    /// Stops serving the kinds of a definition that is about to be removed.
    pub(crate) fn withdraw_definition(&self, name: &str) {
        let mut definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        definitions.remove(name);
        self.serve_only(&definitions);
    }

    fn serve_only(&self, definitions: &BTreeMap<String, Vec<Arc<Resource>>>) {
        let registry = Arc::new(Registry::new(definitions));
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = registry;
    }

    /// Kinds served by other definitions than `name`.
    pub(crate) fn other_definitions(&self, name: &str) -> Vec<Arc<Resource>> {
        let definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        definitions.iter().filter(|(known, _)| *known != name).flat_map(|(_, kinds)| kinds.clone()).collect()
    }

    /// A built-in kind of version v1.
    pub(crate) fn builtin(&self, group: &str, plural: &str) -> Result<Arc<Resource>, Status> {
        let missing = || Status::internal(format_args!("{plural} are not served"));
        self.registry().find(group, "v1", plural).cloned().ok_or_else(missing)
    }
}

/// What a failed commit means to a client who did not lose a race.
pub(crate) fn unwritten(error: &CommitError) -> Status {
    match error {
        CommitError::Unavailable { .. } | CommitError::Closed => Status::unavailable(error.to_string()),
        CommitError::TooLarge { limit, .. } => Status::too_large(*limit),
        CommitError::Conflict { .. } => Status::internal(error),
    }
}

/// Serves until the process ends, or the future is dropped.
///
/// # Errors
/// [`ServeError`] when it cannot start.
pub async fn run(options: Options) -> Result<(), ServeError> {
    let tls = identity::tls(&options.pki_dir)?;
    let server = Server::open(&options)?;
    bootstrap::run(&server).await.map_err(ServeError::Bootstrap)?;
    // Everything runs below this future, so that dropping it closes the store.
    let mut tasks = JoinSet::new();
    tasks.spawn(garbage::run(Arc::clone(&server)));
    tasks.spawn(lifecycle::run(Arc::clone(&server)));
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    for listener in options.listeners {
        listener.set_nonblocking(true).map_err(ServeError::Listen)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Listen)?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, revision = server.store.revision(), "serving the Kubernetes API");
        }
        tasks.spawn(accept(listener, acceptor.clone(), Arc::clone(&server)));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, acceptor: tokio_rustls::TlsAcceptor, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small answers must not wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&server)));
            }
            Err(error) => {
                // Out of descriptors, for instance: pause, so that open connections can end.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How long a client may take for the handshake, and a watcher for anything of what it is sent.
const PATIENCE: Duration = Duration::from_secs(30);

async fn connection(stream: tokio::net::TcpStream, acceptor: tokio_rustls::TlsAcceptor, server: Arc<Server>) {
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let user =
        Arc::new(certificate.and_then(|der| User::from_certificate(der)).unwrap_or_else(User::anonymous));
    let service = hyper::service::service_fn(move |request| {
        handler::handle(Arc::clone(&server), Arc::clone(&user), request)
    });
    let stream = Patient::new(stream, PATIENCE);
    let scope = stream.scope();
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let served = scope.serving(served).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}
