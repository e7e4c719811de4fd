//! Line 3: what newer kubectls send in protobuf becomes what older ones send in JSON.

use crate::kubectl::{Kubectl, Program, all};
use crate::support::Lab;
use serde_json::Value;

/// Commands that make one object each, and how it is read.
const COMMANDS: [(&str, &str); 18] = [
    ("create namespace n", "namespace n"),
    ("create configmap m --from-literal=a=b --from-literal=c=d", "configmap m"),
    ("create secret generic s --from-literal=a=b", "secret s"),
    ("create secret docker-registry r --docker-username=u --docker-password=p", "secret r"),
    ("create serviceaccount a", "serviceaccount a"),
    ("create deployment d --image=i --replicas=3 --port=80", "deployment d"),
    ("create service clusterip c --tcp=80:8080 --clusterip=10.96.1.1", "service c"),
    ("create service externalname e --external-name=example.org", "service e"),
    ("create clusterrole cr --verb=get,list --resource=pods,deployments.apps", "clusterrole cr"),
    ("create clusterrole paths --verb=get --non-resource-url=/metrics", "clusterrole paths"),
    ("create role ro --verb=get --resource=pods --resource-name=p", "role ro"),
    (
        "create clusterrolebinding cb --clusterrole=cr --user=u --serviceaccount=default:a",
        "clusterrolebinding cb",
    ),
    ("create rolebinding rb --role=ro --group=g", "rolebinding rb"),
    ("create job j --image=i -- sleep 1", "job j"),
    ("create cronjob cj --image=i --schedule='*/5 * * * *'", "cronjob cj"),
    ("create quota q --hard=cpu=1,pods=2", "quota q"),
    ("create poddisruptionbudget b --selector=app=x --min-available=50%", "pdb b"),
    ("create priorityclass pc --value=1000 --description=d", "priorityclass pc"),
];

async fn objects(program: &Program) -> Vec<Value> {
    let lab = Lab::start().await;
    let kubectl = Kubectl::new(&lab, program);
    let mut objects = Vec::new();
    for (make, read) in COMMANDS {
        kubectl.run(&format!("kubectl {make}")).await;
        let mut object: Value =
            serde_json::from_str(&kubectl.run(&format!("kubectl get {read} -o json")).await).unwrap();
        let metadata = object["metadata"].as_object_mut().unwrap();
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            metadata.remove(field);
        }
        // A job's selector and labels hold its identity.
        mask(&mut object);
        objects.push(object);
    }
    let namespaces =
        ["kubectl auth can-i list pods", "kubectl create token a --duration=1h", "kubectl auth whoami"];
    for script in namespaces {
        kubectl.run(script).await;
    }
    objects
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !key.ends_with("controller-uid"));
            map.values_mut().for_each(mask);
        }
        Value::Array(list) => list.iter_mut().for_each(mask),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn line_03_objects_sent_as_protobuf_are_those_sent_as_json() {
    let programs = all();
    let in_json = programs.iter().find(|program| (28..32).contains(&program.minor));
    let in_protobuf: Vec<&Program> = programs.iter().filter(|program| program.minor >= 32).collect();
    let Some(in_json) = in_json.filter(|_| !in_protobuf.is_empty()) else {
        eprintln!(
            "SKIPPED: it takes a kubectl from 1.28 to 1.31 and one from 1.32 on, here are {programs:?}"
        );
        return;
    };
    let wanted = objects(in_json).await;
    for program in in_protobuf {
        for (object, wanted) in objects(program).await.iter().zip(&wanted) {
            assert_eq!(object, wanted, "1.{} and 1.{}", program.minor, in_json.minor);
        }
    }
}
