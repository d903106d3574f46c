//! The real binary: output, exit codes, signals.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::namespace::own_host;

#[test]
fn informational_modes_exit_with_0() {
    let version = run(&["--version"]);
    assert_eq!(code(&version), 0);
    assert!(stdout(&version).starts_with("kube-ferry v"), "{version:?}");
    assert!(stdout(&run(&["--version=raw"])).contains("kubernetes=1."));
    let help = run(&["--help"]);
    assert_eq!(code(&help), 0);
    for part in
        ["One-shot modes:", "--cluster-cidr <CIDRS>", "Connection tracking:", "--dry-run[=<WHAT>]"]
    {
        assert!(stdout(&help).contains(part), "{part} is not in {}", stdout(&help));
    }
}

#[test]
fn errors_exit_with_1_and_say_what_is_wrong() {
    for (flags, part) in [
        (vec!["--nonsense"], "unexpected argument '--nonsense'"),
        (vec!["start"], "unexpected argument 'start'"),
        (
            vec!["--config=/does/not/exist"],
            "cannot read the configuration file /does/not/exist: No such file",
        ),
        (vec!["--proxy-mode=ipvs", "--ipvs-scheduler=A"], "ipvs.scheduler: Invalid value: \"A\""),
        (vec!["--oom-score-adj=5000"], "oomScoreAdj: Invalid value: 5000"),
        (vec!["--metrics-port=0"], "the metrics server cannot be switched off (--metrics-port=0)"),
        (vec!["--metrics-port=99999"], "\"127.0.0.1:99999\": must be a valid port"),
        (vec!["--healthz-bind-address=[::1]:0"], "\"[::1]:0\": must be a valid port"),
        (vec!["--healthz-bind-address=localhost:1"], "names are not looked up"),
        (
            vec!["--write-config-to=/does/not/exist"],
            "cannot write the configuration to /does/not/exist",
        ),
    ] {
        let output = run(&flags);
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(code(&output) == 1 && shown.contains(part), "{flags:?}: {output:?}");
    }
}

#[test]
fn the_configuration_in_force_is_written_and_loads_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let first = run(&[
        "--proxy-mode=nftables",
        "--cluster-cidr=10.0.0.0/8",
        &format!("--write-config-to={}", path("first")),
    ]);
    assert_eq!(code(&first), 0, "{first:?}");
    let second = run(&[
        &format!("--config={}", path("first")),
        &format!("--write-config-to={}", path("second")),
    ]);
    assert_eq!(code(&second), 0, "{second:?}");
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    assert_eq!(read("first"), read("second"));
    for line in ["mode: nftables", "nodePortAddresses:\n- primary", "clusterCIDR: 10.0.0.0/8"] {
        assert!(read("first").contains(line), "{line} is not in {}", read("first"));
    }
}

#[test]
fn sigterm_ends_it_with_0() {
    let _host = own_host();
    let mut proxy = Proxy::start(&[]);
    proxy.wait_for("serving metrics");
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(proxy.wait(), 0);
    assert!(
        proxy.log.iter().any(|line| line.contains("ended by SIGTERM; rules stay")),
        "{:?}",
        proxy.log
    );
}

#[test]
fn a_port_in_use_is_an_error_only_if_asked_for() {
    let _host = own_host();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("--metrics-bind-address={}", taken.local_addr().unwrap());
    let mut strict = Proxy::start(&[&metrics, "--bind-address-hard-fail"]);
    assert_eq!(strict.wait(), 1);
    let told = |proxy: &Proxy| {
        proxy.log.iter().any(|line| line.contains("stop it, or set another --metrics-bind-address"))
    };
    assert!(told(&strict), "{:?}", strict.log);

    let mut patient = Proxy::start(&[&metrics]);
    patient.wait_for("trying again every 5s");
    assert!(told(&patient), "{:?}", patient.log);
    patient.signal(rustix::process::Signal::INT);
    assert_eq!(patient.wait(), 0);
}

struct Proxy {
    /// An empty directory of manifests.
    _manifests: TempDir,
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    log: Vec<String>,
}

impl Proxy {
    /// On the usual ports of this thread's own host, leaving the kernel's settings alone; `flags` come later and win.
    fn start(flags: &[&str]) -> Proxy {
        let mut all = vec![
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            "--proxy-mode=nftables",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--oom-score-adj=0",
        ];
        let manifests = tempfile::tempdir().unwrap();
        let from = format!("--manifests={}", manifests.path().display());
        all.push(&from);
        all.extend(flags);
        Proxy::start_with(&all, manifests)
    }

    fn start_with(flags: &[&str], manifests: TempDir) -> Proxy {
        let mut child = command(flags).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Proxy { _manifests: manifests, child, stderr, log: Vec::new() }
    }

    /// Reads the log up to a line with `part`; panics when the log ends before.
    #[track_caller]
    fn wait_for(&mut self, part: &str) {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.stderr.read_line(&mut line).unwrap(),
                0,
                "no {part:?} in {:?}",
                self.log
            );
            let found = line.contains(part);
            self.log.push(line);
            if found {
                return;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The exit code, after the rest of the log was read.
    fn wait(&mut self) -> i32 {
        let mut line = String::new();
        while self.stderr.read_line(&mut line).unwrap() > 0 {
            self.log.push(std::mem::take(&mut line));
        }
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the program itself is under test")]
fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-ferry"));
    command.args(flags);
    command
}

fn run(flags: &[&str]) -> Output {
    command(flags).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
