//! The files as they are: every object has only fields that Kubernetes knows, every file is listed.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube_ferry::watch::{Permission, REQUIRED_ROLE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{deploy, read};

/// The objects of a YAML text.
#[track_caller]
pub(super) fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Fails if the object has a field that its type does not have, or a value of the wrong type.
#[track_caller]
pub(super) fn check_schema(object: &Value) {
    match object["kind"].as_str() {
        Some("DaemonSet") => round_trip::<DaemonSet>(object),
        Some("ConfigMap") => round_trip::<ConfigMap>(object),
        Some("ServiceAccount") => round_trip::<ServiceAccount>(object),
        Some("ClusterRole") => round_trip::<ClusterRole>(object),
        Some("ClusterRoleBinding") => round_trip::<ClusterRoleBinding>(object),
        // A custom resource: there is no type, `kustomize::pod_monitor_selects_our_pods` looks at its contents.
        Some("PodMonitor") => assert_eq!(object["apiVersion"], "monitoring.coreos.com/v1"),
        _ => panic!("no schema for {object}"),
    }
}

/// Deserialisation ignores unknown fields; they are missing when the object is written again.
#[track_caller]
fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    let written = serde_json::to_value(typed).unwrap();
    assert_subset(object, &written, "");
}

#[track_caller]
fn assert_subset(given: &Value, known: &Value, path: &str) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (field, value) in given {
                let path = format!("{path}.{field}");
                let known = known.get(field).unwrap_or_else(|| panic!("unknown field {path}"));
                assert_subset(value, known, &path);
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            assert_eq!(given.len(), known.len(), "{path}");
            for (index, (value, known)) in given.iter().zip(known).enumerate() {
                assert_subset(value, known, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(given, known, "{path}"),
    }
}

/// All directories with a kustomization.
fn kustomizations() -> Vec<&'static str> {
    vec![
        "base",
        "components/kernel-settings",
        "components/node-by-node",
        "components/podmonitor",
        "overlays/k3s",
        "overlays/kubeadm",
    ]
}

#[test]
fn no_kustomization_is_forgotten_here() {
    let found: BTreeSet<String> = ["components", "overlays"]
        .iter()
        .flat_map(|parent| {
            names(&deploy().join(parent)).into_iter().map(move |name| format!("{parent}/{name}"))
        })
        .chain(["base".to_owned()])
        .collect();
    let listed: BTreeSet<String> = kustomizations().into_iter().map(str::to_owned).collect();
    assert_eq!(found, listed);
}

#[test]
fn every_file_is_listed_and_every_listed_file_is_there() {
    for directory in kustomizations() {
        let text = read(&format!("{directory}/kustomization.yaml"));
        let kustomization = objects(&text).pop().unwrap();
        let strings = |list: &Value| -> Vec<String> {
            let items = list.as_array().into_iter().flatten();
            items
                .map(|item| item.as_str().or_else(|| item["path"].as_str()).unwrap().to_owned())
                .collect()
        };
        let mut listed = strings(&kustomization["resources"]);
        listed.extend(strings(&kustomization["patches"]));
        for generator in kustomization["configMapGenerator"].as_array().into_iter().flatten() {
            listed.extend(strings(&generator["files"]));
        }
        listed.retain(|name| !name.starts_with("../"));
        listed.push("kustomization.yaml".to_owned());
        let listed: BTreeSet<String> = listed.into_iter().collect();
        assert_eq!(listed, names(&deploy().join(directory)), "{directory}");
    }
}

#[test]
fn every_object_and_patch_has_only_known_fields() {
    let mut seen = 0;
    for directory in kustomizations() {
        for name in names(&deploy().join(directory)) {
            if !name.ends_with(".yaml") || name == "kustomization.yaml" {
                continue;
            }
            for mut object in objects(&read(&format!("{directory}/{name}"))) {
                // Kustomize's word, not the API's.
                object.as_object_mut().unwrap().remove("$patch");
                check_schema(&object);
                seen += 1;
            }
        }
    }
    assert!(seen >= 10, "{seen} objects only");
}

#[test]
#[should_panic(expected = "unknown field .spec.template.spec.hostNetwrok")]
fn a_misspelt_field_is_found() {
    let text = read("base/daemonset.yaml").replace("hostNetwork", "hostNetwrok");
    check_schema(&objects(&text).pop().unwrap());
}

/// Ready: the rules are programmed. Alive: changes get through. Neither asks what load balancers ask.
#[test]
fn probes_ask_for_readiness_and_life() {
    let daemon_set = objects(&read("base/daemonset.yaml")).pop().unwrap();
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
        assert_eq!(
            container[probe]["httpGet"],
            serde_json::json!({"path": path, "port": "healthz"})
        );
    }
}

#[test]
fn the_role_allows_what_is_asked_for_and_nothing_else() {
    let role = objects(&read("base/rbac.yaml")).remove(0);
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let words = |field: &str| -> Vec<String> {
            rule[field]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it.as_str().unwrap().to_owned())
                .collect()
        };
        for (group, resource, verb) in words("apiGroups").iter().flat_map(|group| {
            let pairs = words("resources").into_iter().flat_map(|resource| {
                words("verbs").into_iter().map(move |verb| (resource.clone(), verb))
            });
            pairs.map(move |(resource, verb)| (group.clone(), resource, verb)).collect::<Vec<_>>()
        }) {
            allowed.insert(format!("{verb} {resource} {group}").trim_end().to_owned());
        }
    }
    let expected = REQUIRED_ROLE.iter().flat_map(|permission| {
        let Permission { group, resources, verbs } = *permission;
        let pairs = resources.iter().flat_map(move |it| verbs.iter().map(move |verb| (it, verb)));
        pairs
            .map(move |(resource, verb)| format!("{verb} {resource} {group}").trim_end().to_owned())
    });
    assert_eq!(allowed, expected.collect());
}

#[test]
fn the_configuration_for_prometheus_differs_in_the_address_alone() {
    let mut with = objects(&read("components/podmonitor/config.conf")).pop().unwrap();
    let without = objects(&read("base/config.conf")).pop().unwrap();
    let address = with.as_object_mut().unwrap().remove("metricsBindAddress");
    assert_eq!(address, Some(Value::from("0.0.0.0:10249")));
    assert_eq!(with, without);
}

/// Names of the entries of a directory.
#[track_caller]
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
