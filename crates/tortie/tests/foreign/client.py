"""What the Python client of Kubernetes does: typed and dynamic objects, watches, patches, apply, pages."""
import sys, threading
from kubernetes import client, config, watch, dynamic, utils
config.load_kube_config(sys.argv[1])
v1 = client.CoreV1Api()
w = watch.Watch()
seen = []
def follow():
    for e in w.stream(v1.list_namespaced_config_map, "default", timeout_seconds=8):
        seen.append((e["type"], e["object"].metadata.name))
        if e["object"].metadata.name == "py" and e["type"] == "DELETED":
            w.stop()
t = threading.Thread(target=follow); t.start()
v1.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "b"}))
v1.patch_namespaced_config_map("py", "default", {"data": {"a": "c"}})
cm = v1.read_namespaced_config_map("py", "default"); assert cm.data == {"a": "c"}
cm.data["z"] = "1"; v1.replace_namespaced_config_map("py", "default", cm)
try:
    cm.metadata.resource_version = "1"; v1.replace_namespaced_config_map("py", "default", cm); assert False
except client.ApiException as e: assert e.status == 409, e
d = dynamic.DynamicClient(client.ApiClient())
crd = d.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
body = {"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"pys.example.org"},"spec":{"group":"example.org","scope":"Namespaced","names":{"plural":"pys","kind":"Py"},"versions":[{"name":"v1","served":True,"storage":True,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"n":{"type":"integer"}}}}}}}]}}
crd.server_side_apply(body=body, field_manager="py")
d.resources.invalidate_cache()
py = d.resources.get(api_version="example.org/v1", kind="Py")
py.create(namespace="default", body={"apiVersion":"example.org/v1","kind":"Py","metadata":{"name":"one"},"spec":{"n":1}})
r = py.server_side_apply(namespace="default", name="one", body={"apiVersion":"example.org/v1","kind":"Py","metadata":{"name":"one"},"spec":{"n":2}}, field_manager="py", force_conflicts=True)
assert r.spec.n == 2
py.patch(namespace="default", name="one", body={"spec":{"n":3}}, content_type="application/merge-patch+json")
assert [o.spec.n for o in py.get(namespace="default").items] == [3]
for e in py.watch(namespace="default", timeout=2): assert e["object"].spec.n == 3
utils.create_from_dict(client.ApiClient(), {"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}})
assert client.AppsV1Api().list_deployment_for_all_namespaces().items[0].spec.replicas == 1
pages = []; cont = None
while True:
    p = v1.list_config_map_for_all_namespaces(limit=1, _continue=cont); pages += p.items; cont = p.metadata._continue
    if not cont: break
assert len(pages) == len(v1.list_config_map_for_all_namespaces().items)
v1.delete_namespaced_config_map("py", "default"); t.join()
assert ("ADDED","py") in seen and ("MODIFIED","py") in seen and ("DELETED","py") in seen, seen
print("done")
