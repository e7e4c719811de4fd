//! A stage for the lesson: a folder laid out like the repository, with the built binaries, and a user who works there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Two labs at once on two cores would only slow each other down.
static ONE_LAB_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long a condition may take to come true before the test fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// Who runs the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// Whoever runs the test.
    Myself,
    /// A user made for this test, without subordinate ids. Needs root to be made.
    OrdinaryUser,
}

/// The folder, the user, and the environment of the lesson.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    user: Option<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Lays out the folder. `None`, with a printed reason, where this machine cannot have such a stage.
    pub(crate) fn set(who: As) -> Option<Self> {
        let turn = ONE_LAB_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_root = rustix::process::geteuid().is_root();
        let user = match who {
            As::Myself => None,
            // One for each test program: what one of them removes is not another's.
            As::OrdinaryUser if is_root => Some(concat!("tortie-", env!("CARGO_CRATE_NAME")).to_owned()),
            As::OrdinaryUser => {
                eprintln!("SKIPPED: only root can make an ordinary user for this test");
                return None;
            }
        };
        // Not below root's home: an ordinary user must be able to reach it.
        let folder =
            tempfile::Builder::new().prefix("lesson-").tempdir_in("/var/tmp").expect("a folder in /var/tmp");
        let stage = Self { folder, user, _turn: turn };
        stage.lay_out();
        Some(stage)
    }

    fn lay_out(&self) {
        let root = self.folder.path();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let bin = root.join("target/release");
        fs::create_dir_all(&bin).expect("a folder for binaries");
        let built =
            Path::new(env!("CARGO_BIN_EXE_tortie")).parent().expect("a folder of binaries").to_owned();
        for name in ["tortie", "calico", "calico-ipam", "tortie-pause"] {
            let from = built.join(name);
            fs::copy(&from, bin.join(name)).unwrap_or_else(|error| {
                panic!("{}: {error}; build it first: cargo build --workspace --bins", from.display())
            });
        }
        for folder in ["lab/01-calico-ipam", "manifests"] {
            copy_folder(&repository.join(folder), &root.join(folder));
        }
        fs::create_dir_all(root.join("home")).expect("a home");
        // The links beside the program belong to the program, not to a lab.
        run_to_end(Command::new(bin.join("tortie")).args(["lab", "env"]));
        if let Some(user) = &self.user {
            run_to_end(Command::new("userdel").args(["--force", user]));
            let made = run_to_end(
                Command::new("useradd")
                    .args(["--no-create-home", "--home-dir"])
                    .arg(root.join("home"))
                    .arg(user),
            );
            assert!(made.status.success(), "useradd: {}", text(&made.stderr));
            // A user without subordinate ids: the lab must do with the one id it has.
            for file in ["/etc/subuid", "/etc/subgid"] {
                let kept: String = fs::read_to_string(file)
                    .unwrap_or_default()
                    .lines()
                    .filter(|line| !line.starts_with(&format!("{user}:")))
                    .map(|line| format!("{line}\n"))
                    .collect();
                if Path::new(file).exists() {
                    fs::write(file, kept).expect("to drop subordinate ids");
                }
            }
            let owned = run_to_end(Command::new("chown").args(["-R", user]).arg(root));
            assert!(owned.status.success(), "chown: {}", text(&owned.stderr));
        }
    }

    /// The folder of the lesson.
    pub(crate) fn lesson(&self) -> PathBuf {
        self.folder.path().join("lab/01-calico-ipam")
    }

    /// The whole stage.
    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A shell command in the lesson's folder, from a bare shell: nothing of ours on PATH.
    pub(crate) fn bare(&self, script: &str) -> Output {
        let mut command = match &self.user {
            None => Command::new("env"),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--clear-groups", "env"]);
                command
            }
        };
        command
            .arg("-i")
            .arg(format!("HOME={}", self.root().join("home").display()))
            .arg(format!("PATH={}", path_without_ours()))
            .arg("USER=learner")
            .args(["bash", "-c", script])
            .current_dir(self.lesson())
            .stdin(Stdio::null());
        run_to_end(&mut command)
    }

    /// A shell command in the environment of `tortie lab env`, with the lesson's kubeconfig. Must succeed; answers stdout.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = self.try_shell(script);
        assert!(
            output.status.success(),
            "{script}\nexited with {}\nstdout: {}\nstderr: {}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// As [`Stage::shell`], whatever the outcome.
    pub(crate) fn try_shell(&self, script: &str) -> Output {
        self.bare(&format!("eval \"$(../../target/release/tortie lab env)\"\n{script}"))
    }

    /// Runs `script` again and again until `wish` likes its output.
    pub(crate) fn until(&self, what: &str, script: &str, wish: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.try_shell(script);
            let said = text(&output.stdout);
            if output.status.success() && wish(&said) {
                return said;
            }
            assert!(
                Instant::now() < deadline,
                "{what} did not come true within {PATIENCE:?}: {script}\nstdout: {said}\nstderr: {}",
                text(&output.stderr)
            );
            // Not a wait for something to happen: only the pace of asking.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whatever the test left, also when it failed half-way.
        let _ = self.bare("./destroy.sh");
        if let Some(user) = &self.user {
            run_to_end(Command::new("userdel").args(["--force", user]));
        }
    }
}

/// Text of what a command printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run_to_end(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()))
}

fn path_without_ours() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let ours: &OsStr = OsStr::new("release");
    std::env::split_paths(&path)
        .filter(|folder| folder.file_name() != Some(ours))
        .map(|folder| folder.display().to_string())
        .collect::<Vec<_>>()
        .join(":")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder of the repository").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        // What a lab in the repository's own folder has left there is not part of the lesson.
        if name.starts_with("clab-") || name.ends_with(".kubeconfig") {
            continue;
        }
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a file of the repository");
        }
    }
}
