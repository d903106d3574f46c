//! Everything that netlink can do wrong, at every point of a commit and of a look, between the real loop and the real
//! kernel.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::mpsc::{Receiver, channel as queue};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_ferry::config::{DetectLocal, FeatureGates, NodePortSelector};
use kube_ferry::conntrack::Sweep;
use kube_ferry::kernel::NetlinkKernel;
use kube_ferry::model::{Change, Cluster, Family, Resource};
use kube_ferry::objects::Context;
use kube_ferry::serve::{Metrics, SharedHealth};
use kube_ferry::sync::engine::Engine;
use kube_ferry::sync::facts::Settings;
use kube_ferry::sync::pace::Pace;
use kube_ferry::sync::{HealthChecks, Ports, Sync};
use kube_ferry::watch::{self, Watching};
use tokio::sync::oneshot;

use super::dump::{dump, same};
use super::faulty::{
    EBUSY, EINTR, EINVAL, EMSGSIZE, ENOBUFS, ENOMEM, EPERM, ERESTART, Fault, Faulty, Kind,
};
use super::node::{Node, fickle, steady};
use super::traffic::Traffic;
use crate::support::patience::{LONG, poll};
use crate::support::{command, namespace};

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// The longest wait between attempts; short, because there are many to wait for.
const RETRY: Duration = Duration::from_millis(300);

const FAILURES: &str = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";

/// What the log says of faults while a batch is sent. Each is survived twice in a row, too.
const COMMIT: [(Fault, &str); 19] = [
    (Fault::SendFails(ENOBUFS), "in smaller batches"),
    (Fault::SendFails(ENOMEM), "in smaller batches"),
    (Fault::SendFails(EMSGSIZE), "in smaller batches"),
    (Fault::SendFails(EINTR), "a signal"),
    (Fault::SendFails(EPERM), "CAP_NET_ADMIN"),
    (Fault::Refused(ERESTART), "the generation is another one"),
    (Fault::Refused(EINTR), "the generation is another one"),
    (Fault::Refused(EBUSY), "the kernel is busy"),
    (Fault::Refused(ENOMEM), "in smaller batches"),
    (Fault::Refused(ENOBUFS), "in smaller batches"),
    (Fault::Refused(EPERM), "CAP_NET_ADMIN"),
    (Fault::OperationRefused(ERESTART), "the generation is another one"),
    (Fault::OperationRefused(EINTR), "the generation is another one"),
    (Fault::OperationRefused(ENOMEM), "in smaller batches"),
    (Fault::OperationRefused(ENOBUFS), "in smaller batches"),
    (Fault::OperationRefused(EPERM), "CAP_NET_ADMIN"),
    (Fault::AnswerLost, "the receive buffer overflowed"),
    (Fault::Silence, "no acknowledgement came"),
    // Nothing to tell: the answer is asked for again.
    (Fault::Signal, ""),
];

/// Faults while tables are read; after a commit of which nothing is known.
const LOOK: [Fault; 11] = [
    Fault::SendFails(ENOBUFS),
    Fault::SendFails(EINTR),
    Fault::SendFails(ENOMEM),
    Fault::SendFails(EPERM),
    Fault::Refused(EINTR),
    Fault::Refused(EBUSY),
    Fault::Refused(ENOMEM),
    Fault::AnswerLost,
    Fault::Silence,
    Fault::Signal,
    Fault::ChangedMeanwhile,
];

#[test]
fn every_fault_of_a_commit_is_survived() {
    let node = Node::new();
    let running = Running::start(&node, RETRY);
    running.settled(&node, 0);
    let traffic = Traffic::start(&node.world, steady());
    let mut number = 0;
    for (fault, words) in COMMIT {
        // What the kernel has done although nobody heard of it is not to be done again.
        let done = matches!(fault, Fault::AnswerLost | Fault::Silence | Fault::Signal);
        for times in if done { 1..=1 } else { 1..=2 } {
            number += 1;
            let before = running.failures();
            running.log.lock().unwrap().clear();
            running.plan((0..times).map(|_| (Kind::Batch, fault)));
            node.write("fickle", &[fickle(number, &[10, 11])]);
            running.settled(&node, number);
            let log = running.log();
            assert!(log.contains(words), "{fault:?}: {log}");
            let told = running.failures() - before;
            let expected = if words.is_empty() { 0 } else { times };
            assert_eq!(told, expected * Family::ALL.len(), "{fault:?}: {log}");
        }
    }
    finish(&node, running, traffic);
}

