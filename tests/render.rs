//! What `--dry-run` prints is input for the installed nft, and means what the tables mean.
//!
//! Needs root for a network namespace of its own, and nft.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::process::Stdio;

use kube_ferry::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, ServiceForwarding,
    WithoutBackend,
};
use kube_ferry::model::{Family, Protocol, TrafficPolicy};
use kube_ferry::nft::compile::{Compiler, RowCounts};
use kube_ferry::nft::render;
use kube_ferry::nft::schema::{Owner, SetName};
use kube_ferry::nft::skeleton::{FamilyProgram, LocalDetector, NodePortAddresses, Program};
use kube_ferry::nft::tables::Tables;

use crate::support::nft_versions::LOADING;

#[test]
fn a_ruleset_with_rows_in_every_set_lists_back_to_the_same_rows() {
    let (tables, _) = everything();
    for set in SetName::ALL.into_iter().filter(|it| *it != SetName::Affinity) {
        assert!(tables.rows(Family::V4, set).next().is_some(), "no row in {}", set.name());
    }
    let text = render::ruleset(&tables);
    let listed = load(&[&text]);
    assert_eq!(elements(&listed), elements(&text));
    assert_eq!(names(&listed), names(&text));
}

#[test]
fn a_ruleset_replaces_the_one_before() {
    let (tables, _) = everything();
    let text = render::ruleset(&tables);
    assert_eq!(load(&[&text, &text]), load(&[&text]));
}

#[test]
fn what_nft_lists_it_loads_to_the_same() {
    let (tables, _) = everything();
    let listed = load(&[&render::ruleset(&tables)]);
    assert_eq!(load(&[&listed]), listed);
}

#[test]
fn batches_do_what_the_ruleset_says() {
    let (tables, batches) = everything();
    // In one text: what nft reads of a map in the kernel it does not take in a rule (README, "Limits today").
    let (by_batches, at_once) = (load(&[&batches.concat()]), load(&[&render::ruleset(&tables)]));
    assert_eq!(elements(&by_batches), elements(&at_once));
    // Chains are made in another order.
    let lines = |text: &str| {
        let mut lines: Vec<String> = rules(text).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(lines(&by_batches), lines(&at_once));
}

#[test]
fn all_variants_of_the_program_load() {
    let detectors = [
        None,
        Some(LocalDetector::Interface("cbr0".to_owned())),
        Some(LocalDetector::InterfacePrefix("veth".to_owned())),
    ];
    for detector in detectors {
        for node_ports in [NodePortAddresses::All, NodePortAddresses::Listed] {
            for (masquerade_all, ipvs) in [(false, false), (true, false), (true, true)] {
                let family = FamilyProgram { detector: detector.clone(), node_ports };
                let (v4, v6) = (family.clone(), family);
                let program = Program { masquerade_all, ipvs, v4, v6, ..program() };
                let mut compiler = Compiler::new(program);
                compiler.stage_skeleton(&RowCounts::default());
                let text = render::batch(&compiler.batch());
                assert!(load(&[&text]).contains("chain nat-postrouting"));
            }
        }
    }
}

/// Tables with rows in every set, and the batches that made them.
fn everything() -> (Tables, Vec<String>) {
    let mut compiler = Compiler::new(Program { ipvs: true, ..program() });
    let (mut tables, mut batches) = (Tables::default(), Vec::new());
    let mut commit = |compiler: &mut Compiler| {
        let batch = compiler.batch();
        tables.apply(&batch).unwrap();
        compiler.confirm();
        batches.push(render::batch(&batch));
    };
    compiler.stage_skeleton(&RowCounts::default());
    commit(&mut compiler);
    for family in Family::ALL {
        let address = address(family, 200);
        compiler.stage_node_port_ips(family, &BTreeSet::from([address]));
        compiler.stage_node_ips(family, &BTreeSet::from([address]));
        compiler.stage_ipvs_draining(family, &BTreeSet::from([address]));
        let cidrs = match family {
            Family::V4 => ["10.96.0.0/16", "172.30.1.1/32"],
            Family::V6 => ["fd00:96::/112", "fd00:97::1/128"],
        };
        compiler.stage_service_cidrs(family, &cidrs.map(|it| it.parse().unwrap()));
    }
    let kinds = [
        (TrafficPolicy::Cluster, None, WithoutBackend::Served),
        (TrafficPolicy::Local, None, WithoutBackend::Reject),
        (TrafficPolicy::Local, Some(10_800), WithoutBackend::Drop),
        (TrafficPolicy::Cluster, Some(61), WithoutBackend::Drop),
    ];
    // The second round removes one and changes another, so that batches delete rows, too.
    for endpoints in [7, 3] {
        for (number, (policy, affinity, without)) in (1..).zip(kinds) {
            let service = service(number, policy, affinity, without, endpoints);
            compiler.stage(Owner(number.into()), &service);
        }
        compiler.stage(
            Owner(9),
            &service(9, TrafficPolicy::Local, Some(99), WithoutBackend::Drop, endpoints),
        );
        commit(&mut compiler);
    }
    compiler.stage(Owner(9), &ServiceForwarding::default());
    commit(&mut compiler);
    (tables, batches)
}

fn service(
    number: u8,
    policy: TrafficPolicy,
    affinity: Option<u32>,
    without: WithoutBackend,
    endpoints: u8,
) -> ServiceForwarding {
    let port = |family| {
        // nft 1.0.6 stops at an assertion when it is to load the IPv6 rules of session affinity.
        let affinity = affinity.filter(|_| family == Family::V4);
        port(family, number, policy, affinity, without, endpoints)
    };
    ServiceForwarding {
        ports: Family::ALL.map(port).to_vec(),
        health_check: None,
        ipvs_scheduler: None,
    }
}

fn port(
    family: Family,
    number: u8,
    policy: TrafficPolicy,
    affinity: Option<u32>,
    without_backend: WithoutBackend,
    endpoints: u8,
) -> PortForwarding {
    let frontend = |at, kind| Frontend { at, kind, policy, without_backend, source_ranges: None };
    let nonzero = |it| NonZeroU16::new(it).unwrap();
    let at = |host| FrontendAddress::Address(address(family, host), nonzero(80));
    let mut balanced = frontend(at(100 + number), FrontendKind::LoadBalancerIp);
    let ranges = match family {
        Family::V4 => ["10.0.0.0/8", "203.0.113.7/32"],
        Family::V6 => ["fd00::/8", "2001:db8::7/128"],
    };
    balanced.source_ranges = Some(ranges.map(|it| it.parse().unwrap()).into());
    let node_port = FrontendAddress::NodePort(nonzero(30_000 + u16::from(number)));
    let backend = |host| Backend { address: address(family, host), port: nonzero(8080) };
    PortForwarding {
        family,
        port_name: "".into(),
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number) % 3],
        frontends: vec![
            frontend(at(number), FrontendKind::ClusterIp),
            balanced,
            frontend(node_port, FrontendKind::NodePort),
        ],
        cluster: (210..210 + endpoints).map(backend).collect(),
        local: vec![backend(210)],
        hairpin: vec![address(family, 210)],
        serving: Vec::new(),
        weights: Vec::new(),
        affinity,
    }
}

