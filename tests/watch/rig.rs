//! A watch room at work, and what a consumer makes of its Changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube_ferry::model::{Change, EndpointSlice, Node, ObjectName, Resource, Service, ServiceCidr};
use kube_ferry::objects::{self, Context, Interner, raw};
use kube_ferry::watch::{
    ApiClient, Backoff, ChangeReceiver, ConnectionPace, Recorder, ResourceStats, Server, State,
    Stats, Trouble, WatchPace, Watching, channel, recorder, watch_api_server, watch_manifests,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::apiserver::ApiServer;
use crate::support::patience::LONG;

pub(crate) const ALL: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// No test takes so long unless something is wrong.
const DEADLINE: Duration = LONG;

/// How long silence is borne. Retries are a hundred times faster than in production either way.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// Longer than any hiccup of a busy machine: what is counted are real faults.
    Long,
    /// For faults that only time tells.
    Short,
    /// Nothing but pings of HTTP/2 finds out that a connection is dead.
    Pings,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Patience::Long => Duration::from_secs(10),
            Patience::Short => Duration::from_millis(400),
            Patience::Pings => 10 * DEADLINE,
        }
    }

    /// Only who is hasty asks whether the server is still as far as it was.
    fn unheard(self) -> Duration {
        match self {
            Patience::Short => self.limit(),
            Patience::Long | Patience::Pings => 10 * DEADLINE,
        }
    }

    fn ping(self) -> Duration {
        match self {
            Patience::Long | Patience::Short => self.limit(),
            Patience::Pings => Patience::Short.limit(),
        }
    }

    fn watch(self) -> WatchPace {
        WatchPace {
            backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(100) },
            settled: Duration::from_millis(50),
            relist_spread: Duration::from_millis(20),
            silence: self.limit(),
            list_silence: self.limit(),
            unheard: self.unheard(),
            absent_retry: Duration::from_millis(50),
            watch_timeout: Duration::from_secs(300),
        }
    }

    pub(crate) fn connection(self) -> ConnectionPace {
        ConnectionPace {
            connect_timeout: self.limit(),
            ping_interval: self.ping() / 4,
            ping_timeout: self.ping(),
            response_timeout: self.limit(),
        }
    }
}

/// What a consumer knows after all Changes so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) node: Option<Node>,
    pub(crate) cidrs: BTreeMap<Arc<str>, ServiceCidr>,
}

/// Folds Changes as [`Change`] documents it.
#[derive(Default)]
struct Fold {
    known: Known,
    /// Objects that came since `Listing`, by resource.
    listing: BTreeMap<Resource, BTreeSet<ObjectName>>,
    listed: BTreeSet<Resource>,
}

impl Fold {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Listing(resource) => drop(self.listing.insert(resource, BTreeSet::new())),
            Change::Listed(resource) => self.listed(resource),
            Change::ServiceApplied(service) => {
                self.came(Resource::Service, &service.name);
                self.known.services.insert(service.name.clone(), service);
            }
            Change::ServiceDeleted(name) => drop(self.known.services.remove(&name)),
            Change::SliceApplied(slice) => {
                self.came(Resource::EndpointSlice, &slice.name);
                self.known.slices.insert(slice.name.clone(), slice);
            }
            Change::SliceDeleted(name) => drop(self.known.slices.remove(&name)),
            Change::NodeApplied(node) => {
                self.came(Resource::Node, &ObjectName::new("", &node.name));
                self.known.node = Some(node);
            }
            Change::NodeDeleted => self.known.node = None,
            Change::ServiceCidrApplied(cidr) => {
                self.came(Resource::ServiceCidr, &ObjectName::new("", &cidr.name));
                self.known.cidrs.insert(cidr.name.clone(), cidr);
            }
            Change::ServiceCidrDeleted(name) => drop(self.known.cidrs.remove(&name)),
            Change::HostAddresses(_) => unreachable!("interfaces are not the watch room's"),
            Change::Unusable(skipped) => drop(self.known.services.remove(&skipped.name)),
        }
    }

    fn came(&mut self, resource: Resource, name: &ObjectName) {
        if let Some(listing) = self.listing.get_mut(&resource) {
            listing.insert(name.clone());
        }
    }

    fn listed(&mut self, resource: Resource) {
        self.listed.insert(resource);
        let came = self.listing.remove(&resource).expect("Listed comes after Listing");
        let known = &mut self.known;
        let is_here =
            |namespace: &str, name: &str| came.contains(&ObjectName::new(namespace, name));
        match resource {
            Resource::Service => known.services.retain(|name, _| came.contains(name)),
            Resource::EndpointSlice => known.slices.retain(|name, _| came.contains(name)),
            Resource::Node => known.node = known.node.take().filter(|it| is_here("", &it.name)),
            Resource::ServiceCidr => known.cidrs.retain(|name, _| is_here("", name)),
        }
    }
}

