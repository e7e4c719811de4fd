//! From desired state to the kernel: reads what is there, writes the difference, touches nothing else.
//!
//! Order of a complete pass: sysctls, devices with addresses, neighbours and FDB entries, routes, nftables; what is
//! not wanted any more goes in the reverse order. Between complete passes, which come at least every [`RESYNC`], only
//! the routes of pods that came or went are written, without reading anything.

use crate::desired::{Desired, Report, Route, Target};
use crate::failure::ApplyError;
use crate::kernel::Kernel;
use crate::links::Link;
use crate::routes::{KernelRoute, Ownership, RouteKey};
use crate::{links, nft, routes, vxlan};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tracing::{debug, info};

/// After this long, an apply reads the whole kernel even if nothing seems to have changed (dataplane §1, device check).
pub const RESYNC: Duration = Duration::from_secs(10);
/// How long a pod's route that nobody asked for is left alone: the plugin writes it before anyone knows of the pod.
const STRANGER_GRACE: Duration = Duration::from_secs(10);
/// How often the presence of our rules is checked.
const NFT_RESYNC: Duration = Duration::from_secs(90);

/// Brings the kernel to the desired state.
///
/// A second call with the same value writes nothing, and within [`RESYNC`] reads nothing either. A route or entry
/// that the kernel refuses is named in [`Report::skipped`] and does not keep others from being written.
///
/// # Errors
/// [`ApplyError::Netlink`] if tables cannot be read or a device cannot be made; [`ApplyError::Nft`] if the rules were
/// refused, all else being in place then. The next call makes a complete pass.
///
/// # Cancellation
/// Dropping the future leaves a part written; the next call completes it.
pub async fn apply(kernel: &mut Kernel, desired: &Desired) -> Result<Report, ApplyError> {
    let now = Instant::now();
    let last = kernel.last.take();
    if let Some((previous, at)) = &last
        && now.duration_since(*at) < RESYNC
        && differs_in_pods_only(previous, desired)
    {
        let report = pods(kernel, previous, desired).await;
        kernel.last = Some((desired.clone(), *at));
        return Ok(report);
    }
    let report = complete(kernel, desired, now).await?;
    kernel.last = Some((desired.clone(), now));
    if report.changed() {
        info!(
            routes_set = report.routes_set,
            routes_removed = report.routes_removed,
            devices = report.devices_created + report.devices_removed + report.devices_changed,
            neighbours = report.neighbours_set + report.neighbours_removed,
            nft = report.nft_applied,
            "applied dataplane"
        );
    }
    for skipped in &report.skipped {
        debug!(reason = %skipped, "left out of dataplane");
    }
    Ok(report)
}

fn is_pod(route: &Route) -> bool {
    matches!(route.target, Target::Pod { .. })
}

/// Whether two desired states are equal but for the routes to pods of this node.
fn differs_in_pods_only(previous: &Desired, desired: &Desired) -> bool {
    let others = |desired: &Desired| {
        desired.routes.values().filter(|route| !is_pod(route)).cloned().collect::<Vec<Route>>()
    };
    previous.vxlan == desired.vxlan
        && previous.nft == desired.nft
        && previous.absent_devices == desired.absent_devices
        && previous.sysctls == desired.sysctls
        && (previous.routes == desired.routes || others(previous) == others(desired))
}

/// Writes the routes of pods that came or went since the last apply.
async fn pods(kernel: &mut Kernel, previous: &Desired, desired: &Desired) -> Report {
    let mut report = Report::default();
    let came = desired.routes.values().filter(|route| is_pod(route));
    for route in came.filter(|route| previous.routes.get(&route.destination) != Some(*route)) {
        match route.device().map(vxlan::index_of) {
            Some(Ok(index)) => set_route(kernel, &KernelRoute::of(route, Some(index)), &mut report).await,
            // The plugin is still making the interface, and sets the route itself.
            _ => report.skipped.push(format!("{route}: its interface does not exist")),
        }
    }
    let went = previous.routes.values().filter(|route| is_pod(route));
    for route in went.filter(|route| !desired.routes.contains_key(&route.destination)) {
        // Without the interface there is no route any more.
        if let Some(Ok(index)) = route.device().map(vxlan::index_of) {
            remove_route(kernel, &KernelRoute::of(route, Some(index)), &mut report).await;
        }
    }
    report
}

async fn set_route(kernel: &mut Kernel, route: &KernelRoute, report: &mut Report) {
    match routes::set(&mut kernel.netlink, route).await {
        Ok(()) => report.routes_set += 1,
        Err(error) => report.skipped.push(format!("route to {}: {error}", route.destination)),
    }
}

async fn remove_route(kernel: &mut Kernel, route: &KernelRoute, report: &mut Report) {
    match routes::remove(&mut kernel.netlink, route).await {
        Ok(()) => report.routes_removed += 1,
        Err(error) => report.skipped.push(format!("removing route to {}: {error}", route.destination)),
    }
}

async fn complete(kernel: &mut Kernel, desired: &Desired, now: Instant) -> Result<Report, ApplyError> {
    let mut report = Report::default();
    sysctls(desired, &mut report);
    let links = links::read(&mut kernel.netlink).await?;
    let mut tunnels: BTreeMap<&str, u32> = BTreeMap::new();
    for device in &desired.vxlan {
        if let Some(index) = vxlan::ensure(&mut kernel.netlink, device, &links, &mut report).await? {
            tunnels.insert(device.name, index);
        }
    }
    peers(kernel, desired, &tunnels, &mut report).await?;
    table(kernel, desired, &links, &tunnels, now, &mut report).await?;
    for link in links.iter().filter(|link| desired.absent_devices.contains(link.name.as_str())) {
        vxlan::delete(&mut kernel.netlink, &link.name, link.index).await?;
        report.devices_removed += 1;
    }
    rules(kernel, desired, now, &mut report).await?;
    Ok(report)
}

