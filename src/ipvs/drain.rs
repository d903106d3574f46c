//! Destinations that get no new connections any more and are deleted when the old ones are over.
//!
//! Pure: it is told the time and the numbers of connections. What has drained before a restart drains again from the
//! beginning, since the kernel does not remember since when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::schema::{Connections, Destination, ServerKey};

/// What drains.
#[derive(Debug)]
pub struct Drains {
    /// However many connections there are, it is over after this.
    bound: Duration,
    /// When it was first looked at; the bound counts from then.
    since: BTreeMap<(ServerKey, Destination), Option<Instant>>,
}

impl Drains {
    pub fn new(bound: Duration) -> Drains {
        Drains { bound, since: BTreeMap::new() }
    }

    /// Goes on if it has begun.
    pub fn begin(&mut self, server: ServerKey, destination: Destination) {
        self.since.entry((server, destination)).or_insert(None);
    }

    /// It is gone, or wanted again.
    pub fn end(&mut self, server: ServerKey, destination: Destination) {
        self.since.remove(&(server, destination));
    }

    /// Nothing else of that virtual server drains than these; what did already goes on.
    pub fn restart(&mut self, server: ServerKey, draining: &BTreeSet<Destination>) {
        let first = Destination { address: Ipv4Addr::UNSPECIFIED.into(), port: NonZeroU16::MIN };
        let of_it = self.since.range((server, first)..).take_while(|((it, _), _)| *it == server);
        let known: Vec<Destination> = of_it.map(|((_, to), _)| *to).collect();
        for to in known.into_iter().filter(|it| !draining.contains(it)) {
            self.end(server, to);
        }
        draining.iter().for_each(|to| self.begin(server, *to));
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub fn len(&self) -> usize {
        self.since.len()
    }

    /// The virtual servers whose connections have to be asked for.
    pub fn servers(&self) -> Vec<ServerKey> {
        let servers: BTreeSet<ServerKey> = self.since.keys().map(|(server, _)| *server).collect();
        servers.into_iter().collect()
    }

    /// Takes the numbers of connections as they were after everything in here had stopped getting new ones. Returns
    /// what can be deleted: it has none left, or has had its time. What `seen` does not name has none.
    pub fn look(
        &mut self,
        now: Instant,
        seen: &[(ServerKey, Destination, Connections)],
    ) -> Vec<(ServerKey, Destination)> {
        // Templates are not connections: a client that comes back is sent elsewhere.
        let busy: BTreeSet<(ServerKey, Destination)> = seen
            .iter()
            .filter(|(_, _, it)| it.active > 0 || it.inactive > 0)
            .map(|(server, destination, _)| (*server, *destination))
            .collect();
        let mut over = Vec::new();
        for (key, since) in &mut self.since {
            let since = *since.get_or_insert(now);
            if !busy.contains(key) || now.saturating_duration_since(since) >= self.bound {
                over.push(*key);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::schema::{Destination, ServerKey};
    use crate::model::Protocol;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_over_when_no_connection_is_left() {
        let (mut drains, now) = drains();
        assert_eq!(drains.look(now, &[seen(1, 2, 0)]), []);
        assert_eq!(drains.look(now + 5 * SECOND, &[seen(1, 0, 3)]), []);
        assert_eq!(drains.look(now + 6 * SECOND, &[seen(1, 0, 0)]), [(server(), to(1))]);
    }

    #[test]
    fn it_is_over_when_its_time_is() {
        let (mut drains, now) = drains();
        assert_eq!(drains.look(now, &[seen(1, 2, 0)]), []);
        // A second destination counts from its own beginning, the first one goes on with its own.
        drains.begin(server(), to(2));
        drains.begin(server(), to(1));
        assert_eq!(drains.look(now + 5 * SECOND, &[seen(1, 2, 0), seen(2, 1, 0)]), []);
        let both = [seen(1, 2, 0), seen(2, 1, 0)];
        assert_eq!(drains.look(now + 10 * SECOND, &both), [(server(), to(1))]);
        assert_eq!(drains.len(), 2);
    }

    #[test]
    fn what_is_gone_or_has_templates_only_has_no_connections() {
        let (mut drains, now) = drains();
        drains.begin(server(), to(2));
        let templates = Connections { persistent: 7, ..Connections::default() };
        let over = drains.look(now, &[(server(), to(2), templates)]);
        assert_eq!(over, [(server(), to(1)), (server(), to(2))]);
        assert_eq!(drains.servers(), [server()]);
        drains.end(server(), to(1));
        drains.end(server(), to(2));
        assert!(drains.is_empty());
    }

    fn drains() -> (Drains, Instant) {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had from the clock only; just an origin here"
        )]
        let origin = Instant::now();
        let mut drains = Drains::new(10 * SECOND);
        drains.begin(server(), to(1));
        (drains, origin)
    }

    fn seen(host: u8, active: u32, inactive: u32) -> (ServerKey, Destination, Connections) {
        (server(), to(host), Connections { active, inactive, persistent: 0 })
    }

    fn server() -> ServerKey {
        let port = 80.try_into().unwrap();
        ServerKey { protocol: Protocol::Tcp, address: [10, 96, 0, 1].into(), port }
    }

    fn to(host: u8) -> Destination {
        Destination { address: [10, 1, 0, host].into(), port: 8080.try_into().unwrap() }
    }
}
