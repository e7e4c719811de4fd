//! Runs one agent by hand, against any API server: `agent NODE KUBECONFIG DIRECTORY`.
//!
//! The socket and the network configuration go into the directory. It changes routes and rules of the network namespace
//! that it runs in: give it one of its own, `unshare --user --map-root-user --net`.

use node::{Listen, Options};
use std::path::PathBuf;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(node_name), Some(kubeconfig), Some(directory)) = (words.next(), words.next(), words.next())
    else {
        return Err("usage: agent NODE KUBECONFIG DIRECTORY".into());
    };
    let directory = PathBuf::from(directory);
    let socket = directory.join("agent.sock");
    let options = Options {
        node_name,
        datastore: datastore::backend::Settings::kubernetes(Some(kubeconfig.into())),
        listen: Listen::Path(socket.clone()),
        cni_conf_dir: directory.join("net.d"),
        cni_plugin_socket: socket,
        state_dir: Some(directory.join("state")),
        mtu: None,
    };
    Ok(node::run(options).await?)
}