/// Writes what differs. A sysctl that cannot be read or written is left: some kernels or containers lack them.
fn sysctls(desired: &Desired, report: &mut Report) {
    for (name, value) in &desired.sysctls {
        let path = Path::new("/proc/sys").join(name);
        match std::fs::read_to_string(&path) {
            Ok(found) if found.trim() == *value => {}
            Ok(_) => match std::fs::write(&path, value) {
                Ok(()) => report.sysctls_written += 1,
                Err(error) => report.skipped.push(format!("sysctl {name}: {error}")),
            },
            Err(error) => report.skipped.push(format!("sysctl {name}: {error}")),
        }
    }
}

async fn peers(
    kernel: &mut Kernel,
    desired: &Desired,
    tunnels: &BTreeMap<&str, u32>,
    report: &mut Report,
) -> Result<(), ApplyError> {
    if tunnels.is_empty() {
        return Ok(());
    }
    let mut listed = vxlan::read(&mut kernel.netlink).await?;
    for device in &desired.vxlan {
        let Some(index) = tunnels.get(device.name) else { continue };
        let found = listed.remove(index).unwrap_or_default();
        let (set, remove) = vxlan::diff(&found, &vxlan::entries(device));
        for entry in set {
            match vxlan::set(&mut kernel.netlink, *index, entry).await {
                Ok(()) => report.neighbours_set += 1,
                Err(error) => report.skipped.push(format!("{entry:?} on {}: {error}", device.name)),
            }
        }
        for entry in remove {
            match vxlan::remove(&mut kernel.netlink, *index, entry).await {
                Ok(()) => report.neighbours_removed += 1,
                Err(error) => report.skipped.push(format!("removing {entry:?} on {}: {error}", device.name)),
            }
        }
    }
    Ok(())
}

/// Brings the main table to the desired routes.
async fn table(
    kernel: &mut Kernel,
    desired: &Desired,
    links: &[Link],
    tunnels: &BTreeMap<&str, u32>,
    now: Instant,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let by_name: BTreeMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut names: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    names.extend(tunnels.iter().map(|(name, index)| (*index, *name)));
    let mut wanted = Vec::new();
    for route in desired.routes.values() {
        let device = match route.device() {
            None => None,
            Some(name) => match (tunnels.get(name), by_name.get(name)) {
                (Some(index), _) => Some(*index),
                (None, Some(link)) if link.up => Some(link.index),
                _ => {
                    report.skipped.push(format!("{route}: its interface is missing or down"));
                    continue;
                }
            },
        };
        wanted.push(KernelRoute::of(route, device));
    }
    let listed = routes::read(&mut kernel.netlink).await?.into_iter().map(|route| {
        let name = route.device.and_then(|index| names.get(&index)).copied();
        let ownership = routes::ownership(&route, name);
        (route, ownership)
    });
    let changes = routes::diff(listed.collect::<Vec<(KernelRoute, Ownership)>>(), wanted);
    for destination in changes.occupied {
        report
            .skipped
            .push(format!("route to {destination}: someone else's is in its place; remove that one"));
    }
    for route in &changes.set {
        set_route(kernel, route, report).await;
    }
    for route in &changes.remove {
        remove_route(kernel, route, report).await;
    }
    let known = std::mem::take(&mut kernel.strangers);
    let mut strangers: BTreeMap<RouteKey, Instant> = BTreeMap::new();
    for route in &changes.unknown {
        let since = known.get(&route.key()).copied().unwrap_or(now);
        if now.duration_since(since) >= STRANGER_GRACE {
            remove_route(kernel, route, report).await;
        } else {
            strangers.insert(route.key(), since);
        }
    }
    kernel.strangers = strangers;
    Ok(())
}

/// Runs the script if it changed or our rules are not there any more.
async fn rules(
    kernel: &mut Kernel,
    desired: &Desired,
    now: Instant,
    report: &mut Report,
) -> Result<(), ApplyError> {
    if let Some((script, checked)) = kernel.nft.take()
        && script == desired.nft
    {
        if now.duration_since(checked) < NFT_RESYNC {
            kernel.nft = Some((script, checked));
            return Ok(());
        }
        let mut listing = String::new();
        for family in desired.nft.lines().filter_map(nft::listed_family) {
            listing.push_str(
                &run_nft(&["-n", "list", "table", family, nft::TABLE], "").await.unwrap_or_default(),
            );
        }
        if nft::is_current(&script, &listing) {
            kernel.nft = Some((script, now));
            return Ok(());
        }
    }
    run_nft(&["-f", "-"], &desired.nft).await?;
    kernel.nft = Some((desired.nft.clone(), now));
    report.nft_applied = true;
    Ok(())
}

/// Runs nft in the calling process's namespace and returns what it printed.
async fn run_nft(arguments: &[&str], input: &str) -> Result<String, ApplyError> {
    let failed = |error: io::Error| ApplyError::Nft { reason: error.to_string() };
    // sbin is not on every user's PATH.
    let path = match std::env::var("PATH") {
        Ok(path) => format!("{path}:/usr/sbin:/sbin"),
        Err(_) => "/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    };
    let mut child = tokio::process::Command::new("nft")
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // It stopped reading; why, it says on stderr.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
            done => done.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(ApplyError::Nft { reason: reason.lines().take(4).collect::<Vec<_>>().join(" ") });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
