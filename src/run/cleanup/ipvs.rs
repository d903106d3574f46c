//! What there is of IPVS mode, kube-proxy's and ours: virtual servers and the interface kube-ipvs0.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use tracing::{info, warn};

use super::Cleanup;
use crate::config::CleanupOf;
use crate::ipvs::schema::INTERFACE;
use crate::kernel::ipvs::Leftovers;
use crate::kernel::{Ipsets, IpvsError, NetlinkIpvs};
use crate::leftovers::KnownServers;

/// The API server's default. What kube-proxy's sets name is known whatever its port is.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

impl Cleanup {
    /// Deletes virtual servers, and the interface unless it is the other one's.
    ///
    /// kube-proxy's sets say which virtual servers are its own, so they must still be there. What is inside `excluded` is
    /// somebody else's by the user's word (`--ipvs-exclude-cidrs`, in mode ipvs).
    pub(super) fn virtual_servers(&mut self, whose: CleanupOf, excluded: Vec<IpNet>) {
        let known =
            Ipsets::new().and_then(|mut sets| KnownServers::read(|name| sets.members(name)));
        let known = match known {
            Ok(known) => known,
            Err(error) => return self.failed("ipsets", &error),
        };
        match remove(whose, &known, excluded) {
            Ok(leftovers) => self.tell(leftovers),
            Err(error) => self.failed("IPVS", &error),
        }
    }

    fn tell(&mut self, leftovers: Leftovers) {
        if !leftovers.servers.is_empty() {
            self.removed(&format!("{} virtual servers", leftovers.servers.len()));
        }
        if leftovers.interface {
            self.removed(&format!("the interface {INTERFACE}"));
        }
        for key in leftovers.doubtful {
            warn!(
                "left the virtual server {key} alone: its port is one of node ports, but it need not be kube-proxy's"
            );
        }
        for (key, errno) in leftovers.refused {
            let error = std::io::Error::from_raw_os_error(errno);
            self.failed(&format!("virtual server {key}"), &error);
        }
    }
}

fn remove(
    whose: CleanupOf,
    known: &KnownServers,
    excluded: Vec<IpNet>,
) -> Result<Leftovers, IpvsError> {
    let mut ipvs = NetlinkIpvs::new(excluded)?;
    let ours = ipvs.interface_is_ours()?;
    match (whose, ours) {
        (CleanupOf::All, _) | (CleanupOf::KubeProxy, Some(false)) => {
            ipvs.remove_leftovers(NODE_PORTS, known)
        }
        // Its addresses are ours now, and with them the virtual servers there.
        (CleanupOf::KubeProxy, _) => ipvs.remove_known(known),
        // kube-proxy does not change the mark by which we know the interface, but has sets where it works.
        (CleanupOf::KubeFerry, Some(true)) if !known.is_empty() => {
            info!("left {INTERFACE} and its virtual servers alone: kube-proxy has taken them over");
            Ok(Leftovers::default())
        }
        (CleanupOf::KubeFerry, Some(true)) => ipvs.remove_leftovers(NODE_PORTS, known),
        (CleanupOf::KubeFerry, Some(false) | None) => Ok(Leftovers::default()),
    }
}
