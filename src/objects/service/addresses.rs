//! The addresses of a Service, and who may reach them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, ServiceFamily, SourceRanges};
use crate::objects::report::{Report, excerpt};
use crate::objects::{Context, address, raw};

/// The cluster IPs, at most one of each family (reference 2.1).
///
/// `clusterIPs` defaults to `clusterIP` and `ipFamilies` to the families of what is there: the API server writes it
/// so, and hand-written manifests leave it out.
pub(super) fn cluster_ips(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let primary = report.field("spec.clusterIP", &spec.cluster_ip).cloned();
    let mut texts: Vec<(usize, String)> = report
        .list("spec.clusterIPs", &spec.cluster_ips)
        .into_iter()
        .map(|(at, it)| (at, it.clone()))
        .collect();
    if texts.is_empty() {
        texts.extend(primary.map(|it| (0, it)));
    }
    let families: Vec<String> = report
        .list("spec.ipFamilies", &spec.ip_families)
        .into_iter()
        .map(|(_, it)| it.clone())
        .collect();
    let mut found: Vec<IpAddr> = Vec::new();
    for (at, text) in texts {
        let Some(ip) = usable_ip("spec.clusterIPs", &text, address::unroutable, report) else {
            continue;
        };
        let declared = families.get(at).map(String::as_str);
        if !families.is_empty() && declared != Some(family_name(Family::of(ip))) {
            let declared = declared.unwrap_or("nothing");
            report.skip("family-mismatch", || {
                format!("cluster IP {ip} is declared as {}", excerpt(declared))
            });
        } else if found.iter().any(|it| Family::of(*it) == Family::of(ip)) {
            report
                .skip("family-mismatch", || format!("cluster IP {ip} is the second of its family"));
        } else {
            found.push(ip);
        }
    }
    found
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Everything that clients outside may connect to, of both families.
pub(super) struct Addresses {
    external_ips: Vec<IpAddr>,
    load_balancer_ips: Vec<IpAddr>,
    ranges: Vec<IpNet>,
}

impl Addresses {
    pub(super) fn of(
        context: &Context,
        raw: &raw::Service,
        spec: &raw::ServiceSpec,
        report: &mut Report,
    ) -> Self {
        let external_ips = match context.external_ips_allowed {
            true => external_ips(spec, report),
            false => Vec::new(),
        };
        Addresses {
            external_ips,
            load_balancer_ips: load_balancer_ips(raw, report),
            ranges: ranges(spec, report),
        }
    }

    /// Rows that each port makes of them, at most.
    pub(super) fn len(&self) -> usize {
        self.external_ips.len() + self.load_balancer_ips.len() * (1 + self.ranges.len())
    }

    pub(super) fn family(&self, family: Family, cluster_ip: IpAddr) -> ServiceFamily {
        ServiceFamily {
            cluster_ip,
            external_ips: of_family(&self.external_ips, family),
            load_balancer_ips: of_family(&self.load_balancer_ips, family),
            source_ranges: self.source_ranges(family),
        }
    }

    /// Reference 2.5: a range of length zero lifts all restrictions of its family, and so does having no range.
    fn source_ranges(&self, family: Family) -> SourceRanges {
        let mut ranges: Vec<IpNet> =
            self.ranges.iter().copied().filter(|it| Family::of(it.addr()) == family).collect();
        ranges.sort_unstable();
        ranges.dedup();
        if ranges.is_empty() || ranges.iter().any(|it| it.prefix_len() == 0) {
            return SourceRanges::Unrestricted;
        }
        SourceRanges::Only(ranges)
    }
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> =
        addresses.iter().copied().filter(|it| Family::of(*it) == family).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.shrink_to_fit();
    chosen
}

fn external_ips(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let texts = report.list("spec.externalIPs", &spec.external_ips);
    let texts = texts.into_iter().map(|(_, it)| it.trim()).filter(|it| !it.is_empty());
    texts.filter_map(|it| usable_ip("spec.externalIPs", it, address::special, report)).collect()
}

/// Ingress addresses in VIP mode; hostnames and mode Proxy are others' business (reference 2.4).
fn load_balancer_ips(raw: &raw::Service, report: &mut Report) -> Vec<IpAddr> {
    let status = report.field("status", &raw.status);
    let status = status.and_then(|it| report.field("status.loadBalancer", &it.load_balancer));
    let Some(status) = status else { return Vec::new() };
    let path = "status.loadBalancer.ingress";
    let mut found = Vec::new();
    for (index, ingress) in report.list(path, &status.ingress) {
        let mode = report.field(&format!("{path}[{index}].ipMode"), &ingress.ip_mode);
        let is_vip = !ingress.ip_mode.is_wrong() && mode.is_none_or(|it| it == "VIP");
        let text =
            report.field(&format!("{path}[{index}].ip"), &ingress.ip).map_or("", |it| it.trim());
        if is_vip && !text.is_empty() {
            found.extend(usable_ip(path, text, address::unroutable, report));
        }
    }
    found
}

fn ranges(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpNet> {
    let path = "spec.loadBalancerSourceRanges";
    let mut found = Vec::new();
    for (_, text) in report.list(path, &spec.load_balancer_source_ranges) {
        let text = text.trim();
        match address::parse_cidr(text) {
            Some(net) => found.push(net),
            None if text.is_empty() => (),
            None => report.skip("invalid-cidr", || {
                format!("{path}: {:?} is no CIDR; it is ignored", excerpt(text))
            }),
        }
    }
    found
}

/// Reads an address that may be claimed or forwarded to; says so if it is none.
pub(in crate::objects) fn usable_ip(
    path: &str,
    text: &str,
    refuse: fn(IpAddr) -> Option<&'static str>,
    report: &mut Report,
) -> Option<IpAddr> {
    let Some(ip) = address::parse_ip(text) else {
        report.skip("invalid-address", || {
            format!("{path}: {:?} is no IP address; it is ignored", excerpt(text))
        });
        return None;
    };
    match refuse(ip) {
        None => Some(ip),
        Some(kind) => {
            report.skip("special-address", || {
                format!("{path}: {ip} is a {kind} address; it is ignored")
            });
            None
        }
    }
}
