//! One proxy in a network namespace: a lock that the kernel frees when its holder ends, however it ends.
//!
//! The lock is the abstract Unix address `@kube-ferry`. Abstract addresses belong to the network namespace, as tables
//! do; they need no file system that two containers share, exist on every kernel, and go with the descriptor. They
//! can also be taken by anybody on the host, so a holder that cannot be a proxy does not count: it would need our user,
//! or root, to program anything.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::UnixStream;

/// The address, without the zero byte that makes it abstract.
const NAME: &str = "kube-ferry";

/// A holder answers at once, or is no proxy.
const PATIENCE: Duration = Duration::from_secs(1);

/// The lock, held until this value goes or the process ends.
#[derive(Debug)]
pub struct NamespaceLock {
    listener: UnixListener,
}

/// The proxy that has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `None`: it is in another PID namespace, such as another container.
    pub pid: Option<i32>,
}

/// Why there is no lock to be had, and no sense in waiting for it.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "user {user} holds the abstract Unix address @kube-ferry, and is not the one that runs this proxy"
    )]
    Stranger { user: u32 },
    #[error("whoever holds the abstract Unix address @kube-ferry does not answer: {0}")]
    Mute(io::Error),
    #[error("cannot bind the abstract Unix address @kube-ferry: {0}")]
    Bind(io::Error),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process in another container"),
        }
    }
}

impl NamespaceLock {
    /// Tries to take the lock of the network namespace that the calling thread is in. Never waits. `None`: somebody
    /// has it; [`NamespaceLock::holder`] tells who.
    pub fn attempt() -> Result<Option<NamespaceLock>, LockError> {
        let address = SocketAddr::from_abstract_name(NAME).map_err(LockError::Bind)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Some(NamespaceLock { listener })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(LockError::Bind(error)),
        }
    }

    /// Who has the lock. `None`: nobody, as it seems; the next attempt will tell.
    pub fn holder() -> Result<Option<Holder>, LockError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let connect = async {
            let connecting = UnixStream::connect(format!("\0{NAME}"));
            tokio::time::timeout(PATIENCE, connecting).await?
        };
        let peer =
            runtime.and_then(|it| it.block_on(connect).and_then(|stream| stream.peer_cred()));
        match peer {
            Ok(peer) if peer.uid() == 0 || peer.uid() == geteuid().as_raw() => {
                // The kernel says 0 for processes that this PID namespace does not know.
                Ok(Some(Holder { pid: peer.pid().filter(|pid| *pid > 0) }))
            }
            Ok(peer) => Err(LockError::Stranger { user: peer.uid() }),
            // It has ended meanwhile, or does not listen yet.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
            Err(error) => Err(LockError::Mute(error)),
        }
    }

    /// Keeps the lock until the process ends, and lets those connect who want to know who holds it. Blocks the thread
    /// for good.
    pub fn keep(&self) -> ! {
        loop {
            // Who connects has learned from the kernel already what there is to know, also while we cannot accept because
            // there are no descriptors left.
            if self.listener.accept().is_err() {
                std::thread::sleep(PATIENCE);
            }
        }
    }
}
