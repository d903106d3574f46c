//! Independent witnesses: what `nft` and `conntrack` say about the kernel.

#![expect(clippy::disallowed_methods, reason = "nft is an independent witness")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::command;
use super::namespace::{self, Namespace};
use super::patience::LONG;

/// One tracked connection, as `conntrack -L -o extended` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// `tcp`, `udp`, `sctp`.
    pub(crate) protocol: String,
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// All connections with ports that the namespace tracks, both families.
pub(crate) fn flows(namespace: &Namespace) -> Vec<Flow> {
    let listing =
        |family| namespace.command("conntrack", &["-L", "-o", "extended", "-f", family], "");
    [listing("ipv4"), listing("ipv6")]
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(parse_flow)
        .collect()
}

/// Flows without ports (ICMP) are `None`.
fn parse_flow(line: &str) -> Option<Flow> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let values = |key: &str| -> Vec<&str> {
        words.iter().filter_map(|word| word.strip_prefix(key)).collect()
    };
    let tuple = |at: usize| -> Option<Tuple> {
        let address = |key| values(key).get(at)?.parse::<IpAddr>().ok();
        let port = |key| values(key).get(at)?.parse::<u16>().ok();
        Some(Tuple {
            source: SocketAddr::new(address("src=")?, port("sport=")?),
            destination: SocketAddr::new(address("dst=")?, port("dport=")?),
        })
    };
    Some(Flow { protocol: (*words.get(2)?).to_owned(), original: tuple(0)?, reply: tuple(1)? })
}

/// How many kernel objects a ruleset has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) tables: usize,
    pub(crate) chains: usize,
    pub(crate) rules: usize,
    /// Sets and maps.
    pub(crate) sets: usize,
}

/// Counts the objects of the tables called `table`, all families, without listing elements.
pub(crate) fn objects(namespace: &Namespace, table: &str) -> Objects {
    let text = namespace.command("nft", &["-j", "-t", "list", "ruleset"], "");
    let ruleset: Value = serde_json::from_str(&text).unwrap();
    let count = |kind: &str| {
        let key = if kind == "table" { "name" } else { "table" };
        let all = ruleset["nftables"].as_array().unwrap().iter();
        all.filter(|object| object[kind][key] == table).count()
    };
    Objects {
        tables: count("table"),
        chains: count("chain"),
        rules: count("rule"),
        sets: count("set") + count("map"),
    }
}

/// The elements of a set or map, each as compact JSON, sorted. Empty if there is no such set.
pub(crate) fn rows(namespace: &Namespace, family: &str, table: &str, set: &str) -> Vec<String> {
    let listing =
        namespace.run(|| command::output("nft", &["-j", "list", "set", family, table, set], ""));
    let listing = if listing.status.success() {
        listing
    } else {
        namespace.run(|| command::output("nft", &["-j", "list", "map", family, table, set], ""))
    };
    let Ok(parsed) = serde_json::from_slice::<Value>(&listing.stdout) else { return Vec::new() };
    let objects = parsed["nftables"].as_array().cloned().unwrap_or_default();
    let elements = objects.iter().filter_map(|object| {
        let set = object.get("set").or_else(|| object.get("map"))?;
        set.get("elem")?.as_array().cloned()
    });
    let mut rows: Vec<String> = elements.flatten().map(|element| element.to_string()).collect();
    rows.sort();
    rows
}

/// Whether a set holds an address.
pub(crate) fn contains(namespace: &Namespace, table: &str, set: &str, address: IpAddr) -> bool {
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let element = format!("{{ {address} }}");
    namespace
        .run(|| command::output("nft", &["get", "element", family, table, set, &element], ""))
        .status
        .success()
}

/// Listens to everything that is written to nf_tables in a namespace.
pub(crate) struct Monitor {
    child: Child,
    lines: mpsc::Receiver<String>,
    marks: u32,
    namespace: File,
}

impl Monitor {
    /// Starts to listen; what is written from now on is heard.
    pub(crate) fn start(namespace: &Namespace) -> Monitor {
        let mut child = namespace.run(|| {
            Command::new("nft")
                .args(["monitor"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("nft; `make test` installs what is needed")
        });
        let output = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut monitor = Monitor { child, lines, marks: 0, namespace: namespace.file() };
        monitor.listen();
        monitor
    }

    /// Writes marks until one is heard: only then is the monitor known to listen.
    fn listen(&mut self) {
        for _ in 0..1000 {
            let mark = self.write_mark();
            let deadline = Duration::from_millis(20);
            while let Ok(line) = self.lines.recv_timeout(deadline) {
                if line.contains(&mark) {
                    return;
                }
            }
        }
        panic!("nft monitor hears nothing");
    }

    /// What was written since the last call, without our own marks.
    pub(crate) fn heard(&mut self) -> Vec<String> {
        let mark = self.write_mark();
        let mut heard = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LONG).expect("nft monitor has ended");
            if line.contains(&mark) {
                return heard;
            }
            // Marks of `listen` and the closing line of each transaction are no news. A table that is taken over from
            // an owner that has ended is announced as if it were added; one that is added comes with chains.
            let news = !line.contains(MARK) && !line.starts_with("# new generation");
            if news && !TAKEN_OVER.contains(&line.trim_end()) {
                heard.push(line);
            }
        }
    }

    fn write_mark(&mut self) -> String {
        self.marks += 1;
        let mark = format!("{MARK}{}-", self.marks);
        let (namespace, table) = (&self.namespace, &mark);
        let input = format!("add table inet {table}\n");
        thread::scope(|scope| {
            scope.spawn(|| {
                namespace::enter(namespace);
                command::run("nft", &["-f", "-"], &input);
                command::run("nft", &["delete", "table", "inet", table], "");
            });
        });
        mark
    }
}

const TAKEN_OVER: [&str; 2] = ["add table ip kube-ferry", "add table ip6 kube-ferry"];

const MARK: &str = "witness-mark-";

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_conntrack_line_becomes_a_flow() {
    let line = "ipv4     2 udp      17 29 src=10.244.1.20 dst=10.96.0.53 sport=4000 dport=53 \
                src=10.244.2.10 dst=10.244.1.20 sport=5353 dport=4000 mark=0 use=1";
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let expected = Flow {
        protocol: "udp".to_owned(),
        original: Tuple { source: at("10.244.1.20:4000"), destination: at("10.96.0.53:53") },
        reply: Tuple { source: at("10.244.2.10:5353"), destination: at("10.244.1.20:4000") },
    };
    assert_eq!(parse_flow(line), Some(expected));
    assert_eq!(parse_flow("ipv4 2 icmp 1 29 src=1.1.1.1 dst=2.2.2.2 type=8 code=0 id=1"), None);
}
