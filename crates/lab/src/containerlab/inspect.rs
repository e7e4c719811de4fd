//! `containerlab inspect`: the nodes of labs as a table, as JSON or as CSV.

use crate::cluster::{Cluster, Node};
use crate::console;
use crate::known::Known;
use crate::table::Table;
use crate::topology::CLUSTER_KIND;
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::Serialize;
use sha1::{Digest as _, Sha1};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::Path;

/// How the nodes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A table; `wide` with one line for each node.
    Table { wide: bool },
    /// JSON by lab.
    Json,
    /// Comma-separated values.
    Csv,
    /// All of the lab's description.
    Details,
}

/// The first line of the CSV form.
pub(super) const CSV_HEADER: &str =
    "lab_name,labPath,absLabPath,name,container_id,image,kind,state,status,ipv4_address,ipv6_address,owner\n";

/// A node as containerlab describes a container. The order of the fields is that of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    lab_name: String,
    #[serde(rename = "labPath")]
    lab_path: String,
    #[serde(rename = "absLabPath")]
    abs_lab_path: String,
    name: String,
    container_id: String,
    image: String,
    kind: String,
    state: String,
    status: String,
    ipv4_address: String,
    ipv6_address: String,
    owner: String,
}

/// Prints the nodes of labs.
pub(super) fn print(labs: &[(Known, Cluster)], format: Format) -> Result<()> {
    show(labs, format, false)
}

/// Prints the nodes of labs with the labs' names and topologies.
pub(super) fn print_all(labs: &[(Known, Cluster)], format: Format) -> Result<()> {
    show(labs, format, true)
}

fn show(labs: &[(Known, Cluster)], format: Format, with_labs: bool) -> Result<()> {
    let here = std::env::current_dir().context("finding the working directory")?;
    let now = Timestamp::now();
    let mut rows: Vec<Row> = labs
        .iter()
        .flat_map(|(known, cluster)| {
            let running = known.holder().is_some();
            let here = here.clone();
            cluster.nodes.iter().map(move |node| row(cluster, node, running, &here, now))
        })
        .collect();
    rows.sort_by(|one, other| (&one.lab_name, &one.name).cmp(&(&other.lab_name, &other.name)));
    let bold = console::wants_colour(std::io::stdout().is_terminal());
    let text = match format {
        Format::Table { wide } => table(&rows, wide, with_labs).render(bold),
        Format::Json => json(&rows)?,
        Format::Csv => csv(&rows),
        Format::Details => {
            let details: BTreeMap<&str, &Cluster> =
                labs.iter().map(|(_, cluster)| (cluster.lab.as_str(), cluster)).collect();
            format!("{}\n", serde_json::to_string_pretty(&details).context("writing JSON")?)
        }
    };
    console::result(&text);
    Ok(())
}

fn row(cluster: &Cluster, node: &Node, running: bool, here: &Path, now: Timestamp) -> Row {
    let absolute = cluster.topology.display().to_string();
    let relative = relative(&cluster.topology, here).filter(|relative| relative.len() < absolute.len());
    let id = Sha1::digest(format!("{} {} {}", cluster.name, node.name, cluster.created));
    let id: String = id.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Row {
        lab_name: cluster.lab.clone(),
        lab_path: relative.unwrap_or_else(|| absolute.clone()),
        abs_lab_path: absolute,
        name: node.name.clone(),
        container_id: id,
        image: node.image.clone(),
        kind: CLUSTER_KIND.into(),
        state: if running { "running" } else { "exited" }.into(),
        status: if running { format!("Up {}", age(cluster.created, now)) } else { "Exited (137)".into() },
        ipv4_address: node.address.to_string(),
        ipv6_address: node.address6.to_string(),
        owner: cluster.owner.clone(),
    }
}

/// The way from `here` to `path`, with as many `..` as it takes.
fn relative(path: &Path, here: &Path) -> Option<String> {
    let common = path.components().zip(here.components()).take_while(|(one, other)| one == other).count();
    let up = here.components().count() - common;
    let mut way: std::path::PathBuf = std::iter::repeat_n("..", up).collect();
    way.extend(path.components().skip(common));
    way.to_str().map(str::to_owned)
}

/// As docker says it: `3 minutes`, `About an hour`.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => "Less than a second".into(),
        (0, 0, 0, 1) => "1 second".into(),
        (0, 0, 0, seconds) => format!("{seconds} seconds"),
        (0, 0, 1, _) => "About a minute".into(),
        (0, 0, minutes, _) => format!("{minutes} minutes"),
        (0, 1, ..) => "About an hour".into(),
        (0 | 1, hours, ..) => format!("{hours} hours"),
        (days, ..) => format!("{days} days"),
    }
}

