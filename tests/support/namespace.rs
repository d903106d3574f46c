//! Network namespaces: made, entered, removed.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::command;

/// Names look like `kf-PID-WORLD-ROLE`: the process id tells whether a test run still owns them.
const PREFIX: &str = "kf-";
const DIRECTORY: &str = "/run/netns";

/// A network namespace that goes away with this value.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
}

/// Makes one namespace for each role, with names that no other world has.
pub(crate) fn create(roles: &[&str]) -> Vec<Namespace> {
    static FIRST: Once = Once::new();
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    FIRST.call_once(remove_leftovers);
    let world = WORLDS.fetch_add(1, Ordering::Relaxed);
    let names: Vec<String> =
        roles.iter().map(|role| format!("{PREFIX}{}-{world}-{role}", std::process::id())).collect();
    let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
    command::run("ip", &["-batch", "-"], &batch);
    names.into_iter().map(Namespace::open).collect()
}

/// Puts this thread, and so what it starts, into a network namespace of its own with a loopback, where every port is free.
///
/// For good: the thread of a test ends with it.
pub(crate) fn own_host() -> Namespace {
    let host = create(&["host"]).pop().unwrap();
    host.enter();
    command::run("ip", &["link", "set", "lo", "up"], "");
    host
}

impl Namespace {
    fn open(name: String) -> Namespace {
        let file = File::open(Path::new(DIRECTORY).join(&name)).unwrap();
        Namespace { name, file }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `body` inside, on a thread of its own, and waits for it.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for good. Processes that it starts are inside too.
    pub(crate) fn enter(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|error| {
                panic!("entering {}: {error}; packet tests need root", self.name)
            });
    }

    /// Another handle, for threads that outlive the borrow.
    pub(crate) fn file(&self) -> File {
        self.file.try_clone().unwrap()
    }

    /// Runs `ip -batch` inside.
    #[track_caller]
    pub(crate) fn ip(&self, batch: &str) {
        command::run("ip", &["-n", &self.name, "-batch", "-"], batch);
    }

    /// Runs a program inside that must succeed; returns its standard output.
    #[track_caller]
    pub(crate) fn command(&self, program: &str, arguments: &[&str], input: &str) -> String {
        self.run(|| command::run(program, arguments, input))
    }

    /// Sets a sysctl below `net`, for example `ipv4/ip_forward`.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
        });
    }
}

/// Moves the calling thread into the namespace that `file` stands for.
pub(crate) fn enter(file: &File) {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A panic here would hide the one that brings us here; what stays is removed by the next run.
        let _ = command::output("ip", &["netns", "del", &self.name], "");
    }
}

/// Removes the namespaces of runs that were killed, and ends what still runs in them.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Some(name) = abandoned(&path) {
            let pids = command::output("ip", &["netns", "pids", &name], "");
            for pid in String::from_utf8_lossy(&pids.stdout).lines() {
                if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            command::output("ip", &["netns", "del", &name], "");
        }
    }
}

/// The namespace's name, if it is ours and the process that made it is gone.
fn abandoned(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let owner: u32 = name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()?;
    let alive = PathBuf::from(format!("/proc/{owner}")).exists();
    (!alive).then(|| name.to_owned())
}
