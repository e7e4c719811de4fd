//! What a holder is told when it is started, and what it says until it serves.

use std::io::Write as _;
use std::path::PathBuf;

/// How the holder is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab directory: the control socket is made there.
    pub directory: PathBuf,
    /// Whether this process is already in the lab's namespaces (the holder starts itself a second time there).
    pub inside: bool,
    /// Owner of the control socket (user, group) when it is somebody else than the user who runs the holder.
    pub owner: Option<(u32, u32)>,
}

/// What the holder says on its standard output while it starts, one line each.
pub(super) const SAYS_PID: &str = "pid ";
pub(super) const SAYS_READY: &str = "ready";
pub(super) const SAYS_ERROR: &str = "error ";

/// Tells whoever started the holder.
pub(super) fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // Nobody may be listening any more: then it does not matter.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}
