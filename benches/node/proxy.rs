//! The real program, as released, and what can be seen of it from outside.

use std::ffi::OsString;
use std::fs::{File, read_dir, read_to_string};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};

use super::cluster::Cluster;
use crate::figures::shape::{NODE, POD_CIDR};

/// Where metrics are served unless told otherwise.
const METRICS: &str = "127.0.0.1:10249";

pub(crate) struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Returns at once.
    pub(crate) fn start(cluster: &Cluster) -> Proxy {
        Proxy::start_in(cluster, "nftables")
    }

    /// As [`Proxy::start`], in a mode.
    pub(crate) fn start_in(cluster: &Cluster, mode: &str) -> Proxy {
        let log = cluster.directory().join("log");
        let child = Command::new(program())
            .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
            .arg(format!("--hostname-override={NODE}"))
            .arg(format!("--cluster-cidr={POD_CIDR}"))
            .arg(format!("--proxy-mode={mode}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn();
        Proxy { child: child.unwrap(), log }
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    /// The sum of all values of a metric whose name and labels start so; 0 if there is none, or no answer yet.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = page().unwrap_or_default();
        let lines = page.lines().filter(|it| it.starts_with(name));
        lines
            .filter_map(|it| it.rsplit_once(' ')?.1.parse::<f64>().ok())
            .fold(0.0, |sum, it| sum + it)
    }

    /// How many rows it believes a set to have.
    pub(crate) fn rows(&self, set: &str) -> f64 {
        self.metric(&format!("kubeferry_set_elements{{ip_family=\"IPv4\",set=\"{set}\"}}"))
    }

    /// Batches that were committed so far.
    pub(crate) fn batches(&self) -> f64 {
        self.metric("kubeferry_batches_total{result=\"committed\"}")
    }

    /// Syncs so far, with or without something to write.
    pub(crate) fn syncs(&self) -> f64 {
        self.metric("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}")
    }

    /// CPU time of all threads so far, in milliseconds.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = self.tasks("schedstat");
        let nanoseconds = stat.iter().filter_map(|it| it.split(' ').next()?.parse::<f64>().ok());
        match nanoseconds.sum::<f64>() / 1e6 {
            // A kernel without CONFIG_SCHED_INFO, as that of User-Mode Linux.
            0.0 => self.cpu_by_ticks(),
            milliseconds => milliseconds,
        }
    }

    /// As [`Proxy::cpu`], to 10 ms.
    fn cpu_by_ticks(&self) -> f64 {
        let stat = read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name, which is in parentheses, utime and stime are the 12th and 13th field.
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        fields.map(|it| it.parse::<f64>().unwrap() * 10.0).sum()
    }

    /// How often a thread went to sleep so far.
    pub(crate) fn wake_ups(&self) -> f64 {
        let status = self.tasks("status");
        status.iter().filter_map(|it| field(it, "voluntary_ctxt_switches:")).sum()
    }

    /// The most memory it ever had, in MB (10⁶ bytes).
    pub(crate) fn peak_memory(&self) -> f64 {
        let status = read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        field(&status, "VmHWM:").unwrap() * 1_024.0 / 1e6
    }

    fn tasks(&self, file: &str) -> Vec<String> {
        let tasks = read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.filter_map(|it| read_to_string(it.unwrap().path().join(file)).ok()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// What `make bench` has built. Cargo's own build of it for benchmarks has the features of libraries that only tests
/// want, and is not what anybody runs.
fn program() -> OsString {
    env::var_os("KUBE_FERRY").expect("KUBE_FERRY: the program to be measured; `make bench` sets it")
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|it| it.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// HTTP/1.0, so that the answer ends with the connection.
fn page() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(METRICS)?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
