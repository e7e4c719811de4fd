//! Commands in a running container, and sessions with one, whatever carries their streams.

use super::console::Piece;
use super::logs::{self, LogQuery};
use super::pipes::Pipe;
use super::shared::{PodEntry, Shared};
use crate::holder::{Attached, ClientError, Exit, ProcessSpec, RefusalKind, Streams};
use bytes::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, info};

/// How long output may still come from what a command left behind when it ended.
const DRAIN: Duration = Duration::from_secs(2);

/// Terminal of a client that has not told its size.
const TERMINAL: (u16, u16) = (80, 24);

/// What goes to the client.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    Out(Bytes),
    Error(Bytes),
    /// The last: a Status object.
    End(Value),
}

/// The client's side. `output` is closed when it has gone.
#[derive(Debug)]
pub(super) struct Remote {
    /// What it types; `None` if it does not.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Sizes of its terminal: columns and rows.
    pub sizes: mpsc::Receiver<(u16, u16)>,
    pub output: mpsc::Sender<Output>,
}

/// Runs `words` in the container and lets the client have its streams and its end.
pub(super) async fn exec(
    shared: Arc<Shared>,
    target: PodEntry,
    container: String,
    words: Vec<String>,
    tty: bool,
    remote: Remote,
) {
    let mut env = target.containers.get(&container).map(|entry| entry.env.clone()).unwrap_or_default();
    if tty {
        env.insert("TERM".into(), "xterm".into());
    }
    let id = format!("node/{}/exec/{}", shared.node.name, uuid::Uuid::new_v4());
    let spec = ProcessSpec {
        id: id.clone(),
        argv: words.clone(),
        env,
        cwd: target.pod.container(&container).and_then(|c| c.working_dir.as_ref()).map(PathBuf::from),
        namespaces: Some(target.pod.namespaces()),
        ..ProcessSpec::default()
    };
    let streams = Streams { stdin: remote.stdin.is_some(), terminal: tty.then_some(TERMINAL) };
    let program = words.first().cloned().unwrap_or_default();
    match shared.holder.spawn_attached(spec, streams).await {
        Ok(attached) => {
            info!(pod = target.pod.name, container, program, "executing in a container");
            if let Err(error) = carry(&shared, &id, attached, remote).await {
                debug!(pod = target.pod.name, %error, "lost a command");
            }
            // Still there only if the client left first.
            let _ = shared.holder.signal(&id, Signal::KILL.as_raw()).await;
            forget(&shared, &id).await;
        }
        Err(error) => {
            let (text, status) = not_started(&program, &error);
            // A client that has gone needs no reason.
            let _ = remote.output.send(Output::Error(text.into())).await;
            let _ = remote.output.send(Output::End(status)).await;
        }
    }
}

/// What is told about a program that does not start, as a shell does: 127 when there is none, 126 when it may not run.
fn not_started(program: &str, error: &ClientError) -> (String, Value) {
    if error.kind() != Some(RefusalKind::NotRunnable) {
        return (String::new(), failure(&error.to_string()));
    }
    let message = error.to_string();
    if message.contains("os error 13") {
        return (format!("exec: \"{program}\": permission denied\n"), exited(126));
    }
    (format!("exec: \"{program}\": executable file not found in $PATH\n"), exited(127))
}

async fn carry(
    shared: &Shared,
    id: &str,
    attached: Attached,
    mut remote: Remote,
) -> Result<(), anyhow::Error> {
    let mut watch = shared.holder.watch(id).await?;
    let stdout = Arc::new(Pipe::new(attached.stdout)?);
    let mut pumps = vec![pump(stdout.clone(), remote.output.clone(), Output::Out)];
    if let Some(stderr) = attached.stderr {
        pumps.push(pump(Arc::new(Pipe::new(stderr)?), remote.output.clone(), Output::Error));
    }
    let stdin = match attached.stdin {
        Some(stdin) => Arc::new(Pipe::new(stdin)?),
        None => stdout.clone(),
    };
    let typing = remote.stdin.take().map(|mut typed| {
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        })
    });
    let mut sizes_end = false;
    let exit = loop {
        tokio::select! {
            state = watch.next() => if let Some(exit) = state?.exit {
                break Some(exit);
            },
            size = remote.sizes.recv(), if !sizes_end => match size {
                Some(size) => stdout.resize(size),
                None => sizes_end = true,
            },
            () = remote.output.closed() => break None,
        }
    };
    if let Some(typing) = typing {
        typing.abort();
    }
    if let Some(exit) = exit {
        let drained = async {
            for pump in &mut pumps {
                // It cannot fail, and a cancelled one has nothing more to say.
                let _ = pump.await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            debug!(id, "something holds on to the output of a command that ended");
        }
        // The client may have gone meanwhile.
        let _ = remote.output.send(Output::End(ended(&exit))).await;
    }
    for pump in pumps {
        pump.abort();
    }
    Ok(())
}

fn pump(from: Arc<Pipe>, to: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            if to.send(wrap(bytes)).await.is_err() {
                return;
            }
        }
    })
}

