//! `tortie cni`: what the CNI plugins of a node need of this program.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

/// Longest request that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// Serves one request of the plugin: a call on standard input, the answer or the error on standard output.
pub(crate) fn direct() -> ExitCode {
    let mut text = Vec::new();
    let read = std::io::stdin().take(LIMIT).read_to_end(&mut text);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = match (read, runtime) {
        (Ok(_), Ok(runtime)) => runtime.block_on(node::direct::run(&text)),
        (Err(error), _) | (_, Err(error)) => Err(node::direct::unserved(&error)),
    };
    let (answer, code) = match served {
        Ok(answer) => (answer.to_string(), ExitCode::SUCCESS),
        Err(error) => (node::direct::text_of(&error), ExitCode::FAILURE),
    };
    // A plugin that was killed reads no more.
    let _ = std::io::stdout().write_all(answer.as_bytes());
    code
}
