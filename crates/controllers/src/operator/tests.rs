//! The operator against a cluster that carries out what it asks for.

use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";

/// A cluster without workload controllers: every request is granted, nothing runs.
struct Granting {
    view: View,
    revision: u64,
    options: Options,
}

impl Granting {
    fn new() -> Self {
        let options = Options {
            kubeconfig: PathBuf::new(),
            node_networks: vec!["172.18.0.0/16".parse().unwrap()],
            affinity_naming: AffinityNaming::PerBlock,
        };
        let mut cluster = Self { view: View::default(), revision: 0, options };
        cluster.put(
            CONFIG_MAP,
            json!({"metadata": {"namespace": "kube-system", "name": "kubeadm-config"},
                "data": {"ClusterConfiguration": "networking:\n  podSubnet: 192.168.0.0/16\n  serviceSubnet: 10.96.0.0/16\n"}}),
        );
        for node in ["a", "b", "c"] {
            cluster.put(NODE, json!({"metadata": {"name": node}}));
        }
        cluster
    }

    fn put(&mut self, kind: Kind, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
        }
        self.view.put(kind, object);
    }

    fn installation(&mut self, cidr: &str) {
        self.put(
            INSTALLATION,
            json!({"metadata": {"name": "default", "generation": 1}, "spec": {"calicoNetwork": {"ipPools": [
                {"cidr": cidr, "blockSize": 26, "encapsulation": "VXLANCrossSubnet", "natOutgoing": "Enabled", "nodeSelector": "all()"}]}}}),
        );
    }

    /// Grants what is asked for until nothing is; answers everything that was asked for.
    fn settle(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..8 {
            let actions = reconcile(&self.view, &self.options, NOW.parse().unwrap());
            if actions.is_empty() {
                return all;
            }
            for action in &actions {
                self.grant(action);
            }
            all.extend(actions);
        }
        panic!("never settles: {all:?}");
    }

    fn grant(&mut self, action: &Action) {
        match action {
            Action::Create(kind, object) => self.put(*kind, object.clone()),
            Action::Patch(kind, name, patch) | Action::PatchStatus(kind, name, patch) => {
                let mut object = self.view.get(*kind, name).unwrap().clone();
                merge(&mut object, patch);
                self.put(*kind, object);
            }
            Action::Delete(kind, name, uid) => self.view.remove(*kind, name, uid),
            Action::GiveUpBlocks(..) => {
                self.view.reset((AFFINITY, ""), Vec::new());
            }
        }
    }

    /// Everything that should run does.
    fn run_everything(&mut self) {
        for kind in [DAEMON_SET, DEPLOYMENT] {
            let objects: Vec<Value> = self.view.all(kind).cloned().collect();
            for mut object in objects {
                object["status"] = json!({"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3,
                    "numberAvailable": 3, "availableReplicas": object["spec"]["replicas"]});
                self.put(kind, object);
            }
        }
    }

    fn condition(&self, component: &str, kind: &str) -> (String, String, String) {
        let status = self.view.get(TIGERA_STATUS, &Name::cluster(component)).unwrap();
        let found =
            items(status, "/status/conditions").iter().find(|condition| condition["type"] == kind).unwrap();
        (
            text(found, "/status").to_owned(),
            text(found, "/reason").to_owned(),
            text(found, "/message").to_owned(),
        )
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        self.view.all(kind).map(|object| Name::of(object).to_string()).collect()
    }
}

fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object @ Value::Null, Value::Object(patch)) => {
            *object = json!({});
            merge(object, &json!(patch));
        }
        (object, patch) => *object = patch.clone(),
    }
}

