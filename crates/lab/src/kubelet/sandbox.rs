//! A pod's namespaces and their connection to the network, with a record of it on disk: what a kubelet that starts
//! again must know to adopt a pod, and to give back the address of one that is gone.

use super::cni::{self, Attachment, Network};
use super::pod::{Pod, namespaces};
use super::shared::Shared;
use crate::cluster::{Cluster, FILE};
use crate::holder::{self, NETNS_DIRECTORY, NamespaceSpec, RefusalKind};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tracing::{debug, info, warn};

/// Largest record that is read, in bytes.
const SIZE_LIMIT: u64 = 2 << 20;

/// What is known of a pod's sandbox. Written before anything of it is made, and again when it is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Container ID for the CNI plugins.
    pub id: String,
    /// The network it is connected by; `None` in the node's network.
    pub network: Option<Network>,
    /// What the plugins answered to ADD.
    pub result: Option<Value>,
    /// Whether it was made completely.
    pub complete: bool,
}

impl Record {
    fn new(pod: &Pod, network: Option<Network>) -> Self {
        let id: String =
            Sha256::digest(format!("sandbox/{}", pod.uid)).iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            id,
            network,
            result: None,
            complete: false,
        }
    }

    /// Addresses of the pod, or of the node it shares the network with.
    pub(super) fn addresses(&self, shared: &Shared) -> Vec<String> {
        match (&self.network, &self.result) {
            (Some(_), Some(result)) => cni::addresses(result),
            (Some(_), None) => Vec::new(),
            (None, _) => vec![shared.node.address.addr().to_string()],
        }
    }

    fn write(&self, shared: &Shared) -> Result<()> {
        let directory = directory(shared);
        crate::private_file::create_directory(&directory)?;
        let text = serde_json::to_vec(self).context("describing a sandbox")?;
        crate::private_file::write(&path(&directory, &self.uid), &text)
    }

    fn attachment<'a>(&'a self, netns: &'a Path) -> Attachment<'a> {
        Attachment { container: &self.id, netns, namespace: &self.namespace, pod: &self.name, uid: &self.uid }
    }
}

fn directory(shared: &Shared) -> PathBuf {
    shared.directory().join("pods")
}

fn path(directory: &Path, uid: &str) -> PathBuf {
    directory.join(format!("{uid}.json"))
}

fn netns(uid: &str) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(uid)
}

/// The records that an earlier kubelet of this node left.
pub(super) fn records(shared: &Shared) -> Vec<Record> {
    let Ok(entries) = std::fs::read_dir(directory(shared)) else { return Vec::new() };
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        if path.extension()? != "json" || std::fs::metadata(&path).ok()?.len() > SIZE_LIMIT {
            return None;
        }
        let record = serde_json::from_slice(&std::fs::read(&path).ok()?);
        record.inspect_err(|error| warn!(path = %path.display(), %error, "did not read a record")).ok()
    };
    entries.filter_map(read).collect()
}

/// Makes the sandbox of `pod`. Something of it may be left when it fails: [`remove`] takes it away.
///
/// # Errors
/// What the holder or a plugin refused, in its words.
pub(super) async fn create(shared: &Shared, pod: &Pod, record: &mut Option<Record>) -> Result<()> {
    let network = if pod.host_network { None } else { shared.network.borrow().network.clone() };
    let made = record.insert(Record::new(pod, network.as_deref().cloned()));
    made.write(shared)?;
    let spec = namespace_spec(shared, pod);
    let made_namespaces = match shared.holder.create_namespaces(spec.clone()).await {
        // Left by an attempt that a crash interrupted.
        Err(error) if error.kind() == Some(RefusalKind::Exists) => {
            shared.holder.delete_namespaces(&spec.name).await?;
            shared.holder.create_namespaces(spec).await
        }
        answer => answer,
    };
    made_namespaces?;
    if let Some(network) = network {
        let netns = netns(&pod.uid);
        let result = network.add(&made.attachment(&netns), &shared.programs()).await?;
        info!(
            pod = pod.name,
            namespace = pod.namespace,
            address = cni::addresses(&result).join(","),
            "connected a pod"
        );
        made.result = Some(result);
    }
    made.complete = true;
    made.write(shared)
}

/// Takes a sandbox away: address, interface, namespaces. Repeating it does no harm.
///
/// # Errors
/// A plugin's refusal: then the address may still be taken, and it is to be tried again.
pub(super) async fn remove(shared: &Shared, record: &Record) -> Result<()> {
    if let Some(network) = &record.network {
        let netns = netns(&record.uid);
        network.del(&record.attachment(&netns), record.result.as_ref(), &shared.programs()).await?;
    }
    shared.holder.delete_namespaces(&namespaces(&record.uid)).await?;
    match std::fs::remove_file(path(&directory(shared), &record.uid)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("removing the record of a sandbox")?;
        }
        _ => {}
    }
    debug!(pod = record.name, namespace = record.namespace, "removed a sandbox");
    Ok(())
}

fn namespace_spec(shared: &Shared, pod: &Pod) -> NamespaceSpec {
    let cluster = &shared.cluster;
    let resolv = PathBuf::from("/etc/resolv.conf");
    let mut files = BTreeMap::new();
    let (hostname, network) = if pod.host_network {
        files.insert(PathBuf::from("/etc/hosts"), cluster.hosts_file());
        if pod.cluster_dns {
            files.insert(resolv, cluster.pod_resolv_conf(&pod.namespace));
        }
        (shared.node.name.clone(), holder::Network::SameAs(Some(shared.node.namespaces())))
    } else {
        files.insert(PathBuf::from("/etc/hosts"), hosts_file());
        files.insert(resolv, cluster.pod_resolv_conf(&pod.namespace));
        (pod.hostname.clone(), holder::Network::Empty)
    };
    files.insert(PathBuf::from("/etc/hostname"), format!("{hostname}\n"));
    // The lab directory has the keys, and so has the user's kubeconfig, which is written after this process started.
    let described = Cluster::read(&cluster.directory.join(FILE)).ok();
    let kubeconfig = described.and_then(|cluster| cluster.kubeconfig);
    NamespaceSpec {
        name: pod.namespaces(),
        hostname,
        network,
        files,
        confined: true,
        hide: std::iter::once(cluster.directory.clone()).chain(kubeconfig).collect(),
    }
}

fn hosts_file() -> String {
    "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        .to_owned()
}

/// Adds the pod's own name to its hosts file. Its address is known only after the file is in place, so this goes
/// through the eyes of a process that sees it, `pid`.
pub(super) fn name_itself(pid: i32, pod: &Pod, addresses: &[String]) {
    if pod.host_network || addresses.is_empty() {
        return;
    }
    let mut text = hosts_file();
    for address in addresses {
        text.push_str(&format!("{address}\t{}\n", pod.hostname));
    }
    let file = format!("/proc/{pid}/root/etc/hosts");
    // Only over the file that was put there for it: a process of ours may see the host's own.
    if std::fs::read_to_string(&file).ok().as_deref() != Some(&hosts_file()) {
        return;
    }
    if let Err(error) = std::fs::write(file, text) {
        debug!(pod = pod.name, %error, "did not write the pod's own name into its hosts file");
    }
}
