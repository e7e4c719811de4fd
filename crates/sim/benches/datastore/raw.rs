//! The store by itself: one client that writes one key again and again, each time on the condition that nobody else did.

#[path = "../../../datastore/src/etcd/messages.rs"]
#[expect(dead_code, reason = "what only the driver needs")]
mod messages;

use crate::measure::EACH;
use api::{Attribute, Block, Owner};
use http::uri::PathAndQuery;
use messages::{Compare, Op, PutRequest, RequestOp, TxnRequest, TxnResponse, Wanted};
use serde_json::{Value, json};
use std::sync::Arc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A client of the store. What it writes is what the ADDs of a round write: a block that fills, one pod more each time.
pub(crate) enum Raw {
    /// A transaction of etcd: one comparison, one put.
    Transaction { channel: Channel, key: Vec<u8>, values: Vec<Vec<u8>>, turn: usize, at: i64 },
    /// An update of an object: one PUT under its version.
    Update { client: kube::Client, path: String, objects: Vec<Value>, turn: usize, version: Value },
}

/// Pods in the block before a round.
const KEPT: u32 = 1;

/// Where the objects of the store by itself are: the blocks' definition in a group that nobody follows.
const GROUP: &str = "raw.example.org";

/// The blocks of a round.
fn filling(number: u8) -> Vec<Block> {
    (KEPT + 1..=KEPT + EACH).map(|pods| block_with(number, pods)).collect()
}

/// A block in which so many pods have an address.
fn block_with(number: u8, pods: u32) -> Block {
    let node = format!("node-{number}");
    let cidr = format!("172.31.{number}.0/26").parse().unwrap();
    let held = |pod: u32| {
        let (handle, attributes) = crate::fleet::pod(&node, pod);
        Attribute { handle_id: Some(handle), secondary: attributes, ..Attribute::default() }.into()
    };
    let taken = usize::try_from(pods).unwrap();
    Block {
        cidr,
        affinity: Some(Owner::host(&node)),
        claim_time: Some(jiff::Timestamp::now()),
        allocations: Arc::new((0..64).map(|at| (at < taken).then_some(at)).collect()),
        unallocated: (pods..64).collect(),
        attributes: Arc::new((0..pods).map(held).collect()),
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: Arc::new((0..pods).map(|at| (at, 1_785_579_330_123_456_789)).collect()),
        deleted: false,
        legacy_host_affinity: None,
    }
}

/// The definition of the objects that are written here: that of blocks, so that the server has the same to do.
pub(crate) fn definition() -> Value {
    let manifest = include_str!("../../../../manifests/operator-crds.yaml");
    let blocks =
        manifest.split("\n---\n").find(|document| document.contains("name: ipamblocks.crd")).unwrap();
    serde_saphyr::from_str(&blocks.replace("crd.projectcalico.org", GROUP)).unwrap()
}

impl Raw {
    /// A client of etcd with a connection and a key of its own.
    pub(crate) async fn etcd(endpoint: &str, number: u8) -> Self {
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap().tcp_nodelay(true);
        let channel = endpoint.connect().await.unwrap();
        let values = filling(number).iter().map(|block| block.to_etcd().into_bytes()).collect();
        let key = format!("/raw/{number}").into_bytes();
        Self::Transaction { channel, key, values, turn: 0, at: 0 }
    }

    /// A client of a Kubernetes API with an object of its own.
    pub(crate) async fn object(client: kube::Client, number: u8) -> Self {
        let objects: Vec<Value> = filling(number)
            .iter()
            .map(|block| {
                let mut object = block.to_v1();
                object["apiVersion"] = json!(format!("{GROUP}/v1"));
                object
            })
            .collect();
        let collection = format!("/apis/{GROUP}/v1/ipamblocks");
        let request = http::Request::post(&collection)
            .header("content-type", "application/json")
            .body(objects[0].to_string().into_bytes())
            .unwrap();
        let made = client.request::<Value>(request).await.unwrap();
        let path = format!("{collection}/{}", made["metadata"]["name"].as_str().unwrap());
        Self::Update { client, path, objects, turn: 0, version: made["metadata"]["resourceVersion"].clone() }
    }

    /// Writes once.
    pub(crate) async fn write(&mut self) {
        match self {
            Self::Transaction { channel, key, values, turn, at } => {
                let (target, wanted) = match *at {
                    0 => (Compare::VERSION, Wanted::Version(0)),
                    at => (Compare::MOD_REVISION, Wanted::ModRevision(at)),
                };
                *turn = (*turn + 1) % values.len();
                let put = PutRequest { key: key.clone(), value: values[*turn].clone() };
                let request = TxnRequest {
                    compare: vec![Compare { target, key: key.clone(), wanted: Some(wanted) }],
                    success: vec![RequestOp { op: Some(Op::Put(put)) }],
                    failure: Vec::new(),
                };
                let mut client = tonic::client::Grpc::new(channel.clone());
                client.ready().await.unwrap();
                let path = PathAndQuery::from_static(messages::TXN);
                let codec: ProstCodec<TxnRequest, TxnResponse> = ProstCodec::default();
                let answer =
                    client.unary(tonic::Request::new(request), path, codec).await.unwrap().into_inner();
                assert!(answer.succeeded, "somebody else wrote it");
                *at = answer.header.unwrap().revision;
            }
            Self::Update { client, path, objects, turn, version } => {
                *turn = (*turn + 1) % objects.len();
                let object = &mut objects[*turn];
                object["metadata"]["resourceVersion"] = version.clone();
                let request = http::Request::put(path.as_str())
                    .header("content-type", "application/json")
                    .body(object.to_string().into_bytes())
                    .unwrap();
                let answer = client.request::<Value>(request).await.unwrap();
                *version = answer["metadata"]["resourceVersion"].clone();
            }
        }
    }
}
