//! Line 9: definitions of custom kinds, as an installation brings them.

use crate::kubectl::{Kubectl, any, text};
use crate::support::{Lab, MERGE};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Our own definitions, and Calico's where `TORTIE_CALICO_MANIFESTS` names a folder with manifests of theirs.
fn manifests() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    let theirs = std::env::var_os("TORTIE_CALICO_MANIFESTS").map(PathBuf::from);
    let theirs = theirs.into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).flatten();
    let mut found = vec![ours];
    found.extend(theirs.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|ending| ending == "yaml")
            && std::fs::read_to_string(path).unwrap().contains("kind: CustomResourceDefinition")
    }));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn line_09_definitions_are_made_in_one_call_and_rule_their_objects() {
    for manifest in manifests() {
        let lab = Lab::start().await;
        all_at_once(&lab, &manifest).await;
    }
    let lab = Lab::start().await;
    all_at_once(&lab, &manifests()[0]).await;
    objects_are_ruled(&lab).await;
    gone_and_made_again(&lab).await;
}

async fn all_at_once(lab: &Lab, manifest: &Path) {
    let kubectl = Kubectl::new(lab, &any());
    let documents = std::fs::read_to_string(manifest).unwrap();
    let count = documents.matches("\nkind: CustomResourceDefinition").count()
        + usize::from(documents.starts_with("kind: CustomResourceDefinition"));
    let file = manifest.display();
    let created = kubectl.run(&format!("kubectl create -f {file}")).await;
    assert_eq!(created.matches("customresourcedefinition.apiextensions.k8s.io/").count(), count, "{created}");
    assert!(created.lines().all(|line| line.ends_with(" created")), "{created}");
    let again = kubectl.shell(&format!("kubectl create -f {file}")).await;
    let said = text(&again.stderr);
    assert_eq!((again.status.code(), said.matches("(AlreadyExists)").count()), (Some(1), count), "{said}");
    kubectl.run(&format!("kubectl apply --server-side -f {file}")).await;
    let listed = lab.admin().get(DEFINITIONS).await.ok();
    for definition in listed["items"].as_array().unwrap() {
        let established = definition["status"]["conditions"].as_array().unwrap().iter();
        assert!(established.into_iter().any(|one| one["type"] == "Established" && one["status"] == "True"));
    }
}

async fn objects_are_ruled(lab: &Lab) {
    let admin = lab.admin();
    let pools = "/apis/crd.projectcalico.org/v1/ippools";
    let pool = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
    let strict = format!("{pools}?fieldValidation=Strict");
    let unknown = admin.post(&strict, &pool(json!({"cidr": "10.0.0.0/16", "sise": 1}))).await.refused();
    assert_eq!(unknown.0, 400);
    assert!(unknown.1.ends_with(r#"strict decoding error: unknown field "spec.sise""#), "{}", unknown.1);
    let (code, message) = admin.post(pools, &pool(json!({"cidr": 7}))).await.refused();
    assert_eq!(code, 422);
    assert_eq!(
        message,
        "IPPool.crd.projectcalico.org \"p\" is invalid: [spec.cidr: Invalid value: \"integer\": spec.cidr in body must be of type \
         string: \"integer\", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
         correct the existing errors to complete validation]"
    );
    let (code, message) = admin.post(pools, &pool(json!({"blockSize": 26}))).await.refused();
    assert!(code == 422 && message.contains("spec.cidr: Required value"), "{message}");
    let made = admin.post(pools, &pool(json!({"cidr": "10.0.0.0/16", "sise": 1}))).await;
    assert!(made.headers["warning"].to_str().unwrap().contains("spec.sise"));
    assert_eq!(made.ok()["spec"].get("sise"), None, "what is not known is dropped");
    let scheme = json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
        "size": {"type": "integer", "default": 3}, "kind": {"type": "string", "enum": ["a", "b"]}}}}});
    let definition = json!({
        "metadata": {"name": "boxes.example.org"},
        "spec": {"group": "example.org", "scope": "Namespaced", "names": {"plural": "boxes", "kind": "Box"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": scheme}}]},
    });
    admin.post(DEFINITIONS, &definition).await.ok();
    let boxes = "/apis/example.org/v1/namespaces/default/boxes";
    let made = admin.post(boxes, &json!({"metadata": {"name": "b"}})).await.ok();
    assert_eq!(made["spec"], json!({"size": 3}));
    let (_, message) =
        admin.patch(&format!("{boxes}/b"), MERGE, &json!({"spec": {"kind": "c"}})).await.refused();
    assert!(
        message.ends_with(r#"spec.kind: Unsupported value: "c": supported values: "a", "b""#),
        "{message}"
    );
}

async fn gone_and_made_again(lab: &Lab) {
    let kubectl = Kubectl::new(lab, &any());
    let manifest = manifests().remove(0);
    kubectl.run("kubectl delete crd ippools.crd.projectcalico.org").await;
    assert_eq!(lab.admin().get("/apis/crd.projectcalico.org/v1/ippools").await.code, 404);
    let missing = kubectl.shell("kubectl get ippools.crd.projectcalico.org").await;
    assert!(text(&missing.stderr).contains("doesn't have a resource type"), "{}", text(&missing.stderr));
    let output = kubectl.shell(&format!("kubectl create -f {}", manifest.display())).await;
    assert!(text(&output.stdout).contains("ippools.crd.projectcalico.org created"));
    let empty = kubectl.shell("kubectl get ippools.crd.projectcalico.org").await;
    assert_eq!((empty.status.code(), text(&empty.stderr)), (Some(0), "No resources found\n".into()));
    let pool = "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.0.0.0/16}\n";
    kubectl.run(&format!("kubectl create -f - <<'EOF'\n{pool}EOF")).await;
}
