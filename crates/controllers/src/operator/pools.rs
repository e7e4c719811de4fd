//! Making the pools of the cluster agree with those that the Installation asks for (controllers §6.4).
//!
//! The operator changes only pools that carry its label. A pool that somebody made with the very fields that are asked
//! for is adopted; any other on the same or an overlapping range is left alone and reported.

use super::installation::Trouble;
use crate::cluster::Action;
use crate::object::{IP_POOL, Name, covers, text};
use api::Pool;
use serde_json::{Value, json};

/// Label of what the operator owns.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const OPERATOR: &str = "tigera-operator";

/// What is to be done about the pools, and what stands in the way.
#[derive(Debug, Default)]
pub(super) struct PoolPlan {
    pub(super) actions: Vec<Action>,
    pub(super) trouble: Option<Trouble>,
    /// What is said along with success.
    pub(super) warnings: Vec<String>,
}

/// Compares `wanted` with the IPPool objects of the cluster. `in_use` says whether nodes have blocks in a pool's range.
pub(super) fn plan(wanted: &[Pool], objects: &[&Value], in_use: impl Fn(&Pool) -> bool) -> PoolPlan {
    let mut plan = PoolPlan::default();
    let found: Vec<(&Value, Pool)> =
        objects.iter().filter_map(|object| Pool::from_v1(object).ok().map(|pool| (*object, pool))).collect();
    for pool in wanted {
        match found.iter().find(|(_, found)| found.cidr == pool.cidr) {
            Some((object, found)) => keep(&mut plan, pool, object, found),
            None => match found.iter().find(|(_, found)| found.cidr.overlaps(pool.cidr) || found.name == pool.name) {
                // What made room for it goes first.
                Some((object, other)) if is_ours(object) && !wanted.iter().any(|pool| pool.cidr == other.cidr) => {
                    plan.warnings.push(format!("IPPool {} waits for IPPool {} to go", pool.cidr, other.name));
                }
                Some((_, other)) => plan.refuse(
                    "InvalidConfigurationError",
                    format!(
                        "IPPool {} ({}) CIDR overlaps with IPPool {} CIDR {}, which the operator does not manage; choose another range or delete that pool",
                        pool.name, pool.cidr, other.name, other.cidr
                    ),
                ),
                None => {
                    let mut object = pool.to_v1();
                    object["metadata"]["labels"] = json!({MANAGED_BY: OPERATOR});
                    plan.actions.push(Action::Create(IP_POOL, object));
                }
            },
        }
    }
    for (object, pool) in &found {
        if is_ours(object) && !wanted.iter().any(|wanted| wanted.cidr == pool.cidr) {
            retire(&mut plan, object, pool, in_use(pool));
        }
    }
    plan
}

impl PoolPlan {
    fn refuse(&mut self, reason: &'static str, message: String) {
        // The first one is told; the others follow when it is gone.
        self.trouble.get_or_insert(Trouble { reason, message });
    }
}

fn is_ours(object: &Value) -> bool {
    super::label(object, MANAGED_BY) == OPERATOR
}

/// A pool that exists on the wanted range.
fn keep(plan: &mut PoolPlan, wanted: &Pool, object: &Value, found: &Pool) {
    let name = Name::cluster(&found.name);
    let same = covers(&found.spec_v1(), &wanted.spec_v1()) && covers(&wanted.spec_v1(), &found.spec_v1());
    match (is_ours(object), same) {
        (true, true) => {}
        (false, true) => {
            let label = json!({"metadata": {"labels": {MANAGED_BY: OPERATOR}}});
            plan.actions.push(Action::Patch(IP_POOL, name, label));
        }
        (false, false) => plan.refuse(
            "ResourceValidationError",
            format!(
                "IPPool {} ({}) was not made by the operator and differs from the Installation; change one to match the other",
                found.name, found.cidr
            ),
        ),
        (true, false) if found.block_size != wanted.block_size => plan.refuse(
            "InvalidConfigurationError",
            format!(
                "blockSize of IPPool {} cannot change from {} to {} while the pool exists; set it back, or remove the pool first",
                found.name, found.block_size, wanted.block_size
            ),
        ),
        (true, false) => {
            // A merge patch keeps what it does not name: flags that are off must be said.
            let mut spec = wanted.spec_v1();
            spec["natOutgoing"] = json!(wanted.nat_outgoing);
            spec["disabled"] = json!(wanted.disabled);
            spec["disableBGPExport"] = json!(wanted.disable_bgp_export);
            plan.actions.push(Action::Patch(IP_POOL, name, json!({"spec": spec})));
        }
    }
}

