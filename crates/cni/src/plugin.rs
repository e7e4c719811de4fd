//! The plugin `calico`: has addresses assigned, wires the pod, undoes both.

use crate::compare::{self, Made};
use crate::delegate;
use crate::environment::Command;
use crate::error::{CniError, code};
use crate::invocation::{Invocation, Verbs};
use crate::result::{AddResult, Address, Interface};
use crate::wire::{self, WireError, Wiring};
use std::error::Error as _;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;

/// Where Calico's agent leaves the MTU of pods (dataplane §8).
const MTU_FILE: &str = "/var/lib/calico/mtu";

/// `calico`.
#[derive(Clone, Copy, Debug)]
pub struct Main;

impl From<WireError> for CniError {
    fn from(error: WireError) -> Self {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        let message = format!("{error}: {cause}");
        Self::new(code::PLUGIN, message)
    }
}

/// Name of the host end: from the pod's name, or from the container's id if it is no pod.
fn host_interface(call: &Invocation) -> String {
    match call.environment.arguments.pod() {
        Some((namespace, pod)) => api::attachment::host_interface(namespace, pod),
        None => format!("cali{}", call.environment.container.chars().take(11).collect::<String>()),
    }
}

/// Opens the pod's namespace. `None` when there is none any more.
fn namespace(call: &Invocation) -> Result<Option<File>, CniError> {
    let path = &call.environment.netns;
    if path.is_empty() {
        return Ok(None);
    }
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let message = format!("the network namespace {path} cannot be opened");
            Err(CniError::new(code::PLUGIN, message).because(&error))
        }
    }
}

/// Refuses to wire the plugin's own namespace, before anything is assigned.
fn refuse_own(call: &Invocation, namespace: &File) -> Result<(), CniError> {
    if call.environment.own_namespace_allowed {
        return Ok(());
    }
    let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
    let own = File::open("/proc/thread-self/ns/net").ok();
    match own.as_ref().and_then(identity) {
        Some(own) if identity(namespace) == Some(own) => Err(CniError::new(
            code::OWN_NAMESPACE,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        )),
        _ => Ok(()),
    }
}

fn pod_mtu(call: &Invocation) -> u32 {
    match call.config.mtu {
        0 => std::fs::read_to_string(MTU_FILE).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
        mtu => mtu,
    }
}

/// Adds what was wired to what address management answered.
fn completed(call: &Invocation, host: String, mtu: u32, assigned: AddResult, ips: &[IpAddr]) -> AddResult {
    let environment = &call.environment;
    let mac = wire::pod_mac(&environment.container, &environment.interface);
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let interfaces = vec![
        Interface { name: host, ..Interface::default() },
        Interface {
            name: environment.interface.clone(),
            mac: mac.join(":"),
            mtu,
            sandbox: environment.netns.clone(),
        },
    ];
    let ips = ips.iter().map(|ip| Address {
        address: format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }),
        interface: Some(1),
        gateway: None,
    });
    AddResult { interfaces, ips: ips.collect(), routes: assigned.routes }
}

impl Verbs for Main {
    fn add(&self, call: &Invocation) -> Result<AddResult, CniError> {
        let namespace = namespace(call)?.ok_or_else(|| {
            let message = format!("CNI_NETNS: there is no network namespace {}", call.environment.netns);
            CniError::new(code::BAD_ENVIRONMENT, message)
        })?;
        refuse_own(call, &namespace)?;
        let ipam = &call.config.ipam.kind;
        let undone = |error: CniError| {
            // The addresses go back; why that failed matters less than why the ADD did.
            let _ = delegate::run(call, ipam, Command::Del);
            error
        };
        let assigned = delegate::run(call, ipam, Command::Add)
            .and_then(|printed| AddResult::parse(&printed))
            .map_err(undone)?;
        let ips: Vec<IpAddr> = assigned.ips.iter().filter_map(Address::ip).collect();
        if ips.is_empty() || ips.len() != assigned.ips.len() {
            return Err(undone(CniError::new(code::PLUGIN, "IPAM plugin returned missing IP config")));
        }
        let (host, mtu) = (host_interface(call), pod_mtu(call));
        let wiring = Wiring {
            host: &host,
            interface: &call.environment.interface,
            container: &call.environment.container,
            namespace: &namespace,
            mtu,
            addresses: &ips,
            forwarding: call.config.container_settings.allow_ip_forwarding,
        };
        wire::wire(&wiring).map_err(|error| undone(error.into()))?;
        Ok(completed(call, host, mtu, assigned, &ips))
    }

    /// First the wire, then the address: nobody else may get it while this pod could still use it.
    fn del(&self, call: &Invocation) -> Result<(), CniError> {
        if let Some(namespace) = namespace(call)? {
            refuse_own(call, &namespace)?;
            wire::unwire(&namespace, &call.environment.interface)?;
        }
        delegate::run(call, &call.config.ipam.kind, Command::Del).map(|_| ())
    }

    fn check(&self, call: &Invocation) -> Result<(), CniError> {
        delegate::run(call, &call.config.ipam.kind, Command::Check)?;
        let previous = call.config.previous.clone().unwrap_or_default();
        let previous = AddResult::from_value(previous)?;
        let ips: Vec<IpAddr> = previous.ips.iter().filter_map(Address::ip).collect();
        let interface = &call.environment.interface;
        let namespace = namespace(call)?.ok_or_else(|| {
            let message = format!("the network namespace {} does not exist", call.environment.netns);
            CniError::new(code::DIFFERS, message)
        })?;
        let in_pod = |found: &&Interface| found.name == *interface && !found.sandbox.is_empty();
        let told = previous.interfaces.iter().find(in_pod).cloned().unwrap_or_default();
        let made = Made {
            host: &host_interface(call),
            interface,
            namespace: &namespace,
            addresses: &ips,
            mac: &told.mac,
            mtu: told.mtu,
        };
        let differences = compare::differences(&made)?;
        match differences.is_empty() {
            true => Ok(()),
            false => Err(CniError::new(code::DIFFERS, differences.join("; "))),
        }
    }

    fn status(&self, call: &Invocation) -> Result<(), CniError> {
        delegate::run(call, &call.config.ipam.kind, Command::Status).map(|_| ())
    }

    fn gc(&self, call: &Invocation) -> Result<(), CniError> {
        delegate::run(call, &call.config.ipam.kind, Command::Gc).map(|_| ())
    }
}
