//! The shell in which the lesson's commands work: `tortie lab env` and `tortie lab shell`.

use crate::{console, known, kubeconfig, topology};
use anyhow::{Context as _, Result};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The commands that this one program is, when it is called by their names.
pub const COMMANDS: [&str; 4] = ["containerlab", "clab", "kind", "calicoctl"];

/// Prints the shell commands that set up `PATH` and `KUBECONFIG`, to be evaluated.
///
/// # Errors
/// When the directory with the commands cannot be made.
pub fn print() -> Result<()> {
    let commands = quote(&command_directory()?);
    let kubeconfig = quote(&kubeconfig_for()?);
    // Evaluated twice, it changes nothing the second time.
    console::result(&format!(
        "case \":$PATH:\" in *:{commands}:*) ;; *) export PATH={commands}:\"$PATH\" ;; esac\n\
         export KUBECONFIG={kubeconfig}\n"
    ));
    Ok(())
}

/// Becomes the user's shell with `PATH` and `KUBECONFIG` set up.
///
/// # Errors
/// When the shell cannot be started; otherwise it does not return.
pub fn shell() -> Result<()> {
    let commands = command_directory()?;
    let kubeconfig = kubeconfig_for()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(commands).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(directories).context("putting the commands on PATH")?;
    let shell =
        std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let error = Command::new(&shell).env("PATH", path).env("KUBECONFIG", kubeconfig).exec();
    Err(error).with_context(|| format!("starting {}", Path::new(&shell).display()))
}

/// Removes the commands that could not stand beside the program: the last lab is gone.
pub(crate) fn remove_fallback() {
    if let Ok(directory) = fallback_directory() {
        for command in COMMANDS {
            let _ = std::fs::remove_file(directory.join(command));
        }
        let _ = std::fs::remove_dir(directory);
    }
}

/// Where the commands are when they cannot stand beside the program.
fn fallback_directory() -> Result<PathBuf> {
    Ok(known::state_directory()?.join("lab-bin"))
}

/// Makes the directory with the commands, and nothing else in it.
fn command_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding the program itself")?;
    let beside = program.with_file_name("lab-bin");
    if link_commands(&program, &beside).is_ok() {
        return Ok(beside);
    }
    let fallback = fallback_directory()?;
    link_commands(&program, &fallback).with_context(|| format!("making {}", fallback.display()))?;
    Ok(fallback)
}

fn link_commands(program: &Path, directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for command in COMMANDS {
        let link = directory.join(command);
        if std::fs::read_link(&link).is_ok_and(|target| target == program) {
            continue;
        }
        // Renamed into place, so that no shell ever misses the command.
        let beside = directory.join(format!(".{command}.{}", std::process::id()));
        std::os::unix::fs::symlink(program, &beside)?;
        std::fs::rename(&beside, &link)?;
    }
    Ok(())
}

/// The kubeconfig that the lesson uses: `<lab>.kubeconfig` beside the topology of the working directory or of the
/// lab; else whatever kubectl takes.
fn kubeconfig_for() -> Result<PathBuf> {
    let here = std::env::current_dir().context("finding the working directory")?;
    if let [file] = &crate::containerlab::topologies_in(&here)[..]
        && let Ok(topology) = topology::read(&here.join(file), |name| std::env::var(name).ok())
    {
        return Ok(here.join(format!("{}.kubeconfig", topology.lab)));
    }
    if let [known] = &known::all()?[..] {
        let cluster = known.read_cluster()?;
        return Ok(cluster.kubeconfig.clone().unwrap_or_else(|| cluster.kubeconfig_of("admin")));
    }
    kubeconfig::user_file().context("there is no home directory; set HOME or KUBECONFIG")
}

/// As one word of a shell.
fn quote(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+@:".contains(character);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_has_the_commands_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tortie");
        std::fs::write(&program, "").unwrap();
        let commands = directory.path().join("lab-bin");
        link_commands(&program, &commands).unwrap();
        link_commands(&program, &commands).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&commands).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["calicoctl", "clab", "containerlab", "kind"]);
        assert_eq!(std::fs::read_link(commands.join("kind")).unwrap(), program);
    }

    #[test]
    fn paths_stay_one_word() {
        assert_eq!(quote(Path::new("/a/b")), "/a/b");
        assert_eq!(quote(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
    }
}
