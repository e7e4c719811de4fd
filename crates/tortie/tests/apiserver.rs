//! The API server by itself: the program, kubectl, a backup while others write, and a server made of it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A running server; it is killed at the end.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // One that ended by itself is found by what failed before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tortie() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tortie"));
    command.env_remove("LISTEN_FDS").stdin(Stdio::null());
    command
}

/// Starts a server and waits for the line that it prints when its certificates are there.
fn start(mut command: Command) -> Server {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("export KUBECONFIG=/"), "{line}");
    Server(child)
}

fn serve(data: &Path) -> Server {
    let mut command = tortie();
    command.args(["apiserver", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    start(command)
}

fn kubectl(data: &Path, words: &[&str]) -> Output {
    Command::new("kubectl")
        .args(words)
        .env("KUBECONFIG", data.join("admin.kubeconfig"))
        .env("HOME", data)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_server_by_itself_is_backed_up_while_it_runs_and_restored_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, backup) =
        (folder.path().join("first"), folder.path().join("second"), folder.path().join("backup"));
    let server = serve(&first);
    assert_eq!(said(&kubectl(&first, &["get", "--raw", "/readyz"])), "ok");
    said(&kubectl(&first, &["create", "configmap", "before", "--from-literal=a=b"]));
    let metrics = said(&kubectl(&first, &["get", "--raw", "/metrics"]));
    assert!(
        metrics.contains(
            "apiserver_request_total{verb=\"CREATE\",group=\"\",resource=\"configmaps\",code=\"201\"} 1"
        ),
        "{metrics}"
    );
    for name in ["cluster.redb", "admin.kubeconfig", "pki/ca.key", "pki/apiserver.key"] {
        let mode = std::fs::metadata(first.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let config = tortie().args(["apiserver", "kubeconfig", "--data"]).arg(&first).output().unwrap();
    assert_eq!(said(&config), std::fs::read_to_string(first.join("admin.kubeconfig")).unwrap());

    let taken = tortie()
        .args(["apiserver", "backup", "--data"])
        .arg(&first)
        .arg("--to")
        .arg(&backup)
        .output()
        .unwrap();
    assert!(said(&taken).contains(" objects at revision "));
    let again = tortie()
        .args(["apiserver", "backup", "--data"])
        .arg(&first)
        .arg("--to")
        .arg(&backup)
        .output()
        .unwrap();
    assert!(!again.status.success(), "a backup is not overwritten");
    said(&kubectl(&first, &["create", "configmap", "after"]));
    let uid = ["get", "configmap", "before", "-o", "jsonpath={.metadata.uid} {.data}"];
    let before = said(&kubectl(&first, &uid));
    drop(server);

    let restored =
        tortie().args(["apiserver", "restore", "--data"]).arg(&second).arg("--from").arg(&backup).output();
    said(&restored.unwrap());
    let _server = serve(&second);
    assert_eq!(said(&kubectl(&second, &uid)), before);
    assert!(
        !kubectl(&second, &["get", "configmap", "after"]).status.success(),
        "it is younger than the backup"
    );
    said(&kubectl(&second, &["create", "configmap", "later"]));
}

#[test]
fn a_socket_that_is_handed_over_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // As systemd does it: descriptor 3. The shell puts it there.
    let mut command = Command::new("bash");
    let script = format!(
        "exec 3<&{}; LISTEN_FDS=1 exec '{}' apiserver --data '{}'",
        listener.as_raw_fd(),
        env!("CARGO_BIN_EXE_tortie"),
        folder.path().display()
    );
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    command.args(["-c", &script]).stdin(Stdio::null());
    let _server = start(command);
    let config = std::fs::read_to_string(folder.path().join("admin.kubeconfig")).unwrap();
    assert!(config.contains(&format!("server: https://{}\n", listener.local_addr().unwrap())), "{config}");
    assert_eq!(said(&kubectl(folder.path(), &["get", "--raw", "/healthz"])), "ok");
}

#[test]
fn the_python_client_finds_what_it_expects() {
    // One that has the package `kubernetes`: pip install kubernetes, in an environment of its own.
    let python = std::env::var_os("TORTIE_PYTHON").unwrap_or_else(|| "python3".into());
    let has_it = Command::new(&python).args(["-c", "import kubernetes"]).output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no Python with the package kubernetes; TORTIE_PYTHON names one");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let _server = serve(&data);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/client.py");
    let output = Command::new(python).arg(script).arg(data.join("admin.kubeconfig")).output().unwrap();
    assert_eq!(said(&output), "done\n");
}
