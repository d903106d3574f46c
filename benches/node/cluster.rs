//! The API server as a process of its own: this program in another mode, told what to do over its standard input.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::figures::shape::{Shape, big_service, big_slice, slices};
use crate::node::now;
use crate::support::apiserver::ApiServer;

const MODE: &str = "--api-server";

/// The parent's end.
pub(crate) struct Cluster {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    directory: TempDir,
}

impl Cluster {
    /// Returns when the server listens and has all objects.
    pub(crate) fn start(shape: Shape) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args([MODE, &shape.services.to_string(), &shape.endpoints.to_string()])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut cluster = Cluster { child, orders, answers, directory };
        cluster.answer();
        cluster
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Gives a Service so many endpoints. As all of these: returns when the event was handed to the watches, in
    /// nanoseconds since the epoch.
    pub(crate) fn set_endpoints(&mut self, service: u32, endpoints: u32) -> u64 {
        self.order(&format!("set {service} 1 {endpoints}"))
    }

    /// Gives the first `services` Services so many endpoints each, in one moment.
    pub(crate) fn set_many(&mut self, services: u32, endpoints: u32) -> u64 {
        self.order(&format!("set 0 {services} {endpoints}"))
    }

    /// Changes an annotation of so many Services' slices.
    pub(crate) fn annotate_many(&mut self, services: u32) -> u64 {
        self.order(&format!("annotate 0 {services} 5"))
    }

    /// Adds a Service with a thousand endpoints.
    pub(crate) fn add_big(&mut self) -> u64 {
        self.order("big")
    }

    /// Has so many of the big Service's endpoints replaced since the beginning; ten more each time are one slice.
    pub(crate) fn roll_big(&mut self, replaced: u32) -> u64 {
        self.order(&format!("roll {replaced}"))
    }

    /// Bytes that the server has sent so far, as TCP carries them.
    pub(crate) fn bytes_sent(&mut self) -> f64 {
        self.order("bytes") as f64
    }

    /// TCP connections that were made to it so far.
    pub(crate) fn connections(&mut self) -> f64 {
        self.order("connections") as f64
    }

    fn order(&mut self, order: &str) -> u64 {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> u64 {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().expect("the API server's process has ended")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shape, if this process is to be the API server.
pub(crate) fn asked_for() -> Option<Shape> {
    let mut arguments = env::args().skip_while(|it| it != MODE).skip(1);
    let mut number = || arguments.next()?.parse().ok();
    Some(Shape::new(number()?, number()?))
}

/// Is the API server until standard input ends.
pub(crate) fn serve(shape: Shape) {
    let directory = PathBuf::from(env::args().next_back().unwrap());
    let server = ApiServer::start_tls();
    server.load(shape.objects());
    server.kubeconfig(&directory, None);
    println!("{}", now());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u32>().unwrap();
        let of_services = || {
            let services = number(1)..number(1) + number(2);
            services.flat_map(|it| slices(it, number(3)))
        };
        let objects: Vec<Value> = match words[0] {
            "bytes" => {
                println!("{}", server.bytes_sent());
                continue;
            }
            "connections" => {
                println!("{}", server.connections());
                continue;
            }
            "big" => big_service().collect(),
            "roll" => vec![big_slice((number(1) - 1) / 100, number(1))],
            "annotate" => of_services().map(annotated).collect(),
            _ => of_services().collect(),
        };
        println!("{}", server.load_and(objects, now));
    }
}

fn annotated(mut object: Value) -> Value {
    object["metadata"]["annotations"] = serde_json::json!({ "seen": "yes" });
    object
}
