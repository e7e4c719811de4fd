//! Starting the holder from outside, finding it again, and ending it.

use super::startup::{SAYS_ERROR, SAYS_PID, SAYS_READY};
use crate::private_file;
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// File in the lab directory that says which process the holder is.
const RECORD: &str = "holder.json";

/// How long the end of the lab's processes may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A holder, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process id on the host.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did: a process id alone may have come to another process.
    pub started: u64,
}

/// What the lab directory says about its holder.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    running: Running,
    /// The directory itself: in a copy of it the record is about somebody else's lab.
    directory: PathBuf,
}

/// Starts the holder of the lab in `directory`, which must be absolute, and waits until it serves.
///
/// # Errors
/// With the holder's own reason when it could not start; nothing of it runs then.
pub fn start(program: &Path, directory: &Path, owner: Option<(u32, u32)>) -> Result<Running> {
    let logs = directory.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(logs.join("holder.log"))
        .with_context(|| format!("opening the holder's log in {}", logs.display()))?;
    let mut command = Command::new(program);
    command.args(["lab", "holder", "--dir"]).arg(directory);
    if let Some((user, group)) = owner {
        command.arg("--owner").arg(format!("{user}:{group}"));
    }
    command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let output = child.stdout.take().context("the holder has no output")?;
    let (mut pid, mut ready, mut reason) = (None, false, None);
    for line in BufReader::new(output).lines() {
        let line = line.context("listening to the holder")?;
        if let Some(number) = line.strip_prefix(SAYS_PID) {
            pid = number.parse().ok();
        } else if line == SAYS_READY {
            ready = true;
        } else if let Some(said) = line.strip_prefix(SAYS_ERROR) {
            reason = Some(said.to_owned());
        }
    }
    let _ = child.wait();
    let Some(pid) = pid.filter(|_| ready && reason.is_none()) else {
        if let Some(running) = pid.and_then(Running::of) {
            running.end()?;
        }
        bail!("{}", reason.unwrap_or_else(|| format!("the holder ended early; see {}", logs.display())));
    };
    let running = Running::of(pid).context("the holder ended as soon as it was ready")?;
    let record = Record { running, directory: directory.to_owned() };
    private_file::write(&directory.join(RECORD), &serde_json::to_vec(&record)?)?;
    Ok(running)
}

impl Running {
    /// The process `pid` on this host, if there is one.
    fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the program's name, may contain anything, but only it has parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    /// The running holder of the lab in `directory`: by its record, by its socket or, where somebody removed the
    /// directory from under it, by what it was started with.
    #[must_use]
    pub fn find(directory: &Path) -> Option<Self> {
        let recorded = std::fs::read(directory.join(RECORD))
            .ok()
            .and_then(|record| serde_json::from_slice::<Record>(&record).ok())
            .filter(|record| record.directory == directory)
            .map(|record| record.running)
            .filter(|running| Self::of(running.pid) == Some(*running));
        let recorded = recorded.or_else(|| {
            let stream = crate::unix_socket::connect(&directory.join(super::SOCKET)).ok()?;
            let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
            Self::of(peer.pid.as_raw_nonzero().get())
        });
        recorded.or_else(|| Self::started_for(directory))
    }

    /// The user's holder that was started for `directory`.
    fn started_for(directory: &Path) -> Option<Self> {
        std::fs::read_dir("/proc").ok()?.find_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let ours = entry.metadata().ok()?.uid() == rustix::process::geteuid().as_raw();
            if ours && is_holder_of(&command, directory) { Self::of(pid) } else { None }
        })
    }

    /// Ends the holder, and so the lab, and waits for it. One that ended already is no error.
    ///
    /// # Errors
    /// When it may not be signalled, or has not ended after ten seconds.
    pub fn end(self) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // Only now is it certain that the descriptor means this process and not a later one of the same number.
        if Self::of(self.pid) != Some(self) {
            return Ok(());
        }
        rustix::process::pidfd_send_signal(&process, Signal::KILL)
            .with_context(|| format!("ending the lab's holder (process {})", self.pid))?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into()?, tv_nsec: 0 };
        if poll(&mut ended, Some(&patience)).context("waiting for the holder to end")? == 0 {
            bail!("the lab's holder (process {}) has not ended; look at it with ps", self.pid);
        }
        Ok(())
    }
}

/// Whether the words of a command, each followed by a zero byte, are those of the holder of the lab in `directory`.
fn is_holder_of(command: &[u8], directory: &Path) -> bool {
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let [_, b"lab", b"holder", options @ ..] = &words[..] else { return false };
    // The first of the two processes of a start ends by itself.
    let is_inside = options.contains(&&b"--inside"[..]);
    let mut after = options.iter().skip_while(|word| **word != b"--dir").skip(1);
    is_inside && after.next() == Some(&directory.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_known_by_what_it_was_started_with() {
        let command = b"/opt/tortie\0lab\0holder\0--inside\0--dir\0/home/me/clab-x\0--owner\x001:1\0";
        assert!(is_holder_of(command, Path::new("/home/me/clab-x")));
        assert!(!is_holder_of(command, Path::new("/home/me/clab")));
        assert!(!is_holder_of(b"vi\0lab\0holder\0--dir\0/home/me/clab-x\0", Path::new("/home/me/clab-x")));
        assert!(!is_holder_of(b"\0", Path::new("")));
    }

    #[test]
    fn a_copied_directory_has_no_holder() {
        let directory = tempfile::tempdir().unwrap();
        let running = Running::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let write = |about: &Path| {
            let record = Record { running, directory: about.to_owned() };
            std::fs::write(directory.path().join(RECORD), serde_json::to_vec(&record).unwrap()).unwrap();
        };
        write(Path::new("/elsewhere/clab-x"));
        assert_eq!(Running::find(directory.path()), None);
        write(directory.path());
        assert_eq!(Running::find(directory.path()), Some(running));
    }

    #[test]
    fn a_process_that_took_over_a_number_is_not_ended() {
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(other.id()).unwrap();
        let running = Running::of(pid).unwrap();
        Running { started: running.started + 1, ..running }.end().unwrap();
        assert!(other.try_wait().unwrap().is_none());
        running.end().unwrap();
        assert!(!other.wait().unwrap().success());
    }
}
