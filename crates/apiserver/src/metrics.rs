//! Figures about the server, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use storage::Store;

/// Verb, group, resource and code.
type Asked = (&'static str, String, String, u16);

/// What was asked, how often, and how it was answered.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Asked, u64>>,
}

impl Metrics {
    /// Counts an answered request for a kind that is served.
    pub(crate) fn count(&self, verb: &'static str, group: &str, resource: &str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, group.to_owned(), resource.to_owned(), code)).or_default() += 1;
    }

    /// The text.
    pub(crate) fn render(&self, store: &Store) -> String {
        let mut text = String::from(
            "# HELP apiserver_request_total Answered requests.\n# TYPE apiserver_request_total counter\n",
        );
        for ((verb, group, resource, code), count) in
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            // Writing to a text does not fail.
            let _ = writeln!(
                text,
                "apiserver_request_total{{verb=\"{}\",group=\"{group}\",resource=\"{resource}\",code=\"{code}\"}} {count}",
                verb.to_uppercase()
            );
        }
        for (name, help, value) in [
            ("tortie_apiserver_store_revision", "Revision of the last change.", store.revision()),
            (
                "tortie_apiserver_store_oldest_revision",
                "Oldest revision from which a watch can start.",
                store.oldest(),
            ),
            (
                "tortie_apiserver_watchers",
                "Open watches, the server's own among them.",
                u64::try_from(store.watchers()).unwrap_or(u64::MAX),
            ),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_were() {
        let metrics = Metrics::default();
        metrics.count("get", "", "pods", 200);
        metrics.count("get", "", "pods", 200);
        metrics.count("create", "apps", "deployments", 409);
        let text = metrics.render(&Store::in_memory().unwrap());
        assert!(
            text.contains(
                "apiserver_request_total{verb=\"GET\",group=\"\",resource=\"pods\",code=\"200\"} 2\n"
            )
        );
        assert!(text.contains("{verb=\"CREATE\",group=\"apps\",resource=\"deployments\",code=\"409\"} 1\n"));
        assert!(text.contains("\ntortie_apiserver_store_revision 0\n"), "{text}");
    }
}
