//! The whole program in IPVS mode: what it prints beforehand, what it asks of the host, what it leaves alone, and what is
//! there when it was killed.

use std::fs::write;
use std::path::Path;

use rustix::process::Signal;

use crate::support::namespace::{Namespace, create};
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kube-ferry");

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn dry_runs_are_right_and_change_nothing() {
    let (host, other, directory) = (host(), host(), tempfile::tempdir().unwrap());
    let manifests = services(directory.path(), 3, &[1, 2]);
    let whole = printed(&host, &manifests, "--dry-run");
    let planned = printed(&host, &manifests, "--dry-run=diff");
    let accepted = printed(&host, &manifests, "--dry-run=kernel");
    assert!(accepted.contains("The kernel accepts all"), "{accepted}");
    assert!(accepted.contains("IPVS cannot check anything beforehand"), "{accepted}");
    assert_eq!(state(&host), "", "nothing was changed");
    assert_eq!(host.command("nft", &["list", "tables"], ""), "");

    // Its text is input for the programs that it names, and makes what the proxy makes.
    for text in [&whole, &planned] {
        let lines = |program: &str| -> String {
            let lines = text.lines().filter_map(|it| it.strip_prefix(program));
            lines.map(|it| format!("{}\n", it.trim())).collect()
        };
        other.command("ipvsadm", &["-C"], "");
        other.command("ip", &["link", "add", "kube-ipvs0", "type", "dummy"], "");
        other.command("ipvsadm", &["-R"], &lines("#ipvsadm"));
        other.command("ip", &["-batch", "-"], &lines("#ip "));
        let by_hand = state(&other);
        let proxy = start(&host, &manifests, &[], directory.path());
        assert_eq!(by_hand, state(&host), "{text}");
        assert!(by_hand.contains("-a -t 10.96.1.0:80 -r 10.1.0.2:8080 -m -w 1"), "{by_hand}");
        drop(proxy);
        other.command("ip", &["link", "delete", "kube-ipvs0"], "");
    }

    assert_eq!(printed(&host, &manifests, "--dry-run=diff").trim(), "", "all of it is there");
    services(directory.path(), 3, &[1, 3]);
    let changes = printed(&host, &manifests, "--dry-run=diff");
    let of_first: Vec<&str> = changes.lines().filter(|it| it.contains("10.96.1.0:80")).collect();
    let expected = [
        "#ipvsadm -a -t 10.96.1.0:80 -r 10.1.0.3:8080 -m -w 1",
        "#ipvsadm -e -t 10.96.1.0:80 -r 10.1.0.2:8080 -m -w 0",
    ];
    assert_eq!(of_first, expected, "{changes}");
    let operations = changes.lines().filter(|it| !it.is_empty()).count();
    assert_eq!(operations, 12, "of three Services in two families: {changes}");
}