#[test]
fn every_fault_of_a_look_is_survived() {
    let node = Node::new();
    let running = Running::start(&node, RETRY);
    running.settled(&node, 0);
    let traffic = Traffic::start(&node.world, steady());
    let mut number = 0;
    for fault in LOOK {
        for kind in [Kind::Question, Kind::Dump] {
            // Thirteen in a row: more than one look is given.
            for times in [1, 13] {
                number += 1;
                let lost = [(Kind::Batch, Fault::AnswerLost)];
                running.plan(lost.into_iter().chain((0..times).map(|_| (kind, fault))));
                node.write("fickle", &[fickle(number, &[10, 11])]);
                running.settled(&node, number);
            }
        }
    }
    finish(&node, running, traffic);
}

/// The wait grows up to the sync period, spread over its second half.
#[test]
fn attempts_back_off() {
    let node = Node::new();
    let running = Running::start(&node, Duration::from_secs(1));
    running.settled(&node, 0);
    running.plan((0..5).map(|_| (Kind::Batch, Fault::Refused(ENOMEM))));
    node.write("fickle", &[fickle(1, &[10])]);
    running.settled(&node, 1);
    let log = running.log();
    for failures in 1..=5_u32 {
        assert!(log.contains(&format!("failures={failures} wait=")), "{log}");
    }
    let waits: Vec<f64> = log.lines().filter_map(wait).collect();
    assert_eq!(waits.len(), 5, "{log}");
    for (failures, wait) in (0..).zip(waits) {
        let longest = (0.1 * 2_f64.powi(failures)).min(1.0);
        assert!((longest / 2.0..=longest).contains(&wait), "{failures}: {log}");
    }
}

/// `wait=52.9ms` of a line, in seconds.
fn wait(line: &str) -> Option<f64> {
    let text = line.split_once("wait=")?.1.split(' ').next()?;
    let milliseconds = text.strip_suffix("ms").map(|it| it.parse::<f64>().unwrap() / 1_000.0);
    milliseconds.or_else(|| text.strip_suffix('s')?.parse().ok())
}

const MANY: u16 = 1_500;
const BAD: u16 = 700;

#[test]
fn a_row_that_the_kernel_refuses_keeps_back_its_service_alone() {
    one_bad_service(|weather, address| weather.spoilt = address);
}

#[test]
fn a_row_that_is_refused_without_saying_which_keeps_back_its_service_alone() {
    one_bad_service(|weather, address| weather.unwanted = address);
}

#[track_caller]
fn one_bad_service(set: impl Fn(&mut super::faulty::Weather, Option<[u8; 4]>)) {
    let node = Node::new();
    let all: Vec<_> = (1..=MANY).map(|number| fickle(number, &[10])).collect();
    node.write("all", &all);
    let [high, low] = (BAD + 1_024).to_be_bytes();
    let faulty = Faulty::default();
    set(&mut faulty.weather(), Some([10, 96, high, low]));
    let running = Running::through(&node, faulty, Duration::from_secs(2));
    let traffic_can_flow = || {
        let missing = missing(&node);
        (missing == [BAD]).then_some(()).ok_or(format!("{missing:?}; {}", running.log()))
    };
    poll(LONG, traffic_can_flow).unwrap();
    let traffic = Traffic::start(&node.world, steady());
    let log = running.log();
    let told = format!("the kernel refuses the rules of a Service service=ns/fickle-{BAD} ");
    assert!(log.contains(&told), "{log}");
    assert_eq!(log.matches("service=ns/").count(), log.matches(&told).count(), "{log}");
    // Halving finds one of some thousand in a dozen steps, and the others are written on the way.
    let batches = running.faulty.weather().batches;
    // Each further attempt on a slow machine adds some; one batch for each Service would be more than a thousand.
    assert!(batches < 300, "{batches} batches; {log}");
    // It is tried again, without any change.
    set(&mut running.faulty.weather(), None);
    running.settled(&node, BAD);
    assert_eq!(missing(&node), Vec::<u16>::new());
    finish(&node, running, traffic);
}

/// Services without their row among the cluster IPs, as nft tells.
fn missing(node: &Node) -> Vec<u16> {
    let arguments = ["list", "set", "ip", "kube-ferry", "cluster-ips"];
    // There may be no such set yet.
    let listed = node.host().run(|| command::output("nft", &arguments, "")).stdout;
    let listed = String::from_utf8_lossy(&listed);
    let there: BTreeSet<&str> = listed.split([' ', ',', '\t', '\n']).collect();
    let address = |number: &u16| {
        let [high, low] = (number + 1_024).to_be_bytes();
        format!("10.96.{high}.{low}")
    };
    (1..=MANY).filter(|number| !there.contains(address(number).as_str())).collect()
}

