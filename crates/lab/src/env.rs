//! The shell in which the lesson's commands work: `tortie lab env` and `tortie lab shell`.

use crate::{console, known, kubeconfig, topology};
use anyhow::{Context as _, Result};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The commands that this one program is, when it is called by their names.
pub const COMMANDS: [&str; 4] = ["containerlab", "clab", "kind", "calicoctl"];

/// Prints the shell commands that make the lesson's commands known and set `KUBECONFIG`, to be evaluated.
///
/// Where the directory with the commands cannot be made, they are shell functions: nothing is left on the disk that
/// the end of a lab would have to take from under a shell that still uses it.
///
/// # Errors
/// When the program does not find itself, or no kubeconfig can be named.
pub fn print() -> Result<()> {
    let program = std::env::current_exe().context("finding the program itself")?;
    let commands = match command_directory(&program) {
        Ok(directory) => on_path(&directory),
        Err(_) => as_functions(&program),
    };
    console::result(&format!("{commands}export KUBECONFIG={}\n", quote(&kubeconfig_for()?)));
    Ok(())
}

/// Puts a directory first on `PATH`; evaluated twice, it changes nothing the second time.
fn on_path(directory: &Path) -> String {
    let directory = quote(directory);
    format!("case \":$PATH:\" in *:{directory}:*) ;; *) export PATH={directory}:\"$PATH\" ;; esac\n")
}

/// The commands as functions of the shell, for bash's children, too.
fn as_functions(program: &Path) -> String {
    let program = quote(program);
    let mut text = String::new();
    for command in COMMANDS {
        let real = if command == "clab" { "containerlab" } else { command };
        text.push_str(&format!("{command}() {{ {program} {real} \"$@\"; }}\n"));
    }
    text.push_str(&format!("if [ -n \"${{BASH_VERSION:-}}\" ]; then export -f {}; fi\n", COMMANDS.join(" ")));
    text
}

/// Runs the user's shell with `PATH` and `KUBECONFIG` set up, and returns how it ended.
///
/// # Errors
/// When the shell cannot be started.
pub fn shell() -> Result<()> {
    let program = std::env::current_exe().context("finding the program itself")?;
    let kubeconfig = kubeconfig_for()?;
    let shell =
        std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let command = |commands: &Path| -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::iter::once(commands.to_owned()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(directories).context("putting the commands on PATH")?;
        let mut command = Command::new(&shell);
        command.env("PATH", path).env("KUBECONFIG", &kubeconfig);
        Ok(command)
    };
    if let Ok(directory) = command_directory(&program) {
        let error = command(&directory)?.exec();
        return Err(error).with_context(|| format!("starting {}", Path::new(&shell).display()));
    }
    // A directory for as long as the shell runs.
    let directory = std::env::temp_dir().join(format!("tortie-commands-{}", std::process::id()));
    link_commands(&program, &directory).with_context(|| format!("making {}", directory.display()))?;
    let ended = command(&directory)?.status();
    let removed = std::fs::remove_dir_all(&directory);
    ended.with_context(|| format!("starting {}", Path::new(&shell).display()))?;
    removed.with_context(|| format!("removing {}", directory.display()))
}

/// Makes the directory with the commands, and nothing else in it, beside the program.
fn command_directory(program: &Path) -> std::io::Result<PathBuf> {
    let directory = program.with_file_name("lab-bin");
    link_commands(program, &directory)?;
    Ok(directory)
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

/// The kubeconfig that the lesson uses: `<lab>.kubeconfig` beside the topology of the working directory, or where the
/// topology's lab was entered when it was deployed; else that of the only lab; else whatever kubectl takes.
fn kubeconfig_for() -> Result<PathBuf> {
    let here = std::env::current_dir().context("finding the working directory")?;
    if let [file] = &crate::containerlab::topologies_in(&here)[..]
        && let Ok(topology) = topology::read(&here.join(file), |name| std::env::var(name).ok())
    {
        let deployed = known::by_lab(&topology.lab)?
            .and_then(|known| known.read_cluster().ok())
            .filter(|cluster| cluster.topology == topology.file);
        let usual = kubeconfig::user_file();
        return beside_topology(&here, &topology.lab, deployed.and_then(|cluster| cluster.kubeconfig))
            .or(usual)
            .context("there is no home directory; set HOME or KUBECONFIG");
    }
    if let [known] = &known::all()?[..] {
        let cluster = known.read_cluster()?;
        return Ok(cluster.kubeconfig.clone().unwrap_or_else(|| cluster.kubeconfig_of("admin")));
    }
    kubeconfig::user_file().context("there is no home directory; set HOME or KUBECONFIG")
}

/// The kubeconfig for a topology in the directory `here`; `None` when there is none yet and none can be made there.
fn beside_topology(here: &Path, lab: &str, deployed_to: Option<PathBuf>) -> Option<PathBuf> {
    let beside = here.join(format!("{lab}.kubeconfig"));
    if beside.exists() {
        return Some(beside);
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let writable = || rustix::fs::access(here, access).is_ok();
    deployed_to.or_else(|| writable().then_some(beside))
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
    fn a_shell_knows_the_commands_without_a_directory_of_them() {
        let text = as_functions(Path::new("/bin/echo"));
        for shell in ["sh", "bash"] {
            let script = format!("{text}{text}clab deploy -t 'a b'\n");
            let output = Command::new(shell).args(["-euc", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "containerlab deploy -t a b\n");
        }
        let text = on_path(Path::new("/opt/lab bin"));
        let output =
            Command::new("sh").args(["-euc", &format!("{text}{text}echo \"$PATH\"")]).output().unwrap();
        let path = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(path.starts_with("/opt/lab bin:") && path.matches("lab bin").count() == 1, "{path}");
    }

    #[test]
    fn a_kubeconfig_is_named_only_where_it_is_or_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        let beside = here.join("x.kubeconfig");
        assert_eq!(beside_topology(here, "x", None), Some(beside.clone()), "can be made");
        let elsewhere = PathBuf::from("/home/me/.kube/config");
        assert_eq!(
            beside_topology(here, "x", Some(elsewhere.clone())),
            Some(elsewhere.clone()),
            "is elsewhere"
        );
        std::fs::write(&beside, "").unwrap();
        assert_eq!(beside_topology(here, "x", Some(elsewhere)), Some(beside), "is there");
        // As a place that cannot be written, and that not even root can write.
        assert_eq!(beside_topology(Path::new("/no/such/place"), "x", None), None);
    }

    #[test]
    fn paths_stay_one_word() {
        assert_eq!(quote(Path::new("/a/b")), "/a/b");
        assert_eq!(quote(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
    }
}
