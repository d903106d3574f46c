//! What is lost on the way is a failure, never a success, and the next attempt puts it right.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kube_ferry::ipvs::schema::Op;
use kube_ferry::kernel::channel::Link;
use kube_ferry::kernel::{Ipvs as _, IpvsError, IpvsSettings, NetlinkIpvs};
use netlink_sys::Socket;

use super::witness::*;

const MSG_DONTWAIT: i32 = 0x40;
const MSG_TRUNC: i32 = 0x20;

const SERVER: &str = "tcp 10.96.0.10:80";

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing is sent.
    NotSent(i32),
    /// Everything is sent, then answers are lost.
    Overflow,
    /// The next answer never comes.
    Swallowed,
    /// The next answer is cut off.
    Cut,
}

const ENOBUFS: i32 = 105;
const EINTR: i32 = 4;
const FAULTS: [Fault; 5] =
    [Fault::NotSent(ENOBUFS), Fault::NotSent(EINTR), Fault::Overflow, Fault::Swallowed, Fault::Cut];

/// Makes the fault once, when it is next used after having been armed.
#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<Option<Fault>>>);

impl Faulty {
    fn arm(&self, fault: Fault) {
        *self.fault() = Some(fault);
    }

    fn fault(&self) -> MutexGuard<'_, Option<Fault>> {
        self.0.lock().unwrap()
    }
}

impl Link for Faulty {
    fn send(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        let mut armed = self.fault();
        if let Some(Fault::NotSent(errno)) = *armed {
            *armed = None;
            return Err(io::Error::from_raw_os_error(errno));
        }
        socket.send(bytes, MSG_DONTWAIT)
    }

    fn receive(&mut self, socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let length = socket.recv(buffer, MSG_DONTWAIT | MSG_TRUNC)?;
        // Something has come, so it is no look for leftovers.
        match self.fault().take() {
            Some(Fault::Overflow) => Err(io::Error::from_raw_os_error(ENOBUFS)),
            Some(Fault::Swallowed) => Err(io::ErrorKind::WouldBlock.into()),
            Some(Fault::Cut) => {
                buffer.truncate(length / 2);
                Ok(length / 2)
            }
            Some(Fault::NotSent(_)) | None => Ok(length),
        }
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_commit_of_which_answers_are_lost_has_failed() {
    each(|ipvs, fault, faulty| {
        let ops = [
            add(SERVER),
            add_to(SERVER, "10.1.1.2:80", 1),
            Op::SetDestination(key(SERVER), destination("10.1.1.2:80"), 3),
            bind("10.96.0.10"),
        ];
        faulty.arm(fault);
        let failure = ipvs.commit(&batch(&ops));
        assert!(matches!(failure, Err(IpvsError::Failed { .. })), "{fault:?}: {failure:?}");
        // Whether it was made cannot be seen as long as its address is not bound.
        commit(ipvs, &[Op::DeleteServer(key(SERVER))]);
        commit(ipvs, &ops);
        check_saved(&["-A -t 10.96.0.10:80 -s rr", "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 3"]);
        assert_eq!(bound().len(), 1);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_look_of_which_answers_are_lost_has_failed() {
    each(|ipvs, fault, faulty| {
        commit(ipvs, &[add(SERVER), add_to(SERVER, "10.1.1.2:80", 1), bind("10.96.0.10")]);
        let whole = ipvs.observe().unwrap();
        assert_eq!(whole.servers.len(), 1);
        faulty.arm(fault);
        let failure = ipvs.observe();
        assert!(matches!(failure, Err(IpvsError::Failed { .. })), "{fault:?}: {failure:?}");
        assert_eq!(ipvs.observe().unwrap(), whole);
        faulty.arm(fault);
        // Connections are asked of IPVS alone.
        let failure = ipvs.connections(&[key(SERVER)]);
        assert!(failure.is_err() != faulty.fault().is_some(), "{fault:?}: {failure:?}");
        *faulty.fault() = None;
        assert_eq!(ipvs.connections(&[key(SERVER)]).unwrap().len(), 1);
    });
}

/// Each fault between us and IPVS, then between us and the interface.
fn each(body: impl Fn(&mut NetlinkIpvs, Fault, &Faulty) + Sync) {
    for fault in FAULTS {
        for at_interface in [false, true] {
            isolated(|| {
                let (faulty, straight) = (Faulty::default(), Faulty::default());
                let ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
                let (generic, route) = match at_interface {
                    false => (faulty.clone(), straight),
                    true => (straight, faulty.clone()),
                };
                let mut ipvs = ipvs.through(generic, route);
                ipvs.prepare(&IpvsSettings::default()).unwrap();
                body(&mut ipvs, fault, &faulty);
            });
        }
    }
}
