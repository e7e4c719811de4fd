//! Records that no careful hand wrote: tolerated as data model §14 says, or refused by name; never a panic, never changed by
//! being read and written.

use api::wire::WireError;
use api::{
    Affinity, AffinityNaming, AffinityState, Attribute, Block, ClusterInformation, Handle, IpamConfig, Node,
    Owner, OwnerKind, Pool, Reservation,
};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A kind of record: how an object of it is read and written again, as another object.
type Reader = fn(&Value) -> Result<Value, WireError>;

/// Each kind with an object that is in order and holds every field.
fn kinds() -> Vec<(&'static str, Reader, Value)> {
    let metadata = json!({"name":"the-object","deletionTimestamp":null,
        "labels":{"zone":"a"},"annotations":{"projectcalico.org/labels":"{\"rack\":\"1\"}"}});
    let object = |spec: Value| json!({"metadata": metadata, "spec": spec});
    vec![
        (
            "IPAMBlock",
            |object| Block::from_v1(object).map(|block| block.to_v1()),
            object(
                json!({"cidr":"10.244.7.64/30","affinity":"host:worker-1","affinityClaimTime":"2026-08-01T10:15:30Z",
                "allocations":[0,null,1,null],"unallocated":[3,1],
                "attributes":[{"handle_id":"net.4f2c","secondary":{"pod":"web-0"},"alternateOwnerAttrs":{"pod":"web-1"}},
                    {"releasedAt":"2026-08-01T10:20:00Z"}],
                "sequenceNumber":1_785_579_330_123_456_795_u64,
                "sequenceNumberForAllocation":{"0":7,"2":9},"deleted":false,"strictAffinity":false}),
            ),
        ),
        (
            "BlockAffinity",
            |object| Affinity::from_v1(object).map(|affinity| affinity.to_v1(AffinityNaming::PerNode)),
            object(
                json!({"state":"confirmed","node":"worker-1","type":"host","cidr":"10.244.7.64/26","deleted":"false"}),
            ),
        ),
        (
            "IPAMHandle",
            |object| Handle::from_v1(object).map(|handle| handle.to_v1()),
            object(json!({"handleID":"net.4F2C","block":{"10.244.7.64/26":1},"deleted":false})),
        ),
        (
            "IPPool",
            |object| Pool::from_v1(object).map(|pool| pool.to_v1()),
            json!({"metadata": metadata, "status":{"conditions":[{"type":"Allocatable","status":"True"}]},
                "spec":{"cidr":"10.244.0.0/16","blockSize":26,"ipipMode":"Never","vxlanMode":"Always","natOutgoing":true,
                    "disabled":false,"disableBGPExport":false,"nodeSelector":"all()","namespaceSelector":"all()",
                    "allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}),
        ),
        (
            "IPAMConfig",
            |object| IpamConfig::from_v1(object).map(|config| config.to_v1()),
            object(json!({"strictAffinity":true,"autoAllocateBlocks":true,"maxBlocksPerHost":4,
                "kubeVirtVMAddressPersistence":"Enabled","ipCooldownSeconds":30})),
        ),
        (
            "IPReservation",
            |object| Reservation::from_v1(object).map(|reservation| reservation.to_v1()),
            object(json!({"reservedCIDRs":["10.244.0.1/32"," 10.244.0.9 "]})),
        ),
        (
            "ClusterInformation",
            |object| ClusterInformation::from_v1(object).map(|information| information.to_v1()),
            object(json!({"datastoreReady":true,"clusterGUID":"g","calicoVersion":"v3.30.0"})),
        ),
        (
            "Node",
            |object| Node::from_core(object).map(|node| json!({"name": node.name})),
            json!({"metadata": metadata, "status":{"addresses":[{"type":"InternalIP","address":"172.18.0.3"}]}}),
        ),
    ]
}

/// What a foreign hand may put in the place of anything.
fn hostile() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\r\n\u{0}"),
        json!("é".repeat(300)),
        json!("0.0.0.0/0"),
        json!("::/0"),
        json!("10.0.0.0/33"),
        json!("@:worker-1"),
        json!([]),
        json!([null]),
        json!([[[]], {}, -7, "x", 4_294_967_296_u64]),
        json!({}),
        json!({"": null, "-1": 1, "99999999999": "x", "10.0.0.0/99": 3}),
    ]
}

/// The path of every value in `object`.
fn paths(object: &Value, under: &str, found: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    found.push(under.to_owned());
    match object {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| paths(value, &format!("{under}/{}", escaped(key)), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| paths(item, &format!("{under}/{at}"), found));
        }
        _ => {}
    }
}

