//! What `deploy/docs/migration.md` tells people to type, as far as kubectl can carry it out without a cluster.

use serde_json::{Value, json};

use super::kustomize::kubectl;
use super::manifests::objects;
use super::{read, tool};

/// The part of kubeadm's DaemonSet that the page is about.
fn kube_proxy() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-proxy"}},
                "spec": {
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "containers": [{"name": "kube-proxy", "image": "kube-proxy"}],
                },
            },
        },
    })
}

/// Off the labelled nodes, off all nodes, and back to where it was.
#[test]
fn the_patches_of_kube_proxy_s_daemonset_do_what_is_said_and_are_undone_by_the_last() {
    let page = read("docs/migration.md");
    let patches: Vec<&str> = page
        .split("# kubectl -n kube-system patch daemonset kube-proxy --patch '")
        .skip(1)
        .map(|rest| rest.split('\'').next().unwrap())
        .collect();
    let [unlabelled, nowhere, everywhere] = patches[..] else {
        panic!("{patches:?}");
    };
    let began = kube_proxy();
    let off_labelled = patch(&began, unlabelled);
    let terms =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    assert_eq!(
        pod(&off_labelled).pointer(terms),
        Some(&json!([{"matchExpressions": [{"key": "kube-ferry", "operator": "DoesNotExist"}]}]))
    );
    let off = patch(&off_labelled, nowhere);
    assert_eq!(pod(&off)["nodeSelector"], json!({"kubernetes.io/os": "linux", "kube-proxy": "on"}));
    assert_eq!(pod(&off)["affinity"], pod(&off_labelled)["affinity"], "both hold");
    assert_eq!(patch(&off, everywhere), began);
}

fn pod(daemon_set: &Value) -> &Value {
    &daemon_set["spec"]["template"]["spec"]
}

#[track_caller]
fn patch(object: &Value, patch: &str) -> Value {
    let arguments = ["patch", "--local", "-f", "-", "-o", "yaml", "--patch", patch];
    let patched = tool::succeed(&kubectl(), &arguments, &object.to_string());
    objects(&patched).pop().unwrap()
}
