//! The lesson's outputs, from a run: what stands under a `transcript` mark in the lesson's text is what the commands above it print.

use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

const MARK: &str = "<!-- transcript:";

/// Deploys the lesson's lab, runs the commands above each mark, puts what they print below it, and destroys the lab.
///
/// # Errors
/// When a command fails: the text is then left as it was.
pub(crate) fn run(root: &Path) -> Result<()> {
    let folder = root.join("lab/01-calico-ipam");
    let path = folder.join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    shell(&folder, "./deploy.sh")?;
    let written = rewrite(&text, |commands| {
        // Pods that were just asked for are shown when they run.
        let settle = "kubectl create deployment web --image=nginx --replicas=6";
        let settled =
            commands.replace(settle, &format!("{settle}\nkubectl rollout status deployment/web >/dev/null"));
        shell(&folder, &format!("eval \"$(../../target/release/tortie lab env)\"\n{settled}"))
    });
    shell(&folder, "./destroy.sh")?;
    std::fs::write(&path, written?).with_context(|| format!("writing {}", path.display()))
}

/// Runs `script` and returns what it printed on standard output.
fn shell(folder: &Path, script: &str) -> Result<String> {
    let output = Command::new("bash")
        .args(["-ec", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("running bash")?;
    if !output.status.success() {
        bail!("{script}\nfailed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `text` with the block below each mark replaced by what `print` says of the commands in the block above it.
fn rewrite(text: &str, mut print: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let (mut written, mut commands, mut lines) = (String::new(), String::new(), text.lines().peekable());
    while let Some(line) = lines.next() {
        written.push_str(line);
        written.push('\n');
        if line == "```bash" {
            commands.clear();
            for line in lines.by_ref() {
                written.push_str(line);
                written.push('\n');
                if line == "```" {
                    break;
                }
                commands.push('\n');
                commands.push_str(line);
            }
        }
        if line.starts_with(MARK) {
            if lines.peek() == Some(&"```text") {
                let _old: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            }
            let printed = print(&commands)?;
            written.push_str(&format!("```text\n{}\n```\n", printed.trim_end()));
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_takes_the_place_of_what_stood_there() {
        let text = "a\n```bash\none\ntwo\n```\n\n<!-- transcript: x -->\n```text\nold\n```\nb\n";
        let once =
            rewrite(text, |commands| Ok(format!("ran {}", commands.trim().replace('\n', ", ")))).unwrap();
        assert_eq!(
            once,
            "a\n```bash\none\ntwo\n```\n\n<!-- transcript: x -->\n```text\nran one, two\n```\nb\n"
        );
        assert_eq!(rewrite(&once, |_| Ok("ran one, two".to_owned())).unwrap(), once);
    }
}
