//! The format of scenario files.
//!
//! ```text
//! # What could go wrong, in a sentence or two.
//!
//! flags --masquerade-all
//!
//! apply Service default/web
//!   spec: {clusterIPs: [10.96.0.10, "fd00:10:96::10"], ports: [{name: http, port: 80}]}
//!
//! endpoints default/web http=8080/tcp
//!   pod-1a
//!   pod-2a terminating zones=a,b
//!
//! flow client -> 10.96.0.10:80/tcp = pod-1a:8080 pod-2a, source kept
//! ```
//!
//! * `flags`: added to the proxy's command line; only before the first step.
//! * `apply KIND NAME` and `change KIND NAME`, with indented YAML: the object without kind and name, or a merge patch
//!   of it. What the API server would default is defaulted. `delete KIND NAME` removes it.
//! * `endpoints SERVICE[#SLICE] PORT=NUMBER/PROTOCOL…`, with indented rows: a pair of EndpointSlices, one for each
//!   family, replacing those of the same name. A row is the name of an actor of [`crate::support::world`], then
//!   `not-ready`, `terminating`, `terminating-not-serving`, `serving-not-ready`, `ready-terminating`,
//!   `zones=a,b`, `nodes=node-1,node-2` as needed. `gone SERVICE ENDPOINT` takes a row away.
//! * `flow SOURCE -> ADDRESS:PORT/PROTOCOL = EXPECTED`: new connections. Expected are the pods that answer (all of
//!   them, and no others; with a port if that matters), `reject`, `drop` or `not handled`.
//! * `sticky NAME: SOURCE -> … = PODS`: all connections reach the same one of the pods, from now on called `$NAME`.
//! * `balanced SOURCE -> … = PODS`: the pods have equal shares.
//! * `open NAME: SOURCE -> … = PODS`: a connection that stays open, to one of the pods; `again NAME = PODS`, `reject`
//!   and so on, or `same`, asks once more on it.
//! * `http SOURCE -> ADDRESS:PORT/PATH = STATUS [TEXT]`: the status, and a text that the body contains.
//! * `remembered SOURCE = yes` or `no`: whether the kernel holds the client's address for session affinity.
//! * `restart`, `restart killed`: the proxy ends and starts again and must write nothing.
//! * `address ADDRESS comes` or `goes`: node-1 has an address more, or less, on the interface to the outside.
//! * `upgrade FLAGS…`: the proxy ends and starts again with these flags besides its own, and writes what follows.
//! * `traffic NAME: SOURCE -> … = PODS`: from now on one connection asks and asks, and new ones are opened all the
//!   time. `unharmed NAME`: every single request was answered, the old connection's always by the same pod.
//! * `ping SOURCE -> ADDRESS = reject`, `drop` or `not handled` (the host's answer): an ICMP echo request.
//! * `logged WORDS…`: a line of the proxy's log has all of these words. Events are there too.
//! * `foreign nft`, `iptables` or `ip6tables`, with indented rules (of iptables-restore): others' rules on node-1.
//! * `pause N seconds`, where the passing of time is the subject.
//!
//! Flows and the like are run in both families, the second time with the IPv6 twins of the addresses (see
//! [`crate::support::world::twin`]); endings after a comma: `IPv4 only`, `IPv6 only`, `source kept`, `masquerade`,
//! `eventually` (not at once, but soon). `except $NAME` takes a pod out of the expected ones.

use std::net::Ipv4Addr;
use std::time::Duration;

use kube_ferry::model::{Family, Protocol};
use serde_json::Value;

use crate::support::world::Actor;

/// A parsed file.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) flags: Vec<String>,
    pub(crate) steps: Vec<Line<Step>>,
}

/// `--proxy-mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nftables,
    Ipvs,
}

impl Mode {
    fn flag(self) -> &'static str {
        match self {
            Mode::Nftables => "--proxy-mode=nftables",
            Mode::Ipvs => "--proxy-mode=ipvs",
        }
    }
}

