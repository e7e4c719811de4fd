//! Namespace sets: made on a thread that ends afterwards, kept by their files.

use super::protocol::{NamespaceSpec, Network, Refusal, RefusalKind};
use super::{NETNS_DIRECTORY, links, mounts};
use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A namespace set that is kept.
#[derive(Debug)]
pub(super) struct Set {
    /// The network namespace; `None` for the host's.
    pub network: Option<Arc<OwnedFd>>,
    /// The hostname.
    pub hostname: OwnedFd,
    /// The mounts.
    pub mounts: OwnedFd,
    /// Whether its processes get few capabilities.
    pub confined: bool,
    /// Directories that programs for it cannot be found in.
    pub hidden: Vec<PathBuf>,
}

/// Other sets' parts that a new set is made from.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// The network of the set that the new one shares it with.
    pub shared: Option<Arc<OwnedFd>>,
    /// The network with the bridge for the uplink.
    pub underlay: Option<Arc<OwnedFd>>,
    /// The mounts that every confined set starts from.
    pub confined: Option<Arc<OwnedFd>>,
}

/// The last part of a set's name, under which its network appears; nothing else may be in it.
pub(super) fn short_name(name: &str) -> Result<&str, Refusal> {
    let short = name.rsplit('/').next().unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if short.is_empty() || short.starts_with('.') || !short.bytes().all(allowed) || name.len() > 400 {
        let message = format!("{name:?} is no name for a namespace set: letters, digits, - _ . and /");
        return Err(Refusal { kind: RefusalKind::Invalid, message });
    }
    Ok(short)
}

/// Where the network of the set with this short name appears.
pub(super) fn network_path(short: &str) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(short)
}

fn files_path(short: &str) -> PathBuf {
    Path::new("/run/tortie/files").join(short)
}

/// Runs `work` on a thread of its own, which may change its namespaces because it ends afterwards.
pub(super) fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> tokio::sync::oneshot::Receiver<Result<T>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        // Nobody waits when the one who asked went away.
        let _ = sender.send(work());
    });
    // Without a thread the sender is dropped and the receiver reports it.
    drop(started);
    receiver
}

/// The mounts that every confined set starts from.
pub(super) fn confined_mounts() -> Result<OwnedFd> {
    leave(UnshareFlags::FS | UnshareFlags::NEWNS)?;
    mounts::prepare_confined()?;
    own("mnt")
}

/// Makes a set; for a thread of its own.
pub(super) fn make(spec: &NamespaceSpec, neighbours: &Neighbours) -> Result<Set> {
    let made = build(spec, neighbours);
    if made.is_err() {
        remove(spec.name.rsplit('/').next().unwrap_or_default());
    }
    made
}

fn build(spec: &NamespaceSpec, neighbours: &Neighbours) -> Result<Set> {
    let short = short_name(&spec.name).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    let network = match &spec.network {
        Network::SameAs(_) => {
            if let Some(network) = &neighbours.shared {
                enter(network.as_fd(), LinkNameSpaceType::Network)?;
            }
            neighbours.shared.clone()
        }
        Network::Empty | Network::Bridge { .. } | Network::Uplink { .. } => {
            leave(UnshareFlags::NEWNET)?;
            Some(Arc::new(own("net")?))
        }
    };
    if let Some(network) = &network {
        wire(spec, network.as_fd(), neighbours)?;
        // Still in the lab's mounts, so that everything in the lab sees it.
        let path = network_path(short);
        std::fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
        rustix::mount::mount_bind(mounts::descriptor_path(network.as_ref()), &path)
            .with_context(|| format!("showing the network as {}", path.display()))?;
    }

    leave(UnshareFlags::FS | UnshareFlags::NEWUTS)?;
    rustix::system::sethostname(spec.hostname.as_bytes())
        .with_context(|| format!("setting the hostname {:?}", spec.hostname))?;
    if spec.confined {
        let start = neighbours.confined.as_ref().context("the pods' mounts are missing")?;
        enter(start.as_fd(), LinkNameSpaceType::Mount)?;
    }
    leave(UnshareFlags::NEWNS)?;
    if spec.confined {
        mounts::finish_confined(&spec.hide)?;
    } else {
        for directory in spec.hide.iter().filter(|directory| directory.is_dir()) {
            mounts::mount_memory(directory, c"mode=0000,size=4k")?;
        }
    }
    if network.is_some() {
        mounts::mount_sys(spec.confined);
    }
    mounts::show_files(&files_path(short), &spec.files)?;
    let mut hidden = spec.hide.clone();
    if spec.confined {
        hidden.extend(["/tmp", "/run"].map(PathBuf::from));
    }
    Ok(Set { network, hostname: own("uts")?, mounts: own("mnt")?, confined: spec.confined, hidden })
}

/// Sets up the links of the network namespace that the thread is in.
fn wire(spec: &NamespaceSpec, network: BorrowedFd<'_>, neighbours: &Neighbours) -> Result<()> {
    if matches!(spec.network, Network::SameAs(_)) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a runtime for netlink")?;
    runtime.block_on(async {
        let inside = links::open()?;
        links::raise_loopback(&inside).await?;
        match &spec.network {
            Network::SameAs(_) | Network::Empty => Ok(()),
            Network::Bridge { name, addresses } => {
                forward_packets()?;
                links::make_bridge(&inside, name, addresses).await
            }
            Network::Uplink { bridge, port, addresses, gateways, .. } => {
                forward_packets()?;
                let underlay = neighbours.underlay.as_ref().context("the underlay is missing")?;
                enter(underlay.as_fd(), LinkNameSpaceType::Network)?;
                let outside = links::open();
                enter(network, LinkNameSpaceType::Network)?;
                links::make_uplink(&outside?, &inside, network, bridge, port, addresses, gateways).await
            }
        }
    })
}

/// A node forwards, and does not ask whether the answer would take the same way back.
fn forward_packets() -> Result<()> {
    for (name, value) in [
        ("ip_forward", "1"),
        ("conf/all/rp_filter", "0"),
        ("conf/default/rp_filter", "0"),
        // Pods and nodes may ping without raw sockets.
        ("ping_group_range", "0 0"),
    ] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::write(&path, value).with_context(|| format!("writing {path}"))?;
    }
    Ok(())
}

/// Takes away what a set shows in the lab's mounts.
pub(super) fn remove(short: &str) {
    let path = network_path(short);
    let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_dir_all(files_path(short));
}

/// The calling thread's namespace of this kind (`net`, `uts`, `mnt`).
pub(super) fn own(kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {path}"))
}

fn enter(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> Result<()> {
    move_into_link_name_space(namespace, Some(kind)).context("entering a namespace")
}

#[expect(unsafe_code, reason = "rustix marks the call unsafe for the sake of one flag")]
fn leave(kinds: UnshareFlags) -> Result<()> {
    // SAFETY: the file table, the one thing whose unsharing can confuse other threads, is never among `kinds`.
    unsafe { rustix::thread::unshare_unsafe(kinds) }
        .with_context(|| format!("making new namespaces ({kinds:?}); see user.max_*_namespaces"))
}
