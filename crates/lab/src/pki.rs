//! The lab's certificates: one authority, the API server's, and one for each component that speaks to it.

use crate::cluster::{Cluster, Role};
use crate::{identities, private_file};
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// How long the authority's certificate is valid, in days: as Kubernetes' own tools have it.
const AUTHORITY_DAYS: i64 = 3650;

/// How long the others are valid, in days.
pub(crate) const LEAF_DAYS: i64 = 365;

/// A component that speaks to the API server: name of its kubeconfig, user and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Name of its kubeconfig file, without the ending.
    pub file: String,
    /// User that the API server sees.
    pub user: String,
    /// Group that the API server sees, if any. (A certificate of rcgen's names one.)
    pub group: Option<&'static str>,
}

/// All components of a cluster.
#[must_use]
pub fn components(cluster: &Cluster) -> Vec<Component> {
    let component = |file: &str, user: &str, group| Component { file: file.into(), user: user.into(), group };
    let mut components = vec![
        component("admin", "kubernetes-admin", Some("system:masters")),
        component("controllers", identities::CONTROLLERS, Some("system:serviceaccounts")),
        component("operator", identities::OPERATOR, Some("system:serviceaccounts")),
        component("controller-manager", "system:kube-controller-manager", None),
    ];
    for node in &cluster.nodes {
        let name = &node.name;
        components.push(component(
            &format!("kubelet-{name}"),
            &format!("system:node:{name}"),
            Some("system:nodes"),
        ));
        let agent = identities::agent(name);
        components.push(component(&format!("node-{name}"), &agent, Some(identities::AGENTS)));
    }
    components
}

/// Makes the authority, the API server's certificate and every component's kubeconfig in the lab directory, and the
/// admin's. Nothing that exists is replaced.
///
/// # Errors
/// When a file cannot be written.
pub fn create(cluster: &Cluster) -> Result<()> {
    let pki = cluster.directory.join("pki");
    private_file::create_directory(&pki)?;
    private_file::create_directory(&cluster.directory.join("kubeconfig"))?;
    let (authority, key) = self::authority()?;
    private_file::write(&pki.join("ca.crt"), authority.as_bytes())?;
    private_file::write(&pki.join("ca.key"), key.as_bytes())?;
    let key = KeyPair::from_pem(&key).context("reading the authority's key")?;
    let issuer = Issuer::from_ca_cert_pem(&authority, key).context("reading the authority's certificate")?;

    let mut params = named("kube-apiserver", None, LEAF_DAYS)?;
    for name in server_names(cluster) {
        let name = match name.parse() {
            Ok(address) => rcgen::SanType::IpAddress(address),
            Err(_) => rcgen::SanType::DnsName(name.try_into().context("naming the API server")?),
        };
        params.subject_alt_names.push(name);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (certificate, key) = issue(params, &issuer)?;
    private_file::write(&pki.join("apiserver.crt"), certificate.as_bytes())?;
    private_file::write(&pki.join("apiserver.key"), key.as_bytes())?;

    for component in components(cluster) {
        let mut params = named(&component.user, component.group, LEAF_DAYS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = issue(params, &issuer)?;
        let server = match component.file.as_str() {
            "admin" => format!("https://{}", cluster.api_server),
            _ => cluster.internal_server(),
        };
        let text = crate::kubeconfig::render(&cluster.context(), &server, &authority, &certificate, &key);
        private_file::write(&cluster.kubeconfig_of(&component.file), text.as_bytes())?;
    }
    Ok(())
}

/// A new authority: its certificate and key.
pub(crate) fn authority() -> Result<(String, String)> {
    let key = KeyPair::generate().context("making the authority's key")?;
    let mut params = named("kubernetes", None, AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).context("signing the authority's certificate")?.pem();
    Ok((certificate, key.serialize_pem()))
}

/// The names and addresses that the API server answers for.
fn server_names(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(cluster.service_address(1).to_string());
    for node in cluster.nodes.iter().filter(|node| node.role == Role::ControlPlane) {
        names.push(node.name.clone());
        names.push(node.address.addr().to_string());
    }
    names
}

pub(crate) fn named(user: &str, group: Option<&str>, days: i64) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // From yesterday on: clocks and time zones differ.
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |days: i64| -> Result<_> {
        let date = today.checked_add(jiff::Span::new().days(days)).context("reading the calendar")?;
        let [month, day] = [date.month(), date.day()].map(i8::unsigned_abs);
        Ok(rcgen::date_time_ymd(date.year().into(), month, day))
    };
    params.not_before = date(-1)?;
    params.not_after = date(days)?;
    Ok(params)
}

pub(crate) fn issue(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)> {
    let key = KeyPair::generate().context("making a key")?;
    let certificate = params.signed_by(&key, issuer).context("signing a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}