/// Something, and the number of the line on which it stands.
#[derive(Clone, Debug)]
pub(crate) struct Line<T> {
    pub(crate) number: usize,
    pub(crate) what: T,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Edit(Edit),
    Flow(Flow),
    Balanced(Flow),
    Sticky(String, Flow),
    Open(String, Flow),
    Again {
        name: String,
        /// `None`: what became of the last request.
        expected: Option<Expected>,
        when: When,
    },
    Http {
        source: Actor,
        address: Ipv4Addr,
        port: u16,
        path: String,
        status: u16,
        text: Option<String>,
        families: Vec<Family>,
    },
    /// Whether the kernel remembers a client for session affinity.
    Remembered {
        source: Actor,
        yes: bool,
        families: Vec<Family>,
    },
    /// The node gets an address, or loses it.
    Address {
        address: Ipv4Addr,
        present: bool,
    },
    Restart(Ending),
    /// The proxy starts again with these flags besides its own, and writes what follows from them.
    Upgrade(Vec<String>),
    /// ICMP echo requests.
    Ping {
        source: Actor,
        address: Ipv4Addr,
        expected: Expected,
        families: Vec<Family>,
    },
    /// Connections from now on until `Unharmed`.
    Traffic(String, Flow),
    Unharmed(String),
    /// The proxy's log, in which Events of manifests end up too, contains all these words in one line.
    Logged(Vec<String>),
    /// Rules of others, loaded into node-1: a program and its input.
    Foreign(Tool, String),
    Pause(Duration),
}

/// A change of the objects.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Apply(ObjectRef, Value),
    Change(ObjectRef, Value),
    Delete(ObjectRef),
    Endpoints(Slices),
    /// Takes an endpoint out of all slices of a Service.
    Gone {
        service: String,
        endpoint: Pod,
    },
}

/// `Service default/web`; cluster-scoped objects have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectRef {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A pair of EndpointSlices, one for each family.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    /// `namespace/name` of the Service.
    pub(crate) service: String,
    /// Tells several pairs of one Service apart; usually empty.
    pub(crate) suffix: String,
    pub(crate) ports: Vec<(String, u16, Protocol)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) families: Vec<Family>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) actor: Actor,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) zones: Vec<String>,
    pub(crate) nodes: Vec<String>,
}

/// New connections and what must become of them.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) source: Actor,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) expected: Expected,
    pub(crate) translation: Option<Translation>,
    pub(crate) families: Vec<Family>,
    /// As written, for messages.
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Backends { pods: Vec<Backend>, except: Vec<Pod> },
    Reject,
    Drop,
    NotHandled,
}

/// A backend; the port is checked if given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) pod: Pod,
    pub(crate) port: Option<u16>,
}

/// A pod by name, or the one that a `sticky` step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pod {
    Named(&'static str),
    Found(String),
}

/// What the backend sees as source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Translation {
    SourceKept,
    Masquerade,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    AtOnce,
    Eventually,
}

/// What other people's rules are loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Nft,
    Iptables,
    Ip6tables,
}

/// How the proxy ends before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Asked,
    Killed,
}

impl Story {
    /// Parses a file; the error begins with the number of the line.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Story, String> {
        let (mode, name) = (Mode::Nftables, name.to_owned());
        let mut story = Story { name, mode, flags: Vec::new(), steps: Vec::new() };
        let lines: Vec<&str> = text.lines().collect();
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            let number = at + 1;
            at += 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let indented = |it: &&&str| it.starts_with("  ") || it.trim().is_empty();
            let body: Vec<&str> = lines[at..].iter().take_while(indented).copied().collect();
            at += body.len();
            let error = |why: String| format!("{number}: {why}");
            if let Some(flags) = line.strip_prefix("flags ") {
                if !story.steps.is_empty() {
                    return Err(error("flags come before the first step".to_owned()));
                }
                story.flags.extend(flags.split_whitespace().map(str::to_owned));
            } else {
                let what = parse_step(line, &body).map_err(error)?;
                story.steps.push(Line { number, what });
            }
        }
        Ok(story)
    }

    /// What the flags add up to with those that all stories have.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.mode.flag().to_owned()];
        if !self.flags.iter().any(|flag| flag.starts_with("--cluster-cidr")) {
            arguments.push("--cluster-cidr=10.244.0.0/16,fd00:10:244::/48".to_owned());
        }
        arguments.extend(self.flags.iter().filter(|flag| *flag != "--cluster-cidr=").cloned());
        arguments
    }

    /// Whether some step can fail.
    pub(crate) fn asks_something(&self) -> bool {
        self.steps.iter().any(|step| {
            matches!(
                step.what,
                Step::Flow(_)
                    | Step::Sticky(..)
                    | Step::Open(..)
                    | Step::Http { .. }
                    | Step::Ping { .. }
                    | Step::Unharmed(_)
                    | Step::Logged(_)
                    | Step::Balanced(_)
            )
        })
    }
}