fn address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, host]),
        Family::V6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

fn program() -> Program {
    let family = |net: &str| FamilyProgram {
        detector: Some(LocalDetector::Source(net.parse().unwrap())),
        node_ports: NodePortAddresses::Listed,
    };
    Program {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: true,
        families: Family::ALL.to_vec(),
        v4: family("10.0.0.0/8"),
        v6: family("fd00:10::/64"),
    }
}

/// Loads the texts one after the other, in a network namespace of their own, and returns what nft lists then.
#[expect(clippy::disallowed_methods, reason = "this is about the nft program")]
fn load(texts: &[&str]) -> String {
    let mut files = Vec::new();
    let mut script = format!("set -e\nnft={}\n", LOADING[0]);
    for text in texts {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        script += &format!("$nft -f {}\n", file.path().display());
        files.push(file);
    }
    script += "$nft list ruleset\n";
    let output = std::process::Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("unshare starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "nft (as root?): {}",
        errors.chars().take(2000).collect::<String>()
    );
    String::from_utf8(output.stdout).unwrap()
}

/// All rows, by table and set.
fn elements(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut table, mut set, mut inside) = (String::new(), String::new(), false);
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["table", family, _, "{"] => table = (*family).to_owned(),
            ["set" | "map", name, "{"] => set = format!("{table} {name}"),
            ["elements", ..] => inside = true,
            _ => {}
        }
        if inside {
            let row = line.trim_start_matches("elements = {").trim_end_matches('}');
            let rows = row.split(',').map(str::trim).filter(|it| !it.is_empty());
            found.entry(set.clone()).or_default().extend(rows.map(str::to_owned));
            inside = !line.ends_with('}');
        }
    }
    found
}

/// Names of tables, sets and chains.
fn names(text: &str) -> BTreeSet<String> {
    let mut table = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|it| it.ends_with(" {")) {
        if line.starts_with("table") {
            table = line.to_owned();
        }
        if !line.starts_with("elements") {
            found.insert(format!("{table} {line}"));
        }
    }
    found
}

/// What is not a row.
fn rules(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        inside |= line.trim().starts_with("elements = {");
        if !inside {
            kept += line;
            kept += "\n";
        }
        inside &= !line.ends_with('}');
    }
    kept
}