/// No connection was lost, and the tables are what they would be had nothing ever gone wrong.
fn finish(node: &Node, running: Running, traffic: Traffic) {
    traffic.end();
    let end = dump(node.host());
    drop(running);
    let fresh = node.copy();
    let undisturbed = Running::start(&fresh, RETRY);
    poll(LONG, || same(&dump(fresh.host()), &end)).unwrap();
    drop(undisturbed);
}

/// The loop in a thread of its own, in the node's namespace, with everything around it but the servers.
struct Running {
    faulty: Faulty,
    metrics: Metrics,
    log: Arc<Mutex<Vec<u8>>>,
    end: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    _sweeps: Receiver<Sweep>,
}

impl Running {
    fn start(node: &Node, sync_period: Duration) -> Running {
        Running::through(node, Faulty::default(), sync_period)
    }

    fn through(node: &Node, faulty: Faulty, sync_period: Duration) -> Running {
        let metrics = Metrics::new(&FeatureGates::default()).unwrap();
        let (recorder, outbox) = watch::recorder("node-1".into());
        let (sweeps, swept) = queue();
        let ports = Ports {
            metrics: metrics.clone(),
            health: SharedHealth::new(sync_period),
            recorder: recorder.clone(),
            sweeps,
            health_checks: tokio::sync::watch::Sender::new(HealthChecks::default()),
        };
        let (sender, changes) = watch::channel(1_024);
        let addresses = Change::HostAddresses(BTreeSet::new());
        assert!(sender.side().send(addresses));
        let context = Context { node_name: "node-1".into(), external_ips_allowed: true };
        let watching = Watching { context, stats: Arc::default(), sender, recorder };
        let (end, ended) = oneshot::channel::<()>();
        let manifests = node.manifests();
        let watcher = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                tokio::select! {
                    _ = ended => (),
                    () = outbox.log() => (),
                    watched = watch::watch_manifests(&manifests, watching) => watched.unwrap(),
                }
            });
        });
        let log: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (file, link, writer) = (node.host().file(), faulty.clone(), Writer(log.clone()));
        let worker = thread::spawn(move || {
            namespace::enter(&file);
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(move || writer.clone());
            let mut kernel = NetlinkKernel::new().unwrap().through(link);
            kernel.own_tables().unwrap();
            let pace = Pace::new(Duration::from_secs(1), sync_period);
            let engine = Engine::new(settings(), Cluster::new(&RESOURCES));
            let sync = Sync::new(engine, kernel, pace, changes, ports, sync_period);
            tracing::subscriber::with_default(subscriber.finish(), || sync.run());
        });
        let threads = vec![watcher, worker];
        Running { faulty, metrics, log, end: Some(end), threads, _sweeps: swept }
    }

    fn plan(&self, faults: impl IntoIterator<Item = (Kind, Fault)>) {
        self.faulty.weather().plan.extend(faults);
    }

    /// All that was planned has gone wrong, and Service `number`, if it is not 0, is there.
    #[track_caller]
    fn settled(&self, node: &Node, number: u16) {
        let wanted = match number {
            0 => "10.96.0.10".to_owned(),
            _ => {
                let [high, low] = (number + 1_024).to_be_bytes();
                format!("10.96.{high}.{low}\"")
            }
        };
        let settled = || {
            let left = self.faulty.weather().plan.len();
            let rows = dump(node.host());
            let there = rows.iter().any(|it| it.contains(&wanted));
            (left == 0 && there).then_some(()).ok_or(format!("{left} left; {}", self.log()))
        };
        poll(LONG, settled).unwrap();
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Failed syncs, counted for each family.
    fn failures(&self) -> usize {
        let text = self.metrics.text().unwrap();
        let lines = text.lines().filter(|line| line.starts_with(FAILURES));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.end.take());
        for thread in self.threads.drain(..) {
            // A second panic would end the test program; the first one is on stderr.
            let _ = thread.join();
        }
    }
}

fn settings() -> Settings {
    Settings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: None,
        families: Family::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        node_ports: NodePortSelector::All,
        node_ip: None,
    }
}

/// Where the log goes.
#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Without which the numbers above would not be the kernel's.
#[test]
fn errors_are_called_by_their_names() {
    use rustix::io::Errno;
    let ours = [EPERM, EINTR, ENOMEM, EBUSY, EINVAL, EMSGSIZE, ENOBUFS, super::faulty::EAGAIN];
    let theirs = [
        Errno::PERM,
        Errno::INTR,
        Errno::NOMEM,
        Errno::BUSY,
        Errno::INVAL,
        Errno::MSGSIZE,
        Errno::NOBUFS,
        Errno::AGAIN,
    ];
    assert_eq!(ours, theirs.map(Errno::raw_os_error));
}