fn parse_step(line: &str, body: &[&str]) -> Result<Step, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    let takes_body = matches!(word, "apply" | "change" | "endpoints" | "foreign");
    if let Some(stray) = body.iter().find(|it| !takes_body && !it.trim().is_empty()) {
        return Err(format!("`{word}` takes no indented lines: `{stray}`"));
    }
    match word {
        "apply" => Ok(Step::Edit(Edit::Apply(object_ref(rest)?, yaml(body)?))),
        "change" => Ok(Step::Edit(Edit::Change(object_ref(rest)?, yaml(body)?))),
        "delete" => Ok(Step::Edit(Edit::Delete(object_ref(rest)?))),
        "endpoints" => Ok(Step::Edit(Edit::Endpoints(slices(rest, body)?))),
        "gone" => {
            let (service, endpoint) = rest.split_once(' ').ok_or("gone SERVICE ENDPOINT")?;
            let (service, endpoint) = (service.to_owned(), pod(endpoint)?);
            Ok(Step::Edit(Edit::Gone { service, endpoint }))
        }
        "flow" => Ok(Step::Flow(flow(rest)?)),
        "balanced" => Ok(Step::Balanced(flow(rest)?)),
        "sticky" => named(rest).and_then(|(name, rest)| Ok(Step::Sticky(name, flow(rest)?))),
        "open" => named(rest).and_then(|(name, rest)| Ok(Step::Open(name, flow(rest)?))),
        "again" => again(rest),
        "http" => http(rest),
        "remembered" => remembered(rest),
        "restart" => match rest {
            "" => Ok(Step::Restart(Ending::Asked)),
            "killed" => Ok(Step::Restart(Ending::Killed)),
            other => Err(format!("`restart {other}`: only `restart` and `restart killed`")),
        },
        "upgrade" => Ok(Step::Upgrade(rest.split_whitespace().map(str::to_owned).collect())),
        "ping" => ping(rest),
        "traffic" => named(rest).and_then(|(name, rest)| Ok(Step::Traffic(name, flow(rest)?))),
        "logged" => Ok(Step::Logged(rest.split_whitespace().map(str::to_owned).collect())),
        "unharmed" => Ok(Step::Unharmed(rest.to_owned())),
        "foreign" => foreign(rest, body),
        "pause" => pause(rest),
        "address" => node_address(rest),
        other => Err(format!("no step is called `{other}`")),
    }
}

fn yaml(body: &[&str]) -> Result<Value, String> {
    let text = body.join("\n");
    if text.trim().is_empty() {
        return Err("indented YAML is missing".to_owned());
    }
    serde_saphyr::from_str(&text).map_err(|error| format!("YAML: {error}"))
}

