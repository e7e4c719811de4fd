//! `version`: of this command, and of the cluster as its records say (calicoctl §9).

use crate::arguments::Version;
use crate::connection;
use crate::failure::Failure;
use datastore::backend::Backend;
use datastore::{Datastore as _, Key, Record};
use serde_json::Value;
use std::path::Path;

/// Runs the command.
pub(crate) async fn run(config: Option<&Path>, options: &Version) -> Result<String, Failure> {
    let client = format!(
        "{}{}",
        line("Client Version:", concat!("v", env!("CARGO_PKG_VERSION"))),
        line("Git commit:", commit())
    );
    if options.client {
        return Ok(client);
    }
    let Ok(store) = connection::connect(config).await else {
        return Ok(format!("{client}Unable to detect installed Calico version\n"));
    };
    match cluster(&store).await {
        Ok(object) => Ok(format!("{client}{}", cluster_lines(&object))),
        Err(error) => {
            Err(Failure::after(client, format!("unable to retrieve Cluster Version or Type: {error}")))
        }
    }
}

/// The commit this was built from, where the build knew it.
fn commit() -> &'static str {
    option_env!("TORTIE_COMMIT").unwrap_or("unknown")
}

async fn cluster(store: &Backend) -> Result<Value, String> {
    let found = store.get(&Key::ClusterInformation).await.map_err(|error| error.to_string())?;
    match found.map(|stored| stored.record) {
        Some(Record::ClusterInformation(cluster)) => Ok(cluster.to_v1()),
        _ => Err("there is no ClusterInformation default".to_owned()),
    }
}

fn cluster_lines(object: &Value) -> String {
    let text = |field: &str| {
        object.pointer(field).and_then(Value::as_str).filter(|text| !text.is_empty()).unwrap_or("unknown")
    };
    format!(
        "{}{}",
        line("Cluster Version:", text("/spec/calicoVersion")),
        line("Cluster Type:", text("/spec/clusterType"))
    )
}

/// Values start at column 20.
fn line(label: &str, value: &str) -> String {
    format!("{label:<18} {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_does_not_say_is_unknown() {
        let object = serde_json::json!({"spec": {"calicoVersion": "v3.30.0"}});
        assert_eq!(cluster_lines(&object), "Cluster Version:   v3.30.0\nCluster Type:      unknown\n");
    }
}
