//! Servers that say who they are and whom they saw.
//!
//! The answer to any request, on every protocol, is one line: `NAME PORT SOURCE`, for example
//! `pod-1a 8080 10.244.1.20:41234`. TCP connections stay open and answer every further line.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use super::namespace::{self, Namespace};
use super::sctp;

/// One address and port, answered on TCP, UDP and (whatever the port) SCTP.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    name: &'static str,
    address: IpAddr,
    port: u16,
}

impl Listener {
    pub(crate) fn new(name: &'static str, address: IpAddr, port: u16) -> Listener {
        Listener { name, address, port }
    }
}

/// Running servers of one namespace; they stop with this value.
pub(crate) struct Servers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Starts and returns when all of them can be reached.
    pub(crate) fn start(namespace: &Namespace, listeners: Vec<Listener>) -> Servers {
        let file = namespace.file();
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let thread = thread::spawn(move || serve(&file, &listeners, stopped, &ready));
        // A thread that panicked drops its sender; the panic itself is already on stderr.
        started.recv().expect("the servers did not start");
        Servers { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The panic of a server is on stderr; a second one here would end the test program.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    file: &File,
    listeners: &[Listener],
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<()>,
) {
    namespace::enter(file);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let mut sctp_addresses = Vec::new();
        for listener in listeners {
            let at = SocketAddr::new(listener.address, listener.port);
            let tcp =
                TcpListener::bind(at).await.unwrap_or_else(|error| panic!("{at}/tcp: {error}"));
            let udp = UdpSocket::bind(at).await.unwrap_or_else(|error| panic!("{at}/udp: {error}"));
            tokio::spawn(serve_tcp(listener.name, tcp));
            tokio::spawn(serve_udp(listener.name, udp));
            // The name `host` stays out of SCTP: what is left alone there is answered by nobody.
            if !sctp_addresses.contains(&listener.address) && listener.name != "host" {
                sctp_addresses.push(listener.address);
                let socket = UdpSocket::from_std(sctp::socket(listener.address)).unwrap();
                tokio::spawn(serve_sctp(listener.name, socket));
            }
        }
        ready.send(()).unwrap();
        // Either a message or the end of the sender: both mean stop.
        let _ = stopped.await;
    });
}

fn line(name: &str, port: u16, source: SocketAddr) -> String {
    format!("{name} {port} {source}\n")
}

async fn serve_tcp(name: &'static str, listener: TcpListener) {
    let port = listener.local_addr().unwrap().port();
    while let Ok((stream, peer)) = listener.accept().await {
        tokio::spawn(async move { converse(&stream, &line(name, port, peer)).await });
    }
}

/// Answers each request until the client leaves. Requests are so short that they come in one piece.
async fn converse(stream: &TcpStream, answer: &str) {
    let mut request = [0; 64];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut request) {
            Ok(0) => return,
            // An empty send buffer takes so short a line whole.
            Ok(_) => drop(stream.try_write(answer.as_bytes())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn serve_udp(name: &'static str, socket: UdpSocket) {
    let port = socket.local_addr().unwrap().port();
    let mut request = [0; 64];
    loop {
        // Errors are those of earlier answers to clients that have left.
        if let Ok((_, peer)) = socket.recv_from(&mut request).await {
            let _ = socket.send_to(line(name, port, peer).as_bytes(), peer).await;
        }
    }
}

async fn serve_sctp(name: &'static str, socket: UdpSocket) {
    let mut packet = [0; 512];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut packet).await else { continue };
        let Some(init) = sctp::Init::parse(&packet[..length], peer.is_ipv4()) else { continue };
        let seen = SocketAddr::new(peer.ip(), init.source_port);
        let answer = init.acknowledge(&line(name, init.destination_port, seen));
        let _ = socket.send_to(&answer, SocketAddr::new(peer.ip(), 0)).await;
    }
}
