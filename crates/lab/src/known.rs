//! The labs that a user has: one small file each in the user's state directory, gone with the lab.

use crate::cluster::{Cluster, FILE};
use crate::holder::Running;
use crate::private_file;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A lab that was deployed and not destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Name of the lab.
    pub lab: String,
    /// Name of its cluster.
    pub cluster: String,
    /// The lab directory.
    pub directory: PathBuf,
    /// Directories and files made outside of the lab directory for this lab, to be removed with it when empty.
    pub made: Vec<PathBuf>,
    /// The kubeconfig that has the lab's cluster, once it has it.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// What was made for the user's kubeconfig.
    pub made_for_kubeconfig: Vec<PathBuf>,
}

impl Known {
    /// The lab's description.
    ///
    /// # Errors
    /// When the lab directory is gone or damaged.
    pub fn read_cluster(&self) -> Result<Cluster> {
        Cluster::read(&self.directory.join(FILE))
    }

    /// The lab's holder, if it runs.
    #[must_use]
    pub fn holder(&self) -> Option<Running> {
        Running::find(&self.directory)
    }
}

/// Who a lab belongs to when root acts for somebody: the user and group that called sudo.
#[must_use]
pub fn sudo_owner() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    Some((number("SUDO_UID")?, number("SUDO_GID")?)).filter(|(user, _)| *user != 0)
}

/// The user's directory for state, `tortie` in it.
///
/// # Errors
/// When the user has no home directory.
pub fn state_directory() -> Result<PathBuf> {
    let given = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = match (sudo_owner(), given) {
        // Found again without sudo.
        (Some((user, _)), _) => home_of(user).map(|home| home.join(".local").join("state")),
        (None, Some(given)) => Some(given),
        (None, None) => std::env::home_dir()
            .filter(|home| home.is_absolute())
            .map(|home| home.join(".local").join("state")),
    };
    Ok(base
        .context("there is no home directory to remember the lab in; set HOME or XDG_STATE_HOME")?
        .join("tortie"))
}

fn home_of(user: u32) -> Option<PathBuf> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse::<u32>().ok()? == user;
        found.then(|| fields.nth(2).map(PathBuf::from)).flatten()
    })
}

fn directory() -> Result<PathBuf> {
    Ok(state_directory()?.join("labs"))
}

/// Makes a directory with those above it; returns the ones that were not there, innermost first.
///
/// # Errors
/// When one cannot be made.
pub fn make_directory(path: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> =
        path.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect();
    private_file::create_directory(path)?;
    if let Some((user, group)) = sudo_owner() {
        for made in &missing {
            std::os::unix::fs::chown(made, Some(user), Some(group))
                .with_context(|| format!("giving {} to its owner", made.display()))?;
        }
    }
    Ok(missing)
}

/// Keeps two commands from changing the user's labs at once, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
    made: Vec<PathBuf>,
}

impl Lock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// When the state directory cannot be made.
    pub fn take() -> Result<Self> {
        let path = directory()?;
        let mut made = Vec::new();
        // Whoever had the lock may have removed the directory with the last lab: then it is made anew.
        loop {
            made.extend(make_directory(&path)?);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty())
                .with_context(|| format!("opening {}", path.display()))?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("locking {}", path.display()))?;
            let (ours, there) = (rustix::fs::fstat(&file)?, rustix::fs::stat(&path));
            if there.is_ok_and(|there| (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)) {
                made.dedup();
                return Ok(Self { _file: file, made });
            }
        }
    }

    /// What was made for the lock, innermost first.
    #[must_use]
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// Remembers a lab, in place of what was known by its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, known: &Known) -> Result<()> {
        let path = file_of(&known.lab)?;
        private_file::write(&path, &serde_json::to_vec_pretty(known)?)?;
        if let Some((user, group)) = sudo_owner() {
            std::os::unix::fs::chown(&path, Some(user), Some(group))
                .with_context(|| format!("giving {} to its owner", path.display()))?;
        }
        Ok(())
    }

    /// Forgets a lab. One that is not known is no error.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget(&self, lab: &str) -> Result<()> {
        let path = file_of(lab)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The directory stays while it has labs in it.
        remove_empty(&self.made);
    }
}

/// Removes those of `paths` that are empty directories; whatever has something in it stays.
pub fn remove_empty(paths: &[PathBuf]) {
    for path in paths {
        let _ = std::fs::remove_dir(path);
    }
}

fn file_of(lab: &str) -> Result<PathBuf> {
    if lab.is_empty() || lab.contains('/') || lab.starts_with('.') {
        bail!("{lab:?} is no lab name");
    }
    Ok(directory()?.join(format!("{lab}.json")))
}

/// All labs of the user, by name. Unreadable records are passed over.
///
/// # Errors
/// When the user has no home directory.
pub fn all() -> Result<Vec<Known>> {
    let Ok(entries) = std::fs::read_dir(directory()?) else { return Ok(Vec::new()) };
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        if path.extension()? != "json" {
            return None;
        }
        serde_json::from_slice::<Known>(&std::fs::read(path).ok()?).ok()
    };
    let mut labs: Vec<Known> = entries.filter_map(read).collect();
    labs.sort_by(|one, other| one.lab.cmp(&other.lab));
    Ok(labs)
}

/// The lab of this name.
///
/// # Errors
/// When the user has no home directory.
pub fn by_lab(lab: &str) -> Result<Option<Known>> {
    Ok(all()?.into_iter().find(|known| known.lab == lab))
}

/// The lab with the cluster of this name.
///
/// # Errors
/// When the user has no home directory.
pub fn by_cluster(cluster: &str) -> Result<Option<Known>> {
    Ok(all()?.into_iter().find(|known| known.cluster == cluster))
}
