//! The agent's log on standard output, in the form that readers of calico-node's log know.
//!
//! ```text
//! 2026-09-23 04:00:09.123 [INFO][64] node/driver.rs 100: claimed block block=192.168.18.64/26
//! ```

use jiff::Timestamp;
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What is logged unless RUST_LOG says otherwise. The API client is silent: its failures come back as errors, and whoever
/// gets them says what they mean.
const DEFAULT: &str = "info,kube_client=off,tower=off,hyper_util=off";

/// Sends this process's log to standard output, `info` and above unless RUST_LOG says otherwise.
///
/// Does nothing if a log is set up already.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let _ = tracing_subscriber::fmt()
        .event_format(Lines { process: std::process::id() })
        .with_env_filter(filter)
        .try_init();
}

/// One line an event.
#[derive(Clone, Copy, Debug)]
struct Lines {
    process: u32,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        writeln!(writer, "{}", line(Timestamp::now(), self.process, metadata, &fields))
    }
}

fn line(now: Timestamp, process: u32, metadata: &Metadata<'_>, fields: &Fields) -> String {
    let place = place(metadata.target(), metadata.file().unwrap_or_default());
    format!(
        "{} [{}][{process}] {place} {}: {}{}",
        now.strftime("%Y-%m-%d %H:%M:%S%.3f"),
        level(*metadata.level()),
        metadata.line().unwrap_or_default(),
        fields.message,
        fields.rest,
    )
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// Crate and file: `node/driver.rs`.
fn place(target: &str, file: &str) -> String {
    let package = target.split("::").next().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or_default();
    format!("{package}/{file}")
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else if value.contains([' ', '"', '\n']) {
            self.rest.push_str(&format!(" {}={value:?}", field.name()));
        } else {
            self.rest.push_str(&format!(" {}={value}", field.name()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A line is one event, whatever stands in it.
        let text = format!("{value:?}").replace('\n', " ");
        if field.name() == "message" {
            self.message.push_str(&text);
        } else {
            self.rest.push_str(&format!(" {}={text}", field.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::{Context, SubscriberExt};

    /// Collects lines.
    struct Collect(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Collect {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let now = "2026-09-23T04:00:09.123456Z".parse().unwrap();
            self.0.lock().unwrap().push(line(now, 64, event.metadata(), &fields));
        }
    }

    #[test]
    fn lines_look_like_those_of_calico_node() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Collect(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(block = %"192.168.18.64/26", reason = "two\nlines", "lost race");
        });
        let lines = lines.lock().unwrap();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let (head, tail) = line.split_once(": ").unwrap();
        assert!(head.starts_with("2026-09-23 04:00:09.123 [WARNING][64] node/log.rs "), "{line}");
        assert_eq!(tail, "lost race block=192.168.18.64/26 reason=\"two\\nlines\"");
    }
}
