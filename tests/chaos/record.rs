//! What the objects have meant since everything was last in order: the proxy may be that far behind, and no further.
//!
//! Watches of different kinds have no order between them, and a new list tells its objects in any order; so any version
//! of one object may be in force together with any version of another. What is forbidden and what is demanded here
//! holds for every such combination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::oracle::{Forwarding, Front, forwarding};
use super::shop::NODE;
use crate::support::apiserver::ApiServer;

/// Shared with the probes.
#[derive(Default)]
pub(super) struct Record(Mutex<State>);

#[derive(Default)]
struct State {
    /// What the objects mean now.
    now: Forwarding,
    /// Every version of every object since everything was in order.
    services: Vec<Value>,
    slices: Vec<Value>,
    /// Every endpoint that a Service with this frontend may have had in some combination of them.
    seen: BTreeMap<Front, BTreeSet<SocketAddr>>,
    /// Frontends that were there all the time, with a Service whose slices of their family have had a ready endpoint on
    /// this node all the time.
    served: BTreeSet<Front>,
}

impl Record {
    /// Puts an object. Nobody judges an answer meanwhile.
    pub(super) fn put(&self, server: &ApiServer, object: Value) {
        let mut state = self.state();
        server.put(object.clone());
        state.add(object);
        state.observe(server);
    }

    /// Deletes an object of the shop.
    pub(super) fn delete(&self, server: &ApiServer, plural: &'static str, name: &str) {
        let mut state = self.state();
        server.delete(plural, "shop", name);
        state.observe(server);
    }

    /// The kernel is known to hold what the objects mean.
    pub(super) fn settled(&self, server: &ApiServer) {
        let mut state = self.state();
        *state = State::default();
        let objects = server.objects("services", "", "").into_iter();
        objects.chain(server.objects("endpointslices", "", "")).for_each(|it| state.add(it));
        state.served = anchored(server);
        state.observe(server);
    }

    pub(super) fn now(&self) -> Forwarding {
        self.state().now.clone()
    }

    /// Frontends that there are, or were a moment ago.
    pub(super) fn fronts(&self) -> Vec<Front> {
        self.state().seen.keys().copied().collect()
    }

    /// Whether an answer of this endpoint may have come.
    pub(super) fn may_answer(&self, front: Front, by: SocketAddr) -> bool {
        self.state().seen.get(&front).is_some_and(|it| it.contains(&by))
    }

    /// Whether somebody must answer.
    pub(super) fn must_answer(&self, front: Front) -> bool {
        self.state().served.contains(&front)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn observe(&mut self, server: &ApiServer) {
        let anchored = anchored(server);
        self.served.retain(|it| anchored.contains(it));
        let (services, slices) =
            (server.objects("services", "", ""), server.objects("endpointslices", "", ""));
        self.now = forwarding(&services, &slices, NODE);
    }

    /// A new version of an object, with whatever it may meet.
    fn add(&mut self, mut object: Value) {
        let State { services, slices, seen, .. } = self;
        let mut note = |service: &Value, slice: &Value| {
            let meant = forwarding(slice::from_ref(service), slice::from_ref(slice), NODE);
            for (front, backends) in meant.fronts {
                seen.entry(front).or_default().extend(backends.all);
            }
        };
        if object["kind"] == "Service" {
            note(
                &object,
                &json!({ "metadata": { "labels": { "kubernetes.io/service-name": "" } } }),
            );
            let name = &object["metadata"]["name"];
            let own = |it: &&Value| it["metadata"]["labels"]["kubernetes.io/service-name"] == *name;
            slices.iter().filter(own).for_each(|it| note(&object, it));
            services.push(object);
        } else {
            // Whoever serves may come to serve in some combination, terminating or not, and on whatever node.
            for endpoint in object["endpoints"].as_array_mut().unwrap() {
                endpoint["conditions"]["ready"] = endpoint["conditions"]["serving"].clone();
                endpoint["nodeName"] = NODE.into();
            }
            let name = &object["metadata"]["labels"]["kubernetes.io/service-name"];
            let own = |it: &&Value| it["metadata"]["name"] == *name;
            services.iter().filter(own).for_each(|it| note(it, &object));
            slices.push(object);
        }
    }
}

/// The frontends with an endpoint that is ready and on this node.
fn anchored(server: &ApiServer) -> BTreeSet<Front> {
    let services = server.objects("services", "", "");
    let mut slices = server.objects("endpointslices", "", "");
    for slice in &mut slices {
        let is_anchor = |it: &Value| it["conditions"]["ready"] == true && it["nodeName"] == NODE;
        slice["endpoints"].as_array_mut().unwrap().retain(is_anchor);
    }
    let fronts = forwarding(&services, &slices, NODE).fronts.into_iter();
    fronts.filter(|(_, it)| !it.all.is_empty()).map(|(front, _)| front).collect()
}
