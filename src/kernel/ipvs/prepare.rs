//! What the host needs before the first virtual server (reference 6.1).

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::Path;

use tracing::{info, warn};

use super::{ENOENT, IpvsError, IpvsSettings, NetlinkIpvs, failed};
use crate::ipvs::codec::server::{self, Timeouts};
use crate::ipvs::schema::{Op, Scheduler, ServerKey, VirtualServer};
use crate::kernel::channel::Failure;
use crate::model::Protocol;
use crate::nft::codec::wire::{NLM_F_ACK, Writer};
use crate::sysctl::{self, Rule, Setting};

/// Where a virtual server is made to try a scheduler: TEST-NET-2, so no packet ever goes there. kube-proxy takes the
/// first one.
const PROBES: std::ops::Range<u16> = 20_000..20_010;
const PROBE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);

const EPERM: i32 = 1;
const EEXIST: i32 = 17;

const CONNTRACK: &str = "proc/sys/net/ipv4/vs/conntrack";
const CONN_REUSE_MODE: &str = "proc/sys/net/ipv4/vs/conn_reuse_mode";
const EXPIRE_NODEST_CONN: &str = "proc/sys/net/ipv4/vs/expire_nodest_conn";
const EXPIRE_QUIESCENT_TEMPLATE: &str = "proc/sys/net/ipv4/vs/expire_quiescent_template";
const IP_FORWARD: &str = "proc/sys/net/ipv4/ip_forward";
const ARP_IGNORE: &str = "proc/sys/net/ipv4/conf/all/arp_ignore";
const ARP_ANNOUNCE: &str = "proc/sys/net/ipv4/conf/all/arp_announce";

impl NetlinkIpvs {
    pub(super) fn prepare_host(&mut self, settings: &IpvsSettings) -> Result<(), IpvsError> {
        self.exclude_cidrs.clone_from(&settings.exclude_cidrs);
        let family = self.load()?.ok_or_else(missing_ipvs)?;
        if !self.has_scheduler(family, settings.scheduler)? {
            return Err(IpvsError::Unsupported(missing_scheduler(settings.scheduler)));
        }
        set_sysctls(settings, Path::new("/"))?;
        self.set_timeouts(family, settings)?;
        self.ensure_interface()
    }

    /// Whether the kernel has the scheduler, as a module that is not loaded yet or otherwise.
    pub(super) fn has_scheduler(
        &mut self,
        family: u16,
        scheduler: Scheduler,
    ) -> Result<bool, IpvsError> {
        if self.schedulers.contains(&scheduler) {
            return Ok(true);
        }
        let server = VirtualServer { scheduler, ..VirtualServer::default() };
        for port in PROBES.filter_map(NonZeroU16::new) {
            let key = ServerKey { protocol: Protocol::Tcp, address: IpAddr::V4(PROBE), port };
            match self.command(family, &Op::AddServer(key, server))? {
                0 => {
                    self.command(family, &Op::DeleteServer(key))?;
                    self.schedulers.insert(scheduler);
                    return Ok(true);
                }
                // Somebody else's, or left by a process that was killed between the two.
                EEXIST => (),
                ENOENT => return Ok(false),
                EPERM => return Err(not_permitted()),
                errno => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    let failure = Failure::Refused(error);
                    return Err(failed(
                        "trying a scheduler with a virtual server at 198.51.100.0",
                        failure,
                    ));
                }
            }
        }
        Err(IpvsError::Unsupported(format!(
            "schedulers are tried with a virtual server at {PROBE}, but there are others on the ports {} to {}; \
             look at them with ipvsadm -Ln and delete them",
            PROBES.start,
            PROBES.end - 1
        )))
    }

    /// The errno of one operation, 0 if it was carried out.
    fn command(&mut self, family: u16, op: &Op) -> Result<i32, IpvsError> {
        let request = |seq| {
            let mut writer = Writer::default();
            server::write_op(&mut writer, family, NLM_F_ACK, seq, op);
            writer.into_bytes()
        };
        match self.generic.ask(request, |_, _| ()) {
            Ok(()) => Ok(0),
            Err(Failure::Refused(error)) if error.raw_os_error().is_some() => {
                Ok(error.raw_os_error().unwrap_or_default())
            }
            Err(failure) => Err(failed("trying a scheduler", failure)),
        }
    }

    /// A timeout that the kernel does not take is no reason not to start.
    fn set_timeouts(&mut self, family: u16, settings: &IpvsSettings) -> Result<(), IpvsError> {
        let wanted = Timeouts {
            tcp: settings.tcp_timeout,
            tcp_fin: settings.tcpfin_timeout,
            udp: settings.udp_timeout,
        };
        if wanted == Timeouts::default() {
            return Ok(());
        }
        let request = |seq| server::set_timeouts(family, NLM_F_ACK, seq, &wanted);
        match self.generic.ask(request, |_, _| ()) {
            Ok(()) => Ok(()),
            Err(Failure::Refused(error)) => {
                warn!(?wanted, %error, "IPVS did not take the timeouts");
                Ok(())
            }
            Err(failure) => Err(failed("setting the timeouts of IPVS", failure)),
        }
    }
}