/// Drops the holder's record of a process, as soon as it has ended.
async fn forget(shared: &Shared, id: &str) {
    let Ok(mut watch) = shared.holder.watch(id).await else { return };
    while let Ok(state) = watch.next().await {
        if state.exit.is_some() {
            // Only the holder's own end prevents it, and then nothing is left.
            let _ = shared.holder.forget(id).await;
            return;
        }
    }
}

/// Lets the client have the streams of the container itself, until one of them ends.
pub(super) async fn attach(shared: Arc<Shared>, target: PodEntry, container: String, mut remote: Remote) {
    let entry = target.containers.get(&container).cloned().unwrap_or_default();
    let Some(console) = entry.console else {
        return listen(shared, target, container, remote).await;
    };
    let once = target.pod.container(&container).is_some_and(|container| container.stdin_once);
    let (early, mut output) = console.listen();
    let input = console.input();
    // Held weakly, here and in what was handed over: the container's end shows by the end of its streams.
    let weak = Arc::downgrade(&console);
    drop((console, target));
    let mut stdin = remote.stdin.take();
    let mut sizes_end = false;
    for piece in early {
        // Who does not listen any more is noticed below.
        let _ = remote.output.send(written(piece)).await;
    }
    loop {
        tokio::select! {
            piece = output.recv() => {
                let piece = match piece {
                    Ok(piece) => written(piece),
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => break,
                };
                if remote.output.send(piece).await.is_err() {
                    break;
                }
            }
            typed = receive(&mut stdin) => match (typed, &input) {
                (Some(bytes), Some(input)) => {
                    let _ = input.send(bytes).await;
                }
                _ => {
                    stdin = None;
                    if once && let Some(console) = weak.upgrade() {
                        console.close();
                    }
                }
            },
            size = remote.sizes.recv(), if !sizes_end => match (size, weak.upgrade()) {
                (Some(size), Some(console)) => console.resize(size),
                _ => sizes_end = true,
            },
            () = remote.output.closed() => break,
        }
    }
    drop(input);
    if once && let Some(console) = weak.upgrade() {
        console.close();
    }
    // A client that left does not wait for it.
    let _ = remote.output.send(Output::End(success())).await;
}

fn written((is_error, bytes): Piece) -> Output {
    if is_error { Output::Error(bytes) } else { Output::Out(bytes) }
}

/// The next bytes; waits for ever where nothing is typed.
async fn receive(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// What a container that nobody can type into writes from now on.
async fn listen(shared: Arc<Shared>, target: PodEntry, container: String, remote: Remote) {
    let pod = &target.pod;
    let log = logs::path(&shared.logs(&pod.namespace, &pod.name, &pod.uid), &container);
    let query = LogQuery { follow: true, tail: Some(0), ..LogQuery::default() };
    let (sender, mut receiver) = mpsc::channel(16);
    let is_running = || is_running(&shared, &target, &container);
    let read = logs::send(&log, &query, &shared.marks, is_running, sender);
    let write = async {
        while let Some(bytes) = receiver.recv().await {
            if remote.output.send(Output::Out(bytes)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        (read, ()) = async { tokio::join!(read, write) } => if let Err(error) = read {
            debug!(%error, "did not read a log");
        },
        () = remote.output.closed() => {}
    }
    let _ = remote.output.send(Output::End(success())).await;
}

/// Whether the run of the container that `target` shows still lasts.
pub(super) fn is_running(shared: &Shared, target: &PodEntry, container: &str) -> bool {
    shared.pods().get(&target.pod.key()).is_some_and(|entry| {
        entry.pod.uid == target.pod.uid
            && entry.containers.get(container).is_some_and(|now| {
                now.running && now.started == target.containers.get(container).and_then(|entry| entry.started)
            })
    })
}

fn ended(exit: &Exit) -> Value {
    match exit.code.or_else(|| exit.signal.map(|signal| 128 + signal)) {
        Some(0) => success(),
        code => exited(code.unwrap_or(255)),
    }
}

/// All went well.
pub(super) fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn exited(code: i32) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// It did not come to a command.
pub(super) fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_ends_as_in_a_shell() {
        let refused =
            |message: &str| ClientError::Refused { kind: RefusalKind::NotRunnable, message: message.into() };
        let (text, status) = not_started("foo", &refused("foo: No such file or directory (os error 2)"));
        assert_eq!(text, "exec: \"foo\": executable file not found in $PATH\n");
        assert_eq!(status["details"]["causes"][0]["message"], "127");
        let (_, status) = not_started("foo", &refused("foo: Permission denied (os error 13)"));
        assert_eq!(status["details"]["causes"][0]["message"], "126");
        let (text, status) = not_started("foo", &ClientError::Gone("x".into()));
        assert_eq!((text.as_str(), status["reason"].as_str()), ("", Some("InternalError")));
    }

    #[test]
    fn signals_end_a_command_with_128_and_their_number() {
        let exit = |code, signal| ended(&Exit { code, signal, finished: jiff::Timestamp::UNIX_EPOCH });
        assert_eq!(exit(Some(0), None), success());
        assert_eq!(exit(None, Some(9))["details"]["causes"][0]["message"], "137");
    }
}