/// As in a container without privileges.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_read_only_proc_will_do_if_the_host_is_as_needed() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let manifests = services(directory.path(), 1, &[1]);
    const SCRIPT: &str =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let init_only = |read_only: bool| {
        let shell = ["unshare", "-m", "sh", "-c", SCRIPT, "sh"];
        let mut words: Vec<&str> = if read_only { shell.to_vec() } else { Vec::new() };
        words.extend([PROGRAM, "--init-only", "--proxy-mode=ipvs", "--hostname-override=node-1"]);
        words.extend(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]);
        let flags = ["--conntrack-tcp-timeout-close-wait=0", "--manifests"];
        words.extend(flags);
        words.push(&manifests);
        host.run(|| crate::support::command::output(words[0], &words[1..], ""))
    };
    host.command("sysctl", &["-w", "net.ipv4.vs.conntrack=0"], "");
    let refused = init_only(true);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{told}");
    for part in ["/proc/sys/net/ipv4/vs/conntrack", "it stays 0", "--init-only, mode ipvs"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let set = init_only(false);
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    let again = init_only(true);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_host_without_ipv6_has_the_other_half() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    host.run(|| write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    let manifests = services(directory.path(), 1, &[1]);
    let proxy =
        Proxy::begin(&host, arguments(&manifests, &[]), directory.path().join("log")).unwrap();
    let ready = poll(LONG, || {
        let ready = proxy.log().contains("ready: everything that was listed is programmed");
        ready.then_some(()).ok_or_else(|| proxy.log())
    });
    ready.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(
        state(&host),
        "-A -t 10.96.1.0:80 -s rr\n-a -t 10.96.1.0:80 -r 10.1.0.1:8080 -m -w 1\n10.96.1.0/32\n"
    );
    assert_eq!(proxy.metric("kubeferry_refused_services"), Some(0.0));
}

/// Everywhere where one may be, through a start, a change, an end and a clean-up.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn virtual_servers_of_others_are_never_touched() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    // At an address of the node that is the second Service's cluster IP as well, at another one of it, at none, and by mark.
    host.ip("address add 10.96.1.1/32 dev lo\naddress add 192.0.2.1/32 dev lo\n");
    const THEIRS: [&str; 8] = [
        "-A -t 10.96.1.1:80 -s wlc -p 77",
        "-a -t 10.96.1.1:80 -r 10.9.9.9:80 -m -w 5",
        "-A -t 192.0.2.1:30080 -s rr",
        "-a -t 192.0.2.1:30080 -r 10.9.9.9:443 -m -w 2",
        "-A -u 203.0.113.9:53 -s lc",
        "-A -t [2001:db8::1]:80 -s sh",
        "-A -f 7 -s rr",
        "-a -f 7 -r 10.9.9.9:0 -m -w 1",
    ];
    let make = |line: &&str| host.command("ipvsadm", &line.split(' ').collect::<Vec<_>>(), "");
    THEIRS.iter().for_each(|it| drop(make(it)));
    let check = || {
        let all = host.command("ipvsadm", &["-S", "-n"], "");
        let all: Vec<&str> = all.lines().map(str::trim).collect();
        for line in THEIRS {
            assert!(all.contains(&line), "{line} is gone from {all:?}");
        }
        let mine = all.iter().filter(|it| it.contains("10.96.1.1:80")).count();
        assert_eq!(mine, 2, "nothing was added: {all:?}");
    };
    let manifests = services(directory.path(), 3, &[1]);
    let mut proxy = start(&host, &manifests, &["--ipvs-sync-period=1s"], directory.path());
    check();
    let all = state(&host);
    for ours in ["10.96.1.0:80 -r 10.1.0.1:8080", "10.96.1.2:80 -r 10.1.2.1:8080"] {
        assert!(all.contains(ours), "{all}");
    }
    let log = proxy.log();
    for part in ["RulesRefused", "default/web-1", "ipvsadm -D -t 10.96.1.1:80"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(proxy.metric("kubeferry_refused_services"), Some(1.0));
    assert!(!log.contains("somebody else had changed our virtual servers"), "{log}");
    services(directory.path(), 3, &[1, 2]);
    let changed = || state(&host).contains("10.96.1.0:80 -r 10.1.0.2:8080");
    poll(LONG, || changed().then_some(()).ok_or(state(&host))).unwrap();
    check();
    proxy.stop(Signal::TERM);
    check();
    host.command(PROGRAM, &["--cleanup"], "");
    // The other family's half of a Service that is left out is where nobody can get at it, and hard to tell from others'.
    let left = host.command("ipvsadm", &["-S", "-n"], "");
    let left: Vec<&str> = left.lines().filter(|it| !it.contains("[fd00:96::1:1]")).collect();
    assert_eq!(left.len(), THEIRS.len(), "{left:?}");
    check();
}

/// Whatever was done by then, and whatever was wanted: the next start ends where one without that would.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn killed_in_the_middle_the_next_start_finishes() {
    const SERVICES: u32 = 150;
    let (host, calm, directory) = (host(), host(), tempfile::tempdir().unwrap());
    let other = tempfile::tempdir().unwrap();
    for (hosts, at_least) in [(&[1, 2][..], 1), (&[2, 3], 60), (&[4], 145)] {
        let manifests = services(directory.path(), SERVICES, hosts);
        let log = directory.path().join("log");
        let mut proxy = Proxy::begin(&host, arguments(&manifests, &[]), log).unwrap();
        // Each round gives all of them another endpoint.
        let new = format!(".{}:8080", hosts[hosts.len() - 1]);
        let begun = || {
            let done = state(&host).lines().filter(|it| it.contains(&new)).count();
            (done >= at_least).then_some(()).ok_or(format!("{done} of {at_least}"))
        };
        poll(LONG, begun).unwrap_or_else(|why| panic!("{why}\n{}", proxy.log()));
        proxy.stop(Signal::KILL);
    }
    let last = services(directory.path(), SERVICES, &[4, 5]);
    let _proxy = start(&host, &last, &["--ipvs-drain-timeout=0s"], directory.path());
    let same = services(other.path(), SERVICES, &[4, 5]);
    let _calm = start(&calm, &same, &[], other.path());
    let wanted = state(&calm);
    let finished =
        poll(LONG, || (state(&host) == wanted).then_some(()).ok_or("not yet".to_owned()));
    finished.unwrap_or_else(|_| panic!("{}\ninstead of\n{wanted}", state(&host)));
    drop(_proxy);
    let proxy = start(&host, &last, &["--ipvs-drain-timeout=0s"], directory.path());
    assert_eq!(proxy.metric("kubeferry_ipvs_operations_total").unwrap_or_default(), 0.0);
    assert_eq!(proxy.metric("kubeferry_elements_total").unwrap_or_default(), 0.0);
}

