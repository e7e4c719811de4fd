//! The kubectls of this machine, and runs of them against one server.

use crate::support::Lab;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A kubectl.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Its minor version: 28 for 1.28.
    pub(crate) minor: u32,
}

/// All kubectls of this machine, the oldest first, one for each minor version.
///
/// That of the PATH, those beside what it links to, and that of `KUBEBUILDER_ASSETS`. One that runs another by the
/// version of the server counts as the one it runs.
pub(crate) fn all() -> Vec<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|one| one.exists());
    let Some(on_path) = on_path else { panic!("no kubectl on PATH: the checklist is about what it sees") };
    let target = on_path.canonicalize().unwrap();
    let mut candidates = vec![target.clone()];
    let beside = std::fs::read_dir(target.parent().unwrap()).unwrap();
    candidates.extend(beside.flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1."))
    }));
    candidates
        .extend(std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join("kubectl")));
    let mut found = BTreeMap::new();
    for path in candidates.into_iter().filter(|path| path.exists()) {
        if let Some(minor) = minor(&path) {
            found.insert(minor, Program { path, minor });
        }
    }
    found.into_values().collect()
}

/// The kubectl of the PATH.
pub(crate) fn any() -> Program {
    all().into_iter().next().expect("a kubectl")
}

fn minor(path: &Path) -> Option<u32> {
    let output = Command::new(path).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let version = &version["clientVersion"];
    if version["gitVersion"].as_str()?.contains("dispatcher") {
        return None;
    }
    version["minor"].as_str()?.trim_end_matches('+').parse().ok()
}

/// One kubectl, pointed at one server.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub(crate) program: Program,
    folder: PathBuf,
    kubeconfig: PathBuf,
    variables: Vec<(String, String)>,
}

impl Kubectl {
    /// As the administrator.
    pub(crate) fn new(lab: &Lab, program: &Program) -> Self {
        let folder = lab.folder.path().join(format!("kubectl-{}", program.minor));
        std::fs::create_dir_all(&folder).unwrap();
        let link = folder.join("kubectl");
        if !link.exists() {
            std::os::unix::fs::symlink(&program.path, link).unwrap();
        }
        let kubeconfig = lab.kubeconfig("admin", &["system:masters"]);
        Self { program: program.clone(), folder, kubeconfig, variables: Vec::new() }
    }

    /// With an environment variable set.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a cache of its own, empty.
    pub(crate) fn cold(self) -> Self {
        let folder = self.folder.join(uuid());
        std::fs::create_dir_all(&folder).unwrap();
        let text = folder.to_str().unwrap().to_owned();
        self.with("KUBECACHEDIR", &text)
    }

    /// Runs a script in which `kubectl` is this one. Its working folder is its own.
    pub(crate) async fn shell(&self, script: &str) -> Output {
        let mut path = self.folder.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = tokio::process::Command::new("bash");
        command
            .args(["-c", script])
            .current_dir(&self.folder)
            .env("PATH", path)
            .env("HOME", &self.folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.output().await.unwrap()
    }

    /// Runs a script that must succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> impl Future<Output = String> {
        let script = script.to_owned();
        async move {
            let output = self.shell(&script).await;
            assert!(
                output.status.success(),
                "1.{}: {script}\n{}{}",
                self.program.minor,
                text(&output.stdout),
                text(&output.stderr)
            );
            text(&output.stdout)
        }
    }
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
