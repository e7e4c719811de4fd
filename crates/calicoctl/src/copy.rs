//! `tortie datastore copy`: all records of one datastore into another, of whatever kind the two are.

use crate::connection;
use datastore::backend::Backend;
use datastore::copy::{Options, Progress, Report, copy};
use std::fmt::Write as _;
use std::path::Path;

/// Plurals of the resources that are records.
const COPIED: [&str; 4] = ["ippools", "ipreservations", "nodes", "clusterinformations"];

/// Copies the datastore that the configuration file `from` names into the one of `to`, and returns what was done.
///
/// The target is left locked; a copy that was cut short is finished by running it again.
///
/// # Errors
/// One sentence with what to do.
pub async fn run(
    from: &Path,
    to: &Path,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<String, String> {
    let connect = async |config: &Path| {
        connection::connect(Some(config)).await.map_err(|failure| {
            let (printed, sentence) = (failure.printed().to_owned(), failure.sentence());
            let words = if sentence.is_empty() { printed } else { sentence };
            format!("{}: {}", config.display(), words.trim_end())
        })
    };
    let (source, target) = (connect(from).await?, connect(to).await?);
    let left = left_behind(&source).await?;
    let report = copy(&source, &target, options, progress).await.map_err(|error| error.to_string())?;
    Ok(text(&report, options) + &left)
}

/// What of the source is not copied, in a line. What stands among blocks and is none refuses the copy: it may hold addresses.
async fn left_behind(source: &Backend) -> Result<String, String> {
    let Backend::Etcd(etcd) = source else {
        return Ok("Only what addresses are about is copied: no policies, no BGP, no settings of Felix.\n"
            .to_owned());
    };
    if let Some(key) = etcd.stranger_among_blocks().await.map_err(|error| error.to_string())? {
        return Err(format!(
            "{key} is no block as Calico names them, and what it holds would be lost: mend or delete it"
        ));
    }
    let mut kinds = etcd.kinds_of_resources().await.map_err(|error| error.to_string())?;
    kinds.retain(|plural, _| !COPIED.contains(&plural.as_str()));
    if kinds.is_empty() {
        return Ok(String::new());
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|(plural, count)| format!("{count} of {plural}")).collect();
    Ok(format!("Not copied, because addresses are not about it: {}.\n", kinds.join(", ")))
}

fn text(report: &Report, options: Options) -> String {
    let mut text = String::new();
    let made = if options.dry_run { "to copy" } else { "copied" };
    for (kind, count) in &report.kinds {
        let _ = write!(text, "{kind}: {} {made}, {} there already", count.copied, count.same);
        if count.left_out > 0 {
            let _ = write!(text, ", {} left out", count.left_out);
        }
        if let Some(reason) = report.left_out.get(kind) {
            let _ = write!(text, " ({reason})");
        }
        text.push('\n');
    }
    if !options.dry_run {
        text.push_str(
            "The target is locked: once its clients are set up, calicoctl datastore migrate unlock lets them write.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::Kind;
    use datastore::copy::Count;

    #[test]
    fn the_report_counts_each_kind_and_says_what_is_left_to_do() {
        let mut report = Report::default();
        report.kinds.insert(Kind::Pool, Count { copied: 2, same: 1, left_out: 0 });
        report.kinds.insert(Kind::Node, Count { copied: 0, same: 0, left_out: 3 });
        report.left_out.insert(Kind::Node, "the API server makes them".to_owned());
        assert_eq!(
            text(&report, Options { dry_run: true, unlocked: false }),
            "pools: 2 to copy, 1 there already\n\
             nodes: 0 to copy, 0 there already, 3 left out (the API server makes them)\n"
        );
        assert!(text(&report, Options::default()).contains("calicoctl datastore migrate unlock"));
    }

    #[test]
    fn a_configuration_that_cannot_be_read_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let nowhere = Path::new("/nowhere/source.cfg");
        let error = runtime.block_on(run(nowhere, nowhere, Options::default(), |_| {})).unwrap_err();
        assert!(error.contains("/nowhere/source.cfg"), "{error}");
    }
}
