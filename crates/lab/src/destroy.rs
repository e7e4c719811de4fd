//! Removing a lab with everything that was made for it.

use crate::cluster::{Cluster, FILE};
use crate::known::{self, Known, Lock};
use crate::kubeconfig;
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// A lab that is remembered nowhere, but whose directory is there.
#[must_use]
pub fn unknown(cluster: &Cluster) -> Known {
    Known {
        lab: cluster.lab.clone(),
        cluster: cluster.name.clone(),
        directory: cluster.directory.clone(),
        made: Vec::new(),
        kubeconfig: None,
        made_for_kubeconfig: Vec::new(),
    }
}

/// Ends and removes a lab. Steps that fail do not keep the others from being done.
///
/// # Errors
/// With everything that is left.
pub fn destroy(known: &Known) -> Result<()> {
    let lock = Lock::take()?;
    // Somebody else may have destroyed it while we waited.
    let known = known::by_lab(&known.lab)?.unwrap_or_else(|| known.clone());
    clean(&known, &lock)
}

/// As [`destroy`], for who has the lock already.
///
/// # Errors
/// With everything that is left.
pub fn clean(known: &Known, lock: &Lock) -> Result<()> {
    // A copied lab directory describes the original, which is none of our business.
    let cluster = known.read_cluster().ok().filter(|cluster| cluster.directory == known.directory);
    let holder = known.holder();
    let mut steps = vec![holder.map_or(Ok(()), crate::holder::Running::end)];
    let described = cluster.as_ref().and_then(|cluster| cluster.kubeconfig.as_deref());
    // Where the description is gone with the directory, the record still knows.
    if let Some(file) = described.or(known.kubeconfig.as_deref()) {
        let context = format!("kind-{}", known.cluster);
        steps.push(kubeconfig::remove(file, &context, &known.made_for_kubeconfig));
    }
    steps.push(remove_directory(&known.directory, holder.is_some()));
    if steps.iter().all(Result::is_ok) {
        steps.push(lock.forget(&known.lab));
        known::remove_empty(&known.made);
        steps.push(pass_on(known, lock));
    }
    let left: Vec<String> = steps.into_iter().filter_map(|step| Some(format!("{:#}", step.err()?))).collect();
    if left.is_empty() {
        return Ok(());
    }
    bail!("lab {:?} is not removed completely: {}", known.lab, left.join("; "))
}

/// What could not be removed because other labs are in it is removed with the last of them.
fn pass_on(known: &Known, lock: &Lock) -> Result<()> {
    let kept: Vec<_> = known.made.iter().filter(|path| path.exists()).cloned().collect();
    let Some(mut other) = known::all()?.into_iter().next().filter(|_| !kept.is_empty()) else {
        return Ok(());
    };
    other.made.extend(kept);
    lock.remember(&other)
}

/// What the processes of a lab make anew when somebody removes their directory.
const MADE_ANEW: [&str; 4] = ["data", "kubeconfig", "logs", "nodes"];

/// Removes a lab directory, and nothing that is none. `had_holder` says that a lab ran in it until now.
fn remove_directory(directory: &Path, had_holder: bool) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let is_the_labs = std::fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|entry| had_holder && MADE_ANEW.iter().any(|name| entry.file_name() == **name))
        })
    });
    if !is_the_labs && !directory.join(FILE).exists() {
        bail!("{} is no lab directory; move it away", directory.display());
    }
    std::fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_labs_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let theirs = directory.path().join("clab-x");
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("precious"), "").unwrap();
        std::fs::create_dir(theirs.join("logs")).unwrap();
        assert!(remove_directory(&theirs, true).is_err());
        assert!(theirs.join("precious").exists());
        std::fs::write(theirs.join(FILE), "{}").unwrap();
        remove_directory(&theirs, false).unwrap();
        assert!(!theirs.exists());
        remove_directory(&theirs, false).unwrap();
    }

    #[test]
    fn what_a_lab_made_anew_after_its_directory_was_removed_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let again = directory.path().join("clab-x");
        std::fs::create_dir_all(again.join("logs")).unwrap();
        assert!(remove_directory(&again, false).is_err(), "no lab ran there");
        remove_directory(&again, true).unwrap();
        assert!(!again.exists());
    }
}
