//! Objects from a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kube_ferry::watch::load_manifests;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rig::{Rig, context, node, service, service_cidr, short, slice};

#[test]
fn all_kinds_and_forms_of_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, "a.yaml", &[service("a", 1), slice("a", 1)]);
    write(&directory, "b.yml", &[service("b", 2)]);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service("c", 3), node("n1"), node("n2")] });
    write(&directory, "c.json", &[list]);
    write(&directory, "d.yaml", &[service_cidr("kubernetes")]);
    write(&directory, "e.txt", &[service("not-this", 4)]);
    write(&directory, ".f.yaml", &[service("nor-this", 5)]);
    fs::create_dir(directory.path().join("g.yaml")).unwrap();
    let loaded = load_manifests(directory.path(), context()).unwrap();
    let story: Vec<String> = loaded.changes.iter().map(short).collect();
    assert_eq!(
        story,
        [
            "Listing(Service)",
            "Listing(EndpointSlice)",
            "Listing(Node)",
            "Listing(ServiceCidr)",
            "Service shop/a",
            "Service shop/b",
            "Service shop/c",
            "Slice shop/a-x",
            "Node n1",
            "ServiceCidr kubernetes",
            "Listed(Service)",
            "Listed(EndpointSlice)",
            "Listed(Node)",
            "Listed(ServiceCidr)",
        ]
    );
    assert!(loaded.problems.is_empty() && loaded.skipped.is_empty(), "{loaded:#?}");
}

#[test]
fn an_empty_directory_is_complete_and_empty() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::manifests(directory.path());
    rig.until_watching();
    rig.until("all lists", |rig| {
        rig.story.iter().filter(|it| it.starts_with("Listed")).count() == 4
    });
    check(&mut rig, &[]);
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, "a.yaml", &[service("a", 1)]);
    let mut rig = Rig::manifests(directory.path());
    check(&mut rig, &["a"]);
    write(&directory, "b.yaml", &[service("b", 2), service("c", 3)]);
    check(&mut rig, &["a", "b", "c"]);
    // Atomic replacement, as editors do.
    write(&directory, "b.tmp", &[service("c", 3), service("d", 4)]);
    fs::rename(directory.path().join("b.tmp"), directory.path().join("b.yaml")).unwrap();
    check(&mut rig, &["a", "c", "d"]);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    check(&mut rig, &["c", "d"]);
    let told = rig.story.iter().filter(|it| *it == "Service shop/c").count();
    assert_eq!(told, 1, "what did not change is not told again");
}

#[test]
fn selectors_hold_for_files_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut foreign = service("foreign", 1);
    foreign["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "x" });
    let mut headless = slice("headless", 1);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    write(&directory, "a.yaml", &[foreign, headless, service("a", 2), slice("a", 2)]);
    let mut rig = Rig::manifests(directory.path());
    check(&mut rig, &["a"]);
    rig.until("the slice", |rig| rig.known().slices.len() == 1);
}

#[test]
fn a_config_map_volume_is_swapped_by_its_link() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (version, objects) in
        [("..v1", vec![service("a", 1)]), ("..v2", vec![service("a", 7), service("b", 2)])]
    {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("x.yaml"), text(&objects)).unwrap();
    }
    symlink("..v1", root.join("..data")).unwrap();
    symlink("..data/x.yaml", root.join("x.yaml")).unwrap();
    let mut rig = Rig::manifests(root);
    check(&mut rig, &["a"]);
    symlink("..v2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    fs::remove_dir_all(root.join("..v1")).unwrap();
    check(&mut rig, &["a", "b"]);
}

