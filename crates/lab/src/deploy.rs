//! Making a lab, or completing one that is there.

use crate::cluster::{API_PORT, BRIDGE, Cluster, Node, UNDERLAY};
use crate::console::{self, Level};
use crate::holder::{self, Client, Endpoint, ListenSpec, NamespaceSpec, Network, RefusalKind};
use crate::known::{self, Known, Lock};
use crate::supervisor::{AGENT_SOCKETS, API_ID, KUBELET_SOCKETS, OWN_ID};
use crate::{bootstrap, destroy, kubeconfig, pki, private_file, supervisor};
use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// How long the API server may take until it answers.
const API_PATIENCE: Duration = Duration::from_secs(30);

/// How often the API server may end before it is given up.
const API_ATTEMPTS: u32 = 3;

/// How long the nodes may take until they are registered.
const NODE_PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(25);

/// A step of the deployment, as kind shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The image's name was understood; nothing is fetched.
    EnsuringImage,
    /// Namespaces and network of the nodes.
    PreparingNodes,
    /// Certificates and kubeconfigs.
    WritingConfiguration,
    /// API server and controllers.
    StartingControlPlane,
    /// The default storage class and the other first objects.
    InstallingStorageClass,
    /// The kubelets register their nodes.
    JoiningNodes,
    /// The nodes become Ready.
    WaitingForReady,
}

/// What a deployment tells while it is under way.
pub trait Progress {
    /// `step` begins.
    fn begin(&mut self, step: Step);
    /// The step that began last is done.
    fn done(&mut self);
    /// The wait for Ready ended: after how long, or `None` when it took too long.
    fn ready(&mut self, after: Option<Duration>);
}

/// What to deploy.
#[derive(Clone, Debug)]
pub struct Request {
    /// The cluster. Its directory is where the lab directory is wanted; port 0 takes a free one.
    pub cluster: Cluster,
    /// How long to wait for Ready nodes; zero does not wait.
    pub wait: Duration,
}

/// What a deployment did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The lab was made.
    Created(Box<Cluster>),
    /// It was there; what was missing was started again.
    Completed(Box<Cluster>),
}

impl Outcome {
    /// The lab.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        match self {
            Self::Created(cluster) | Self::Completed(cluster) => cluster,
        }
    }
}

/// The directory that a lab of this name gets beside its topology, or in the user's state directory where that place
/// cannot be written.
///
/// # Errors
/// When the user has no home directory either.
pub fn directory_for(lab: &str, beside: Option<&Path>) -> Result<PathBuf> {
    let name = format!("clab-{lab}");
    let base = std::env::var_os("CLAB_LABDIR_BASE").map(PathBuf::from).filter(|base| base.is_absolute());
    if let Some(base) = base.as_deref().or(beside) {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        let writable = rustix::fs::access(base, access).is_ok();
        // The lab has a /run of its own, which would cover the directory.
        if writable && !base.starts_with("/run") && !base.starts_with("/var/run") {
            return Ok(base.join(name));
        }
    }
    Ok(known::state_directory()?.join(name))
}

