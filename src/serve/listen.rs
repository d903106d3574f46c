//! Listening sockets, and what to say when there is none to be had.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Who reaches a listener on a wildcard address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Clients of both families, whichever wildcard is named: what Go makes of `0.0.0.0` and `[::]`.
    BothFamilies,
    /// Clients of the address' own family.
    OwnFamily,
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {source}{}", hint(.source, .option))]
pub struct ListenError {
    pub address: SocketAddr,
    /// What would be served there, e.g. `metrics`.
    pub purpose: &'static str,
    /// The flag or field that names the address.
    pub option: &'static str,
    #[source]
    pub source: io::Error,
}

fn hint(error: &io::Error, option: &str) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        format!(
            " (does another kube-proxy or kube-ferry run on this node? stop it, or set another {option})"
        )
    } else if kind == io::ErrorKind::AddrNotAvailable {
        format!(" (the node does not have this address; set another {option})")
    } else if kind == io::ErrorKind::PermissionDenied {
        " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)".to_owned()
    } else {
        String::new()
    }
}

/// Opens a non-blocking listener.
pub fn listen(address: SocketAddr, reach: Reach) -> io::Result<TcpListener> {
    if reach == Reach::BothFamilies && address.ip().is_unspecified() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        match open(any, reach) {
            // A kernel without IPv6.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {}
            result => return Ok(result?),
        }
    }
    Ok(open(address, reach)?)
}

fn open(address: SocketAddr, reach: Reach) -> Result<TcpListener, Errno> {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an earlier process in TIME_WAIT must not keep us from listening.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, reach == Reach::OwnFamily)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn an_ipv4_wildcard_answers_both_families() {
        let port =
            listen(any4(), Reach::BothFamilies).map(|it| (it.local_addr().unwrap().port(), it));
        let (port, _listener) = port.unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect(("::1", port)).unwrap();
    }

    #[test]
    fn own_family_means_only_that() {
        // The port of one family may be somebody else's in the other. Ours would be in our way at each of them.
        let both = (0..20).find_map(|_| {
            let v6 = listen("[::]:0".parse().unwrap(), Reach::OwnFamily).unwrap();
            let port = v6.local_addr().unwrap().port();
            let v4 = listen(SocketAddr::from(([0, 0, 0, 0], port)), Reach::OwnFamily).ok()?;
            Some((v6, v4, port))
        });
        let (v6, v4, port) = both.expect("both fit on one port");
        for (host, own, other) in [("127.0.0.1", &v4, &v6), ("::1", &v6, &v4)] {
            TcpStream::connect((host, port)).unwrap();
            own.accept().unwrap();
            assert_eq!(other.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let first = listen(any4(), Reach::BothFamilies).unwrap();
        let address = SocketAddr::from(([0, 0, 0, 0], first.local_addr().unwrap().port()));
        let source = listen(address, Reach::BothFamilies).unwrap_err();
        let error =
            ListenError { address, purpose: "metrics", option: "--metrics-bind-address", source };
        let shown = error.to_string();
        assert!(
            shown.starts_with(&format!(
                "cannot listen on {address} for metrics: Address already in use"
            )),
            "{shown}"
        );
        assert!(shown.ends_with("stop it, or set another --metrics-bind-address)"), "{shown}");
    }

    fn any4() -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }
}