/// A watch room on a thread of its own.
pub(crate) struct Rig {
    receiver: ChangeReceiver,
    fold: Fold,
    stats: Arc<Stats>,
    pub(crate) recorder: Recorder,
    /// Every Change that came, in short.
    pub(crate) story: Vec<String>,
    thread: std::thread::JoinHandle<()>,
}

impl Rig {
    /// Watches this server without credentials.
    pub(crate) fn watch(server: &ApiServer) -> Rig {
        Rig::watch_as(Server::Address(server.url()), 64, Patience::Long)
    }

    /// Watches by a kubeconfig.
    pub(crate) fn watch_with(kubeconfig: &Path) -> Rig {
        let server = Server::Kubeconfig { path: kubeconfig.to_owned(), master: None };
        Rig::watch_as(server, 64, Patience::Long)
    }

    /// Watches by a kubeconfig, and soon takes silence for a fault.
    pub(crate) fn watch_hastily(kubeconfig: &Path) -> Rig {
        Rig::watch_patiently(kubeconfig, Patience::Short)
    }

    pub(crate) fn watch_patiently(kubeconfig: &Path, patience: Patience) -> Rig {
        let server = Server::Kubeconfig { path: kubeconfig.to_owned(), master: None };
        Rig::watch_as(server, 64, patience)
    }

    pub(crate) fn watch_as(server: Server, capacity: usize, patience: Patience) -> Rig {
        Rig::begin(capacity, move |watching, outbox| async move {
            let client = ApiClient::new(server, patience.connection()).await.unwrap();
            let client = Arc::new(client);
            let watch = watch_api_server(client.clone(), patience.watch(), watching);
            // The outbox ends when the test drops its recorder.
            tokio::join!(watch, outbox.post(client));
        })
    }

    pub(crate) fn manifests(directory: &Path) -> Rig {
        let directory = directory.to_owned();
        Rig::begin(64, move |watching, outbox| async move {
            let (ended, ()) = tokio::join!(watch_manifests(&directory, watching), outbox.log());
            ended.unwrap();
        })
    }

    fn begin<F: Future<Output = ()>>(
        capacity: usize,
        run: impl FnOnce(Watching, kube_ferry::watch::Outbox) -> F + Send + 'static,
    ) -> Rig {
        let (sender, receiver) = channel(capacity);
        let (recorder, outbox) = recorder("n1".into());
        let stats = Arc::new(Stats::default());
        let watching = Watching {
            context: context(),
            stats: stats.clone(),
            sender,
            recorder: recorder.clone(),
        };
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(run(watching, outbox));
        });
        Rig { receiver, fold: Fold::default(), stats, recorder, story: Vec::new(), thread }
    }

    pub(crate) fn stats(&self, resource: Resource) -> &ResourceStats {
        self.stats.of(resource)
    }

    pub(crate) fn known(&self) -> &Known {
        &self.fold.known
    }

    /// Takes Changes until the consumer knows what the server holds, and all is listed.
    #[track_caller]
    pub(crate) fn settle(&mut self, server: &ApiServer) {
        let expected = expected(server);
        self.until(&format!("all of {}", names(&expected)), |rig| {
            rig.fold.listed.len() == ALL.len()
                && rig.fold.listing.is_empty()
                && rig.fold.known == expected
        });
    }

    /// Takes Changes until every watch follows.
    #[track_caller]
    pub(crate) fn until_watching(&mut self) {
        self.until("all watches at work", |rig| {
            ALL.iter().all(|it| rig.stats(*it).state() == State::Watching)
        });
    }

    #[track_caller]
    pub(crate) fn until_error(&mut self, resource: Resource, trouble: Trouble) {
        self.until(&format!("{trouble:?}"), |rig| rig.stats(resource).errors(trouble) > 0);
    }

    /// Takes Changes until the condition holds.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Rig) -> bool) {
        let start = Instant::now();
        let mut changes = Vec::new();
        while !holds(self) {
            assert!(
                start.elapsed() < DEADLINE,
                "waited for {what}\nknown: {}\n{}\n{:#?}",
                names(&self.fold.known),
                self.story.join("; "),
                self.stats,
            );
            self.receiver.receive(&mut changes, 1_000, Some(Duration::from_millis(5)));
            for change in changes.drain(..) {
                self.story.push(short(&change));
                self.fold.apply(change);
            }
        }
    }

    /// Stops listening and waits until the watchers have noticed.
    #[track_caller]
    pub(crate) fn end(self) {
        let Rig { receiver, recorder, thread, .. } = self;
        drop((receiver, recorder));
        let start = Instant::now();
        while !thread.is_finished() {
            assert!(start.elapsed() < DEADLINE, "the watchers go on although nobody listens");
            std::thread::yield_now();
        }
        thread.join().unwrap();
    }
}

