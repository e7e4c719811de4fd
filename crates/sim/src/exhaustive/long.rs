//! Small worlds that take longer than the tests have: three operations with two crashes on a store without transactions, and
//! agents whose watches are up to date where answers are lost. `cargo xtask sim --worlds --seconds N` runs each for so long at most,
//! and says which came to their end: how many orders a world has is known only then. What was run is in the track record.

use super::SmallWorld;
use super::actors::Operation::{self, Assign, Collect, GiveUp, Release, Serve};
use super::agents::Asked;
use super::stage::{ONE, TWO, cidr, cluster, owned, world};
use crate::db::StoreKind;
use datastore::Record;

const A: Asked = Asked { node: "a", adds: &["y"], dels: &[], hears: true };
const B: Asked = Asked { node: "b", adds: &["z"], ..A };

fn kubernetes(
    records: Vec<Record>,
    operations: &[Operation],
    (crashes, lost_answers): (usize, usize),
) -> SmallWorld {
    let holds_x = records.iter().any(|record| matches!(record, Record::Handle(_)));
    let promised: &[&'static str] = if holds_x { &["x"] } else { &[] };
    SmallWorld { crashes, lost_answers, ..world(StoreKind::Kubernetes, records, promised, operations) }
}

/// All of them, the shorter ones first.
pub fn worlds() -> Vec<SmallWorld> {
    let up = GiveUp("a", cidr(ONE));
    let (claim, other) = (Serve(A), Serve(B));
    let both = Serve(Asked { dels: &["x"], ..A });
    vec![
        kubernetes(cluster(TWO), &[claim, other], (2, 0)),
        kubernetes(cluster(ONE), &[claim, Assign("b", "z")], (2, 0)),
        kubernetes(owned(&["x"]), &[Collect, claim], (2, 0)),
        kubernetes(owned(&["x"]), &[both, other], (2, 0)),
        kubernetes(owned(&["x"]), &[up, Assign("b", "y"), Release("x")], (2, 0)),
        kubernetes(owned(&["x"]), &[Assign("a", "y"), Assign("b", "z"), Release("x")], (2, 0)),
        kubernetes(cluster(TWO), &[Assign("a", "x"), Assign("b", "y"), Assign("b", "z")], (2, 0)),
        kubernetes(cluster(ONE), &[claim, other], (0, 1)),
        kubernetes(owned(&["x"]), &[both, other], (0, 1)),
        kubernetes(owned(&["x"]), &[claim, Assign("b", "z"), Release("x")], (1, 0)),
    ]
}
