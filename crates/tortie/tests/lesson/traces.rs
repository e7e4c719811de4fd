//! What a lab may leave behind on the host, seen before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Namespaces, processes, links, sockets and files that exist at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    namespaces: BTreeSet<String>,
    processes: BTreeSet<String>,
    links: BTreeSet<String>,
    sockets: BTreeSet<String>,
    files: BTreeSet<String>,
    routes: String,
    mounts: usize,
}

impl Traces {
    /// Looks at the host, and at all files below `folder`.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut files = BTreeSet::new();
        list(folder, &mut files);
        let mut namespaces = BTreeSet::new();
        let mut processes = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(command) = fs::read(path.join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            // Processes of ours: by the program they run, wherever it was copied to.
            let program = command.split(' ').next().unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or_default();
            if matches!(name, "tortie" | "tortie-pause" | "calico" | "calico-ipam" | "containerlab" | "kind")
            {
                processes.insert(command.clone());
            }
            for kind in ["net", "mnt", "pid", "user", "uts"] {
                // Only namespaces that something of ours is in: other programs come and go.
                if let Ok(namespace) = fs::read_link(path.join("ns").join(kind))
                    && command.contains("tortie")
                {
                    namespaces.insert(namespace.display().to_string());
                }
            }
        }
        let own: BTreeSet<String> = ["net", "mnt", "pid", "user", "uts"]
            .iter()
            .filter_map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).ok())
            .map(|link| link.display().to_string())
            .collect();
        Self {
            namespaces: namespaces.difference(&own).cloned().collect(),
            processes,
            links: names("/sys/class/net"),
            sockets: sockets(folder),
            files,
            routes: fs::read_to_string("/proc/net/route").unwrap_or_default(),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().count(),
        }
    }
}

fn names(folder: &str) -> BTreeSet<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Named unix sockets below `folder`.
fn sockets(folder: &Path) -> BTreeSet<String> {
    let unix = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    unix.lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|path| path.contains(&*folder.to_string_lossy()))
        .map(str::to_owned)
        .collect()
}

fn list(folder: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // kubectl keeps a cache of its own: not ours to leave or to take.
        if path.ends_with(".kube/cache") || path.ends_with(".kube/http-cache") {
            continue;
        }
        // The folder it stands in was made by whoever came first.
        if path.ends_with(".kube") {
            list(&path, files);
            continue;
        }
        files.insert(path.display().to_string());
        if path.is_dir() && !path.is_symlink() {
            list(&path, files);
        }
    }
}