#[test]
fn no_value_in_any_place_makes_a_reader_panic_or_a_record_that_does_not_read_back() {
    let mut read = 0;
    let mut refused = 0;
    for (kind, reader, object) in kinds() {
        let mut places = Vec::new();
        paths(&object, "", &mut places);
        assert!(reader(&object).is_ok(), "{kind}");
        for place in &places {
            for value in hostile() {
                let mut broken = object.clone();
                *broken.pointer_mut(place).unwrap() = value.clone();
                let outcome = catch_unwind(AssertUnwindSafe(|| reader(&broken)));
                let outcome = outcome.unwrap_or_else(|_| panic!("{kind} with {value} at {place}"));
                match outcome {
                    Ok(written) if kind != "Node" => {
                        read += 1;
                        let again = reader(&written).map_err(|error| format!("{value} at {place}: {error}"));
                        assert_eq!(again, Ok(written), "{kind} with {value} at {place}");
                    }
                    Ok(_) => read += 1,
                    Err(error) => {
                        refused += 1;
                        let text = error.to_string();
                        assert!(text.starts_with(kind), "{value} at {place}: {text}");
                        let named = place.starts_with("/spec") || place.starts_with("/status");
                        assert!(!named || text.contains("the-object"), "{value} at {place}: {text}");
                    }
                }
            }
        }
    }
    assert!(read > 500 && refused > 300, "{read} read, {refused} refused");
}

/// Length and references of a block as read: every ordinal is either allocated to an attribute that is there, or once in the
/// queue.
fn is_sound(block: &Block) -> bool {
    let mut queue = block.unallocated.clone();
    queue.sort_unstable();
    let free: Vec<u32> = (0_u32..)
        .zip(block.allocations.iter())
        .filter(|(_, allocation)| allocation.is_none())
        .map(|(ordinal, _)| ordinal)
        .collect();
    queue == free && block.allocations.iter().flatten().all(|index| *index < block.attributes.len())
}

fn block(spec: Value) -> Result<Block, WireError> {
    Block::from_v1(&json!({"metadata":{"name":"10-0-0-0-30"},"spec":spec}))
}

#[test]
fn blocks_of_a_careless_hand_are_read_as_the_data_model_says() {
    let anonymous = Attribute::default();
    for (what, spec, check) in [
        (
            "an index that no attribute has is an allocation of nobody",
            json!({"cidr":"10.0.0.0/30","allocations":[5,null,-1,99],"unallocated":[1],"attributes":[]}),
            Box::new(move |block: &Block| {
                *block.allocations == [Some(0), None, Some(0), Some(0)] && *block.attributes[0] == anonymous
            }) as Box<dyn Fn(&Block) -> bool>,
        ),
        (
            "null arrays and maps are empty ones",
            json!({"cidr":"10.0.0.0/30","allocations":[null,null,null,null],"unallocated":null,"attributes":null,
                "sequenceNumberForAllocation":null,"affinity":null,"affinityClaimTime":null}),
            Box::new(|block| block.unallocated == [0, 1, 2, 3] && block.affinity.is_none()),
        ),
        (
            "without a map of stamps every stamp is 0",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{}]}),
            Box::new(|block| block.sequence_for_allocation.is_empty() && block.sequence_number == 0),
        ),
        (
            "a stamp of no ordinal is passed over",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{}],
                "sequenceNumberForAllocation":{"0":3,"x":4,"-1":5,"2":"x"}}),
            Box::new(|block| block.sequence_for_allocation.len() == 1),
        ),
        (
            "a null attribute is an allocation of nobody",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[null]}),
            Box::new(|block| block.attributes.len() == 1 && block.attributes[0].handle_id.is_none()),
        ),
        (
            "a handle keeps the junk behind its carriage return",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],
                "attributes":[{"handle_id":"net.4f2c\r\u{0}junk"}]}),
            Box::new(|block| block.attributes[0].handle_id.as_deref() == Some("net.4f2c\r\u{0}junk")),
        ),
        (
            "an ordinal both allocated and queued is allocated",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[0,0,1,2,3,7,-1],"attributes":[{}]}),
            Box::new(|block| block.unallocated == [1, 2, 3]),
        ),
        (
            "a release time with fractions is a release time",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],
                "attributes":[{"releasedAt":"2026-08-01T10:20:00.75Z"}]}),
            Box::new(|block| block.attributes[0].released_at.is_some()),
        ),
        (
            "a release time that cannot be read leaves an allocation of nobody, never a free address",
            json!({"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],
                "attributes":[{"releasedAt":"soon"}]}),
            Box::new(|block| *block.attributes[0] == Attribute::default() && block.allocations[0].is_some()),
        ),
    ] {
        let read = block(spec).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(check(&read), "{what}: {read:?}");
        assert!(is_sound(&read), "{what}: {read:?}");
    }
}