#[test]
fn installation_makes_the_lessons_cluster_and_then_rests() {
    let mut cluster = Granting::new();
    assert!(cluster.settle().is_empty(), "nothing is asked for");
    cluster.installation("192.168.0.0/16");
    cluster.put(API_SERVER, json!({"metadata": {"name": "default", "generation": 1}, "spec": {}}));
    cluster.settle();
    assert_eq!(cluster.names(IP_POOL), ["default-ipv4-ippool"]);
    assert_eq!(cluster.names(NAMESPACE), ["calico-apiserver", "calico-system"]);
    assert_eq!(cluster.names(TIGERA_STATUS), ["apiserver", "calico"]);
    assert_eq!(cluster.names(DAEMON_SET), ["calico-system/calico-node", "calico-system/csi-node-driver"]);
    assert_eq!(
        cluster.names(DEPLOYMENT),
        [
            "calico-apiserver/calico-apiserver",
            "calico-system/calico-kube-controllers",
            "calico-system/calico-typha"
        ]
    );
    let record = cluster.view.get(CONFIG_MAP, &Name::within("kube-system", "tortie-datastore")).unwrap();
    assert_eq!(record["data"]["affinityNaming"], "per-block");
    assert_eq!(cluster.condition("calico", "Progressing").1, "ResourceNotReady");
    cluster.run_everything();
    cluster.settle();
    for component in ["calico", "apiserver"] {
        assert_eq!(cluster.condition(component, "Available").0, "True");
        assert_eq!(cluster.condition(component, "Progressing").0, "False");
        assert_eq!(cluster.condition(component, "Degraded").0, "False");
    }
    let installation = cluster.view.get(INSTALLATION, &Name::cluster("default")).unwrap();
    assert_eq!(installation["status"]["calicoVersion"], "v3.30.0");
    assert_eq!(installation["status"]["mtu"], 1450);
    assert!(cluster.settle().is_empty(), "at rest");
}

#[test]
fn no_node_starts_before_pool_and_naming_are_there() {
    let mut cluster = Granting::new();
    cluster.installation("192.168.0.0/16");
    let first = reconcile(&cluster.view, &cluster.options, NOW.parse().unwrap());
    assert!(!first.iter().any(|action| matches!(action, Action::Create(DAEMON_SET, _))));
    assert!(first.iter().any(|action| matches!(action, Action::Create(CONFIG_MAP, _))));
}

#[test]
fn bad_pool_is_degraded_with_its_reason_and_nothing_is_made_of_it() {
    for (cidr, word) in [
        ("10.96.0.0/16", "service CIDR"),
        ("172.18.0.0/16", "network of the nodes"),
        ("10.0.0.0/16", "not within the platform's configured pod network"),
    ] {
        let mut cluster = Granting::new();
        cluster.installation(cidr);
        cluster.settle();
        assert_eq!(cluster.names(IP_POOL), Vec::<String>::new());
        assert_eq!(cluster.names(DAEMON_SET), Vec::<String>::new());
        let (status, reason, message) = cluster.condition("calico", "Degraded");
        assert_eq!((status.as_str(), reason.as_str()), ("True", "InvalidConfigurationError"));
        assert!(message.contains(word), "{message}");
        assert_eq!(cluster.condition("calico", "Available").0, "False");
    }
}

#[test]
fn bad_pool_in_a_running_cluster_leaves_the_workloads_alone_and_heals_when_it_is_taken_back() {
    let mut cluster = Granting::new();
    cluster.installation("192.168.0.0/16");
    cluster.settle();
    cluster.run_everything();
    cluster.settle();
    let before = cluster.names(DAEMON_SET);
    let mut bad = cluster.view.get(INSTALLATION, &Name::cluster("default")).unwrap().clone();
    let good = bad["spec"].clone();
    bad["spec"]["calicoNetwork"]["ipPools"][0]["blockSize"] = json!(40);
    cluster.put(INSTALLATION, bad.clone());
    cluster.settle();
    assert_eq!(cluster.condition("calico", "Degraded").0, "True");
    assert_eq!(cluster.names(DAEMON_SET), before);
    assert_eq!(cluster.names(IP_POOL), ["default-ipv4-ippool"]);
    bad["spec"] = good;
    cluster.put(INSTALLATION, bad);
    cluster.settle();
    assert_eq!(cluster.condition("calico", "Available").0, "True");
}

