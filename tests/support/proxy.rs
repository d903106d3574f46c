//! The proxy under test, as a process in node-1's namespace.

#![expect(
    clippy::disallowed_methods,
    reason = "the binary under test is a process of its own, and waits are bounded by the real clock"
)]

use std::fs::{File, read_to_string};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::namespace::Namespace;
use super::patience::{LONG, poll};

/// Where the proxy serves `/metrics` unless told otherwise; loopback of node-1's namespace.
const METRICS: &str = "127.0.0.1:10249";

/// How long a connection may take to be made; ten times that is for the answer.
const ATTEMPT: Duration = Duration::from_millis(500);

/// How long a process may take to be gone: the kernel takes its netlink sockets apart, and waits for whatever else it has to
/// do on a busy machine. A killed process was seen to need a minute.
const END: Duration = Duration::from_secs(300);

/// A proxy that is killed with this value; its log is shown if that happens in a panic.
pub(crate) struct Proxy<'w> {
    namespace: &'w Namespace,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl<'w> Proxy<'w> {
    /// Starts the proxy and returns when it has synchronised once. `log` collects its standard error.
    pub(crate) fn start(
        namespace: &'w Namespace,
        arguments: Vec<String>,
        log: PathBuf,
    ) -> Result<Proxy<'w>, String> {
        let mut proxy = Proxy::prepare(namespace, arguments, log);
        proxy.run()?;
        Ok(proxy)
    }

    /// What [`Proxy::run`] and [`Proxy::spawn`] start.
    pub(crate) fn prepare(
        namespace: &'w Namespace,
        arguments: Vec<String>,
        log: PathBuf,
    ) -> Proxy<'w> {
        Proxy { namespace, arguments, environment: Vec::new(), log, child: None }
    }

    /// Starts the proxy and returns at once.
    pub(crate) fn begin(
        namespace: &'w Namespace,
        arguments: Vec<String>,
        log: PathBuf,
    ) -> Result<Proxy<'w>, String> {
        let mut proxy = Proxy::prepare(namespace, arguments, log);
        proxy.spawn()?;
        Ok(proxy)
    }

    /// Starts the process again after [`Proxy::stop`].
    pub(crate) fn run(&mut self) -> Result<(), String> {
        self.spawn()?;
        poll(LONG, || self.has_synchronised())
    }

    /// Starts the process again after [`Proxy::stop`] and returns at once.
    pub(crate) fn spawn(&mut self) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| format!("{}: {error}", self.log.display()))?;
        let output = log.try_clone().map_err(|error| error.to_string())?;
        let child = self.namespace.run(|| {
            Command::new(env!("CARGO_BIN_EXE_kube-ferry"))
                .args(&self.arguments)
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(log)
                .spawn()
        });
        self.child = Some(child.map_err(|error| format!("starting the proxy: {error}"))?);
        Ok(())
    }

    /// Flags for the next start, besides those of the first.
    pub(crate) fn add_arguments(&mut self, arguments: &[String]) {
        self.arguments.extend(arguments.iter().cloned());
    }

    /// A variable for the next start.
    pub(crate) fn set_variable(&mut self, name: &str, value: &Path) {
        self.environment.push((name.to_owned(), value.display().to_string()));
    }

    /// Ends the process: `Signal::TERM` asks, `Signal::KILL` does not.
    pub(crate) fn stop(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("the proxy runs");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = poll(END, || child.try_wait().unwrap().ok_or("still running".to_owned()));
        ended.unwrap_or_else(|why| {
            let _ = child.kill();
            panic!("the proxy ignores {signal:?}: {why}\n{}", self.log())
        })
    }

    /// Sends a signal that does not end the process.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("the proxy runs")), signal)
            .unwrap();
    }

    /// The process, as `/proc` names it.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("the proxy runs").id()
    }

    /// The exit status, if the process has ended by itself.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Waits until the process ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the proxy runs");
        let ended = poll(END, || child.try_wait().unwrap().ok_or("still running".to_owned()));
        ended.unwrap_or_else(|why| {
            let _ = child.kill();
            panic!("{why}\n{}", self.log())
        })
    }

    /// What the proxy wrote to its standard output and error so far.
    pub(crate) fn log(&self) -> String {
        read_to_string(&self.log).unwrap_or_default()
    }

    /// The sum of all values of a metric whose name and labels start with `name`; `None` if there is none.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = self.namespace.run(|| get(METRICS.parse().unwrap(), "/metrics")).ok()?.body;
        let lines = page.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).reduce(|a, b| a + b)
    }

    /// Both families have a successful sync behind them.
    fn has_synchronised(&mut self) -> Result<(), String> {
        let child = self.child.as_mut().ok_or("not started")?;
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            // Polling goes on in vain; better say at once what happened.
            panic!("the proxy ended with {status}:\n{}", self.log());
        }
        for family in ["IPv4", "IPv6"] {
            let name = format!(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"{family}\"}}"
            );
            if self.metric(&name).is_none_or(|timestamp| timestamp <= 0.0) {
                return Err(format!("no sync of {family} yet; log:\n{}", self.log()));
            }
        }
        Ok(())
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("log of the proxy:\n{}", self.log());
        }
    }
}

/// The part of an HTTP answer that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GET over HTTP/1.0, so that the body ends with the connection. Call it inside the client's namespace.
pub(crate) fn get(server: SocketAddr, path: &str) -> Result<Page, String> {
    let text = fetch(server, path).map_err(|error| format!("GET {server}{path}: {error}"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("answer without end of headers")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Page { status: status.ok_or("answer without status")?, body: body.to_owned() })
}

/// Tries again what has come to nothing: the first packet may have met a port that was closed and silent, and the kernel
/// sends it again after ever longer pauses only.
fn fetch(server: SocketAddr, path: &str) -> std::io::Result<String> {
    let began = Instant::now();
    loop {
        match fetch_once(server, path) {
            Err(error) if is_silence(error.kind()) && began.elapsed() < LONG => (),
            result => return result,
        }
    }
}

/// A read that has timed out would block.
fn is_silence(kind: ErrorKind) -> bool {
    kind == ErrorKind::TimedOut || kind == ErrorKind::WouldBlock
}

fn fetch_once(server: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, ATTEMPT)?;
    stream.set_read_timeout(Some(10 * ATTEMPT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
