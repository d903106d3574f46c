//! What a scenario runs against.
//!
//! A story can be carried out by the real binary with real packets ([`super::packets`]), by walking the compiled
//! ruleset in memory, or by nobody ([`super::run::rehearse`]). The runner knows this trait only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube_ferry::model::{Family, Protocol};

use super::objects::Objects;
use super::story::{Ending, Translation};
use crate::support::world::{Actor, World};

/// Something that forwards packets by a set of objects.
pub(crate) trait Datapath {
    /// Makes these the objects; returns when they are in force.
    fn apply(&mut self, objects: &Objects) -> Result<(), String>;

    /// Gives the node an address on one of its interfaces, or takes it away.
    fn set_address(&mut self, address: IpAddr, present: bool) -> Result<(), String>;

    /// Opens connections until all has been seen that can become of them; one answer for each attempt.
    fn reach(&self, attempts: &[Attempt]) -> Vec<BTreeSet<Reach>>;

    /// Opens connections that all reach one and the same backend, and names it.
    fn stick(&self, attempt: &Attempt) -> Result<String, String>;

    /// Whether an address is remembered for session affinity; `None` where nobody can know.
    fn remembers(&self, source: Actor, family: Family) -> Option<Result<bool, String>>;

    /// Lets time pass.
    fn pass(&mut self, time: Duration);

    /// A step, or a part of it, that has no meaning here is left out; says so to whoever reads along.
    fn skip(&self, line: usize, what: &str);

    /// Ends the proxy.
    fn stop(&mut self, ending: Ending) -> Result<(), String>;

    /// Starts the proxy again. Returns what was written to the kernel's tables since it was stopped.
    fn start_again(&mut self) -> Result<Vec<String>, String>;

    /// Ends the proxy and starts it with these flags besides its own; what follows from them is in force then.
    fn upgrade(&mut self, flags: &[String]) -> Result<(), String>;

    /// What the proxy has logged, if it is a process.
    fn log(&self) -> Option<String>;

    /// The world with its clients, if there is one: open connections and the like need it, and are left out elsewhere.
    fn world(&self) -> Option<&World>;
}

/// New connections from one place to another.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) source: Actor,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Decides how long to wait and when enough has been seen, never what was seen.
    pub(crate) wanted: Wanted,
}

/// What is expected, with all names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Names of pods, with a port where it matters.
    Backends(BTreeSet<(&'static str, Option<u16>)>, Option<Translation>),
    Reject,
    Drop,
    NotHandled,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Backend {
        pod: String,
        port: u16,
        masqueraded: bool,
    },
    Rejected,
    Dropped,
    /// It went where it would have gone without the proxy.
    NotHandled,
    /// Anything else, in words; never expected.
    Strange(String),
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reach::Backend { pod, port, masqueraded: true } => {
                write!(f, "{pod}:{port} masqueraded")
            }
            Reach::Backend { pod, port, masqueraded: false } => {
                write!(f, "{pod}:{port} source kept")
            }
            Reach::Rejected => f.write_str("rejected"),
            Reach::Dropped => f.write_str("dropped"),
            Reach::NotHandled => f.write_str("not handled"),
            Reach::Strange(what) => f.write_str(what),
        }
    }
}

impl Wanted {
    /// Whether exactly this became of the connections: nothing else, and nothing missing.
    pub(crate) fn is_met_by(&self, seen: &BTreeSet<Reach>) -> bool {
        !seen.is_empty() && seen.iter().all(|it| self.allows(it)) && self.has_all(seen)
    }

    /// Whether this may become of one connection.
    pub(crate) fn allows(&self, seen: &Reach) -> bool {
        match self {
            Wanted::Reject => *seen == Reach::Rejected,
            Wanted::Drop => *seen == Reach::Dropped,
            Wanted::NotHandled => *seen == Reach::NotHandled,
            Wanted::Backends(backends, _) => backends.iter().any(|it| self.covers(*it, seen)),
        }
    }

    /// Whether every expected backend was seen, whatever else was.
    pub(crate) fn has_all(&self, seen: &BTreeSet<Reach>) -> bool {
        match self {
            Wanted::Backends(backends, _) => {
                backends.iter().all(|backend| seen.iter().any(|it| self.covers(*backend, it)))
            }
            Wanted::Reject | Wanted::Drop | Wanted::NotHandled => !seen.is_empty(),
        }
    }

    fn covers(&self, (name, number): (&str, Option<u16>), seen: &Reach) -> bool {
        let Wanted::Backends(_, translation) = self else { return false };
        let Reach::Backend { pod, port, masqueraded } = seen else { return false };
        let translated =
            if *masqueraded { Translation::Masquerade } else { Translation::SourceKept };
        pod == name
            && number.is_none_or(|number| number == *port)
            && translation.is_none_or(|wanted| wanted == translated)
    }
}

#[test]
fn wanted_means_exactly() {
    let at =
        |pod: &str, port, masqueraded| Reach::Backend { pod: pod.to_owned(), port, masqueraded };
    let wanted = Wanted::Backends(
        BTreeSet::from([("pod-1a", Some(8080)), ("pod-2a", None)]),
        Some(Translation::SourceKept),
    );
    let check = |seen: &[Reach]| wanted.is_met_by(&seen.iter().cloned().collect());
    assert!(check(&[at("pod-1a", 8080, false), at("pod-2a", 1, false)]));
    assert!(!check(&[at("pod-1a", 8080, false)]), "one is missing");
    assert!(!check(&[at("pod-1a", 8081, false), at("pod-2a", 1, false)]), "wrong port");
    assert!(!check(&[at("pod-1a", 8080, true), at("pod-2a", 1, false)]), "masqueraded");
    assert!(!check(&[at("pod-1a", 8080, false), at("pod-2a", 1, false), Reach::Rejected]));
    assert!(!Wanted::Drop.is_met_by(&BTreeSet::new()), "no connection was tried");
}