fn object_ref(text: &str) -> Result<ObjectRef, String> {
    let (kind, name) = text.split_once(' ').ok_or("KIND and NAME are missing")?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Ok(ObjectRef { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
}

fn slices(text: &str, body: &[&str]) -> Result<Slices, String> {
    let (text, endings) = endings(text);
    let mut words = text.split_whitespace();
    let target = words.next().ok_or("endpoints of which Service?")?;
    let (service, suffix) = target.split_once('#').unwrap_or((target, ""));
    let port = |word: &str| {
        let (name, rest) =
            word.split_once('=').ok_or(format!("`{word}` is not NAME=PORT/PROTOCOL"))?;
        let (number, protocol) = port_and_protocol(rest)?;
        Ok::<_, String>((name.to_owned(), number, protocol))
    };
    let ports = words.map(port).collect::<Result<_, _>>()?;
    let rows = body.iter().filter(|line| !line.trim().is_empty());
    Ok(Slices {
        service: service.to_owned(),
        suffix: suffix.to_owned(),
        ports,
        rows: rows.map(|line| row(line)).collect::<Result<_, _>>()?,
        families: only_families(&endings)?,
    })
}

fn row(line: &str) -> Result<Row, String> {
    let mut words = line.split_whitespace();
    let actor = actor(words.next().unwrap_or_default())?;
    let (zones, nodes) = (Vec::new(), Vec::new());
    let mut row = Row { actor, ready: true, serving: true, terminating: false, zones, nodes };
    for word in words {
        let list = |it: &str| it.split(',').map(str::to_owned).collect();
        let conditions = match word {
            "not-ready" => (false, false, false),
            "serving-not-ready" => (false, true, false),
            "terminating" => (false, true, true),
            "terminating-not-serving" => (false, false, true),
            "ready-terminating" => (true, true, true),
            _ => {
                match word.split_once('=') {
                    Some(("zones", zones)) => row.zones = list(zones),
                    Some(("nodes", nodes)) => row.nodes = list(nodes),
                    _ => return Err(format!("an endpoint is never `{word}`")),
                }
                continue;
            }
        };
        (row.ready, row.serving, row.terminating) = conditions;
    }
    Ok(row)
}

fn actor(name: &str) -> Result<Actor, String> {
    Actor::find(name).ok_or_else(|| format!("nobody is called `{name}`"))
}

fn pod(name: &str) -> Result<Pod, String> {
    match name.strip_prefix('$') {
        Some(found) => Ok(Pod::Found(found.to_owned())),
        None => Ok(Pod::Named(actor(name)?.name)),
    }
}

/// `NAME: REST`
fn named(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = text.split_once(": ").ok_or("a name and a colon are missing")?;
    Ok((name.to_owned(), rest))
}

/// The text before the first comma, and the endings after it.
fn endings(text: &str) -> (&str, Vec<&str>) {
    let mut parts = text.split(", ").map(str::trim);
    (parts.next().unwrap_or_default(), parts.collect())
}

fn only_families(endings: &[&str]) -> Result<Vec<Family>, String> {
    let mut families = Family::ALL.to_vec();
    for ending in endings {
        match *ending {
            "IPv4 only" => families = vec![Family::V4],
            "IPv6 only" => families = vec![Family::V6],
            other => return Err(format!("`{other}` says nothing here")),
        }
    }
    Ok(families)
}

fn flow(text: &str) -> Result<Flow, String> {
    let (main, mut endings) = endings(text);
    let (left, expected) =
        main.split_once(" = ").ok_or("` = ` and what is expected are missing")?;
    let (source, destination) = left.split_once(" -> ").ok_or("` -> ` is missing")?;
    let (address, port) = destination.trim().rsplit_once(':').ok_or("a port is missing")?;
    let (port, protocol) = port_and_protocol(port)?;
    let mut translation = None;
    endings.retain(|ending| {
        match *ending {
            "source kept" => translation = Some(Translation::SourceKept),
            "masquerade" => translation = Some(Translation::Masquerade),
            _ => return true,
        }
        false
    });
    Ok(Flow {
        source: actor(source.trim())?,
        address: address.parse().map_err(|_| format!("`{address}` is no IPv4 address"))?,
        port,
        protocol,
        expected: expectation(expected)?,
        translation,
        families: only_families(&endings)?,
        text: text.to_owned(),
    })
}

fn port_and_protocol(text: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = text.split_once('/').ok_or(format!("`{text}` is not PORT/PROTOCOL"))?;
    let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(format!("`{other}` is no protocol")),
    };
    Ok((port, protocol))
}

fn expectation(text: &str) -> Result<Expected, String> {
    match text.trim() {
        "reject" => return Ok(Expected::Reject),
        "drop" => return Ok(Expected::Drop),
        "not handled" => return Ok(Expected::NotHandled),
        _ => {}
    }
    let (pods, except) = text.split_once(" except ").unwrap_or((text, ""));
    let pods: Vec<Backend> = pods.split_whitespace().map(backend).collect::<Result<_, _>>()?;
    if pods.is_empty() {
        return Err("nothing is expected".to_owned());
    }
    let except = except.split_whitespace().map(pod).collect::<Result<_, _>>()?;
    Ok(Expected::Backends { pods, except })
}

fn backend(word: &str) -> Result<Backend, String> {
    match word.split_once(':') {
        None => Ok(Backend { pod: pod(word)?, port: None }),
        Some((name, port)) => {
            let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
            Ok(Backend { pod: pod(name)?, port: Some(port) })
        }
    }
}

fn again(text: &str) -> Result<Step, String> {
    let (main, endings) = endings(text);
    let (name, expected) = main.split_once(" = ").ok_or("again NAME = EXPECTED")?;
    let when = match endings[..] {
        [] => When::AtOnce,
        ["eventually"] => When::Eventually,
        _ => return Err(format!("`{}` says nothing here", endings.join(", "))),
    };
    let expected = if expected == "same" { None } else { Some(expectation(expected)?) };
    Ok(Step::Again { name: name.to_owned(), expected, when })
}

fn http(text: &str) -> Result<Step, String> {
    let (main, endings) = endings(text);
    let (left, answer) = main.split_once(" = ").ok_or("` = ` and the status are missing")?;
    let (source, url) = left.split_once(" -> ").ok_or("` -> ` is missing")?;
    let (host, path) = url.split_once('/').ok_or("a path is missing")?;
    let (address, port) = host.split_once(':').ok_or("a port is missing")?;
    let (status, text) = answer.split_once(' ').map_or((answer, None), |(a, b)| (a, Some(b)));
    Ok(Step::Http {
        source: actor(source.trim())?,
        address: address.parse().map_err(|_| format!("`{address}` is no IPv4 address"))?,
        port: port.parse().map_err(|_| format!("`{port}` is no port"))?,
        path: format!("/{path}"),
        status: status.parse().map_err(|_| format!("`{status}` is no status"))?,
        text: text.map(str::to_owned),
        families: only_families(&endings)?,
    })
}

fn remembered(text: &str) -> Result<Step, String> {
    let (main, endings) = endings(text);
    let (source, yes) = match main.split_once(" = ") {
        Some((source, "yes")) => (source, true),
        Some((source, "no")) => (source, false),
        _ => return Err("remembered SOURCE = yes or no".to_owned()),
    };
    Ok(Step::Remembered { source: actor(source)?, yes, families: only_families(&endings)? })
}

fn ping(text: &str) -> Result<Step, String> {
    let (main, endings) = endings(text);
    let (left, expected) =
        main.split_once(" = ").ok_or("` = ` and what is expected are missing")?;
    let (source, address) = left.split_once(" -> ").ok_or("` -> ` is missing")?;
    Ok(Step::Ping {
        source: actor(source.trim())?,
        address: address.trim().parse().map_err(|_| format!("`{address}` is no IPv4 address"))?,
        expected: expectation(expected)?,
        families: only_families(&endings)?,
    })
}

fn foreign(tool: &str, body: &[&str]) -> Result<Step, String> {
    let tool = match tool {
        "nft" => Tool::Nft,
        "iptables" => Tool::Iptables,
        "ip6tables" => Tool::Ip6tables,
        other => return Err(format!("`{other}` loads no rules")),
    };
    let lines = body.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
    let rules: String = lines.map(|line| format!("{line}\n")).collect();
    if rules.is_empty() {
        Err("indented rules are missing".to_owned())
    } else {
        Ok(Step::Foreign(tool, rules))
    }
}

fn node_address(text: &str) -> Result<Step, String> {
    let (address, present) = match text.split_once(' ') {
        Some((address, "comes")) => (address, true),
        Some((address, "goes")) => (address, false),
        _ => return Err("address ADDRESS comes or goes".to_owned()),
    };
    let address = address.parse().map_err(|_| format!("`{address}` is no IPv4 address"))?;
    Ok(Step::Address { address, present })
}

fn pause(text: &str) -> Result<Step, String> {
    let seconds = text.strip_suffix(" seconds").and_then(|number| number.parse().ok());
    Ok(Step::Pause(Duration::from_secs(seconds.ok_or("pause N seconds")?)))
}

#[test]
fn errors_name_the_line_and_the_word() {
    let check = |text: &str, expected: &str| {
        let error = Story::parse("test", text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check("\nflow client -> 10.96.0.10:80/tcp", "2: ` = `");
    check("flow client -> 10.96.0.10:80/tcp = pod-9z", "1: nobody is called `pod-9z`");
    check("flow client -> 10.96.0.10:80/xtp = reject", "`xtp` is no protocol");
    check("flow client -> 10.96.0.10:80/tcp = pod-1a, sometimes", "`sometimes` says nothing");
    check("endpoints default/web http=80/tcp\n  pod-1a dead", "an endpoint is never `dead`");
    check("apply Service default/web", "YAML is missing");
    check("apply Service default/web\n  spec: [", "1: YAML");
    check("restart\n  now", "takes no indented lines");
    check("restart\nflags -v=2", "2: flags come before");
    check("dance", "no step is called `dance`");
}

#[test]
fn a_flow_is_read_in_full() {
    let story = Story::parse(
        "test",
        "flow node-1 -> 10.96.0.10:53/udp = pod-1a:5353 $first except $second, masquerade, IPv6 only",
    );
    let Step::Flow(flow) = story.unwrap().steps.remove(0).what else { panic!("no flow") };
    assert_eq!((flow.source.name, flow.port, flow.protocol), ("node-1", 53, Protocol::Udp));
    assert_eq!(flow.families, [Family::V6]);
    assert_eq!(flow.translation, Some(Translation::Masquerade));
    let named = Backend { pod: Pod::Named("pod-1a"), port: Some(5353) };
    let found = Backend { pod: Pod::Found("first".to_owned()), port: None };
    let except = vec![Pod::Found("second".to_owned())];
    assert_eq!(flow.expected, Expected::Backends { pods: vec![named, found], except });
}
