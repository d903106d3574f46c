//! The host is made ready, or the message says what to do.

use kube_ferry::ipvs::schema::Scheduler;
use kube_ferry::kernel::{Ipvs as _, IpvsError, IpvsSettings, NetlinkIpvs};

use super::witness::*;

const NEEDED: [(&str, &str); 4] = [
    ("ipv4/vs/conntrack", "1"),
    ("ipv4/vs/expire_nodest_conn", "1"),
    ("ipv4/vs/expire_quiescent_template", "1"),
    ("ipv4/ip_forward", "1"),
];
const STRICT: [(&str, &str); 2] =
    [("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")];

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn settings_of_the_kernel_are_made_as_needed() {
    isolated(|| {
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        for (name, _) in NEEDED.iter().chain(&STRICT) {
            write(name, "0");
        }
        write("ipv4/vs/conn_reuse_mode", "1");
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        NEEDED.iter().for_each(|(name, value)| assert_eq!(read(name), *value, "{name}"));
        STRICT.iter().for_each(|(name, _)| assert_eq!(read(name), "0", "{name}"));
        assert_eq!(read("ipv4/vs/conn_reuse_mode"), "1", "kernels since 5.9 need nothing");
        ipvs.prepare(&IpvsSettings { strict_arp: true, ..IpvsSettings::default() }).unwrap();
        NEEDED
            .iter()
            .chain(&STRICT)
            .for_each(|(name, value)| assert_eq!(read(name), *value, "{name}"));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn timeouts_are_set_and_zero_keeps_what_there_is() {
    isolated(|| {
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        let before = ipvsadm("-L --timeout");
        assert!(before.contains("900 120 300"), "{before}");
        let settings =
            IpvsSettings { tcp_timeout: 1_000, udp_timeout: 10, ..IpvsSettings::default() };
        ipvs.prepare(&settings).unwrap();
        let after = ipvsadm("-L --timeout");
        assert!(after.contains("1000 120 10"), "{after}");
        ipvs.prepare(&IpvsSettings { tcpfin_timeout: 7, ..settings }).unwrap();
        assert!(ipvsadm("-L --timeout").contains("1000 7 10"));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_missing_scheduler_stops_the_start_and_leaves_nothing() {
    isolated(|| {
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        let scheduler = Scheduler::new("fastest").unwrap();
        let settings = IpvsSettings { scheduler, ..IpvsSettings::default() };
        let IpvsError::Unsupported(told) = ipvs.prepare(&settings).unwrap_err() else { panic!() };
        for part in ["no scheduler fastest", "modprobe ip_vs_fastest", "CONFIG_IP_VS_FASTEST"] {
            assert!(told.contains(part), "{told}");
        }
        check_saved(&[]);
        assert!(!ip("-o link").contains("kube-ipvs0"));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn what_others_have_where_schedulers_are_tried_stays() {
    isolated(|| {
        ipvsadm("-A -t 198.51.100.0:20000 -s wlc");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        check_saved(&["-A -t 198.51.100.0:20000 -s wlc"]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn without_the_capability_the_message_names_it() {
    isolated(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap();
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        let error = ipvs.prepare(&IpvsSettings::default()).unwrap_err();
        assert!(
            matches!(&error, IpvsError::Unsupported(told) if told.contains("CAP_NET_ADMIN")),
            "{error}"
        );
    });
}

fn read(name: &str) -> String {
    let path = format!("/proc/sys/net/{name}");
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .trim()
        .to_owned()
}

fn write(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
