//! The words after `tortie`.

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Calico's IP address management for Kubernetes, and the lab in which people learn it.
#[derive(Debug, Parser)]
#[command(
    name = "tortie",
    version,
    after_help = "Examples:\n  eval \"$(tortie lab env)\"        containerlab, kind and calicoctl on PATH, KUBECONFIG set\n  \
                  tortie lab shell                a shell like that\n  \
                  tortie calicoctl ipam show      who uses how many addresses\n\n\
                  Called as containerlab, clab, kind, calicoctl or kubectl-calico, it is that command."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) part: Part,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// The lab: its environment, and the parts that keep it.
    #[command(subcommand)]
    Lab(Lab),
    /// The Kubernetes API over one durable file.
    Apiserver(Apiserver),
    /// The node agent: gives addresses to this node's pods and programs its routes.
    Node(Node),
    /// The CNI plugins of this node.
    #[command(subcommand)]
    Cni(Cni),
    /// Calico's controllers: give back what deleted nodes and vanished pods have left.
    Controllers(Controllers),
    /// The operator: turns the Installation into pools and workloads, and reports by TigeraStatus.
    Operator(Operator),
    /// The lab's kubelet of one node.
    Kubelet(Kubelet),
    /// The lab's workload controllers and scheduler.
    ControllerManager(ControllerManager),
    /// The records as a whole.
    #[command(subcommand)]
    Datastore(Datastore),
    /// Print a completion script.
    ///
    /// Example: tortie completion bash > /etc/bash_completion.d/tortie
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Manual,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cni {
    /// Serve one request of the plugin from the datastore, on a node without an agent (executed by calico-ipam).
    #[command(hide = true)]
    Direct,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Datastore {
    /// Copy all records from one datastore to another: etcd, Kubernetes or the embedded API server.
    ///
    /// Both are named by a configuration file of calicoctl (kind CalicoAPIConfig). Nothing in the target is replaced, and
    /// it is left locked; run again, a copy that was cut short is finished.
    ///
    /// Example: calicoctl datastore migrate lock && tortie datastore copy --from etcd.cfg --to kubernetes.cfg
    Copy(Copy),
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Configuration file of the datastore to read. It must be locked.
    #[arg(long)]
    pub(crate) from: PathBuf,
    /// Configuration file of the datastore to write.
    #[arg(long)]
    pub(crate) to: PathBuf,
    /// Say what would be copied, and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Copy although the source is not locked; what changes in it meanwhile may be missed.
    #[arg(long)]
    pub(crate) unlocked: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Print the settings that put containerlab, kind and calicoctl on PATH: eval "$(tortie lab env)".
    Env,
    /// Start a shell with these settings.
    Shell,
    /// Keep the namespaces, sockets and processes of a lab (started by containerlab deploy).
    #[command(hide = true)]
    Holder(Holder),
    /// Start and restart the parts of a lab (started by containerlab deploy).
    #[command(hide = true)]
    Supervisor {
        /// The lab's description, lab.json.
        #[arg(long)]
        lab_config: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Holder {
    /// The lab directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Already in the lab's namespaces.
    #[arg(long)]
    pub(crate) inside: bool,
    /// Owner of the control socket, UID:GID.
    #[arg(long, value_parser = owner)]
    pub(crate) owner: Option<(u32, u32)>,
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    text.split_once(':')
        .and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)))
        .ok_or_else(|| format!("{text:?} is not UID:GID, such as 1000:1000"))
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tortie apiserver --data /var/lib/tortie &\n  \
                  export KUBECONFIG=/var/lib/tortie/admin.kubeconfig\n  \
                  tortie apiserver backup --data /var/lib/tortie --to backup\n  \
                  tortie apiserver restore --data /var/lib/tortie-2 --from backup"
)]
pub(crate) struct Apiserver {
    #[command(subcommand)]
    pub(crate) task: Option<ApiserverTask>,
    #[command(flatten)]
    pub(crate) serving: Serving,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ApiserverTask {
    /// Print the administrator's kubeconfig of a server. It holds a key.
    Kubeconfig {
        /// The server's folder.
        #[arg(long)]
        data: PathBuf,
    },
    /// Write all that a running server holds, at one revision, to a file.
    Backup {
        /// The server's folder.
        #[arg(long)]
        data: PathBuf,
        /// The file; it must not exist.
        #[arg(long)]
        to: PathBuf,
    },
    /// Make the folder of a new server from a backup.
    Restore {
        /// The new server's folder; it must hold no server.
        #[arg(long)]
        data: PathBuf,
        /// The backup.
        #[arg(long)]
        from: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serving {
    /// Folder of a server by itself: data, certificates and admin.kubeconfig; made if missing.
    #[arg(long, required_unless_present = "data_file", conflicts_with_all = ["data_file", "pki_dir"])]
    pub(crate) data: Option<PathBuf>,
    /// Further names and addresses that the server is known by.
    #[arg(long = "name", requires = "data")]
    pub(crate) names: Vec<String>,
    /// The durable file; made if missing.
    #[arg(long, requires = "pki_dir")]
    pub(crate) data_file: Option<PathBuf>,
    /// Folder with ca.crt, apiserver.crt and apiserver.key.
    #[arg(long, requires = "data_file")]
    pub(crate) pki_dir: Option<PathBuf>,
    /// Folder with a unix socket NODE.sock for each kubelet.
    #[arg(long)]
    pub(crate) kubelet_sockets: Option<PathBuf>,
    /// Addresses of services.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: String,
    /// Version to report.
    #[arg(long, default_value = "v1.28.0")]
    pub(crate) server_version: String,
    /// Where to listen; not used if sockets are handed over (LISTEN_FDS).
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub(crate) listen: SocketAddr,
    /// Address of the API for nodes and pods.
    #[arg(long)]
    pub(crate) advertise: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct Controllers {
    /// Credentials and address of the API server. Without it: KUBECONFIG. The datastore is chosen by Calico's variables
    /// (DATASTORE_TYPE, ETCD_ENDPOINTS and so on).
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Operator {
    /// Credentials and address of the API server.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// A network that nodes are in, where no pool may be. Can be repeated.
    #[arg(long = "node-network")]
    pub(crate) node_networks: Vec<api::Cidr>,
}

#[derive(Debug, Args)]
pub(crate) struct Kubelet {
    /// The lab's description, lab.json.
    #[arg(long)]
    pub(crate) lab_config: PathBuf,
    /// Name of the node.
    #[arg(long)]
    pub(crate) node: String,
    /// Credentials and address of the API server.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ControllerManager {
    /// Credentials and address of the API server.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// The lab's description, lab.json.
    #[arg(long)]
    pub(crate) cluster_config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Node {
    /// Name of the node, as its Node object has it.
    #[arg(long)]
    pub(crate) node_name: String,
    /// Credentials and address of the API server. Without it: KUBECONFIG. The datastore is chosen by Calico's variables
    /// (DATASTORE_TYPE, ETCD_ENDPOINTS and so on).
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Folder that the network configuration is written to.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Path at which plugins find the agent's socket.
    #[arg(long, default_value = "/run/tortie/ipam.sock")]
    pub(crate) cni_plugin_socket: PathBuf,
    /// Make the socket at this path. Without it, the socket that was handed over (LISTEN_FDS) is used.
    #[arg(long)]
    pub(crate) listen: Option<PathBuf>,
    /// Folder, of this node alone, in which releases are kept that the datastore could not take. Without it none are kept, and
    /// a DEL fails while the datastore is away.
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// MTU of pods' interfaces in bytes. Without it: what the host's network leaves.
    #[arg(long)]
    pub(crate) mtu: Option<u32>,
}
