//! The rules that our definition of pools carries: what Calico's API server refuses, ours does.

use crate::support::{Lab, MERGE};
use serde_json::{Value, json};
use std::path::Path;

const POOLS: &str = "/apis/crd.projectcalico.org/v1/ippools";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

async fn lab() -> Lab {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let pools =
        text.split("\n---\n").find(|one| one.contains("name: ippools.crd.projectcalico.org")).unwrap();
    let definition: Value = serde_saphyr::from_str(pools).unwrap();
    let lab = Lab::start().await;
    let made = lab.admin().post(DEFINITIONS, &definition).await;
    assert!(made.headers.get("warning").is_none(), "a rule is not judged: {:?}", made.headers);
    made.ok();
    lab
}

#[tokio::test]
async fn a_pool_is_made_as_calico_makes_them() {
    let lab = lab().await;
    for (at, spec) in [
        json!({"cidr": "192.168.0.0/16"}),
        json!({"cidr": "10.1.2.3/32", "blockSize": 32}),
        json!({"cidr": "10.244.0.0/16", "vxlanMode": "CrossSubnet", "ipipMode": "Never", "natOutgoing": true,
               "blockSize": 26, "nodeSelector": "zone == 'a'", "allowedUses": ["Workload", "Tunnel"]}),
        json!({"cidr": "fd00:10:244::/112", "blockSize": 122, "ipipMode": "Never", "vxlanMode": "Always",
               "allowedUses": ["Workload"], "namespaceSelector": "team == 'a'"}),
        json!({"cidr": "192.0.2.0/28", "blockSize": 30, "nodeSelector": "all()", "allowedUses": ["LoadBalancer"]}),
        json!({"cidr": "10.9.0.0/28", "disabled": true}),
        json!({"cidr": "169.253.0.0/16"}),
        json!({"cidr": "169.255.0.0/24"}),
        json!({"cidr": "::ffff:10.0.0.0/112", "blockSize": 0}),
    ]
    .into_iter()
    .enumerate()
    {
        lab.admin().post(POOLS, &json!({"metadata": {"name": format!("p{at}")}, "spec": spec})).await.ok();
    }
}

#[tokio::test]
async fn a_pool_that_cannot_work_is_refused_with_the_reason() {
    let lab = lab().await;
    let size = "blockSize is 20 to 32 for IPv4 and 116 to 128 for IPv6";
    let small = "the pool is smaller than one block and too small for address management";
    let local = "cidr overlaps the link-local range 169.254.0.0/16";
    let form = "cidr is an address and a prefix length, as 10.244.0.0/16";
    for (spec, field, told) in [
        (json!({"cidr": "10.0.0.0/16", "blockSize": 19}), "spec.blockSize", size),
        (json!({"cidr": "10.0.0.0/16", "blockSize": 122}), "spec.blockSize", size),
        (json!({"cidr": "fd00::/64", "blockSize": 64}), "spec.blockSize", size),
        (json!({"cidr": "10.0.0.0/27"}), "spec.cidr", small),
        (json!({"cidr": "fd00::/124", "disabled": false}), "spec.cidr", small),
        (json!({"cidr": "10.0.0.1/16"}), "spec.cidr", "cidr has bits set beyond its prefix length"),
        (json!({"cidr": "128.0.0.0/0"}), "spec.cidr", "cidr has bits set beyond its prefix length"),
        (json!({"cidr": "169.254.0.0/16"}), "spec.cidr", local),
        (json!({"cidr": "169.254.7.0/24"}), "spec.cidr", local),
        (json!({"cidr": "168.0.0.0/7"}), "spec.cidr", local),
        (json!({"cidr": "0.0.0.0/0"}), "spec.cidr", local),
        (json!({"cidr": "FE80::/64"}), "spec.cidr", "cidr overlaps the link-local range fe80::/10"),
        (json!({"cidr": "10.0.0.0"}), "spec.cidr", form),
        (json!({"cidr": "10.0.0/16"}), "spec.cidr", form),
        (json!({"cidr": "10.0.0.256/16"}), "spec.cidr", form),
        (json!({"cidr": "10.0.0.0/99999999999999999999"}), "spec.cidr", form),
        (json!({"cidr": ""}), "spec.cidr", form),
        (
            json!({"cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "CrossSubnet"}),
            "spec",
            "ipipMode and vxlanMode cannot both be enabled",
        ),
        (
            json!({"cidr": "fd00::/64", "ipipMode": "Always"}),
            "spec.ipipMode",
            "IPIP is not possible with IPv6",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer", "Workload"]}),
            "spec.allowedUses",
            "LoadBalancer cannot be combined with Workload or Tunnel",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"], "vxlanMode": "Always"}),
            "spec",
            "a pool for LoadBalancer has no ipipMode, no vxlanMode and no disableBGPExport",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"], "nodeSelector": "zone == 'a'"}),
            "spec.nodeSelector",
            "a pool for LoadBalancer is of all nodes, its nodeSelector is all()",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "allowedUses": ["Tunnel"], "namespaceSelector": "all()"}),
            "spec.namespaceSelector",
            "a pool with a namespaceSelector cannot be for Tunnel; set allowedUses to Workload",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "nodeSelector": "global()"}),
            "spec.nodeSelector",
            "global() is for selectors of policies",
        ),
    ] {
        let answer = lab.admin().post(POOLS, &json!({"metadata": {"name": "p"}, "spec": spec})).await;
        let (code, message) = answer.refused();
        let wanted = format!("{field}: Invalid value: {told}");
        assert!(code == 422 && message.contains(&wanted), "{spec}: {message}");
        assert!(!message.contains("evaluating rule"), "{spec}: {message}");
    }
}

#[tokio::test]
async fn addresses_and_block_size_of_a_pool_never_change() {
    let lab = lab().await;
    let admin = lab.admin();
    admin.post(POOLS, &json!({"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/16"}})).await.ok();
    let pool = format!("{POOLS}/p");
    let changed = async |spec: Value| admin.patch(&pool, MERGE, &json!({"spec": spec})).await;
    let (code, message) = changed(json!({"cidr": "10.1.0.0/16"})).await.refused();
    assert!(code == 422 && message.contains("cidr cannot be changed"), "{message}");
    let (code, message) = changed(json!({"blockSize": 28})).await.refused();
    assert!(code == 422 && message.contains("blockSize cannot be changed"), "{message}");
    // The same size, said and not said.
    changed(json!({"blockSize": 26})).await.ok();
    changed(json!({"blockSize": 0})).await.ok();
    changed(json!({"blockSize": null, "disabled": true, "natOutgoing": true})).await.ok();
    assert_eq!(admin.get(&pool).await.ok()["spec"]["cidr"], "10.0.0.0/16");
}