#[test]
fn blocks_that_cannot_be_understood_are_refused_by_name_and_not_guessed() {
    for (what, spec) in [
        ("no CIDR", json!({"allocations":[null]})),
        ("host bits make another block", json!({"cidr":"10.0.0.0/30","allocations":[null,null]})),
        (
            "an owner of an unknown type",
            json!({"cidr":"10.0.0.0/32","allocations":[null],"affinity":"@:worker-1"}),
        ),
        ("an owner without name", json!({"cidr":"10.0.0.0/32","allocations":[null],"affinity":"host:"})),
        ("more than 4096 addresses", json!({"cidr":"10.0.0.0/19","allocations":[]})),
        (
            "a sequence number that lost digits",
            json!({"cidr":"10.0.0.0/32","allocations":[null],"sequenceNumber":1.7e18}),
        ),
    ] {
        let error = block(spec).expect_err(what).to_string();
        assert!(
            error.starts_with("IPAMBlock 10-0-0-0-30 ") && error.contains("delete the object"),
            "{what}: {error}"
        );
    }
}

#[test]
fn affinities_of_old_releases_are_read_and_of_unknown_types_refused_by_name() {
    let read = |spec: Value| Affinity::from_v1(&json!({"metadata":{"name":"n-10-0-0-0-26"},"spec":spec}));
    for (spec, owner, state, deleted) in [
        (json!({"node":"n","cidr":"10.0.0.0/26"}), Owner::host("n"), AffinityState::Confirmed, false),
        (
            json!({"node":"n","cidr":"10.0.0.9/26","type":"","state":"","deleted":""}),
            Owner::host("n"),
            AffinityState::Confirmed,
            false,
        ),
        (
            json!({"node":"lb","cidr":"10.0.0.0/26","type":"virtual","state":"pending","deleted":"TRUE"}),
            Owner { kind: OwnerKind::Virtual, name: "lb".to_owned() },
            AffinityState::Pending,
            true,
        ),
        (
            json!({"node":"n","cidr":"10.0.0.0/26","state":"pendingDeletion","deleted":true}),
            Owner::host("n"),
            AffinityState::PendingDeletion,
            true,
        ),
    ] {
        let found = read(spec.clone()).unwrap();
        assert_eq!((found.owner, found.state, found.deleted), (owner, state, deleted), "{spec}");
        assert_eq!(found.cidr.to_string(), "10.0.0.0/26", "{spec}");
    }
    for spec in [
        json!({"node":"n","cidr":"10.0.0.0/26","type":"@"}),
        json!({"node":"n","cidr":"10.0.0.0/26","state":"Confirmed"}),
        json!({"node":"","cidr":"10.0.0.0/26"}),
        json!({"node":"n"}),
        json!({"node":"n","cidr":"10.0.0.0/26","deleted":"perhaps"}),
    ] {
        let error = read(spec.clone()).unwrap_err().to_string();
        assert!(error.starts_with("BlockAffinity n-10-0-0-0-26 "), "{spec}: {error}");
    }
}

#[test]
fn handles_lose_entries_that_count_nothing_and_keep_counts_too_large_for_a_word() {
    let read = |spec: Value| Handle::from_v1(&json!({"metadata":{"name":"net.4f2c"},"spec":spec}));
    let handle =
        read(json!({"block":{"10.0.0.0/26":0,"10.0.0.64/26":-3,"10.0.0.128/26":1_u64 << 40}})).unwrap();
    assert_eq!(handle.id, "net.4f2c");
    assert_eq!(handle.blocks.into_values().collect::<Vec<_>>(), [u32::MAX]);
    assert!(read(json!({"block":null,"handleID":null})).unwrap().blocks.is_empty());
    for spec in [json!({"block":{"10.0.0.0":1}}), json!({"block":{"10.0.0.0/26":"1"}}), json!({"block":[]})] {
        let error = read(spec.clone()).unwrap_err().to_string();
        assert!(error.starts_with("IPAMHandle net.4f2c "), "{spec}: {error}");
    }
}
