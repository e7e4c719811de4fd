//! The words of the command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Manages Calico's IP pools and addresses.
#[derive(Debug, Parser)]
#[command(
    name = "calicoctl",
    about = "Manage Calico IP pools, blocks and addresses",
    disable_version_flag = true
)]
pub(crate) struct Arguments {
    /// Configuration of the datastore, YAML or JSON.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Taken for scripts of Calico's calicoctl: versions are not compared here.
    #[arg(long, global = true)]
    pub(crate) allow_version_mismatch: bool,
    /// Taken for scripts of Calico's calicoctl: nothing is logged.
    #[arg(short, long, global = true, value_name = "LEVEL", default_value = "panic")]
    pub(crate) log_level: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// IP address management
    #[command(arg_required_else_help = true)]
    Ipam {
        #[command(subcommand)]
        command: Ipam,
    },
    /// The datastore as a whole
    #[command(arg_required_else_help = true)]
    Datastore {
        #[command(subcommand)]
        command: DatastoreCommand,
    },
    /// List resources
    Get(Get),
    /// Show the versions of this command and of the cluster
    Version(Version),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatastoreCommand {
    /// Move the cluster's records to another datastore
    #[command(arg_required_else_help = true)]
    Migrate {
        #[command(subcommand)]
        command: Migrate,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Migrate {
    /// Print everything that is in etcd, to be imported into Kubernetes; the datastore must be locked
    Export {
        /// Take nodes without a reference to a node of Kubernetes too: that has the same name there.
        #[arg(long)]
        keep_node_names: bool,
    },
    /// Write what was exported from etcd into Kubernetes, and leave it locked; run again, it goes on where it stopped
    Import {
        /// The export; - for stdin.
        #[arg(short, long, value_name = "FILE")]
        filename: PathBuf,
    },
    /// Stop every writer of addresses, so that the records can be copied
    Lock,
    /// Let writers go on
    Unlock,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// Show how many addresses are in use, or who has one
    Show(Show),
    /// Look for leaked addresses and broken records
    Check(Check),
    /// Release an address whatever holds it
    Release(Release),
    /// Change the IPAM configuration
    Configure(Configure),
}

#[derive(Debug, Default, Args)]
pub(crate) struct Show {
    /// Show what holds this address.
    #[arg(long, value_name = "IP")]
    pub(crate) ip: Option<String>,
    /// List the blocks of each pool too.
    #[arg(long)]
    pub(crate) show_blocks: bool,
    /// List addresses that nodes have taken from the blocks of others.
    #[arg(long)]
    pub(crate) show_borrowed: bool,
    /// Show the IPAM configuration.
    #[arg(long)]
    pub(crate) show_configuration: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Check {
    /// Print every address that is looked at.
    #[arg(long)]
    pub(crate) show_all_ips: bool,
    /// Print every address with a problem.
    #[arg(long)]
    pub(crate) show_problem_ips: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The address.
    #[arg(long, value_name = "IP")]
    pub(crate) ip: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Configure {
    /// Whether nodes are kept from the blocks of others: true or false.
    #[arg(long, value_name = "BOOL")]
    pub(crate) strictaffinity: Option<String>,
    /// Blocks a node may have; 0 for the built-in 20.
    #[arg(long, value_name = "N")]
    pub(crate) max_blocks_per_host: Option<String>,
    /// Whether virtual machines keep their addresses: Enabled or Disabled.
    #[arg(long, value_name = "MODE")]
    pub(crate) kubevirt_ip_persistence: Option<String>,
    /// Seconds between the release of an address and its next use.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) ip_cooldown_seconds: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Kind: ippool, node, ipreservation, ipamconfig or clusterinformation.
    pub(crate) kind: String,
    /// Names; none: all.
    pub(crate) names: Vec<String>,
    /// ps, wide, yaml or json.
    #[arg(short, long, default_value = "ps", value_name = "FORMAT")]
    pub(crate) output: String,
}

#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Show the version of this command only.
    #[arg(long)]
    pub(crate) client: bool,
}
