//! What a namespace set sees of the file tree.

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::{Component, Path, PathBuf};

/// Devices that a pod may use.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Mount flags that a mount keeps when it is made read-only, by their name in `/proc/self/mountinfo`.
const KEPT: [(&str, MountFlags); 6] = [
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
];

/// Mounts an empty file system held in memory.
pub(super) fn mount_memory(target: &Path, options: &CStr) -> Result<()> {
    rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
        .with_context(|| format!("mounting an empty {}", target.display()))
}

/// The lab's own mounts: nothing of them reaches the host, `/proc` shows the lab's processes, `/run` is empty and
/// shared with the nodes, so that a namespace that appears there appears in all of them.
pub(super) fn prepare_lab() -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("separating the lab's mounts from the host's")?;
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", strict, None).context(
        "mounting /proc: the kernel refuses a fresh one, as it does in containers that hide parts of it; \
         run outside of the container or with an unmasked /proc",
    )?;
    mount_memory(Path::new("/run"), c"mode=0755")?;
    rustix::mount::mount_change("/run", MountPropagationFlags::SHARED).context("sharing /run in the lab")?;
    for directory in ["/run/tortie", super::NETNS_DIRECTORY, "/run/tortie/files"] {
        std::fs::create_dir(directory).with_context(|| format!("making {directory}"))?;
    }
    // iproute2 and nft keep locks and state there.
    let _ = std::fs::create_dir("/run/lock");
    Ok(())
}

/// The start of every pod's mounts: the whole tree read-only, a minimal `/dev`.
pub(super) fn prepare_confined() -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("separating the pods' mounts from the lab's")?;
    // What the lab keeps under /run is none of a pod's business; each gets an empty one on top.
    rustix::mount::unmount("/run", UnmountFlags::DETACH).context("taking the lab's /run away")?;
    make_devices()?;
    make_read_only()
}

fn make_devices() -> Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut kept = Vec::new();
    for name in DEVICES {
        if let Ok(device) = rustix::fs::open(format!("/dev/{name}"), flags, Mode::empty()) {
            kept.push((name, device));
        }
    }
    mount_memory(Path::new("/dev"), c"mode=0755,size=64k")?;
    for (name, device) in kept {
        let target = format!("/dev/{name}");
        std::fs::File::create(&target).with_context(|| format!("making {target}"))?;
        rustix::mount::mount_bind(descriptor_path(&device), &target)
            .with_context(|| format!("showing {target}"))?;
    }
    for (name, target) in
        [("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1"), ("stderr", "self/fd/2")]
    {
        std::os::unix::fs::symlink(format!("/proc/{target}"), format!("/dev/{name}"))
            .with_context(|| format!("making /dev/{name}"))?;
    }
    std::fs::create_dir("/dev/shm").context("making /dev/shm")?;
    std::fs::create_dir("/dev/pts").context("making /dev/pts")?;
    let strict = MountFlags::NOSUID | MountFlags::NOEXEC;
    if rustix::mount::mount("devpts", "/dev/pts", "devpts", strict, c"newinstance,ptmxmode=0666,mode=0620")
        .is_ok()
    {
        let _ = std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx");
    }
    Ok(())
}

/// Makes every mount of the calling thread's tree read-only.
fn make_read_only() -> Result<()> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").context("reading the mounts")?;
    for (target, flags) in mounts(&table) {
        let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
        match rustix::mount::mount_remount(&target, flags, c"") {
            // Covered by another mount, or in a directory that may not be entered: a pod cannot get there either.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("making {} read-only for pods", target.display()));
            }
        }
    }
    Ok(())
}

/// Mount points and the flags they must keep, from the text of a `mountinfo` file.
fn mounts(table: &str) -> Vec<(PathBuf, MountFlags)> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let target = fields.nth(4)?;
        let options = fields.next()?;
        let mut flags = MountFlags::empty();
        for option in options.split(',') {
            flags |= KEPT.iter().find(|(name, _)| *name == option).map_or(MountFlags::empty(), |kept| kept.1);
        }
        Some((PathBuf::from(unescape(target)), flags))
    };
    table.lines().filter_map(line).collect()
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// A pod's own parts, on top of [`prepare_confined`]: writable and empty `/tmp`, `/run` and `/dev/shm`.
pub(super) fn finish_confined(hide: &[PathBuf]) -> Result<()> {
    mount_memory(Path::new("/run"), c"mode=0755,size=16m")?;
    std::fs::create_dir_all("/run/tortie/files").context("making room for a pod's files")?;
    mount_memory(Path::new("/dev/shm"), c"mode=1777,size=16m")?;
    for path in hide {
        // Those below /tmp vanish with it.
        if path.starts_with("/tmp") {
            continue;
        }
        if path.is_dir() {
            mount_memory(path, c"mode=0000,size=4k")?;
        } else if path.is_file() {
            rustix::mount::mount_bind("/dev/null", path)
                .with_context(|| format!("hiding {}", path.display()))?;
        }
    }
    mount_memory(Path::new("/tmp"), c"mode=1777,size=64m")
}

/// A file system of the new network's devices. Some kernels and containers refuse it; then the host's stays.
pub(super) fn mount_sys(read_only: bool) {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    if let Err(error) = rustix::mount::mount("sysfs", "/sys", "sysfs", flags, None) {
        tracing::debug!(%error, "kept the host's /sys");
    }
}

/// Shows `files` instead of the host's; their contents are kept in `store`, which must be writable.
pub(super) fn show_files(store: &Path, files: &BTreeMap<PathBuf, String>) -> Result<()> {
    std::fs::create_dir_all(store).with_context(|| format!("making {}", store.display()))?;
    for (path, content) in files {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            bail!("{} is not an absolute path", path.display());
        }
        let source = store.join(path.to_string_lossy().trim_start_matches('/').replace('/', "-"));
        std::fs::write(&source, content).with_context(|| format!("writing {}", source.display()))?;
        let target = follow(path);
        if !target.exists() {
            // Possible below /run and the like; a file that the host does not have cannot be shown elsewhere.
            let made = target.parent().map(std::fs::create_dir_all).transpose();
            if made.and_then(|_| std::fs::File::create(&target)).is_err() {
                tracing::warn!(path = %path.display(), "the host has no such file to cover; left it out");
                continue;
            }
        }
        rustix::mount::mount_bind(&source, &target).with_context(|| format!("showing {}", path.display()))?;
    }
    Ok(())
}

/// Where a symbolic link leads, also when nothing is there.
fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = match path.parent() {
            Some(parent) => parent.join(target),
            None => target,
        };
    }
    path
}

/// A path that names an open file, whatever happens to the name it was opened by.
pub(super) fn descriptor_path(file: &impl std::os::fd::AsRawFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_keeps_the_flags_that_the_kernel_locks() {
        let table = "36 35 98:0 / /mnt\\040two rw,nosuid,noatime shared:1 - ext4 /dev/root rw\n";
        assert_eq!(mounts(table), [(PathBuf::from("/mnt two"), MountFlags::NOSUID | MountFlags::NOATIME)]);
    }
}
