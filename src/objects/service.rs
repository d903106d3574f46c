//! `v1` Service, reference section 2.

mod addresses;

use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;

use super::report::{Report, excerpt, is_name};
use super::{Context, Converted, Interner, PRODUCT_LIMIT, raw};
use crate::model::{
    Change, Family, Protocol, Resource, Scheduler, Service, ServicePort, Skipped, TrafficPolicy,
    Uid,
};
pub(super) use addresses::usable_ip;
use addresses::{Addresses, cluster_ips};

/// The API's default for ClientIP affinity, in seconds.
const DEFAULT_AFFINITY: u32 = 10_800;

/// The API's longest ClientIP affinity, in seconds.
const MAX_AFFINITY: i64 = 86_400;

/// Judges a Service: what of it is to be proxied.
pub fn service(context: &Context, raw: &raw::Service, interner: &mut Interner) -> Converted {
    let mut report = match Report::new(Resource::Service, &raw.metadata, interner) {
        Ok(report) => report,
        Err(skipped) => return Converted::unusable(skipped),
    };
    let Some(spec) = raw.spec.given() else {
        return Converted::unusable(
            report.whole("wrong-type", "spec is missing or no object".to_owned()),
        );
    };
    if let Some(why) = not_proxied(raw, spec) {
        return Converted::ignored(Change::ServiceDeleted(report.name), why);
    }
    match convert(context, raw, spec, interner, &mut report) {
        Ok(service) => Converted {
            change: Change::ServiceApplied(service),
            skipped: report.finish(),
            ignored: None,
        },
        Err(skipped) => Converted::unusable(skipped),
    }
}

/// Reference 1.2. The API server filters some of these already; manifests do not.
fn not_proxied(raw: &raw::Service, spec: &raw::ServiceSpec) -> Option<&'static str> {
    let labels = raw.metadata.labels.given();
    if labels.is_some_and(|it| it.service_proxy_name != super::lenient::Field::Absent) {
        return Some("service-proxy-name");
    }
    if spec.service_type.text() == "ExternalName" {
        return Some("external-name");
    }
    match spec.cluster_ip.text() {
        "None" => Some("headless"),
        "" if !spec.cluster_ip.is_wrong() => Some("no-cluster-ip"),
        _ => None,
    }
}

fn convert(
    context: &Context,
    raw: &raw::Service,
    spec: &raw::ServiceSpec,
    interner: &mut Interner,
    report: &mut Report,
) -> Result<Service, Skipped> {
    let cluster_ips = cluster_ips(spec, report);
    if cluster_ips.is_empty() {
        return Err(report
            .whole("invalid-address", "no usable cluster IP; the Service is left out".to_owned()));
    }
    let ports = ports(spec, interner, report);
    let external_policy = external_policy(spec, report);
    let addresses = Addresses::of(context, raw, spec, report);
    if ports.len().saturating_mul(addresses.len() + 2) > PRODUCT_LIMIT {
        let message =
            format!("{} ports on {} addresses are too many", ports.len(), addresses.len());
        return Err(report.whole("too-large", message));
    }
    let family = |wanted| {
        let cluster_ip = *cluster_ips.iter().find(|it| Family::of(**it) == wanted)?;
        Some(Box::new(addresses.family(wanted, cluster_ip)))
    };
    let (v4, v6) = (family(Family::V4), family(Family::V6));
    Ok(Service {
        name: report.name.clone(),
        uid: Uid::parse(raw.metadata.uid.text()),
        created: created(&raw.metadata),
        v4,
        v6,
        ports,
        affinity: affinity(spec, report),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            &spec.internal_traffic_policy,
            report,
        ),
        external_policy,
        health_check_node_port: health_check_node_port(spec, external_policy, report),
        ipvs_scheduler: ipvs_scheduler(raw, report),
    })
}

/// One whose age is unknown (a hand-written manifest) is younger than all others: it takes no address from them.
fn created(meta: &raw::Meta) -> i64 {
    Timestamp::from_str(meta.creation_timestamp.text()).map_or(i64::MAX, Timestamp::as_second)
}

fn ipvs_scheduler(raw: &raw::Service, report: &mut Report) -> Option<Scheduler> {
    const NAME: &str = "kube-ferry/ipvs-scheduler";
    let name = report.field(NAME, &raw.metadata.annotations.given()?.ipvs_scheduler)?;
    let scheduler = Scheduler::new(name);
    if scheduler.is_none() {
        report.skip("invalid-annotation", || {
            format!("{NAME} {:?} is no name of a scheduler; the default is used", excerpt(name))
        });
    }
    scheduler
}

fn ports(
    spec: &raw::ServiceSpec,
    interner: &mut Interner,
    report: &mut Report,
) -> Vec<ServicePort> {
    let raw_ports = report.list("spec.ports", &spec.ports);
    let mut seen = rustc_hash::FxHashSet::default();
    let mut ports = Vec::with_capacity(raw_ports.len());
    for (index, raw) in raw_ports {
        let path = format!("spec.ports[{index}]");
        let Some(port) = port(&path, raw, interner, report) else { continue };
        match seen.insert((Arc::clone(&port.name), port.protocol)) {
            true => ports.push(port),
            false => report.skip("duplicate-port", || {
                format!("{path} has the name and protocol of another port")
            }),
        }
    }
    ports
}

