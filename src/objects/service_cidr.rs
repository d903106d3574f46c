//! `networking.k8s.io/v1` ServiceCIDR.

use super::node::cidrs;
use super::report::Report;
use super::{Converted, Interner, raw};
use crate::model::{Change, Resource, ServiceCidr};

/// Judges a ServiceCIDR. One whose ranges are all bad is applied without any: it restricts nothing.
pub fn service_cidr(raw: &raw::ServiceCidr, interner: &mut Interner) -> Converted {
    let mut report = match Report::new(Resource::ServiceCidr, &raw.metadata, interner) {
        Ok(report) => report,
        Err(skipped) => return Converted::unusable(skipped),
    };
    let spec = report.field("spec", &raw.spec);
    let texts = spec.map_or_else(Vec::new, |it| report.list("spec.cidrs", &it.cidrs));
    let texts: Vec<&str> = texts.into_iter().map(|(_, it)| it.as_str()).collect();
    let cidrs = cidrs("spec.cidrs", &texts, &mut report);
    let cidr = ServiceCidr { name: report.name.name.clone(), cidrs };
    Converted { change: Change::ServiceCidrApplied(cidr), skipped: report.finish(), ignored: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bad_ranges_are_left_out() {
        let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["172.30.0.0/16", "x", "fd00::/112"]}});
        let raw: raw::ServiceCidr = serde_json::from_value(object).unwrap();
        let converted = service_cidr(&raw, &mut Interner::default());
        let Change::ServiceCidrApplied(cidr) = converted.change else { panic!() };
        assert_eq!(
            cidr.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["172.30.0.0/16", "fd00::/112"]
        );
        assert_eq!(converted.skipped.len(), 1);
    }
}
