//! The API server by itself: its certificates and the administrator's kubeconfig, in one folder with its data.
//!
//! ```text
//! DIR/cluster.redb        everything that is stored
//! DIR/pki/ca.{crt,key}    the authority, made once
//! DIR/pki/apiserver.*     the server's certificate, made anew at each start
//! DIR/admin.kubeconfig    the administrator's, made anew at each start
//! ```

use crate::{kubeconfig, pki, private_file};
use anyhow::{Context as _, Result, ensure};
use apiserver::Backup;
use http_body_util::BodyExt as _;
use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use std::io::{BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The folder of a server.
#[derive(Clone, Debug)]
pub struct Home(pub PathBuf);

impl Home {
    /// The durable file.
    #[must_use]
    pub fn data_file(&self) -> PathBuf {
        self.0.join("cluster.redb")
    }

    /// The certificates' folder.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }

    /// Makes what is missing, and the certificates of a server that listens on `address` and answers for `names`, too.
    ///
    /// # Errors
    /// When a file cannot be written, or the authority cannot be read.
    pub fn prepare(&self, address: SocketAddr, service: IpAddr, names: &[String]) -> Result<()> {
        private_file::create_directory(&self.0)?;
        private_file::create_directory(&self.pki())?;
        let (certificate, key) = (self.pki().join("ca.crt"), self.pki().join("ca.key"));
        if !certificate.exists() {
            let (authority, authority_key) = pki::authority()?;
            private_file::write(&key, authority_key.as_bytes())?;
            private_file::write(&certificate, authority.as_bytes())?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let authority = read(&certificate)?;
        let key = KeyPair::from_pem(&read(&key)?).context("reading the authority's key")?;
        let issuer =
            Issuer::from_ca_cert_pem(&authority, key).context("reading the authority's certificate")?;

        // A server that listens everywhere is reached from here by the loopback.
        let near = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
        let mut params = pki::named("kube-apiserver", None, pki::LEAF_DAYS)?;
        for address in [near, Ipv4Addr::LOCALHOST.into(), service] {
            params.subject_alt_names.push(SanType::IpAddress(address));
        }
        let own = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        for name in own.iter().map(|name| (*name).to_owned()).chain(names.iter().cloned()) {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    name.as_str().try_into().with_context(|| format!("{name:?} is no name"))?,
                ),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = pki::issue(params, &issuer)?;
        private_file::write(&self.pki().join("apiserver.crt"), certificate.as_bytes())?;
        private_file::write(&self.pki().join("apiserver.key"), key.as_bytes())?;

        let mut params = pki::named("kubernetes-admin", Some("system:masters"), pki::LEAF_DAYS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = pki::issue(params, &issuer)?;
        let server = format!("https://{}", SocketAddr::new(near, address.port()));
        let text = kubeconfig::render("tortie", &server, &authority, &certificate, &key);
        private_file::write(&self.kubeconfig(), text.as_bytes())
    }

    /// Writes all that the running server holds to a file, which must not exist, and returns it.
    ///
    /// # Errors
    /// When the server cannot be asked, what it sends is not whole, or the file cannot be written.
    pub async fn backup(&self, to: &Path) -> Result<Backup> {
        let client = datastore::kubernetes::client(Some(&self.kubeconfig())).await?;
        let request = http::Request::get("/backup").body(kube::client::Body::empty())?;
        let answer = client.send(request).await.context("asking the server for a backup")?;
        ensure!(
            answer.status().is_success(),
            "the server answered {} to the question for a backup",
            answer.status()
        );
        let bytes = answer.into_body().collect().await.context("reading the backup")?.to_bytes();
        // Read as it will be read one day: a backup that is not whole is not kept.
        let taken = Backup::read(&bytes[..])?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .with_context(|| format!("making {}", to.display()))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("writing {}", to.display()))?;
        Ok(taken)
    }

    /// Makes the durable file of a new server from a backup. Returns how many keys it has and at which revision it begins.
    ///
    /// # Errors
    /// When the backup is not whole, or there is a durable file already.
    pub fn restore(&self, from: &Path) -> Result<(usize, u64)> {
        let file = std::fs::File::open(from).with_context(|| format!("reading {}", from.display()))?;
        let backup = Backup::read(BufReader::new(file))?;
        let count = backup.len();
        private_file::create_directory(&self.0)?;
        Ok((count, backup.restore(&self.data_file())?))
    }
}