fn port(
    path: &str,
    raw: &raw::ServicePort,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<ServicePort> {
    let name = port_name(path, &raw.name, interner, report)?;
    let protocol = protocol(path, &raw.protocol, report)?;
    let Some(port) = raw.port.given().copied().and_then(port_number) else {
        report.skip("invalid-port", || {
            format!("{path}.port is no port number; the port is left out")
        });
        return None;
    };
    let node_port =
        match report.field(&format!("{path}.nodePort"), &raw.node_port).copied().unwrap_or(0) {
            0 => None,
            number => match port_number(number) {
                Some(number) => Some(number),
                None => {
                    report.skip("invalid-port", || {
                        format!("{path}.nodePort {number} is no port number; it is ignored")
                    });
                    None
                }
            },
        };
    Some(ServicePort { name, protocol, port, node_port })
}

/// The name of a Service's or slice's port; empty is a name too. `None`: unusable, and said so.
pub(super) fn port_name(
    path: &str,
    name: &super::lenient::Field<String>,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<Arc<str>> {
    let text = name.text();
    if name.is_wrong() || !(text.is_empty() || is_name(text, 63)) {
        report.skip("invalid-name", || {
            format!("{path}.name {:?} is no port name; the port is left out", excerpt(text))
        });
        return None;
    }
    Some(interner.text(text))
}

/// The protocol of a Service's or slice's port; the API's default is TCP. `None`: unusable, and said so.
pub(super) fn protocol(
    path: &str,
    field: &super::lenient::Field<String>,
    report: &mut Report,
) -> Option<Protocol> {
    match field.text() {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        "" if !field.is_wrong() => Some(Protocol::Tcp),
        other => {
            report.skip("invalid-protocol", || {
                format!(
                    "{path}.protocol {:?} is none of TCP, UDP, SCTP; the port is left out",
                    excerpt(other)
                )
            });
            None
        }
    }
}

pub(super) fn port_number(number: i64) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

fn policy(path: &str, field: &super::lenient::Field<String>, report: &mut Report) -> TrafficPolicy {
    match report.field(path, field).map_or("", String::as_str) {
        "Local" => TrafficPolicy::Local,
        "Cluster" | "" => TrafficPolicy::Cluster,
        other => {
            report.skip("invalid-policy", || {
                format!("{path} {:?} is taken as Cluster", excerpt(other))
            });
            TrafficPolicy::Cluster
        }
    }
}

/// Reference 2.3. Whether there are external IPs is asked of the raw list, even if all of them are bad or forbidden.
fn external_policy(spec: &raw::ServiceSpec, report: &mut Report) -> TrafficPolicy {
    let accessible = match spec.service_type.text() {
        "LoadBalancer" | "NodePort" => true,
        _ => !spec.external_ips.items().is_empty(),
    };
    let policy = policy("spec.externalTrafficPolicy", &spec.external_traffic_policy, report);
    if accessible { policy } else { TrafficPolicy::Cluster }
}

fn health_check_node_port(
    spec: &raw::ServiceSpec,
    external_policy: TrafficPolicy,
    report: &mut Report,
) -> Option<NonZeroU16> {
    if spec.service_type.text() != "LoadBalancer" || external_policy != TrafficPolicy::Local {
        return None;
    }
    let number = report
        .field("spec.healthCheckNodePort", &spec.health_check_node_port)
        .copied()
        .unwrap_or(0);
    let port = port_number(number);
    if port.is_none() {
        report.skip("no-health-check-node-port", || {
            format!("spec.healthCheckNodePort {number} is no port number; load balancers cannot ask this node's health")
        });
    }
    port
}

fn affinity(spec: &raw::ServiceSpec, report: &mut Report) -> Option<u32> {
    match report.field("spec.sessionAffinity", &spec.session_affinity).map_or("", String::as_str) {
        "ClientIP" => Some(affinity_timeout(spec, report)),
        "None" | "" => None,
        other => {
            report.skip("invalid-affinity", || {
                format!("spec.sessionAffinity {:?} is taken as None", excerpt(other))
            });
            None
        }
    }
}

fn affinity_timeout(spec: &raw::ServiceSpec, report: &mut Report) -> u32 {
    let path = "spec.sessionAffinityConfig";
    let config = report.field(path, &spec.session_affinity_config);
    let client_ip =
        config.and_then(|it| report.field("spec.sessionAffinityConfig.clientIP", &it.client_ip));
    let seconds =
        client_ip.and_then(|it| report.field("timeoutSeconds", &it.timeout_seconds)).copied();
    let Some(seconds) = seconds else { return DEFAULT_AFFINITY };
    match u32::try_from(seconds) {
        Ok(timeout) if (1..=MAX_AFFINITY).contains(&seconds) => timeout,
        Ok(_) | Err(_) => {
            report.skip("invalid-affinity", || {
                format!("{path}: {seconds} is outside 1..={MAX_AFFINITY} seconds; {DEFAULT_AFFINITY} are used")
            });
            DEFAULT_AFFINITY
        }
    }
}

#[cfg(test)]
mod tests;
