//! `discovery.k8s.io/v1` EndpointSlice, reference sections 1.2, 1.3 and 3.

use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;

use super::lenient::Field;
use super::report::{Report, excerpt, is_label_value, is_name};
use super::service::{port_name, port_number, protocol, usable_ip};
use super::{Context, Converted, Interner, PRODUCT_LIMIT, address, raw};
use crate::model::{
    Change, Endpoint, EndpointSlice, Family, NodeHint, ObjectName, Resource, SlicePort,
};

/// Judges an EndpointSlice: whose endpoints it holds and which of them can be used.
///
/// There may be up to [`super::LIST_LIMIT`] endpoints although the API admits 1,000: people who write manifests by
/// hand have no controller that splits them, and the model does not care.
pub fn endpoint_slice(
    context: &Context,
    raw: &raw::EndpointSlice,
    interner: &mut Interner,
) -> Converted {
    let mut report = match Report::new(Resource::EndpointSlice, &raw.metadata, interner) {
        Ok(report) => report,
        Err(skipped) => return Converted::unusable(skipped),
    };
    let labels = raw.metadata.labels.given();
    if labels.is_some_and(|it| it.headless != Field::Absent) {
        return Converted::ignored(Change::SliceDeleted(report.name), "headless");
    }
    let service = labels.map_or("", |it| it.service_name.text());
    if service.is_empty() {
        return Converted::ignored(Change::SliceDeleted(report.name), "no-service-name");
    }
    let family = match raw.address_type.text() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Converted::ignored(Change::SliceDeleted(report.name), "fqdn"),
        other => {
            let message =
                format!("addressType {:?} is unknown; the slice is left out", excerpt(other));
            return Converted::unusable(report.whole("invalid-address-type", message));
        }
    };
    if !is_name(service, 253) {
        let message = format!("label kubernetes.io/service-name {:?} is no name", excerpt(service));
        return Converted::unusable(report.whole("invalid-name", message));
    }
    let service =
        ObjectName { namespace: Arc::clone(&report.name.namespace), name: service.into() };
    let ports = ports(raw, interner, &mut report);
    let endpoints = endpoints(context, family, raw, interner, &mut report);
    if ports.len().saturating_mul(endpoints.len()) > PRODUCT_LIMIT {
        let message =
            format!("{} endpoints with {} ports are too many", endpoints.len(), ports.len());
        return Converted::unusable(report.whole("too-large", message));
    }
    let (name, trigger_time) = (report.name.clone(), trigger_time(raw));
    let ipvs_weight = ipvs_weight(raw, &mut report);
    let slice =
        EndpointSlice { name, service, family, ports, endpoints, ipvs_weight, trigger_time };
    Converted { change: Change::SliceApplied(slice), skipped: report.finish(), ignored: None }
}

fn ipvs_weight(raw: &raw::EndpointSlice, report: &mut Report) -> Option<NonZeroU16> {
    const NAME: &str = "kube-ferry/ipvs-weight";
    let weight = report.field(NAME, &raw.metadata.annotations.given()?.ipvs_weight)?;
    let number = weight.parse().ok().filter(|_| weight.bytes().all(|it| it.is_ascii_digit()));
    if number.is_none() {
        report.skip("invalid-annotation", || {
            format!("{NAME} {:?} is no number from 1 to 65535; 1 is used", excerpt(weight))
        });
    }
    number
}

fn trigger_time(raw: &raw::EndpointSlice) -> Option<i128> {
    let text = raw.metadata.annotations.given()?.last_change_trigger_time.given()?;
    Timestamp::from_str(text).ok().map(Timestamp::as_nanosecond)
}

/// A port without name or number means "no port" here, not "all ports", and is nobody's mistake (reference 1.2).
fn ports(raw: &raw::EndpointSlice, interner: &mut Interner, report: &mut Report) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, raw) in report.list("ports", &raw.ports) {
        if raw.name == Field::Absent || matches!(raw.port, Field::Absent | Field::Given(0)) {
            continue;
        }
        let path = format!("ports[{index}]");
        let Some(name) = port_name(&path, &raw.name, interner, report) else { continue };
        let Some(protocol) = protocol(&path, &raw.protocol, report) else { continue };
        match raw.port.given().copied().and_then(port_number) {
            Some(port) => ports.push(SlicePort { name, protocol, port }),
            None => report.skip("invalid-port", || {
                format!("{path}.port is no port number; the port is left out")
            }),
        }
    }
    ports.shrink_to_fit();
    ports
}

