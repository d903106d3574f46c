//! Clients of the first Service that connect again and again, while its endpoints answer on this node.

use std::fs::read_to_string;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::figures::program::output;

/// Between two connections.
const EVERY: Duration = Duration::from_millis(1);
/// The first packet of a connection is sent again after a second if it is lost: whoever takes nearly as long has failed.
const PATIENCE: Duration = Duration::from_millis(900);

/// What became of it.
pub(crate) struct Outcome {
    pub(crate) answered: f64,
    pub(crate) failed: f64,
    pub(crate) sent_again: f64,
}

pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    client: JoinHandle<(u32, u32)>,
    sent_again: f64,
}

impl Traffic {
    /// The first Service's endpoints become addresses of this namespace, and answer.
    pub(crate) fn start() -> Traffic {
        for address in
            ["192.0.2.1", "10.128.0.0", "10.128.0.1", "10.128.0.2", "10.128.0.3", "10.128.0.4"]
        {
            run("ip", &["address", "replace", &format!("{address}/32"), "dev", "lo"]);
        }
        run("ip", &["route", "replace", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.1"]);
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        // It ends with the process.
        spawn(move || listener.incoming().for_each(|it| drop(it.and_then(|it| echo(&it)))));
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let sent_again = sent_again();
        let client = spawn(move || {
            let (mut good, mut lost) = (0, 0);
            while !asked.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => good += 1,
                    Err(_) => lost += 1,
                }
                sleep(EVERY);
            }
            (good, lost)
        });
        Traffic { stop, client, sent_again }
    }

    pub(crate) fn end(self) -> Outcome {
        sleep(Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        let (answered, failed) = self.client.join().unwrap();
        assert!(answered > 100, "there was traffic");
        let sent_again = sent_again() - self.sent_again;
        Outcome { answered: f64::from(answered), failed: f64::from(failed), sent_again }
    }
}

fn ask() -> std::io::Result<()> {
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

/// TCP segments that this namespace has sent again so far.
fn sent_again() -> f64 {
    let text = read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|it| it.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split(' ').position(|it| it == "RetransSegs").unwrap();
    values.split(' ').nth(position).unwrap().parse().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let told = output(program, arguments);
    assert_eq!(told, "", "{program} {arguments:?}");
}
