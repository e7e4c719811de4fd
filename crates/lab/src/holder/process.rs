//! Starting a process in a namespace set, with listeners and streams.

use super::namespaces::Set;
use super::protocol::{ProcessSpec, Refusal, RefusalKind, Streams};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptor of the first listener, by the protocol of socket activation.
const FIRST_LISTENER: RawFd = 3;

/// Most listeners that one process can be given.
pub(super) const LISTENERS: usize = 8;

/// Where programs are looked for when the environment does not say.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a pod's root may still do: what container runtimes leave by default.
const KEPT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Keeps the descriptors free that listeners get in a child: the standard library's own pipe to the child must not
/// be one of them. The result is to be kept open for as long as processes are started.
pub(super) fn reserve_descriptors() -> io::Result<Vec<File>> {
    let mut kept = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        let last = file.as_raw_fd();
        kept.push(file);
        if usize::try_from(last).is_ok_and(|last| last >= 3 + LISTENERS) {
            return Ok(kept);
        }
    }
}

/// Starts a process. Returns its id, and the caller's ends of the streams when they were asked for.
pub(super) fn start(
    spec: &ProcessSpec,
    streams: Option<Streams>,
    set: Option<&Set>,
    listeners: &[BorrowedFd<'_>],
) -> Result<(i32, Vec<OwnedFd>), Refusal> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal {
        kind: RefusalKind::Failed,
        message: format!("{what} for {}: {error}", spec.id),
    };
    let program = spec.argv.first().filter(|program| !program.is_empty()).ok_or_else(|| Refusal {
        kind: RefusalKind::Invalid,
        message: format!("{} names no program", spec.id),
    })?;
    let mounts = if spec.network_only { None } else { set };
    // A program that the set does not see is run by a descriptor of a copy.
    let hidden = mounts
        .is_some_and(|set| set.hidden.iter().any(|directory| Path::new(program).starts_with(directory)));
    let opened = if hidden {
        Some(copy(Path::new(program)).map_err(|error| not_runnable(spec, &error))?)
    } else {
        None
    };
    let mut command = match &opened {
        Some(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
        None => Command::new(program),
    };
    command.arg0(program).args(spec.argv.iter().skip(1)).env_clear().env("PATH", PATH).envs(&spec.env);
    if !listeners.is_empty() {
        command
            .env("LISTEN_FDS", listeners.len().to_string())
            .env("LISTEN_FDNAMES", spec.listeners.join(":"));
    }

    let plumbing = match streams {
        None => Plumbing {
            child: [
                Stdio::null(),
                log_file(spec.stdout.as_deref()).map_err(|error| failed("opening the log", &error))?,
                log_file(spec.stderr.as_deref()).map_err(|error| failed("opening the log", &error))?,
            ],
            ours: Vec::new(),
        },
        Some(Streams { terminal: Some(size), .. }) => {
            terminal(size).map_err(|error| failed("opening a terminal", &error))?
        }
        Some(Streams { stdin, terminal: None }) => {
            pipes(stdin).map_err(|error| failed("opening pipes", &error))?
        }
    };
    let with_terminal = streams.is_some_and(|streams| streams.terminal.is_some());
    let [stdin, stdout, stderr] = plumbing.child;
    command.stdin(stdin).stdout(stdout).stderr(stderr);

    let mut namespaces: Vec<(RawFd, LinkNameSpaceType)> = Vec::new();
    if let Some(set) = set {
        if let Some(network) = &set.network {
            namespaces.push((network.as_raw_fd(), LinkNameSpaceType::Network));
        }
        namespaces.push((set.hostname.as_raw_fd(), LinkNameSpaceType::HostNameAndNISDomainName));
    }
    if let Some(set) = mounts {
        namespaces.push((set.mounts.as_raw_fd(), LinkNameSpaceType::Mount));
    }
    let entry = Entry {
        namespaces,
        listeners: listeners.iter().map(|listener| listener.as_raw_fd()).collect(),
        directory: directory(spec.cwd.as_deref()),
        confined: mounts.is_some_and(|set| set.confined),
        terminal: with_terminal,
    };
    enter_before_exec(&mut command, entry);
    let child = command.spawn().map_err(|error| match error.raw_os_error() {
        // ENOENT, ENOEXEC, EACCES, ENOTDIR, EISDIR
        Some(2 | 8 | 13 | 20 | 21) => not_runnable(spec, &error),
        _ => failed("starting a process", &error),
    })?;
    let pid = i32::try_from(child.id()).map_err(|error| failed("reading its id", &error))?;
    Ok((pid, plumbing.ours))
}

/// A copy of a program and which file it was made of.
struct Copied {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    length: u64,
    copy: Arc<OwnedFd>,
}

/// A copy in memory of `program` that nobody can change.
///
/// What runs can open its own file by `/proc/self/exe`, and through the mount that it was opened by. The program's
/// own file, opened out here where mounts are writable, would so be handed to a pod for writing.
fn copy(program: &Path) -> io::Result<Arc<OwnedFd>> {
    /// One copy serves all pods: it is their pause program in nearly every case.
    static COPIES: Mutex<BTreeMap<PathBuf, Copied>> = Mutex::new(BTreeMap::new());
    let mut file = File::open(program)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(Errno::ACCESS.into());
    }
    let modified = (meta.mtime(), meta.mtime_nsec());
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = copies.get(program).filter(|known| {
        (known.device, known.inode, known.modified, known.length)
            == (meta.dev(), meta.ino(), modified, meta.len())
    }) {
        return Ok(Arc::clone(&known.copy));
    }
    let name = program.file_name().unwrap_or_default();
    let mut copy: File =
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into();
    io::copy(&mut file, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    // Opened anew without the right to write: the kernel runs no file that somebody may write to.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let copy = Arc::new(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    let (device, inode, length) = (meta.dev(), meta.ino(), meta.len());
    let known = Copied { device, inode, modified, length, copy: Arc::clone(&copy) };
    copies.insert(program.to_owned(), known);
    Ok(copy)
}

fn not_runnable(spec: &ProcessSpec, error: &io::Error) -> Refusal {
    let program = spec.argv.first().map_or("", String::as_str);
    Refusal { kind: RefusalKind::NotRunnable, message: format!("{program}: {error}") }
}

/// What the child does between fork and exec.
struct Entry {
    namespaces: Vec<(RawFd, LinkNameSpaceType)>,
    listeners: Vec<RawFd>,
    directory: CString,
    confined: bool,
    terminal: bool,
}

#[expect(unsafe_code, reason = "between fork and exec there is no safe interface")]
fn enter_before_exec(command: &mut Command, entry: Entry) {
    let prepare = move || {
        for (namespace, kind) in &entry.namespaces {
            // SAFETY: the holder keeps the set, and with it the descriptor, open while it starts the process.
            let namespace = unsafe { BorrowedFd::borrow_raw(*namespace) };
            move_into_link_name_space(namespace, Some(*kind))?;
        }
        rustix::process::setsid()?;
        if entry.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        // Only after the mounts were entered: entering them moves to their root.
        rustix::process::chdir(entry.directory.as_c_str())?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        for (index, listener) in entry.listeners.iter().enumerate() {
            let target = FIRST_LISTENER + RawFd::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the listener is kept open by the holder. The target is one of the reserved descriptors of this
            // child alone; it is neither closed nor used by anybody else before exec.
            unsafe {
                let mut place = std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(target));
                rustix::io::dup2(BorrowedFd::borrow_raw(*listener), &mut place)?;
                rustix::io::fcntl_setfd(&*place, FdFlags::empty())?;
            }
        }
        if entry.confined {
            for capability in CapabilitySet::all().difference(KEPT_CAPABILITIES).iter() {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // A kernel that does not know it cannot give it either.
                    Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only: it allocates nothing, takes no lock and touches no memory of
    // other threads, as is required between fork and exec.
    unsafe { command.pre_exec(prepare) };
}

fn directory(wanted: Option<&Path>) -> CString {
    use std::os::unix::ffi::OsStrExt as _;
    wanted.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok()).unwrap_or_else(|| c"/".to_owned())
}

/// The two sides of a process's standard streams.
struct Plumbing {
    child: [Stdio; 3],
    ours: Vec<OwnedFd>,
}

fn log_file(path: Option<&Path>) -> io::Result<Stdio> {
    let Some(path) = path else { return Ok(Stdio::null()) };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.into())
}

fn pipes(stdin: bool) -> io::Result<Plumbing> {
    let mut ours = Vec::new();
    let stdin = if stdin {
        let (read, write) = io::pipe()?;
        ours.push(write.into());
        read.into()
    } else {
        Stdio::null()
    };
    let (out_read, out_write) = io::pipe()?;
    let (err_read, err_write) = io::pipe()?;
    ours.push(out_read.into());
    ours.push(err_read.into());
    Ok(Plumbing { child: [stdin, out_write.into(), err_write.into()], ours })
}

fn terminal((columns, rows): (u16, u16)) -> io::Result<Plumbing> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let child = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    if columns > 0 && rows > 0 {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&ours, size)?;
    }
    let [stdin, stdout] = [child.try_clone()?, child.try_clone()?];
    Ok(Plumbing { child: [stdin.into(), stdout.into(), child.into()], ours: vec![ours] })
}

/// Ids of the processes whose mounts are those of the set.
pub(super) fn members(set: &Set) -> Vec<i32> {
    let Ok(mounts) = rustix::fs::fstat(&set.mounts) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: io::Result<std::fs::DirEntry>| {
        let name: PathBuf = entry.ok()?.file_name().into();
        let pid: i32 = name.to_str()?.parse().ok()?;
        let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/mnt")).ok()?;
        (theirs.st_ino == mounts.st_ino && theirs.st_dev == mounts.st_dev).then_some(pid)
    };
    entries.filter_map(pid).collect()
}