#[test]
fn datastore_that_has_affinities_keeps_their_naming() {
    let mut cluster = Granting::new();
    cluster.put(AFFINITY, json!({"metadata": {"name": "n-10-0-0-0-26"}, "spec": {"cidr": "10.0.0.0/26"}}));
    cluster.installation("192.168.0.0/16");
    cluster.settle();
    assert!(cluster.view.get(CONFIG_MAP, &Name::within("kube-system", "tortie-datastore")).is_none());
    assert!(!cluster.names(DAEMON_SET).is_empty());
}

#[test]
fn deleted_installation_takes_its_status_along_and_leaves_the_pools() {
    let mut cluster = Granting::new();
    cluster.installation("192.168.0.0/16");
    cluster.settle();
    let uid =
        text(cluster.view.get(INSTALLATION, &Name::cluster("default")).unwrap(), "/metadata/uid").to_owned();
    cluster.view.remove(INSTALLATION, &Name::cluster("default"), &uid);
    cluster.settle();
    assert_eq!(cluster.names(TIGERA_STATUS), Vec::<String>::new());
    assert_eq!(cluster.names(IP_POOL), ["default-ipv4-ippool"]);
}

#[test]
fn changed_workload_is_set_back() {
    let mut cluster = Granting::new();
    cluster.installation("192.168.0.0/16");
    cluster.settle();
    let name = Name::within(SYSTEM, "calico-typha");
    let mut typha = cluster.view.get(DEPLOYMENT, &name).unwrap().clone();
    typha["spec"]["replicas"] = json!(0);
    cluster.put(DEPLOYMENT, typha);
    cluster.settle();
    assert_eq!(cluster.view.get(DEPLOYMENT, &name).unwrap()["spec"]["replicas"], 2);
}

#[test]
fn api_server_without_installation_is_degraded() {
    let mut cluster = Granting::new();
    cluster.put(API_SERVER, json!({"metadata": {"name": "default", "generation": 1}, "spec": {}}));
    cluster.settle();
    assert_eq!(cluster.condition("apiserver", "Degraded").1, "ResourceNotFound");
    assert_eq!(cluster.names(DEPLOYMENT), Vec::<String>::new());
}

#[test]
fn pool_that_is_taken_off_the_list_goes_after_its_blocks() {
    let mut cluster = Granting::new();
    cluster.installation("192.168.0.0/17");
    cluster.settle();
    cluster.put(AFFINITY, json!({"metadata": {"name": "n"}, "spec": {"cidr": "192.168.0.0/26"}}));
    let mut moved = cluster.view.get(INSTALLATION, &Name::cluster("default")).unwrap().clone();
    moved["spec"]["calicoNetwork"]["ipPools"][0]["cidr"] = json!("192.168.128.0/17");
    moved["spec"]["calicoNetwork"]["ipPools"][0]["name"] = json!("second");
    cluster.put(INSTALLATION, moved);
    let actions = cluster.settle();
    assert!(actions.iter().any(|action| matches!(action, Action::GiveUpBlocks(..))));
    assert_eq!(cluster.names(IP_POOL), ["second"]);
}

#[test]
fn pools_stay_as_they_are_while_the_datastore_is_locked() {
    let mut cluster = Granting::new();
    let lock = |cluster: &mut Granting, ready: bool| {
        let information = json!({"metadata": {"name": "default"}, "spec": {"datastoreReady": ready}});
        cluster.put(CLUSTER_INFORMATION, information);
    };
    let of_calico = |actions: &[Action]| {
        actions.iter().filter(|action| action.kind().api_version == IP_POOL.api_version).count()
    };
    lock(&mut cluster, false);
    cluster.installation("192.168.0.0/16");
    let actions = cluster.settle();
    assert_eq!(of_calico(&actions), 0, "{actions:?}");
    assert!(!actions.is_empty(), "all else goes on");
    lock(&mut cluster, true);
    assert!(of_calico(&cluster.settle()) > 0);
    assert_eq!(cluster.names(IP_POOL).len(), 1);
}