fn table(rows: &[Row], wide: bool, with_labs: bool) -> Table {
    let plain = |address: &str| match address.split('/').next() {
        Some("") | None => "N/A".to_owned(),
        Some(address) => address.to_owned(),
    };
    // Only a verdict on health is shown as status, and these nodes have none.
    let status = "";
    let mut table = Table::default();
    let mut header: Vec<&str> = Vec::new();
    if with_labs {
        header.extend(["Topology", "Lab Name"]);
        table.merged.extend([0, 1]);
    }
    if wide {
        header.insert(0, "Owner");
        table.merged.clear();
    }
    header.extend(["Name", "Kind/Image", "State", "IPv4/6 Address"]);
    table.header = header.into_iter().map(str::to_owned).collect();
    for row in rows {
        let mut cells: Vec<Vec<String>> = Vec::new();
        if wide {
            cells.push(vec![row.owner.clone()]);
        }
        if with_labs {
            cells.push(vec![row.lab_path.clone()]);
            cells.push(vec![row.lab_name.clone()]);
        }
        let pairs = [
            (row.kind.clone(), row.image.clone()),
            (row.state.clone(), status.to_owned()),
            (plain(&row.ipv4_address), plain(&row.ipv6_address)),
        ];
        cells.push(vec![row.name.clone()]);
        for (first, second) in pairs {
            cells.push(if wide {
                vec![format!("{first} {second}")]
            } else {
                [first, second].into_iter().filter(|line| !line.is_empty()).collect()
            });
        }
        table.rows.push(cells);
    }
    table
}

fn json(rows: &[Row]) -> Result<String> {
    let mut labs: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        labs.entry(&row.lab_name).or_default().push(row);
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(&labs).context("writing JSON")?))
}

fn csv(rows: &[Row]) -> String {
    let quote = |field: &String| {
        if field.contains([',', '"', '\n']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    let mut text = CSV_HEADER.to_owned();
    for row in rows {
        let fields = [
            &row.lab_name,
            &row.lab_path,
            &row.abs_lab_path,
            &row.name,
            &row.container_id,
            &row.image,
            &row.kind,
            &row.state,
            &row.status,
            &row.ipv4_address,
            &row.ipv6_address,
            &row.owner,
        ];
        text.push_str(&fields.map(quote).join(","));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let cluster = crate::deploy::tests::lesson();
        let now = Timestamp::from_second(200).unwrap();
        cluster.nodes.iter().map(|node| row(&cluster, node, true, Path::new("/lessons"), now)).collect()
    }

    #[test]
    fn the_table_is_the_lessons_byte_for_byte() {
        let golden = "\
╭───────────────────────────┬──────────────────────┬─────────┬───────────────────────╮
│            Name           │      Kind/Image      │  State  │     IPv4/6 Address    │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-control-plane │ k8s-kind             │ running │ 172.18.0.3            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::3 │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-worker        │ k8s-kind             │ running │ 172.18.0.2            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::2 │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-worker2       │ k8s-kind             │ running │ 172.18.0.4            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::4 │
╰───────────────────────────┴──────────────────────┴─────────┴───────────────────────╯
";
        assert_eq!(table(&rows(), false, false).render(false), golden);
    }

    #[test]
    fn the_wide_table_has_one_line_a_node() {
        let text = table(&rows(), true, false).render(false);
        let line = "│ student │ calico-ipam-worker        │ k8s-kind kindest/node:v1.28.0 │ running  │ 172.18.0.2 fc00:f853:ccd:e793::2 │";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn json_has_containerlabs_keys_in_its_order() {
        let text = json(&rows()).unwrap();
        let keys: Vec<&str> =
            text.lines().skip(3).take(12).map(|line| line.trim().split('"').nth(1).unwrap()).collect();
        assert_eq!(format!("{}\n", keys.join(",")), CSV_HEADER);
        assert!(text.contains("\"ipv6_address\": \"fc00:f853:ccd:e793::3/64\""));
        assert!(text.contains("\"labPath\": \"calico-ipam.clab.yaml\""));
        assert!(text.contains("\"status\": \"Up 3 minutes\""));
    }

    #[test]
    fn csv_has_a_line_a_node() {
        let text = csv(&rows());
        assert!(text.starts_with(CSV_HEADER));
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn ways_lead_up_and_down() {
        assert_eq!(relative(Path::new("/a/b/x"), Path::new("/a/c/d")).as_deref(), Some("../../b/x"));
        assert_eq!(relative(Path::new("/a/x"), Path::new("/a")).as_deref(), Some("x"));
    }
}
