//! Running another plugin for a part of the work.

use crate::environment::Command;
use crate::error::{CniError, code};
use crate::invocation::Invocation;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// How often a plugin that is being replaced on disk is tried.
const BUSY_ATTEMPTS: u32 = 6;
/// Pause between these.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of a plugin's output that are read; it is killed by the closed pipe if it has more to say.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// Runs the plugin `name` with this call's variables and configuration, for `command`, and returns what it printed.
///
/// # Errors
/// The plugin's own error, unchanged; code 7 if there is none of that name in `CNI_PATH`.
pub fn run(call: &Invocation, name: &str, command: Command) -> Result<Vec<u8>, CniError> {
    let program = find(call, name)?;
    let failed = |error: std::io::Error| {
        CniError::new(code::PLUGIN, format!("plugin {} cannot be run", program.display())).because(&error)
    };
    let mut attempt = 1;
    let mut child = loop {
        let mut process = std::process::Command::new(&program);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).env("CNI_COMMAND", command.as_str());
        match process.spawn() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS =>
            {
                attempt += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            spawned => break spawned.map_err(failed)?,
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // One that failed early does not read all; its own error says more than this one.
        let _ = stdin.write_all(&call.input);
    }
    // Room for an ordinary result, so that it is read at once.
    let mut printed = Vec::with_capacity(4096);
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_LIMIT).read_to_end(&mut printed).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(printed);
    }
    match serde_json::from_slice::<CniError>(&printed) {
        Ok(error) => Err(error),
        Err(_) => {
            let message = format!("plugin {} failed without saying why ({status})", program.display());
            Err(CniError::new(code::PLUGIN, message).because(&String::from_utf8_lossy(&printed)))
        }
    }
}

fn find(call: &Invocation, name: &str) -> Result<PathBuf, CniError> {
    if name.is_empty() || name.contains('/') {
        let message = format!("ipam.type {name:?} is no plugin's name; calico-ipam is one");
        return Err(CniError::new(code::BAD_CONFIG, message));
    }
    let path = &call.environment.path;
    path.iter().map(|directory| directory.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        let directories: Vec<String> = path.iter().map(|directory| directory.display().to_string()).collect();
        let message = format!("failed to find plugin {name:?} in path [{}]", directories.join(" "));
        CniError::new(code::BAD_CONFIG, message)
    })
}
