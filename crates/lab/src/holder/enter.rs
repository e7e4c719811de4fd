//! The way into the lab: the namespaces that the holder, and so everything else, lives in.

use super::startup::{Options, SAYS_ERROR, SAYS_PID, say};
use anyhow::{Context as _, Result, bail};
use rustix::io::{Errno, FdFlags};
use rustix::thread::UnshareFlags;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Runs the holder: makes the namespaces, starts itself in them as their first process, and there serves until the
/// lab ends. To be called before the process has a second thread.
///
/// # Errors
/// When the kernel refuses the namespaces; the message names what is missing. It goes to standard output too, for
/// whoever waits there.
pub fn run(options: Options) -> Result<()> {
    let result = if options.inside { super::serve::run(&options) } else { enter(&options) };
    if let Err(error) = &result {
        say(&format!("{SAYS_ERROR}{}", format!("{error:#}").replace('\n', " ")));
    }
    result
}

fn enter(options: &Options) -> Result<()> {
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let both = UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    let privileged = rustix::process::geteuid().is_root();
    match if privileged { unshare(both) } else { Err(Errno::PERM) } {
        Ok(()) => {}
        Err(Errno::PERM) => {
            if let Err(error) = unshare(both | UnshareFlags::NEWUSER) {
                bail!("{}", explain(error));
            }
            map_to_root(user, group).context("becoming root in the lab's user namespace")?;
        }
        Err(error) => bail!("{}", explain(error)),
    }
    keep_descriptors_out().context("closing what the caller had open")?;
    // The unsharing process itself stays outside of the new process namespace; its first child is inside.
    let program = std::env::current_exe().context("finding the program itself")?;
    let mut command = Command::new(program);
    command.args(["lab", "holder", "--inside", "--dir"]).arg(&options.directory);
    if let Some((user, group)) = options.owner {
        command.arg("--owner").arg(format!("{user}:{group}"));
    }
    // A terminal's Ctrl-C ends the command that deploys, not the lab.
    let child =
        command.process_group(0).stdin(Stdio::null()).spawn().context("starting the holder inside")?;
    say(&format!("{SAYS_PID}{}", child.id()));
    Ok(())
}

/// What the caller had open besides the standard streams does not come into the lab: a pod could write to it, and a
/// pipe would stay open for as long as the lab runs.
#[expect(unsafe_code, reason = "descriptors that were inherited are known by their numbers only")]
fn keep_descriptors_out() -> std::io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: borrowed for this one call, which neither closes nor uses what it refers to; the process has one
        // thread, so that the number does not come to mean another file meanwhile.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        match rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC) {
            // The directory's own is closed by now.
            Ok(()) | Err(Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "rustix marks the call unsafe for the sake of one flag")]
fn unshare(kinds: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the file table is not among `kinds`, and there is no other thread.
    unsafe { rustix::thread::unshare_unsafe(kinds) }
}

fn map_to_root(user: u32, group: u32) -> std::io::Result<()> {
    // The kernel lets an ordinary user map the group only after giving up setgroups.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Why there are no namespaces, and what to do.
fn explain(error: Errno) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return "user namespaces are switched off for ordinary users; \
                set kernel.unprivileged_userns_clone=1 or run as root"
            .into();
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "AppArmor restricts user namespaces; \
                set kernel.apparmor_restrict_unprivileged_userns=0 or run as root"
            .into();
    }
    if read("/proc/sys/user/max_user_namespaces") == "0" {
        return "this machine allows no user namespaces; set user.max_user_namespaces or run as root".into();
    }
    format!(
        "the kernel refuses user, mount and process namespaces ({error}); run as root or outside of a container"
    )
}
