//! Where the etcd of a Calico installation is and how to be let in: Calico's own variables and fields.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How long one call may take, unless set otherwise. About as long as the election of a new leader: what was on its way to the old
/// one is never answered, and only when it is given up can it be looked for and made again.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Operations in one transaction that an etcd takes unless its `--max-txn-ops` says otherwise.
const OPERATIONS: usize = 128;

/// A certificate or key: a file, or its PEM text.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// Read when the driver is made.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Text(_) => f.write_str("(text)"),
        }
    }
}

/// A user and its password, where etcd's authentication is on.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// `ETCD_USERNAME`.
    pub user: String,
    /// `ETCD_PASSWORD`.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What the driver is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `http://host:port` or `https://host:port`, each a member of one cluster; tried in this order.
    pub endpoints: Vec<String>,
    /// Who signed the servers' certificates. `None`: the system's authorities.
    pub authority: Option<Pem>,
    /// The client's certificate and its key, together or not at all.
    pub identity: Option<(Pem, Pem)>,
    /// User and password, if any.
    pub login: Option<Login>,
    /// How long one call may take.
    pub deadline: Duration,
    /// Operations in one transaction (`--max-txn-ops` of the servers) to begin with: the servers' answers teach more.
    pub operations: usize,
}

/// Settings that make no driver.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Nothing says where etcd is.
    #[error("no etcd endpoint is named: set ETCD_ENDPOINTS, such as https://10.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint that is no address.
    #[error("{endpoint:?} is no etcd endpoint: write it as http://host:port or https://host:port")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// A user and perhaps a password where everybody would read them.
    #[error("an etcd endpoint names a user: name it in ETCD_USERNAME and ETCD_PASSWORD instead")]
    Userinfo,
    /// Looking servers up in DNS is not done.
    #[error("ETCD_DISCOVERY_SRV is not supported: name the servers in ETCD_ENDPOINTS")]
    Discovery,
    /// A certificate without a key, or a key without a certificate.
    #[error("only one of ETCD_CERT_FILE and ETCD_KEY_FILE is set: set both, or none")]
    HalfIdentity,
    /// A file that cannot be read.
    #[error("{path} cannot be read: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificates that TLS does not take.
    #[error("the certificates for {endpoint} cannot be used: {reason}; check that they are PEM")]
    Certificates {
        /// The server meant.
        endpoint: String,
        /// Why.
        reason: String,
    },
}

impl Settings {
    /// The servers named, without TLS or login, with etcd's own limits.
    pub fn of(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            authority: None,
            identity: None,
            login: None,
            deadline: DEADLINE,
            operations: OPERATIONS,
        }
    }

    /// The settings that Calico's variables make. `lookup` tells a variable; an empty one counts as not set.
    ///
    /// Read are `ETCD_ENDPOINTS` (with commas between), `ETCD_CA_CERT_FILE`, `ETCD_CERT_FILE`, `ETCD_KEY_FILE`, their
    /// texts `ETCD_CA_CERT`, `ETCD_CERT` and `ETCD_KEY` (as the fields of a configuration file are called, in this
    /// spelling), `ETCD_USERNAME` and `ETCD_PASSWORD`.
    ///
    /// # Errors
    /// [`SettingsError`] if no endpoint is named, or half an identity.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let pem = |file: &str, text: &str| {
            set(text).map(Pem::Text).or_else(|| set(file).map(|path| Pem::File(path.into())))
        };
        let endpoints: Vec<String> = set("ETCD_ENDPOINTS")
            .unwrap_or_default()
            .split(',')
            .map(|endpoint| endpoint.trim().to_owned())
            .filter(|endpoint| !endpoint.is_empty())
            .collect();
        if endpoints.is_empty() {
            let discovery = set("ETCD_DISCOVERY_SRV").is_some();
            return Err(if discovery { SettingsError::Discovery } else { SettingsError::NoEndpoint });
        }
        let identity = match (pem("ETCD_CERT_FILE", "ETCD_CERT"), pem("ETCD_KEY_FILE", "ETCD_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(SettingsError::HalfIdentity),
        };
        let login = set("ETCD_USERNAME")
            .map(|user| Login { user, password: lookup("ETCD_PASSWORD").unwrap_or_default() });
        Ok(Self {
            authority: pem("ETCD_CA_CERT_FILE", "ETCD_CA_CERT"),
            identity,
            login,
            ..Self::of(endpoints)
        })
    }
}

impl Pem {
    /// The PEM text.
    pub(super) fn read(&self) -> Result<String, SettingsError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|error| SettingsError::File { path: path.clone(), reason: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn calicos_variables_name_servers_certificates_and_login() {
        let settings = from(&[
            ("ETCD_ENDPOINTS", "https://10.0.0.1:2379, https://10.0.0.2:2379,"),
            ("ETCD_CA_CERT_FILE", "/ca"),
            ("ETCD_CERT_FILE", "/cert"),
            ("ETCD_KEY_FILE", "/key"),
            ("ETCD_USERNAME", "calico"),
            ("ETCD_PASSWORD", "secret"),
        ])
        .unwrap();
        assert_eq!(settings.endpoints, ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]);
        assert_eq!(settings.authority, Some(Pem::File("/ca".into())));
        assert_eq!(settings.identity, Some((Pem::File("/cert".into()), Pem::File("/key".into()))));
        assert_eq!(settings.login.as_ref().map(|login| login.user.as_str()), Some("calico"));
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(matches!(from(&[("ETCD_ENDPOINTS", "")]), Err(SettingsError::NoEndpoint)));
        assert!(matches!(from(&[("ETCD_DISCOVERY_SRV", "x.org")]), Err(SettingsError::Discovery)));
        let half = from(&[("ETCD_ENDPOINTS", "http://h:1"), ("ETCD_KEY_FILE", "/key")]);
        assert!(matches!(half, Err(SettingsError::HalfIdentity)));
    }
}
