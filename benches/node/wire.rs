//! A client and the first Service's endpoints, each behind a wire of its own: what the node does for them is to forward.

use std::fs::{File, write};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread::{scope, spawn};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, SockRef, Socket, Type};

use crate::figures::program::output;

const CLIENT: &str = "kube-ferry-bench-client";
const PODS: &str = "kube-ferry-bench-pods";
/// Of the first Service; see `shape::endpoint`.
const ENDPOINTS: std::ops::Range<u8> = 0..5;
const PATIENCE: Duration = Duration::from_secs(5);

/// The namespaces go with it.
pub(crate) struct Wire {
    client: File,
}

impl Wire {
    pub(crate) fn lay() -> Wire {
        write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        for (namespace, link, node, far) in [
            (CLIENT, "client", "10.200.0.1", "10.200.0.2/24"),
            (PODS, "pods", "10.200.1.1", "10.200.1.2/24"),
        ] {
            // Perhaps one of a run that was killed.
            output("ip", &["netns", "delete", namespace]);
            ip(&format!("netns add {namespace}"));
            ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
            ip(&format!("address add {node}/24 dev {link}"));
            ip(&format!("link set {link} up"));
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} address add {far} dev eth0"));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} route add default via {node}"));
        }
        for number in ENDPOINTS {
            ip(&format!("-n {PODS} address add 10.128.0.{number}/32 dev lo"));
        }
        ip("route add 10.128.0.0/24 via 10.200.1.2");
        let pods = namespace(PODS);
        let (ready, listens) = std::sync::mpsc::channel();
        // It ends with the process.
        spawn(move || {
            enter(&pods);
            let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
            ready.send(()).unwrap();
            listener.incoming().for_each(|it| drop(it.and_then(|it| echo(&it))));
        });
        listens.recv().unwrap();
        Wire { client: namespace(CLIENT) }
    }

    /// One after the other: opened, asked, answered, reset (so that ports are free again).
    pub(crate) fn connections_per_second(&self, time: Duration) -> f64 {
        let work = || {
            enter(&self.client);
            let (began, mut connections) = (Instant::now(), 0_u32);
            while began.elapsed() < time {
                ask().unwrap();
                connections += 1;
            }
            f64::from(connections) / began.elapsed().as_secs_f64()
        };
        scope(|scope| scope.spawn(work).join().unwrap())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [CLIENT, PODS] {
            output("ip", &["netns", "delete", namespace]);
        }
    }
}

fn ask() -> std::io::Result<()> {
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&service.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    // Until the client has reset it, lest the answer be lost.
    stream.read_exact(&mut byte).or(Ok(()))
}

fn namespace(name: &str) -> File {
    File::open(format!("/run/netns/{name}")).unwrap()
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn ip(arguments: &str) {
    let told = output("ip", &arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(told, "", "ip {arguments}");
}
