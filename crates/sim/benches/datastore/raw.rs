//! The store by itself: one client that writes one key again and again, each time on the condition that nobody else did.

#[path = "../../../datastore/src/etcd/messages.rs"]
#[expect(dead_code, reason = "what only the driver needs")]
mod messages;

use api::{Attribute, Block, Owner};
use http::uri::PathAndQuery;
use messages::{Compare, Op, PutRequest, RequestOp, TxnRequest, TxnResponse, Wanted};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A client of the store.
pub(crate) enum Raw {
    /// A transaction of etcd: one comparison, one put.
    Transaction { channel: Channel, key: Vec<u8>, value: Vec<u8>, at: i64 },
    /// An update of an object: one PUT under its version.
    Update { client: kube::Client, path: String, object: Value },
}

/// A block that is half full of pods, as the value that it is on average while it fills.
fn half_full(number: u8, node: &str) -> Block {
    let cidr = format!("172.31.{number}.0/26").parse().unwrap();
    let held = |pod: u32| {
        let (handle, attributes) = crate::fleet::pod(node, pod);
        Attribute { handle_id: Some(handle), secondary: attributes, ..Attribute::default() }.into()
    };
    Block {
        cidr,
        affinity: Some(Owner::host(node)),
        claim_time: Some(jiff::Timestamp::now()),
        allocations: (0..64).map(|at| (at < 32).then_some(at)).collect(),
        unallocated: (32..64).collect(),
        attributes: (0..32).map(held).collect(),
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: (0..32)
            .map(|at| (at, 1_785_579_330_123_456_789))
            .collect::<BTreeMap<_, _>>(),
        deleted: false,
        legacy_host_affinity: None,
    }
}

impl Raw {
    /// A client of etcd with a connection and a key of its own.
    pub(crate) async fn etcd(endpoint: &str, number: u8) -> Self {
        let channel =
            Endpoint::from_shared(endpoint.to_owned()).unwrap().tcp_nodelay(true).connect().await.unwrap();
        let value = half_full(number, "node-1").to_etcd().into_bytes();
        let mut raw = Self::Transaction { channel, key: format!("/raw/{number}").into_bytes(), value, at: 0 };
        raw.write().await;
        raw
    }

    /// A client of a Kubernetes API with an object of its own. Its kind is that of blocks, so that the server has the same
    /// to do.
    pub(crate) async fn object(client: kube::Client, number: u8) -> Self {
        let block = half_full(number, "node-1");
        let collection = "/apis/crd.projectcalico.org/v1/ipamblocks";
        let request = http::Request::post(collection)
            .header("content-type", "application/json")
            .body(block.to_v1().to_string().into_bytes())
            .unwrap();
        let object = client.request::<Value>(request).await.unwrap();
        Self::Update { client, path: format!("{collection}/{}", block.cidr.name()), object }
    }

    /// Writes once.
    pub(crate) async fn write(&mut self) {
        match self {
            Self::Transaction { channel, key, value, at } => {
                let (target, wanted) = match *at {
                    0 => (Compare::VERSION, Wanted::Version(0)),
                    at => (Compare::MOD_REVISION, Wanted::ModRevision(at)),
                };
                let put = PutRequest { key: key.clone(), value: value.clone() };
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
            Self::Update { client, path, object } => {
                let sequence = object["spec"]["sequenceNumber"].as_u64().unwrap();
                object["spec"]["sequenceNumber"] = json!(sequence + 1);
                let request = http::Request::put(path.as_str())
                    .header("content-type", "application/json")
                    .body(object.to_string().into_bytes())
                    .unwrap();
                *object = client.request::<Value>(request).await.unwrap();
            }
        }
    }
}