/// Deploys a lab. One that fails or is interrupted is removed again.
///
/// # Errors
/// With what was not possible and, where known, what to do.
pub async fn deploy(request: Request, progress: &mut dyn Progress) -> Result<Outcome> {
    let lock = loop {
        let lock = Lock::take()?;
        refuse_duplicates(&request.cluster)?;
        let Some(known) = known::by_lab(&request.cluster.lab)? else { break lock };
        match known.read_cluster() {
            Ok(cluster) if known.holder().is_some() => {
                complete(&cluster).await?;
                return Ok(Outcome::Completed(Box::new(cluster)));
            }
            // What a crash left: nothing of it runs any more. With the last lab the directory of the lock goes, too.
            _ => destroy::clean(&known, &lock)?,
        }
    };
    let Request { mut cluster, wait } = request;
    if cluster.directory.exists() || holder::Running::find(&cluster.directory).is_some() {
        destroy::clean(&destroy::unknown(&cluster), &lock)?;
    }
    let mut terminate = signal(SignalKind::terminate()).context("watching for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for signals")?;
    let mut known = Known {
        lab: cluster.lab.clone(),
        cluster: cluster.name.clone(),
        directory: cluster.directory.clone(),
        made: Vec::new(),
        kubeconfig: None,
        made_for_kubeconfig: Vec::new(),
    };
    let work = async {
        let api = create(&mut cluster, &mut known, &lock, progress).await?;
        // The lab is complete: other labs need not wait until its nodes are Ready.
        drop(lock);
        wait_for_ready(&api, &cluster, wait, progress).await;
        Ok(())
    };
    let made = tokio::select! {
        made = work => made,
        _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = made {
        show_logs(&cluster);
        let lock = Lock::take()?;
        if let Err(left) = destroy::clean(&known, &lock) {
            return Err(error.context(format!("and removing it again failed: {left:#}")));
        }
        return Err(error);
    }
    Ok(Outcome::Created(Box::new(cluster)))
}

fn refuse_duplicates(cluster: &Cluster) -> Result<()> {
    let Some(other) = known::by_cluster(&cluster.name)? else { return Ok(()) };
    if other.lab != cluster.lab && other.directory.exists() {
        bail!(
            "{}: topology.nodes: node(s) already exist for a cluster with the name {:?} (lab {:?}); destroy that lab or \
             rename the node",
            cluster.topology.display(),
            cluster.name,
            other.lab
        );
    }
    let moved = other.read_cluster().is_ok_and(|there| there.topology != cluster.topology);
    if other.lab == cluster.lab && moved && other.holder().is_some() {
        bail!(
            "the '{}' lab has already been deployed. Destroy the lab before deploying a lab with the same name: \
             containerlab destroy --name {}",
            cluster.lab,
            cluster.lab
        );
    }
    Ok(())
}

/// With `--debug`, shows the ends of the logs, which are removed with the lab.
fn show_logs(cluster: &Cluster) {
    for component in ["holder", "supervisor", "apiserver"] {
        let text = std::fs::read_to_string(cluster.log(component)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(10)) {
            console::log(Level::Debug, line, &[("log", component)]);
        }
    }
}

async fn create(
    cluster: &mut Cluster,
    known: &mut Known,
    lock: &Lock,
    progress: &mut dyn Progress,
) -> Result<kube::Client> {
    progress.begin(Step::EnsuringImage);
    progress.done();

    progress.begin(Step::PreparingNodes);
    known.made = lock.made().to_vec();
    known.made.extend(known::make_directory(&cluster.directory)?.into_iter().skip(1));
    std::fs::set_permissions(&cluster.directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .context("guarding the lab directory")?;
    cluster.write()?;
    lock.remember(known)?;
    holder::start(&cluster.program, &cluster.directory, known::sudo_owner())?;
    let client = Client::connect(&cluster.directory).await?;
    let address = client
        .listen(ListenSpec {
            name: "apiserver/host".into(),
            endpoint: Endpoint::Tcp { address: cluster.api_server, namespaces: None },
        })
        .await
        .context("choose another apiServerPort")?;
    cluster.api_server = address.parse().context("reading the API server's address")?;
    cluster.write()?;
    // Keys take as long as namespaces: side by side.
    let described = cluster.clone();
    let keys = tokio::task::spawn_blocking(move || pki::create(&described));
    prepare_nodes(&client, cluster).await?;
    progress.done();

    progress.begin(Step::WritingConfiguration);
    for directory in ["data", "nodes"] {
        private_file::create_directory(&cluster.directory.join(directory))?;
    }
    for node in &cluster.nodes {
        private_file::create_directory(&cluster.cni_directory(&node.name))?;
    }
    keys.await.context("making keys")??;
    let target = cluster.kubeconfig.clone().or_else(kubeconfig::user_file);
    progress.done();

    progress.begin(Step::StartingControlPlane);
    start_supervisor(&client, cluster).await?;
    let api = datastore::kubernetes::client(Some(&cluster.kubeconfig_of("admin"))).await?;
    wait_for_api(&api, &client, cluster).await?;
    progress.done();

    progress.begin(Step::InstallingStorageClass);
    bootstrap::apply(&api, cluster).await?;
    progress.done();

    progress.begin(Step::JoiningNodes);
    wait_for_nodes(&api, cluster, NODE_PATIENCE, |_| true).await?;
    if let Some(target) = target {
        let text =
            std::fs::read_to_string(cluster.kubeconfig_of("admin")).context("reading the kubeconfig")?;
        cluster.kubeconfig = Some(target.clone());
        known.kubeconfig = Some(target.clone());
        known.made_for_kubeconfig = kubeconfig::merge(&target, &text)?;
        lock.remember(known)?;
    }
    cluster.write()?;
    progress.done();

    if let Some((user, group)) = known::sudo_owner() {
        give(&cluster.directory, user, group)?;
    }
    Ok(api)
}

async fn wait_for_ready(api: &kube::Client, cluster: &Cluster, wait: Duration, progress: &mut dyn Progress) {
    if wait.is_zero() {
        return;
    }
    progress.begin(Step::WaitingForReady);
    let since = Instant::now();
    let ready = wait_for_nodes(api, cluster, wait, is_ready).await.is_ok();
    progress.ready(ready.then(|| since.elapsed()));
}

/// Makes the underlay, the nodes' namespaces and all listeners.
async fn prepare_nodes(client: &Client, cluster: &Cluster) -> Result<()> {
    if !client.namespaces(UNDERLAY).await?.iter().any(|name| name == UNDERLAY) {
        create_set(client, underlay()).await?;
    }
    try_join_all(cluster.nodes.iter().map(|node| create_set(client, node_set(cluster, node)))).await?;
    let mut listeners = vec![];
    if let Some(node) = cluster.control_plane() {
        let address = (Ipv4Addr::UNSPECIFIED, API_PORT).into();
        listeners.push(ListenSpec {
            name: "apiserver/node".into(),
            endpoint: Endpoint::Tcp { address, namespaces: Some(node.namespaces()) },
        });
    }
    for Node { name, .. } in &cluster.nodes {
        for (kind, directory) in [("ipam", AGENT_SOCKETS), ("kubelet", KUBELET_SOCKETS)] {
            let path = Path::new(directory).join(format!("{name}.sock"));
            listeners.push(ListenSpec { name: format!("{kind}/{name}"), endpoint: Endpoint::Unix { path } });
        }
    }
    try_join_all(listeners.into_iter().map(|listener| client.listen(listener))).await?;
    Ok(())
}

async fn create_set(client: &Client, spec: NamespaceSpec) -> Result<()> {
    match client.create_namespaces(spec).await {
        Err(error) if error.kind() == Some(RefusalKind::Exists) => Ok(()),
        other => Ok(other?),
    }
}

/// First address of the lab's network: the bridge's own, and every node's gateway.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

fn underlay() -> NamespaceSpec {
    let gateway6 = Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, 1);
    let addresses = vec![IpNet::new_assert(GATEWAY.into(), 16), IpNet::new_assert(gateway6.into(), 64)];
    NamespaceSpec {
        name: UNDERLAY.into(),
        hostname: UNDERLAY.into(),
        network: Network::Bridge { name: BRIDGE.into(), addresses },
        files: BTreeMap::new(),
        confined: false,
        hide: Vec::new(),
    }
}

fn node_set(cluster: &Cluster, node: &Node) -> NamespaceSpec {
    let number = match node.address.addr() {
        IpAddr::V4(address) => u32::from(address) & 0xffff,
        IpAddr::V6(_) => 0,
    };
    let files = [
        ("/etc/hosts", cluster.hosts_file()),
        ("/etc/hostname", format!("{}\n", node.name)),
        ("/etc/resolv.conf", format!("nameserver {GATEWAY}\noptions ndots:0\n")),
    ];
    NamespaceSpec {
        name: node.namespaces(),
        hostname: node.name.clone(),
        network: Network::Uplink {
            underlay: UNDERLAY.into(),
            bridge: BRIDGE.into(),
            port: format!("veth{number}"),
            addresses: vec![node.address, node.address6],
            gateways: vec![GATEWAY.into()],
        },
        files: files.into_iter().map(|(path, content)| (PathBuf::from(path), content)).collect(),
        confined: false,
        hide: Vec::new(),
    }
}

async fn start_supervisor(client: &Client, cluster: &Cluster) -> Result<()> {
    let config = cluster.directory.join(crate::cluster::FILE).display().to_string();
    let spec =
        supervisor::part(cluster, OWN_ID, "supervisor", &["lab", "supervisor", "--lab-config", &config]);
    match client.spawn(spec).await {
        Err(error) if error.kind() == Some(RefusalKind::Exists) => Ok(()),
        other => other.map(drop).context("starting the supervisor"),
    }
}

/// Starts again what a running lab misses.
async fn complete(cluster: &Cluster) -> Result<()> {
    let client = Client::connect(&cluster.directory).await?;
    prepare_nodes(&client, cluster).await?;
    start_supervisor(&client, cluster).await?;
    let api = datastore::kubernetes::client(Some(&cluster.kubeconfig_of("admin"))).await?;
    wait_for_api(&api, &client, cluster).await?;
    // One that was killed just before this deployment may still have counted as running above.
    start_supervisor(&client, cluster).await?;
    bootstrap::apply(&api, cluster).await?;
    if let Some(target) = &cluster.kubeconfig {
        let text =
            std::fs::read_to_string(cluster.kubeconfig_of("admin")).context("reading the kubeconfig")?;
        kubeconfig::merge(target, &text)?;
    }
    Ok(())
}

async fn wait_for_api(api: &kube::Client, holder: &Client, cluster: &Cluster) -> Result<()> {
    tokio::select! {
        answered = api_answers(api) => answered,
        ended = part_ended(holder, cluster) => ended,
        () = tokio::time::sleep(API_PATIENCE) => bail!(
            "the API server at https://{} does not answer: {}",
            cluster.api_server,
            last_words(cluster, "apiserver")
        ),
    }
}

async fn api_answers(api: &kube::Client) -> Result<()> {
    loop {
        let request = http::Request::get("/readyz").body(Vec::new()).context("making a request")?;
        // The holder listens from the start: a request waits there until the server takes it.
        if api.request_text(request).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns only when waiting is useless: the API server ended again and again, or the supervisor gave up by itself.
/// A supervisor that was killed is started again.
async fn part_ended(holder: &Client, cluster: &Cluster) -> Result<()> {
    let mut watch = holder.watch("").await?;
    let mut ends = 0;
    loop {
        let state = watch.next().await?;
        let Some(exit) = state.exit else { continue };
        if state.id == OWN_ID && exit.signal.is_some() {
            start_supervisor(holder, cluster).await?;
            continue;
        }
        let part = if state.id == OWN_ID { "supervisor" } else { "apiserver" };
        ends += u32::from(state.id == API_ID);
        if state.id == OWN_ID || ends >= API_ATTEMPTS {
            let how = match (exit.code, exit.signal) {
                (Some(code), _) => format!("code {code}"),
                (None, signal) => format!("signal {}", signal.unwrap_or_default()),
            };
            bail!("the lab's {part} ended with {how}: {}", last_words(cluster, part));
        }
    }
}

fn last_words(cluster: &Cluster, part: &str) -> String {
    let log = std::fs::read_to_string(cluster.log(part)).unwrap_or_default();
    log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("its log is empty").to_owned()
}

/// Waits until every node is there and `accepted`.
async fn wait_for_nodes(
    api: &kube::Client,
    cluster: &Cluster,
    patience: Duration,
    accepted: fn(&Value) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let request = http::Request::get("/api/v1/nodes").body(Vec::new()).context("making a request")?;
        let list = tokio::time::timeout_at(deadline, api.request::<Value>(request)).await;
        let missing: Vec<&str> = match &list {
            Ok(Ok(list)) => {
                let nodes = list.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let there = |node: &&Node| {
                    let name = |value: &Value| {
                        value.pointer("/metadata/name") == Some(&Value::from(node.name.as_str()))
                    };
                    !nodes.iter().any(|value| name(value) && accepted(value))
                };
                cluster.nodes.iter().filter(there).map(|node| node.name.as_str()).collect()
            }
            _ => cluster.nodes.iter().map(|node| node.name.as_str()).collect(),
        };
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "after {} s these nodes have not joined: {}; see the kubelets' logs with containerlab deploy --debug",
                patience.as_secs(),
                missing.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type") == Some(&"Ready".into()) && condition.get("status") == Some(&"True".into())
    })
}

/// Gives a directory and everything in it to a user.
fn give(path: &Path, user: u32, group: u32) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(user), Some(group))
        .with_context(|| format!("giving {} to its owner", path.display()))?;
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        for entry in std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The lesson's cluster.
    pub(crate) fn lesson() -> Cluster {
        let roles =
            [crate::cluster::Role::ControlPlane, crate::cluster::Role::Worker, crate::cluster::Role::Worker];
        let mut config = crate::kind_config::KindConfig::single_node();
        let template = config.nodes.remove(0);
        config.nodes = roles.map(|role| crate::kind_config::NodeConfig { role, ..template.clone() }).to_vec();
        Cluster {
            lab: "calico-ipam".into(),
            name: "calico-ipam".into(),
            topology: "/lessons/calico-ipam.clab.yaml".into(),
            directory: "/lessons/clab-calico-ipam".into(),
            program: "/usr/bin/tortie".into(),
            version: "v1.28.0".into(),
            nodes: config.nodes_of("calico-ipam", None),
            pod_subnet: "192.168.0.0/16".parse().unwrap(),
            service_subnet: "10.96.0.0/16".parse().unwrap(),
            kube_proxy_mode: "iptables".into(),
            api_server: "127.0.0.1:6443".parse().unwrap(),
            kubeconfig: None,
            owner: "student".into(),
            created: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn each_node_gets_its_wire() {
        let cluster = lesson();
        let worker = node_set(&cluster, cluster.node("calico-ipam-worker").unwrap());
        assert_eq!(worker.name, "node/calico-ipam-worker");
        let Network::Uplink { port, addresses, .. } = worker.network else { panic!("no uplink") };
        assert_eq!(port, "veth2");
        assert_eq!(addresses[0].to_string(), "172.18.0.2/16");
        assert!(worker.files[Path::new("/etc/hosts")].contains("172.18.0.3\tcalico-ipam-control-plane\n"));
    }
}
