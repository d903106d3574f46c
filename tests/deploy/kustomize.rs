//! What `kubectl kustomize` makes of the base and the overlays.

use std::path::Path;

use serde_json::{Value, json};

use super::manifests::{check_schema, objects};
use super::{deploy, read, tool};

#[test]
fn the_base_runs_one_unprivileged_container() {
    let rendered = Rendered::of("base", &[]);
    let spec = rendered.pod();
    let container = &spec["containers"][0];
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    assert!(spec["initContainers"].is_null());
    // Exactly kubeadm's.
    let command = [
        "/usr/local/bin/kube-proxy",
        "--config=/var/lib/kube-proxy/config.conf",
        "--hostname-override=$(NODE_NAME)",
    ];
    assert_eq!(container["command"], json!(command));
    let security = json!({
        "runAsUser": 0, "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    });
    assert_eq!(container["securityContext"], security);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
    assert!(spec["volumes"].as_array().unwrap().iter().all(|volume| volume["hostPath"].is_null()));
}

#[test]
fn the_base_does_not_pretend_to_know_the_api_server() {
    let rendered = Rendered::of("base", &[]);
    assert_eq!(rendered.server(), "https://set-the-api-server-address.invalid:6443");
}

#[test]
fn k3s_reaches_the_api_server_on_loopback() {
    let rendered = Rendered::of("overlays/k3s", &[]);
    assert_eq!(rendered.server(), "https://127.0.0.1:6444");
    assert_eq!(rendered.config()["mode"], "nftables");
}

#[test]
fn kubeadm_s_own_config_map_is_used() {
    let rendered = Rendered::of("overlays/kubeadm", &[]);
    assert!(rendered.all("ConfigMap").is_empty());
    for volume in rendered.pod()["volumes"].as_array().unwrap() {
        assert_eq!(volume["configMap"]["name"], "kube-proxy");
    }
}

#[test]
fn kernel_settings_are_written_by_a_privileged_container_that_ends() {
    for rendered in
        [Rendered::of("overlays/k3s", &["kernel-settings"]), Rendered::of("overlays/kubeadm", &[])]
    {
        let spec = rendered.pod();
        let [container] = spec["initContainers"].as_array().unwrap().as_slice() else {
            panic!("one init container expected: {spec}");
        };
        assert_eq!(container["securityContext"]["privileged"], true);
        assert_eq!(container["command"][1], "--init-only");
        // The container that stays is none the more privileged for it.
        assert_eq!(spec["containers"][0]["securityContext"]["privileged"], false);
    }
}

#[test]
fn pod_monitor_selects_our_pods() {
    let rendered = Rendered::of("overlays/k3s", &["podmonitor"]);
    let daemon_set = rendered.one("DaemonSet");
    let monitor = rendered.one("PodMonitor");
    assert_eq!(monitor["metadata"]["namespace"], daemon_set["metadata"]["namespace"]);
    let labels = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    for (label, value) in labels {
        assert_eq!(&daemon_set["spec"]["template"]["metadata"]["labels"][label], value);
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let ports = rendered.pod()["containers"][0]["ports"].clone();
    let port = ports
        .as_array()
        .unwrap()
        .iter()
        .find(|port| port["name"] == endpoint["port"])
        .unwrap()
        .clone();
    let address = rendered.config()["metricsBindAddress"].as_str().unwrap().to_owned();
    assert_eq!(address, format!("0.0.0.0:{}", port["containerPort"]));
    // Alerts select by the job that is set here.
    let job = endpoint["relabelings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["targetLabel"] == "job")
        .unwrap();
    assert!(read("alerts.yaml").contains(&format!("job={}", job["replacement"])));
}

#[test]
fn node_by_node_runs_on_labelled_nodes_alone() {
    let rendered = Rendered::of("overlays/kubeadm", &["node-by-node"]);
    let selector = json!({"kubernetes.io/os": "linux", "kube-ferry": "on"});
    assert_eq!(rendered.pod()["nodeSelector"], selector);
}

#[test]
fn all_components_go_together() {
    let components = ["kernel-settings", "node-by-node", "podmonitor"];
    let rendered = Rendered::of("overlays/k3s", &components);
    assert!(rendered.config()["metricsBindAddress"].is_string());
    Rendered::of("base", &components);
}

/// What kubectl rendered, with every object checked.
struct Rendered(Vec<Value>);

impl Rendered {
    /// Renders a directory of `deploy/` together with components.
    #[track_caller]
    fn of(directory: &str, components: &[&str]) -> Rendered {
        // Kustomize wants relative paths: a copy of the whole, with one more kustomization beside it.
        let copy = tempfile::tempdir().unwrap();
        for part in ["base", "components", "overlays"] {
            copy_directory(&deploy().join(part), &copy.path().join(part));
        }
        let components: Vec<String> =
            components.iter().map(|name| format!("../components/{name}")).collect();
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [format!("../{directory}")], "components": components,
        });
        let top = copy.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::fs::write(top.join("kustomization.yaml"), kustomization.to_string()).unwrap();
        let text = tool::succeed(&kubectl(), &["kustomize", top.to_str().unwrap()], "");
        let rendered = Rendered(objects(&text));
        rendered.check(directory);
        rendered
    }

    /// What holds for every combination.
    #[track_caller]
    fn check(&self, directory: &str) {
        for object in &self.0 {
            check_schema(object);
            let namespace = &object["metadata"]["namespace"];
            let cluster_wide = object["kind"].as_str().unwrap().starts_with("ClusterRole");
            assert!(cluster_wide || namespace == "kube-system", "{namespace}: {object}");
        }
        let spec = self.pod();
        let image = format!("kube-ferry:{}", env!("CARGO_PKG_VERSION"));
        let lists = [&spec["initContainers"], &spec["containers"]];
        for container in lists.into_iter().filter_map(Value::as_array).flatten() {
            assert_eq!(container["image"], image);
            for mount in container["volumeMounts"].as_array().unwrap() {
                let volumes = spec["volumes"].as_array().unwrap();
                assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
            }
        }
        for volume in spec["volumes"].as_array().unwrap() {
            let name = &volume["configMap"]["name"];
            let ours = self.all("ConfigMap").iter().any(|map| map["metadata"]["name"] == *name);
            // kubeadm makes this one.
            let theirs = name == "kube-proxy" && directory == "overlays/kubeadm";
            assert!(ours || theirs, "there is no ConfigMap {name}");
        }
        assert_eq!(spec["serviceAccountName"], self.one("ServiceAccount")["metadata"]["name"]);
        assert_eq!(
            self.one("ClusterRoleBinding")["subjects"][0]["name"],
            spec["serviceAccountName"]
        );
        assert_eq!(
            self.one("ClusterRoleBinding")["roleRef"]["name"],
            self.one("ClusterRole")["metadata"]["name"]
        );
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    #[track_caller]
    fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}");
        all[0]
    }

    #[track_caller]
    fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    /// A file of the ConfigMap kube-ferry.
    #[track_caller]
    fn file(&self, key: &str) -> Value {
        let maps = self.all("ConfigMap");
        let map = maps.into_iter().find(|map| map["metadata"]["name"] == "kube-ferry").unwrap();
        objects(map["data"][key].as_str().unwrap()).pop().unwrap()
    }

    #[track_caller]
    fn config(&self) -> Value {
        self.file("config.conf")
    }

    #[track_caller]
    fn server(&self) -> String {
        let config = self.file("kubeconfig.conf");
        config["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned()
    }
}

/// `$KUBECTL`, or the one that `make deploy-tools` put beside the build, or the one in the path.
pub(super) fn kubectl() -> String {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tools/bin/kubectl");
    match std::env::var("KUBECTL") {
        Ok(path) => path,
        Err(_) if own.exists() => own.to_str().unwrap().to_owned(),
        Err(_) => "kubectl".to_owned(),
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