fn endpoints(
    context: &Context,
    family: Family,
    raw: &raw::EndpointSlice,
    interner: &mut Interner,
    report: &mut Report,
) -> Vec<Endpoint> {
    let raw_endpoints = report.list("endpoints", &raw.endpoints);
    let mut endpoints = Vec::with_capacity(raw_endpoints.len());
    for (index, raw) in raw_endpoints {
        endpoints.extend(endpoint(context, family, index, raw, interner, report));
    }
    endpoints.shrink_to_fit();
    endpoints
}

/// Only the first address is ever used: the API says that all of one endpoint lead to the same place.
fn endpoint(
    context: &Context,
    family: Family,
    index: usize,
    raw: &raw::Endpoint,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<Endpoint> {
    let text = match raw.addresses.items().first() {
        Some(first) => first.text(),
        None if raw.addresses.is_wrong() => "",
        None => return None,
    };
    let path = || format!("endpoints[{index}]");
    let address = usable_ip(&path(), text, address::special, report)?;
    if Family::of(address) != family {
        report.skip("family-mismatch", || {
            format!("{}: {address} is not of the slice's addressType", path())
        });
        return None;
    }
    let Some((ready, serving, terminating)) = conditions(raw) else {
        // Taking a condition that we cannot read as good might send traffic to a pod that is not up.
        report.skip("wrong-type", || {
            format!("{}: conditions are not booleans; it is left out", path())
        });
        return None;
    };
    let local = !context.node_name.is_empty()
        && raw.node_name.given().is_some_and(|it| **it == *context.node_name);
    let hints = report.field("hints", &raw.hints);
    let node_hint = hints.map_or(NodeHint::Absent, |it| node_hint(context, it, report));
    let zone_hints = hints.and_then(|it| zone_hints(it, interner, report));
    Some(Endpoint { address, ready, serving, terminating, local, node_hint, zone_hints })
}

/// Ready, serving, terminating; missing ones count as good (reference 3.1). `None` if one is no boolean.
fn conditions(raw: &raw::Endpoint) -> Option<(bool, bool, bool)> {
    let conditions = match &raw.conditions {
        Field::Given(conditions) => conditions,
        Field::Absent => return Some((true, true, false)),
        Field::Wrong => return None,
    };
    let or = |field: &Field<bool>, missing| match field {
        Field::Given(flag) => Some(*flag),
        Field::Absent => Some(missing),
        Field::Wrong => None,
    };
    Some((
        or(&conditions.ready, true)?,
        or(&conditions.serving, true)?,
        or(&conditions.terminating, false)?,
    ))
}

fn node_hint(context: &Context, hints: &raw::EndpointHints, report: &mut Report) -> NodeHint {
    let nodes = report.list("hints.forNodes", &hints.for_nodes);
    if nodes.is_empty() {
        return NodeHint::Absent;
    }
    let ours = |name: &str| !name.is_empty() && name == &*context.node_name;
    match nodes.iter().any(|(_, it)| ours(it.name.text())) {
        true => NodeHint::ThisNode,
        false => NodeHint::OtherNodes,
    }
}

fn zone_hints(
    hints: &raw::EndpointHints,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<Arc<[Arc<str>]>> {
    let mut zones = Vec::new();
    for (_, hint) in report.list("hints.forZones", &hints.for_zones) {
        let zone = hint.name.text();
        match is_label_value(zone) {
            true => zones.push(interner.text(zone)),
            false => report
                .skip("invalid-hint", || format!("hints.forZones: {:?} is no zone", excerpt(zone))),
        }
    }
    zones.sort_unstable();
    zones.dedup();
    (!zones.is_empty()).then(|| interner.list(&zones))
}

#[cfg(test)]
mod tests;