fn host() -> Namespace {
    let host = create(&["host"]).pop().unwrap();
    host.ip("link set lo up\n");
    host
}

/// Services web-N at 10.96.1.N and fd00:96::1:N (on to the next .2 and ::2 after 250) with endpoints 10.1.N.HOST and
/// fd01::N:HOST each. Returns where.
fn services(directory: &Path, services: u32, hosts: &[u8]) -> String {
    let manifests = directory.join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let mut text = String::new();
    for n in 0..services {
        let (high, low) = (1 + n / 250, n % 250);
        let (v4, v6) = (format!("10.96.{high}.{low}"), format!("fd00:96::{high}:{low}"));
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{n}, namespace: default}}\n\
             spec: {{clusterIP: {v4}, clusterIPs: [{v4}, '{v6}'], ports: [{{port: 80}}]}}\n"
        );
        let v4 = |host: &u8| format!("{{addresses: [10.{high}.{low}.{host}]}}");
        let v6 = |host: &u8| format!("{{addresses: ['fd01::{n:x}:{host}']}}");
        let v4: Vec<String> = hosts.iter().map(v4).collect();
        let v6: Vec<String> = hosts.iter().map(v6).collect();
        for (family, endpoints) in [("IPv4", v4.join(", ")), ("IPv6", v6.join(", "))] {
            let name = family.to_lowercase();
            text += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
                 metadata: {{name: web-{n}-{name}, namespace: default, labels: {{kubernetes.io/service-name: web-{n}}}}}\n\
                 ports: [{{name: '', port: 8080}}]\nendpoints: [{endpoints}]\n"
            );
        }
    }
    // In one step, lest half of it be read.
    write(directory.join("new"), text).unwrap();
    std::fs::rename(directory.join("new"), manifests.join("all.yaml")).unwrap();
    manifests.display().to_string()
}

fn arguments(manifests: &str, more: &[&str]) -> Vec<String> {
    let flags = ["--manifests", manifests, "--hostname-override=node-1", "--proxy-mode=ipvs"];
    flags.iter().chain(more).map(|it| (*it).to_owned()).collect()
}

fn start<'w>(host: &'w Namespace, manifests: &str, more: &[&str], directory: &Path) -> Proxy<'w> {
    Proxy::start(host, arguments(manifests, more), directory.join("log")).unwrap()
}

#[track_caller]
fn printed(host: &Namespace, manifests: &str, dry_run: &str) -> String {
    let arguments = arguments(manifests, &[dry_run]);
    host.command(PROGRAM, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), "")
}

/// Virtual servers, sorted, but for destinations without weight, and then the addresses on which they are.
fn state(host: &Namespace) -> String {
    let all = host.command("ipvsadm", &["-S", "-n"], "");
    let mut lines: Vec<&str> = all.lines().map(str::trim).collect();
    lines.retain(|it| !it.ends_with("-w 0"));
    lines.sort_unstable();
    let links = host.command("ip", &["-o", "link"], "");
    let mut addresses = String::new();
    if links.contains("kube-ipvs0") {
        addresses = host.command("ip", &["-o", "address", "show", "dev", "kube-ipvs0"], "");
    }
    let mut addresses: Vec<&str> =
        addresses.lines().filter_map(|it| it.split_whitespace().nth(3)).collect();
    addresses.sort_unstable();
    lines.iter().chain(&addresses).map(|it| format!("{it}\n")).collect()
}