/// Sets what differs. All of it is needed: without one of them connections break, now or when an endpoint goes.
fn set_sysctls(settings: &IpvsSettings, root: &Path) -> Result<(), IpvsError> {
    let version = kernel_version(rustix::system::uname().release().to_str().unwrap_or_default());
    let mut refused = Vec::new();
    for result in sysctl::apply(&plan(settings.strict_arp, version), root) {
        match result {
            Ok(written) => {
                info!(setting = %written.setting, before = written.before, "set for IPVS")
            }
            Err(error) => refused.push(error.to_string()),
        }
    }
    if reuses_drained(version, root) {
        warn!(
            "net.ipv4.vs.conn_reuse_mode is 0, which Linux before 5.9 needed and this one does not: a client that takes a \
             source port again is sent to the endpoint of its last connection, even to one that drains; set it to 1"
        );
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(IpvsError::Unsupported(format!("IPVS needs other kernel settings: {}", refused.join("; "))))
}

/// What is to be set on a kernel of that version; pure.
fn plan(strict_arp: bool, (major, minor): (u32, u32)) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |path, value| settings.push(Setting { path, value, rule: Rule::Equal });
    // Masquerading, and everything else that nft does with the replies, needs IPVS' connections to be tracked.
    set(CONNTRACK, 1);
    // A client that takes a source port again would wait a second: these kernels drop the first packet when the old
    // connection is tracked. Before 4.1 there is no such setting, since 5.9 (f0a5e4d7a594) nothing is dropped.
    if ((4, 1)..(5, 9)).contains(&(major, minor)) {
        set(CONN_REUSE_MODE, 0);
    }
    set(EXPIRE_NODEST_CONN, 1);
    set(EXPIRE_QUIESCENT_TEMPLATE, 1);
    set(IP_FORWARD, 1);
    if strict_arp {
        set(ARP_IGNORE, 1);
        set(ARP_ANNOUNCE, 2);
    }
    settings
}

/// Whether a setting that older kernels needed is still there, as by a file of sysctls. It is the node's owner who has put
/// it there, so it is told and stays, as with kube-proxy.
fn reuses_drained(version: (u32, u32), root: &Path) -> bool {
    let mode = std::fs::read_to_string(root.join(CONN_REUSE_MODE));
    version >= (5, 9) && mode.is_ok_and(|it| it.trim() == "0")
}

/// `6.1.0-50-amd64` is (6, 1). What cannot be read is taken for a new kernel.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (u32::MAX, 0),
    }
}

fn missing_ipvs() -> IpvsError {
    IpvsError::Unsupported(
        "this kernel has no IPVS: load the module ip_vs on the host (modprobe ip_vs), or use a kernel with CONFIG_IP_VS, \
         CONFIG_IP_VS_IPV6 and CONFIG_IP_VS_NFCT, or take --proxy-mode=nftables, which needs none of them"
            .to_owned(),
    )
}

fn not_permitted() -> IpvsError {
    IpvsError::Unsupported(
        "IPVS may not be changed by this process: give it CAP_NET_ADMIN in this network namespace"
            .to_owned(),
    )
}

/// What a missing scheduler means for a person.
pub(super) fn missing_scheduler(scheduler: Scheduler) -> String {
    let name = scheduler.name();
    format!(
        "this kernel has no scheduler {name}: load the module ip_vs_{name} on the host (modprobe ip_vs_{name}), use a \
         kernel with CONFIG_IP_VS_{}, or choose another scheduler, such as rr",
        name.to_ascii_uppercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_against_stalls_is_for_kernels_that_stall() {
        for (release, expected) in [
            ("3.10.0-1160.el7.x86_64", false),
            ("4.0.9", false),
            ("4.1.0", true),
            ("5.4.0-150-generic", true),
            ("5.8.18", true),
            ("5.9.0", false),
            ("5.10.0-28-amd64", false),
            ("7.2.13", false),
            ("", false),
        ] {
            let all = plan(false, kernel_version(release));
            assert_eq!(all.iter().any(|it| it.path == CONN_REUSE_MODE), expected, "{release}");
        }
    }

    #[test]
    fn what_older_kernels_needed_is_told_on_newer_ones() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(CONN_REUSE_MODE);
        assert!(!reuses_drained((6, 1), root.path()), "no such setting");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for (mode, version, expected) in
            [("0\n", (6, 1), true), ("0\n", (5, 8), false), ("1\n", (6, 1), false)]
        {
            std::fs::write(&path, mode).unwrap();
            assert_eq!(reuses_drained(version, root.path()), expected, "{mode:?} {version:?}");
        }
    }

    #[test]
    fn strict_arp_sets_two_more() {
        let names = |strict| -> Vec<String> {
            plan(strict, (6, 1)).iter().map(ToString::to_string).collect()
        };
        let always =
            ["conntrack=1", "expire_nodest_conn=1", "expire_quiescent_template=1", "ip_forward=1"];
        assert_eq!(names(false), always);
        assert_eq!(names(true), [&always[..], &["arp_ignore=1", "arp_announce=2"]].concat());
    }

    #[test]
    fn what_cannot_be_set_is_told_all_at_once() {
        let root = tempfile::tempdir().unwrap();
        let error = set_sysctls(&IpvsSettings::default(), root.path()).unwrap_err().to_string();
        for name in ["vs/conntrack", "expire_nodest_conn", "ip_forward"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(error.contains("module ip_vs"), "{error}");
    }
}
