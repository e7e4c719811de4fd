//! Whether the node agent answers, and so whether pods can be connected.

use super::cni::{self, Network};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{info, warn};

/// Longest wait for an answer. The socket is kept open by the holder: a dead agent is silence, not a refusal.
const DEADLINE: Duration = Duration::from_secs(2);

/// Pause between two questions while the answer is yes.
const STEADY: Duration = Duration::from_millis(500);

/// Pause between two questions while a new agent starts.
const EAGER: Duration = Duration::from_millis(20);

/// Answers in a row that say "not ready" before a container that was ready is so no more.
const PATIENCE: u32 = 3;

/// What is known of the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Whether the agent says that it serves.
    pub agent_ready: bool,
    /// Whether it has served since it started and still answers.
    pub serving: bool,
    /// The configuration for the plugins, once it is installed.
    pub network: Option<Arc<Network>>,
}

impl State {
    /// Whether pods can be connected.
    pub(super) fn is_ready(&self) -> bool {
        self.serving && self.network.is_some()
    }
}

/// Asks the agent behind `socket` again and again while one runs, and keeps `state` up to date.
pub(super) async fn follow(
    socket: PathBuf,
    configuration: PathBuf,
    mut running: watch::Receiver<bool>,
    state: watch::Sender<State>,
) {
    let mut refusals = 0;
    loop {
        let alive = *running.borrow_and_update();
        let mut next = state.borrow().clone();
        if alive {
            tokio::select! {
                answer = ask(&socket, "/readyz") => match answer {
                    Some(200) => {
                        refusals = 0;
                        next.agent_ready = true;
                        next.serving = true;
                    }
                    Some(_) => {
                        refusals += 1;
                        next.agent_ready &= refusals < PATIENCE;
                    }
                    None => (next.agent_ready, next.serving) = (false, false),
                },
                _ = running.changed() => (next.agent_ready, next.serving) = (false, false),
            }
        } else {
            refusals = 0;
            (next.agent_ready, next.serving) = (false, false);
        }
        match cni::read(&configuration) {
            Ok(network) if network.as_ref() != next.network.as_deref() => {
                next.network = network.map(Arc::new)
            }
            Ok(_) => {}
            Err(error) => {
                warn!(error, "did not take the network configuration");
                next.network = None;
            }
        }
        let pause = match (alive, next.is_ready()) {
            (true, true) => STEADY,
            (true, false) => EAGER,
            (false, _) => Duration::MAX,
        };
        state.send_if_modified(|state| {
            let changed = *state != next;
            if state.is_ready() != next.is_ready() {
                info!(ready = next.is_ready(), serving = next.serving, "the node's network changed");
            }
            *state = next;
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = running.changed() => if changed.is_err() { return },
        }
    }
}

/// The status of the answer to GET `path`; `None` for silence.
async fn ask(socket: &Path, path: &str) -> Option<u16> {
    let answer = async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        let mut limited = stream.take(64);
        while head.len() < 12 && limited.read_buf(&mut head).await.ok()? > 0 {}
        let line = std::str::from_utf8(head.get(..12)?).ok()?;
        line.strip_prefix("HTTP/1.1 ")?.parse().ok()
    };
    tokio::time::timeout(DEADLINE, answer).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Answers every question with the status of the moment.
    fn serve(socket: &Path, status: watch::Receiver<u16>) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // Closing with something unread would take the answer away.
                let _ = stream.read(&mut [0; 256]).await;
                let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\n\r\n", *status.borrow());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }

    #[tokio::test]
    async fn a_node_is_ready_by_an_agent_that_serves_and_a_configuration_and_not_without_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let (status, answers) = watch::channel(503);
        serve(&socket, answers);
        let (running, runs) = watch::channel(false);
        let (sender, mut state) = watch::channel(State::default());
        tokio::spawn(follow(socket, directory.path().to_owned(), runs, sender));
        running.send_replace(true);
        std::fs::write(
            directory.path().join("10-calico.conflist"),
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#,
        )
        .unwrap();
        let seen = state.wait_for(|state| state.network.is_some()).await.unwrap().clone();
        assert!(!seen.serving && !seen.is_ready());
        status.send_replace(200);
        assert!(state.wait_for(State::is_ready).await.unwrap().agent_ready);
        // Not ready for a while is not the same as gone.
        status.send_replace(503);
        let seen = state.wait_for(|state| !state.agent_ready).await.unwrap().clone();
        assert!(seen.is_ready());
        running.send_replace(false);
        assert!(!state.wait_for(|state| !state.serving).await.unwrap().is_ready());
    }
}
