use proptest::prelude::*;

use super::*;

const SERVICE: &str = r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"web","resourceVersion":"5","uid":"u","annotations":{"a":"b"}},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00::1"],"ipFamilies":["IPv4","IPv6"],"externalIPs":["192.0.2.9"],"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}},"externalTrafficPolicy":"Local","internalTrafficPolicy":"Local","healthCheckNodePort":32000,"loadBalancerSourceRanges":["203.0.113.0/24"],"trafficDistribution":"PreferClose","ports":[{"name":"http","port":80,"protocol":"TCP","nodePort":30080},{"name":"dns","port":53,"protocol":"UDP"}]},"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.7","ipMode":"VIP"}]}}}"#;
const SLICE: &str = r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"namespace":"shop","name":"web-1","resourceVersion":"6","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}],"endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"node","zone":"a","hints":{"forZones":[{"name":"a"}]}},{"addresses":["10.1.0.2"]}]}"#;
const NODE: &str = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node","labels":{"topology.kubernetes.io/zone":"a"}},"spec":{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#;
const CIDR: &str = r#"{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16","fd00::/112"]}}"#;
const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"kind":"Service","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
const ERROR: &str = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
const CONFIG: &str = include_str!("../../tests/config/kubeadm.yaml");
const FLAGS: &str = "--proxy-mode=nftables\n--nodeport-addresses=primary\n--nodeport-addresses\n192.0.2.0/24,::1/128\n--cluster-cidr=10.0.0.0/8,fd00::/8\n--v=2\n--feature-gates=AllAlpha=true,X=false\n--iptables-min-sync-period=1s\n--conntrack-tcp-timeout-established=24h0m0s\n--masquerade-all\n--metrics-bind-address=[::]:10249\n--vmodule=sync=6,kernel*=4\n--ipvs-exclude-cidrs=10.0.0.0/8\n--hostname-override=node";

/// Bytes to begin with, by target.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = kernel::seeds(&program());
    let mut add = |target, bytes: &[u8]| seeds.push((target, bytes.to_vec()));
    // As getsockopt gave them (IPT_SO_GET_INFO, then the entries of IPT_SO_GET_ENTRIES) for what kube-proxy writes.
    add("legacy", include_bytes!("iptables-legacy-nat.bin"));
    add("legacy", include_bytes!("ip6tables-legacy-filter.bin"));
    for (choice, object) in [(24, SERVICE), (25, SLICE), (30, NODE), (255, CIDR)] {
        let events = ["ADDED", "MODIFIED", "DELETED"]
            .map(|kind| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"));
        let stream = format!("{}{BOOKMARK}\n{ERROR}\n", events.concat());
        add("watch", &[&[choice][..], stream.as_bytes()].concat());
        let page = format!(
            "{{\"kind\":\"List\",\"metadata\":{{\"resourceVersion\":\"7\",\"continue\":\"x\"}},\"items\":[{object},{object}]}}"
        );
        add("list", &[&[choice][..], page.as_bytes()].concat());
    }
    add("manifests", format!("{SERVICE}\n---\n{SLICE}\n---\n{NODE}\n---\n{CIDR}").as_bytes());
    add("manifests", include_bytes!("../../deploy/examples/web.yaml"));
    add(
        "manifests",
        format!("apiVersion: v1\nkind: List\nitems:\n- {SERVICE}\n- {SLICE}\n").as_bytes(),
    );
    add("config", CONFIG.as_bytes());
    add("config", include_bytes!("../../tests/config/eks.yaml"));
    add("config", include_bytes!("../../deploy/base/config.conf"));
    add("flags", FLAGS.as_bytes());
    seeds
}

/// With FUZZ_SEEDS they are also written to that directory, for the fuzzers.
#[test]
fn every_target_has_seeds_and_takes_them() {
    let directory = std::env::var_os("FUZZ_SEEDS").map(std::path::PathBuf::from);
    for (number, (target, bytes)) in seeds().into_iter().enumerate() {
        run(target, &bytes);
        if let Some(directory) = directory.as_ref().map(|it| it.join(target)) {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(format!("seed-{number}")), bytes).unwrap();
        }
    }
    for (target, _) in TARGETS {
        assert!(seeds().iter().any(|(it, _)| *it == target), "{target} has no seed");
    }
}

/// A way to damage a sample.
#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    /// A part of it once more somewhere else.
    Copy(prop::sample::Index, prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let telling = prop_oneof![
        any::<u8>().prop_map(|it| vec![it]),
        prop::sample::select(vec![
            "\"",
            "\\",
            "{",
            "[",
            "null",
            "-1",
            "65536",
            "9999999999",
            "1e400",
            "\\ud800",
            "::",
            "/33",
            ",",
            "\n",
            "---\n",
            "*a",
            "&a ",
            "\u{feff}"
        ])
        .prop_map(|it| it.as_bytes().to_vec()),
    ];
    prop_oneof![
        4 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        3 => (any::<prop::sample::Index>(), telling).prop_map(|(at, it)| Damage::Insert(at, it)),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..200_usize)
            .prop_map(|(from, to, length)| Damage::Copy(from, to, length)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: Vec<Damage>) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            return bytes;
        }
        match damage {
            Damage::Byte(at, byte) => *at.get_mut(&mut bytes) = byte,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, insert) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, insert);
            }
            Damage::Copy(from, to, length) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let part = bytes[from..(from + length).min(bytes.len())].to_vec();
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_samples_do_no_harm(
        seed in prop::sample::select(seeds()),
        damages in prop::collection::vec(damage(), 1..8),
    ) {
        let (target, bytes) = seed;
        run(target, &damaged(bytes, damages));
    }

    #[test]
    fn any_bytes_do_no_harm(
        target in prop::sample::select(TARGETS.map(|(name, _)| name).to_vec()),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        run(target, &bytes);
    }
}
