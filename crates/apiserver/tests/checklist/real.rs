//! A real kube-apiserver beside ours: from `KUBEBUILDER_ASSETS`, over an etcd of its own, with the same authority.

use crate::support::{Client, Lab};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running kube-apiserver with its etcd; both end with it.
pub(crate) struct Real {
    children: Vec<Child>,
    address: SocketAddr,
}

impl Drop for Real {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that ended by itself is no harm.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(program: &Path, arguments: &[String], log: PathBuf) -> Child {
    let log = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Real {
    /// Starts one, where there is one, with the certificates of `lab`. A hasty one's etcd does not wait for the disk.
    pub(crate) async fn start(lab: &Lab, is_hasty: bool) -> Option<Self> {
        // An empty name is none, as for the shell that set it.
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty())?;
        let assets = PathBuf::from(assets);
        let folder = lab.folder.path();
        let (etcd, peers, port) = (free_port(), free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let file = |name: &str| folder.join(name).display().to_string();
        let stored = [
            format!("--data-dir={}", file("etcd")),
            format!("--listen-client-urls={}", url(etcd)),
            format!("--advertise-client-urls={}", url(etcd)),
            format!("--listen-peer-urls={}", url(peers)),
            format!("--unsafe-no-fsync={is_hasty}"),
        ];
        let served = [
            format!("--etcd-servers={}", url(etcd)),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            format!("--cert-dir={}", file("self-signed")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--anonymous-auth=false".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
        ];
        let accounts = rcgen::KeyPair::generate().unwrap();
        std::fs::write(file("accounts.key"), accounts.serialize_pem()).unwrap();
        std::fs::write(file("accounts.pub"), accounts.public_key_pem()).unwrap();
        let children = vec![
            start(&assets.join("etcd"), &stored, folder.join("etcd.log")),
            start(&assets.join("kube-apiserver"), &served, folder.join("kube-apiserver.log")),
        ];
        let mut real = Self { children, address: (Ipv4Addr::LOCALHOST, port).into() };
        let client = real.client(lab);
        loop {
            let ready = client.try_send(http::Method::GET, "/readyz", &[], bytes::Bytes::new()).await;
            if ready.is_ok_and(|answer| answer.code == 200) {
                return Some(real);
            }
            let ended = real.children.iter_mut().any(|child| child.try_wait().unwrap().is_some());
            let log = || std::fs::read_to_string(folder.join("kube-apiserver.log")).unwrap();
            assert!(!ended, "{}", log());
            // What is waited for is another process's start, of which nothing tells.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// The administrator, at the real server.
    pub(crate) fn client(&self, lab: &Lab) -> Client {
        lab.admin().at(self.address)
    }
}
