//! Connections: accepted, counted, closed and frozen.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::respond::{From, respond};
use super::{Listening, Shared};

/// The port of a server, which stays its own while it is closed: nobody else gets it, and whoever connects is refused.
pub(super) struct Port {
    /// Bound, and never listening.
    held: Socket,
}

impl Port {
    pub(super) fn reserve(ip: Ipv4Addr) -> Port {
        Port { held: bound(SocketAddr::from((ip, 0))) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.held.local_addr().unwrap().as_socket().unwrap()
    }

    fn listen(&self) -> TcpListener {
        let socket = bound(self.address());
        socket.listen(1_024).unwrap();
        socket.set_nonblocking(true).unwrap();
        TcpListener::from_std(socket.into()).unwrap()
    }
}

/// Two such sockets may have one address, as long as not both listen.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Serves until the [`super::ApiServer`] is dropped.
pub(super) fn serve(shared: Arc<Shared>, port: Port) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut listener = None;
        let mut listening = shared.listening.subscribe();
        loop {
            let wanted = *listening.borrow_and_update();
            match wanted {
                Listening::Ended => return,
                Listening::No => listener = None,
                Listening::Yes if listener.is_none() => listener = Some(port.listen()),
                Listening::Yes => (),
            }
            *shared.is_open.lock().unwrap() = listener.is_some();
            shared.opened_or_closed.notify_all();
            tokio::select! {
                accepted = accept(listener.as_ref()) => {
                    // Counted here, so that whoever has closed the port knows of all there are.
                    let number = shared.counters.connections.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::spawn(connection(shared.clone(), accepted, number));
                }
                changed = listening.changed() => changed.unwrap(),
            }
        }
    });
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        Some(listener) => listener.accept().await.unwrap().0,
        None => std::future::pending().await,
    }
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream, number: u64) {
    tcp.set_nodelay(true).unwrap();
    let mut closed = shared.closed.subscribe();
    let drop_this = Arc::new(Notify::new());
    let stream = Counted { tcp, shared: shared.clone(), number };
    let acceptor = shared.acceptor.lock().unwrap().clone();
    let serving = async {
        match acceptor {
            // A client that does not trust us hangs up here; that is its business.
            Some(acceptor) => {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let chain = stream.get_ref().1.peer_certificates();
                    let client = chain.and_then(|it| it.first()).map(|it| it.to_vec());
                    let from = From { connection: number, client };
                    http(shared.clone(), stream, from, drop_this.clone()).await;
                }
            }
            None => {
                let from = From { connection: number, client: None };
                http(shared.clone(), stream, from, drop_this.clone()).await;
            }
        }
    };
    tokio::select! {
        () = serving => (),
        _ = closed.wait_for(|up_to| *up_to >= number) => (),
        () = drop_this.notified() => (),
    }
}

async fn http(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: From,
    drop_this: Arc<Notify>,
) {
    let service = service_fn(move |request| {
        respond(shared.clone(), request, from.clone(), drop_this.clone())
    });
    let server = auto::Builder::new(TokioExecutor::new());
    // Ends with an error whenever a client goes away; nothing to tell.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

/// A TCP stream that counts bytes and can be frozen.
struct Counted {
    tcp: TcpStream,
    shared: Arc<Shared>,
    number: u64,
}

impl Counted {
    /// A frozen stream is never ready again: nobody is to be woken.
    fn is_frozen(&self) -> bool {
        self.shared.frozen.load(Ordering::SeqCst) >= self.number
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_frozen() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buffer))?;
        if self.is_frozen() {
            buffer.set_filled(before);
            return Poll::Pending;
        }
        let read = (buffer.filled().len() - before) as u64;
        self.shared.counters.received.fetch_add(read, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_frozen() {
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.tcp).poll_write(context, bytes))?;
        self.shared.counters.sent.fetch_add(written as u64, Ordering::SeqCst);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
