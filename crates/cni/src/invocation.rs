//! One call of a plugin: environment and standard input in, JSON and an exit code out.

use crate::config::{NetworkConfig, SUPPORTED_VERSIONS};
use crate::environment::{Command, Environment};
use crate::error::{CniError, code};
use crate::result::AddResult;
use serde::Serialize as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

/// Configurations beyond this many bytes are refused.
const INPUT_LIMIT: u64 = 1 << 20;

/// A call whose envelope has been checked.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The variables.
    pub environment: Environment,
    /// The configuration.
    pub config: NetworkConfig,
    /// The configuration as it came, for delegates.
    pub input: Vec<u8>,
}

/// What a plugin does for each verb.
pub trait Verbs {
    /// Attaches a container.
    ///
    /// # Errors
    /// Whatever keeps it from being attached; nothing is left behind then.
    fn add(&self, call: &Invocation) -> Result<AddResult, CniError>;

    /// Detaches a container; one that is not attached counts as detached.
    ///
    /// # Errors
    /// What must be tried again.
    fn del(&self, call: &Invocation) -> Result<(), CniError>;

    /// Compares an attachment with the earlier result.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, call: &Invocation) -> Result<(), CniError>;

    /// Tells whether ADD can be served.
    ///
    /// # Errors
    /// Code 50 when it cannot, 51 when containers that run may suffer as well.
    fn status(&self, call: &Invocation) -> Result<(), CniError>;

    /// Removes what belongs to no attachment.
    ///
    /// # Errors
    /// What could not be removed.
    fn gc(&self, call: &Invocation) -> Result<(), CniError>;
}

/// Runs a plugin as the process's `main`: `about` is what it is called to a person who runs it by hand.
#[must_use]
pub fn run(about: &str, verbs: &dyn Verbs) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    if std::env::args().nth(1).as_deref() == Some("-v") {
        print(&format!("{version}\n"));
        return ExitCode::SUCCESS;
    }
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut cni_version = String::new();
    let outcome = match Environment::read(&variables) {
        Ok(None) => {
            let mut error = std::io::stderr();
            let _ = writeln!(
                error,
                "{about} {version}\nCNI protocol versions supported: {}",
                SUPPORTED_VERSIONS.join(", ")
            );
            return ExitCode::SUCCESS;
        }
        Ok(Some(environment)) => serve(environment, verbs, &mut cni_version),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            print(&pretty(&result));
            ExitCode::SUCCESS
        }
        Err(mut error) => {
            if cni_version.is_empty() {
                "1.1.0".clone_into(&mut cni_version);
            }
            error.cni_version = cni_version;
            print(&pretty(&json!(error)));
            ExitCode::FAILURE
        }
    }
}

fn serve(
    environment: Environment,
    verbs: &dyn Verbs,
    cni_version: &mut String,
) -> Result<Option<Value>, CniError> {
    // Room for an ordinary configuration, so that it is read at once.
    let mut input = Vec::with_capacity(4096);
    std::io::stdin()
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut input)
        .map_err(|error| CniError::new(code::IO, "error reading from stdin").because(&error))?;
    if input.len() as u64 > INPUT_LIMIT {
        let message = format!("the network configuration is longer than {INPUT_LIMIT} bytes");
        return Err(CniError::new(code::DECODE, message));
    }
    if environment.command == Command::Version {
        // The version that was asked in is echoed where there is one.
        let asked: Option<Value> = serde_json::from_slice(&input).ok();
        let asked = asked.as_ref().and_then(|value| value.get("cniVersion")?.as_str());
        let spoken = asked.unwrap_or("1.1.0");
        return Ok(Some(json!({"cniVersion": spoken, "supportedVersions": SUPPORTED_VERSIONS})));
    }
    let config = NetworkConfig::parse(&input)?;
    config.cni_version.clone_into(cni_version);
    let since = |version: &str| match config.speaks(version) {
        true => Ok(()),
        false => {
            let verb = environment.command.as_str();
            let message =
                format!("config version does not allow {verb}; set cniVersion to {version} or later");
            Err(CniError::new(code::INCOMPATIBLE_VERSION, message))
        }
    };
    match environment.command {
        Command::Check => since("0.4.0")?,
        Command::Gc | Command::Status => since("1.1.0")?,
        Command::Add | Command::Del | Command::Version => {}
    }
    let call = Invocation { environment, config, input };
    match call.environment.command {
        Command::Add => verbs.add(&call).map(|result| Some(result.render(&call.config.cni_version))),
        Command::Del => verbs.del(&call).map(|()| None),
        Command::Check => verbs.check(&call).map(|()| None),
        Command::Status => verbs.status(&call).map(|()| None),
        Command::Gc => verbs.gc(&call).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// JSON as Calico's plugins print it: four spaces, no newline at the end.
fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}

/// The only place that writes to standard output. A runtime that closed it does not want to hear more.
fn print(text: &str) {
    // Not through the standard library's buffer, which breaks the text at its last line.
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(std::io::stdout(), rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
