//! Sets of address ranges.

use ipnet::IpNet;

/// Sorted, without ranges that lie inside others. CIDRs never overlap partly, so the rest is disjoint, which interval
/// sets demand; neighbours stay apart so that people find the ranges that they wrote.
pub fn disjoint(mut ranges: Vec<IpNet>) -> Vec<IpNet> {
    // By address and, for one address, the widest first: what contains a range comes before it.
    ranges.sort_unstable_by_key(|it| (it.network(), it.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if !kept.last().is_some_and(|last| last.contains(&range)) {
            kept.push(range);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_inside_others_go() {
        check("", "");
        check("10.0.0.0/8", "10.0.0.0/8");
        check("10.2.0.0/16 10.0.0.0/8 10.1.0.0/16 10.0.0.0/8", "10.0.0.0/8");
        check("10.0.0.0/9 10.128.0.0/9", "10.0.0.0/9 10.128.0.0/9");
        check("fd00::/8 11.0.0.0/8 fd00::/64 10.0.0.0/8", "10.0.0.0/8 11.0.0.0/8 fd00::/8");
    }

    #[track_caller]
    fn check(ranges: &str, expected: &str) {
        let ranges = ranges.split_whitespace().map(|it| it.parse().unwrap()).collect();
        let shown: Vec<String> = disjoint(ranges).iter().map(ToString::to_string).collect();
        assert_eq!(shown.join(" "), expected);
    }
}