#[test]
fn a_bad_document_spoils_neither_its_file_nor_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    let good = |objects: &[Value]| text(objects);
    fs::write(&path, good(&[service("a", 1), service("b", 2)])).unwrap();
    let mut rig = Rig::manifests(directory.path());
    check(&mut rig, &["a", "b"]);
    // "b" is being edited: half of it. "c" comes after it.
    fs::write(
        &path,
        format!(
            "{}---\nkind: Service\nspec: [\n---\n{}",
            good(&[service("a", 1)]),
            good(&[service("c", 3)])
        ),
    )
    .unwrap();
    check(&mut rig, &["a", "b", "c"]);
    let loaded = load_manifests(directory.path(), context()).unwrap();
    assert_eq!(loaded.problems.len(), 1, "{:#?}", loaded.problems);
    assert!(loaded.problems[0].contains("a.yaml: document 2"), "{}", loaded.problems[0]);
    // It is finished: "b" is gone.
    fs::write(&path, good(&[service("a", 1), service("c", 3)])).unwrap();
    check(&mut rig, &["a", "c"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_last_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    write(&directory, "a.yaml", &[service("a", 1)]);
    let mut rig = Rig::manifests(directory.path());
    check(&mut rig, &["a"]);
    // A link to nowhere in its place, as in the middle of a deployment.
    fs::remove_file(&path).unwrap();
    symlink("nowhere", directory.path().join("link")).unwrap();
    fs::rename(directory.path().join("link"), &path).unwrap();
    fs::write(directory.path().join("b.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    write(&directory, "c.yaml", &[service("c", 3)]);
    rig.until("c", |rig| rig.known().services.keys().any(|it| &*it.name == "c"));
    write(&directory, "nowhere", &[service("d", 4)]);
    check(&mut rig, &["c", "d"]);
}

#[test]
fn a_directory_may_go_and_come_back() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), text(&[service("a", 1)])).unwrap();
    let mut rig = Rig::manifests(&path);
    check(&mut rig, &["a"]);
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), text(&[service("b", 2)])).unwrap();
    check(&mut rig, &["b"]);
    // The new one is watched as well.
    fs::write(path.join("c.yaml"), text(&[service("c", 3)])).unwrap();
    check(&mut rig, &["b", "c"]);
}

#[test]
fn the_order_of_files_decides_age() {
    let directory = tempfile::tempdir().unwrap();
    let undated = |name, n| {
        let mut service = service(name, n);
        service["metadata"]["creationTimestamp"] = Value::Null;
        service
    };
    write(&directory, "1.yaml", &[undated("z", 1), undated("y", 2)]);
    write(&directory, "2.yaml", &[undated("x", 3), service("dated", 4)]);
    let mut rig = Rig::manifests(directory.path());
    check(&mut rig, &["dated", "x", "y", "z"]);
    let mut services: Vec<_> = rig.known().services.values().collect();
    services.sort_by_key(|it| it.created);
    let names: Vec<&str> = services.iter().map(|it| &*it.name.name).collect();
    assert_eq!(names, ["dated", "z", "y", "x"]);
}

#[test]
fn of_an_object_in_two_files_the_last_counts() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, "1.yaml", &[service("a", 1)]);
    write(&directory, "2.yaml", &[service("a", 2)]);
    let mut rig = Rig::manifests(directory.path());
    rig.until("the last", |rig| cluster_ip(rig) == "10.96.0.2");
    fs::remove_file(directory.path().join("2.yaml")).unwrap();
    rig.until("the first", |rig| cluster_ip(rig) == "10.96.0.1");
}

fn cluster_ip(rig: &Rig) -> String {
    let service = rig.known().services.values().next();
    service.map_or(String::new(), |it| it.v4.as_ref().unwrap().cluster_ip.to_string())
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_says_so() {
    let error = load_manifests(Path::new("/none/such"), context()).unwrap_err().to_string();
    assert!(error.contains("--manifests /none/such") && error.contains("No such file"), "{error}");
}

#[track_caller]
fn check(rig: &mut Rig, services: &[&str]) {
    rig.until(&format!("{services:?}"), |rig| {
        let known: Vec<&str> = rig.known().services.keys().map(|it| &*it.name).collect();
        known == services
    });
}

fn write(directory: &TempDir, name: &str, objects: &[Value]) {
    fs::write(directory.path().join(name), text(objects)).unwrap();
}

/// JSON is YAML, so this serves for both.
fn text(objects: &[Value]) -> String {
    objects.iter().map(|it| format!("---\n{it}\n")).collect()
}
