//! The dummy interface: found, made, taken over, removed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{ALIAS, IpvsError, NetlinkIpvs, address, failed};
use crate::ipvs::codec::link::{self, Link};
use crate::ipvs::schema::INTERFACE;
use crate::kernel::channel::{ErrorMessage, Failure};

const ENODEV: i32 = 19;
const EEXIST: i32 = 17;

impl NetlinkIpvs {
    /// `None`: there is none of that name.
    pub(super) fn interface(&mut self) -> Result<Option<Link>, IpvsError> {
        address::find_link(&mut self.route)
            .map_err(|failure| failed("looking for the interface kube-ipvs0", failure))
    }

    /// Makes the interface, or makes the one that is there ours.
    pub(super) fn ensure_interface(&mut self) -> Result<(), IpvsError> {
        match self.interface()? {
            None => self.create_interface(),
            Some(link) if !link.dummy => Err(IpvsError::Unsupported(format!(
                "the interface {INTERFACE} is not of kind dummy, so somebody else needs it for something else; \
                 give that one another name, or delete it: ip link delete {INTERFACE}"
            ))),
            Some(link) if link.alias.as_deref() == Some(ALIAS) => Ok(()),
            Some(link) => {
                let seq = self.route.next_seq();
                let answer = self.ask_route(1, link::set_alias(link.index, ALIAS, seq));
                self.judge("taking over the interface kube-ipvs0", answer, &[])
            }
        }
    }

    fn create_interface(&mut self) -> Result<(), IpvsError> {
        const EOPNOTSUPP: i32 = 95;
        let seq = self.route.next_seq();
        let answer = self.ask_route(2, link::create(INTERFACE, ALIAS, seq));
        if let Ok(answers) = &answer
            && answers.iter().any(|it| it.errno == EOPNOTSUPP)
        {
            return Err(IpvsError::Unsupported(format!(
                "this kernel cannot make the interface {INTERFACE}, which holds the addresses of Services: load the \
                 module dummy (modprobe dummy), or use a kernel with CONFIG_DUMMY"
            )));
        }
        // Somebody who made it a moment ago is taken over.
        self.judge("making the interface kube-ipvs0", answer, &[EEXIST])
    }

    /// The interface's addresses that may be ours.
    pub(super) fn own_addresses(&mut self, index: u32) -> Result<BTreeSet<IpAddr>, IpvsError> {
        let mut addresses = self.addresses(index)?;
        addresses.retain(|it| !self.is_excluded(*it));
        Ok(addresses)
    }

    /// Without those that the kernel makes itself when somebody sets the interface up.
    fn addresses(&mut self, index: u32) -> Result<BTreeSet<IpAddr>, IpvsError> {
        let mut addresses = address::read_all(&mut self.route, |it| it == index)
            .map_err(|failure| failed("reading the addresses of kube-ipvs0", failure))?;
        addresses.retain(|it| !matches!(it, IpAddr::V6(it) if it.is_unicast_link_local()));
        Ok(addresses)
    }

    pub(super) fn remove_own_interface(&mut self) -> Result<(), IpvsError> {
        let Some(link) = self.interface()? else { return Ok(()) };
        let ours = link.dummy && link.alias.as_deref() == Some(ALIAS);
        if !ours || !self.addresses(link.index)?.is_empty() {
            return Ok(());
        }
        self.delete_interface(&link)
    }

    pub(super) fn delete_interface(&mut self, link: &Link) -> Result<(), IpvsError> {
        let seq = self.route.next_seq();
        let answer = self.ask_route(1, link::delete(link.index, seq));
        self.judge("deleting the interface kube-ipvs0", answer, &[ENODEV])
    }

    /// Sends so many messages that are all to be acknowledged.
    fn ask_route(&mut self, messages: u32, bytes: Vec<u8>) -> Result<Vec<ErrorMessage>, Failure> {
        self.route.drain()?;
        let first = self.route.next_seq();
        self.route.set_next_seq(first.wrapping_add(messages));
        self.route.send(&bytes).map_err(Failure::Socket)?;
        let answers = self.route.errors()?;
        let heard = (0..messages)
            .all(|it| answers.iter().any(|answer| answer.seq == first.wrapping_add(it)));
        if heard { Ok(answers) } else { Err(Failure::Lost("no acknowledgement came".to_owned())) }
    }

    fn judge(
        &self,
        doing: &'static str,
        answer: Result<Vec<ErrorMessage>, Failure>,
        fine: &[i32],
    ) -> Result<(), IpvsError> {
        const EPERM: i32 = 1;
        let answers = answer.map_err(|failure| failed(doing, failure))?;
        let mistake = answers.iter().map(|it| it.errno).find(|it| *it != 0 && !fine.contains(it));
        match mistake {
            None => Ok(()),
            Some(EPERM) => Err(IpvsError::Unsupported(format!(
                "{doing}: {}; give the process CAP_NET_ADMIN in this network namespace",
                std::io::Error::from_raw_os_error(EPERM)
            ))),
            Some(errno) => Err(IpvsError::Failed {
                doing,
                why: std::io::Error::from_raw_os_error(errno).to_string(),
            }),
        }
    }
}
