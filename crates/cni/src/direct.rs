//! The way without an agent: a program is executed for one request, which it makes of the datastore.
//!
//! The plugin itself stays small: what speaks to a datastore needs TLS and a runtime, and is another program.

use crate::environment::Command;
use crate::error::{CniError, code};
use crate::invocation::Invocation;
use crate::result::AddResult;
use api::attachment::ErrorReply;
use api::direct::DirectCall;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

/// Name of the program, looked for beside the plugin and in `CNI_PATH`.
pub const PROGRAM: &str = "tortie";

/// Bytes of an answer that are read.
const ANSWER_LIMIT: u64 = 1 << 20;

/// The program and what all requests of a call have in common.
#[derive(Clone, Debug)]
pub struct Direct {
    program: PathBuf,
    call: DirectCall,
}

impl Direct {
    /// The way for this call.
    ///
    /// # Errors
    /// Code 7 if the program is not there, 11 for a DEL.
    pub fn of(call: &Invocation) -> Result<Self, CniError> {
        let beside =
            std::env::current_exe().ok().and_then(|own| own.parent().map(|folder| folder.join(PROGRAM)));
        let on_path = call.environment.path.iter().map(|folder| folder.join(PROGRAM));
        let named = call.config.ipam.direct_program.clone();
        let program = named.into_iter().chain(beside).chain(on_path).find(|file| file.is_file()).ok_or_else(|| {
            let message = format!(
                "no agent is named (ipam.agent_socket), and the program {PROGRAM} that would go to the datastore is neither \
                 beside the plugin nor in CNI_PATH; copy {PROGRAM} beside calico-ipam, or start the agent"
            );
            // A configuration that can serve nobody; but a DEL is repeated until it can be done.
            let is_del = call.environment.command == Command::Del;
            CniError::new(if is_del { code::TRY_AGAIN } else { code::BAD_CONFIG }, message)
        })?;
        Ok(Self {
            program,
            call: DirectCall {
                path: String::new(),
                body: Value::Null,
                node: call.config.node_name(),
                variables: call.config.variables(),
                lock_file: call.config.lock_file(),
                answered: answered(call),
            },
        })
    }

    /// Makes one request and returns the answer's body.
    ///
    /// # Errors
    /// The program's verdict, or code 11 if it ends without one.
    pub fn ask(&self, path: &str, body: Value) -> Result<Vec<u8>, CniError> {
        let failed = |error: std::io::Error| {
            let message = format!("{} cni direct cannot be run", self.program.display());
            CniError::new(code::TRY_AGAIN, message).because(&error)
        };
        let call = DirectCall { path: path.to_owned(), body, ..self.call.clone() };
        let text = serde_json::to_vec(&call)
            .map_err(|error| CniError::new(code::PLUGIN, "a request cannot be written").because(&error))?;
        let mut child = std::process::Command::new(&self.program)
            .args(["cni", "direct"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early says why.
            let _ = stdin.write_all(&text);
        }
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_LIMIT).read_to_end(&mut printed).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(printed);
        }
        match serde_json::from_slice::<ErrorReply>(&printed) {
            Ok(error) => Err(error.into()),
            Err(_) => {
                let message =
                    format!("{} cni direct failed without saying why ({status})", self.program.display());
                Err(CniError::new(code::TRY_AGAIN, message).because(&String::from_utf8_lossy(&printed)))
            }
        }
    }
}

/// Addresses of the earlier result, where a DEL has one.
fn answered(call: &Invocation) -> Vec<String> {
    if call.environment.command != Command::Del {
        return Vec::new();
    }
    let previous = call.config.previous.clone().and_then(|previous| AddResult::from_value(previous).ok());
    previous.unwrap_or_default().ips.into_iter().map(|ip| ip.address).collect()
}