/// A pool of ours that is no longer wanted: first it gives out nothing more, then nodes lose its blocks, then it goes.
/// Addresses in use stay in use in blocks without owner.
fn retire(plan: &mut PoolPlan, object: &Value, pool: &Pool, in_use: bool) {
    let name = Name::cluster(&pool.name);
    if !pool.disabled {
        plan.actions.push(Action::Patch(IP_POOL, name, json!({"spec": {"disabled": true}})));
    } else if in_use {
        plan.actions.push(Action::GiveUpBlocks(name, pool.cidr));
    } else {
        plan.actions.push(Action::Delete(IP_POOL, name, text(object, "/metadata/uid").to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap())
    }

    fn object(pool: &Pool, ours: bool) -> Value {
        let mut object = pool.to_v1();
        object["metadata"]["uid"] = json!("u");
        if ours {
            object["metadata"]["labels"] = json!({MANAGED_BY: OPERATOR});
        }
        object
    }

    #[test]
    fn missing_pool_is_made_with_the_operators_label_and_then_left_in_peace() {
        let made = plan(&[pool()], &[], |_| false);
        let [Action::Create(IP_POOL, object)] = made.actions.as_slice() else { panic!("{made:?}") };
        assert_eq!(object["metadata"]["labels"][MANAGED_BY], OPERATOR);
        let again = plan(&[pool()], &[object], |_| false);
        assert!(again.actions.is_empty() && again.trouble.is_none());
    }

    #[test]
    fn identical_pool_of_a_user_is_adopted_and_another_is_left_alone_and_reported() {
        let same = object(&pool(), false);
        let adopted = plan(&[pool()], &[&same], |_| false);
        assert!(matches!(adopted.actions.as_slice(), [Action::Patch(..)]));
        let mut different = pool();
        different.nat_outgoing = true;
        let different = object(&different, false);
        let left = plan(&[pool()], &[&different], |_| false);
        assert!(left.actions.is_empty());
        assert_eq!(left.trouble.unwrap().reason, "ResourceValidationError");
    }

    #[test]
    fn pool_of_a_user_on_an_overlapping_range_keeps_ours_from_being_made() {
        let other = object(&Pool::with_defaults("other", "192.168.128.0/17".parse().unwrap()), false);
        let refused = plan(&[pool()], &[&other], |_| false);
        assert!(refused.actions.is_empty());
        assert!(refused.trouble.unwrap().message.contains("192.168.128.0/17"));
    }

    #[test]
    fn removed_entry_disables_its_pool_then_takes_its_blocks_back_then_deletes_it() {
        let ours = object(&pool(), true);
        let first = plan(&[], &[&ours], |_| true);
        assert!(
            matches!(first.actions.as_slice(), [Action::Patch(_, _, patch)] if patch["spec"]["disabled"] == true)
        );
        let mut disabled = pool();
        disabled.disabled = true;
        let disabled = object(&disabled, true);
        let second = plan(&[], &[&disabled], |_| true);
        assert!(matches!(second.actions.as_slice(), [Action::GiveUpBlocks(..)]));
        assert!(matches!(plan(&[], &[&disabled], |_| false).actions.as_slice(), [Action::Delete(..)]));
        let foreign = object(&pool(), false);
        assert!(plan(&[], &[&foreign], |_| false).actions.is_empty());
    }

    #[test]
    fn changed_field_is_patched_but_the_block_size_is_refused() {
        let ours = object(&pool(), true);
        let mut wanted = pool();
        wanted.nat_outgoing = true;
        assert!(matches!(plan(&[wanted], &[&ours], |_| false).actions.as_slice(), [Action::Patch(..)]));
        let mut wanted = pool();
        wanted.block_size = 28;
        let refused = plan(&[wanted], &[&ours], |_| false);
        assert!(refused.actions.is_empty() && refused.trouble.unwrap().message.contains("26 to 28"));
    }
}
