//! Tables of nf_tables that are not ours: looked at, and rid of what is said to go.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::channel::{Channel, ErrorMessage, Failure};
use super::netlink::explained;
use super::{KernelError, Rejection};
use crate::leftovers::{Chains, Removal};
use crate::model::Family;
use crate::nft::codec::query;

mod codec;

/// How often a table is looked at anew when others change some meanwhile.
const ATTEMPTS: usize = 5;

const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EBUSY: i32 = 16;
const ERESTART: i32 = 85;

/// The tables of the network namespace in which it was made.
pub struct OtherTables {
    channel: Channel,
}

impl OtherTables {
    /// Connects to nf_tables, and fails if the kernel has none or the process may not change it.
    pub fn new() -> Result<OtherTables, KernelError> {
        let channel = Channel::open(NETLINK_NETFILTER)
            .map_err(|error| KernelError::Socket { doing: "opening a netlink socket", error })?;
        let mut tables = OtherTables { channel };
        tables.generation().map_err(explained)?;
        Ok(tables)
    }

    /// Deletes a table with all that is in it. Returns whether there was one.
    pub fn delete_table(&mut self, family: Family, table: &str) -> Result<bool, KernelError> {
        let mut batch = codec::Batch::new(self.channel.next_seq(), None);
        batch.delete_table(family, table);
        match self.commit(batch) {
            Ok(()) => Ok(true),
            Err(KernelError::Rejected(refused)) if refused.iter().all(|it| it.errno == ENOENT) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes out of a table what `choose` says, in one transaction: all of it or nothing. Without the table there is
    /// nothing to choose from.
    ///
    /// What was chosen is carried out only if no table was changed since the look; else there is another look.
    pub fn remove(
        &mut self,
        family: Family,
        table: &str,
        choose: impl Fn(&Chains) -> Removal,
    ) -> Result<Removal, KernelError> {
        let mut last = None;
        // Chains that a set or map refers to: that is not seen in rules, the kernel tells it.
        let mut referred: Vec<String> = Vec::new();
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let mut found = match self.chains(family, table) {
                Err(error @ KernelError::Interrupted(_)) => {
                    last = Some(error);
                    continue;
                }
                other => other?,
            };
            found.rules.extend(referred.iter().map(|it| codec::reference(it)));
            let removal = choose(&found);
            if removal.is_empty() {
                return Ok(removal);
            }
            let mut batch = codec::Batch::new(self.channel.next_seq(), Some(generation));
            batch.remove(family, table, &removal);
            match self.commit(batch) {
                Ok(()) => return Ok(removal),
                Err(KernelError::Rejected(refused))
                    if refused.iter().all(|it| it.errno == EBUSY) =>
                {
                    referred.extend(refused.iter().map(|it| it.what.clone()));
                    last = Some(KernelError::Rejected(refused));
                }
                Err(error @ KernelError::Interrupted(_)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| KernelError::Interrupted(format!("{ATTEMPTS} times"))))
    }

    /// Whether there is such a table, and such a chain in it if one is named. One message there and one back.
    pub fn has(
        &mut self,
        family: Family,
        table: &str,
        chain: Option<&str>,
    ) -> Result<bool, KernelError> {
        match self.channel.ask(|seq| codec::get(family, table, chain, seq), |_, _| ()) {
            Ok(()) => Ok(true),
            Err(Failure::Refused(error)) if error.raw_os_error() == Some(ENOENT) => Ok(false),
            Err(failure) => Err(failure.into_error("looking for kube-proxy's tables")),
        }
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        const DOING: &str = "asking for the generation of nf_tables";
        let mut generation = None;
        let take = |kind, payload: &[u8]| generation = query::read_generation(kind, payload);
        self.channel.ask(query::generation, take).map_err(|failure| failure.into_error(DOING))?;
        generation.ok_or_else(|| KernelError::Protocol {
            doing: DOING,
            why: "there is no generation in it".to_owned(),
        })
    }

    /// Empty if there is no such table.
    fn chains(&mut self, family: Family, table: &str) -> Result<Chains, KernelError> {
        let mut found = Chains::default();
        let chains = self.channel.ask(
            |seq| codec::list_chains(family, seq),
            |kind, payload| {
                found.chains.extend(codec::read_chain(table, kind, payload));
            },
        );
        chains.map_err(|failure| failure.into_error("reading the chains of iptables"))?;
        let rules = self.channel.ask(
            |seq| codec::list_rules(family, table, seq),
            |kind, payload| found.rules.extend(codec::read_rule(kind, payload)),
        );
        match rules {
            Err(Failure::Refused(error)) if error.raw_os_error() == Some(ENOENT) => (),
            other => {
                other.map_err(|failure| failure.into_error("reading the rules of iptables"))?
            }
        }
        Ok(found)
    }

    fn commit(&mut self, batch: codec::Batch) -> Result<(), KernelError> {
        const DOING: &str = "changing tables of nf_tables";
        self.channel.drain().map_err(|failure| failure.into_error(DOING))?;
        let sent = batch.finish();
        self.channel.set_next_seq(sent.next_seq());
        self.channel
            .send(&sent.bytes)
            .map_err(|error| KernelError::Socket { doing: DOING, error })?;
        let answers = self.channel.errors().map_err(|failure| match failure {
            Failure::Lost(why) => KernelError::Unknown(why),
            other @ (Failure::Refused(_)
            | Failure::Interrupted
            | Failure::Aborted
            | Failure::Socket(_)) => other.into_error(DOING),
        })?;
        judge(&sent, &answers)
    }
}

/// One error is enough: then nothing was carried out.
fn judge(sent: &codec::Sent, answers: &[ErrorMessage]) -> Result<(), KernelError> {
    let errors: Vec<&ErrorMessage> = answers.iter().filter(|it| it.errno != 0).collect();
    if errors.iter().any(|it| matches!(it.errno, ERESTART | EINTR)) {
        return Err(KernelError::Interrupted("the generation is another one".to_owned()));
    }
    if let Some(error) = errors.iter().find(|it| sent.subject(it.seq).is_none()) {
        let error = io::Error::from_raw_os_error(error.errno);
        return Err(KernelError::Socket { doing: "changing tables of nf_tables", error });
    }
    if !errors.is_empty() {
        let refused = errors.iter().map(|it| Rejection {
            op: None,
            owner: None,
            errno: it.errno,
            what: sent.subject(it.seq).unwrap_or_default().to_owned(),
        });
        return Err(KernelError::Rejected(refused.collect()));
    }
    if answers.iter().any(|it| it.seq == sent.acknowledged()) {
        Ok(())
    } else {
        Err(KernelError::Unknown("no acknowledgement came".to_owned()))
    }
}

/// Takes any message.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(kind: u16, payload: &[u8]) {
    let _ = codec::read_chain("nat", kind, payload);
    let _ = codec::read_rule(kind, payload);
}