fn names(known: &Known) -> String {
    let services: Vec<String> = known
        .services
        .iter()
        .map(|(name, it)| format!("{name} {:?}", it.v4.as_ref().map(|it| it.cluster_ip)))
        .collect();
    let slices: Vec<String> = known.slices.keys().map(ToString::to_string).collect();
    format!("{services:?} {slices:?} {:?} {:?}", known.node, known.cidrs)
}

pub(crate) fn short(change: &Change) -> String {
    match change {
        Change::ServiceApplied(it) => format!("Service {}", it.name),
        Change::SliceApplied(it) => format!("Slice {}", it.name),
        Change::NodeApplied(it) => format!("Node {}", it.name),
        Change::ServiceCidrApplied(it) => format!("ServiceCidr {}", it.name),
        Change::Unusable(it) => format!("Unusable {} {}", it.name, it.reason),
        Change::Listing(_)
        | Change::Listed(_)
        | Change::ServiceDeleted(_)
        | Change::SliceDeleted(_)
        | Change::NodeDeleted
        | Change::ServiceCidrDeleted(_)
        | Change::HostAddresses(_) => format!("{change:?}"),
    }
}

pub(crate) fn context() -> Context {
    Context { node_name: "n1".into(), external_ips_allowed: true }
}

/// What the server's objects mean, converted directly.
fn expected(server: &ApiServer) -> Known {
    let mut fold = Fold::default();
    let (context, mut interner) = (context(), Interner::default());
    for object in server.objects(
        "services",
        "!service.kubernetes.io/service-proxy-name",
        "spec.clusterIP!=None",
    ) {
        let raw: raw::Service = serde_json::from_value(object).unwrap();
        fold.apply(objects::service(&context, &raw, &mut interner).change);
    }
    for object in server.objects("endpointslices", "!service.kubernetes.io/headless", "") {
        let raw: raw::EndpointSlice = serde_json::from_value(object).unwrap();
        fold.apply(objects::endpoint_slice(&context, &raw, &mut interner).change);
    }
    for object in server.objects("nodes", "", "metadata.name=n1") {
        let raw: raw::Node = serde_json::from_value(object).unwrap();
        fold.apply(objects::node(&context, &raw, &mut interner).unwrap().change);
    }
    for object in server.objects("servicecidrs", "", "") {
        let raw: raw::ServiceCidr = serde_json::from_value(object).unwrap();
        fold.apply(objects::service_cidr(&raw, &mut interner).change);
    }
    fold.known
}

// Objects.

pub(crate) fn service(name: &str, n: u16) -> Value {
    let [high, low] = n.to_be_bytes();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "shop", "name": name, "uid": format!("u-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": format!("10.96.{high}.{low}"),
            "clusterIPs": [format!("10.96.{high}.{low}")],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        },
    })
}

pub(crate) fn slice(service: &str, n: u16) -> Value {
    let [high, low] = n.to_be_bytes();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop",
            "name": format!("{service}-x"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [format!("10.0.{high}.{low}")], "conditions": { "ready": true } }],
    })
}

pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    })
}

pub(crate) fn service_cidr(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": name },
        "spec": { "cidrs": ["10.96.0.0/16"] },
    })
}

/// Some of everything, also what no selector lets through.
pub(crate) fn furnish(server: &ApiServer, services: u16) {
    server.put(node("n1"));
    server.put(node("n2"));
    server.put(service_cidr("kubernetes"));
    for n in 0..services {
        server.put(service(&format!("s{n}"), n));
        server.put(slice(&format!("s{n}"), n));
    }
    let mut headless = service("headless", 60_000);
    headless["spec"]["clusterIP"] = "None".into();
    server.put(headless);
    let mut foreign = service("foreign", 60_001);
    foreign["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "x" });
    server.put(foreign);
    let mut headless = slice("headless", 60_000);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    server.put(headless);
}

/// Changes something of every kind.
pub(crate) fn stir(server: &ApiServer, round: u16) {
    server.put(service("stirred", 1_000 + round));
    server.put(slice("stirred", 1_000 + round));
    server.put(service(&format!("new{round}"), 2_000 + round));
    server.delete("services", "shop", &format!("s{round}"));
    server.delete("endpointslices", "shop", &format!("s{round}-x"));
}
