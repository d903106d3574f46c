//! Wiring: from the command line to a running process, and its exit code.
//!
//! 0 for what was asked and done, also after SIGTERM; 1 for every error.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::config::{self, Action, Args, Config, VersionFormat};
use crate::kernel::{Conntrack, Ipvs as _, NetlinkIpvs};
use crate::serve::http::{LISTEN_RETRY, Pages, Server, health_router, metrics_router};
use crate::serve::{Metrics, SharedHealth};
use crate::sync::facts::Live;
use crate::watch::{Notice, NoticeKind, Outbox, Recorder, Regarding};
use crate::{logging, sysctl, version};

mod cleanup;
mod dry_run;
mod ending;
mod reload;
mod start;
mod turn;
mod waiting;
mod write;

pub use ending::{Ending, Stop};

/// How often the configuration file is looked at.
const CONFIG_CHECK: Duration = Duration::from_secs(5);

/// How long answers that are under way may take after the end was asked for.
const DRAIN: Duration = Duration::from_secs(2);

/// Does what a command line asks for, the program's name included.
pub fn command_line(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::parse_from(line) {
        Ok(args) => args,
        Err(error) => return explain(&error),
    };
    match act(&args) {
        Ok(code) => code,
        Err(error) => {
            tell(&format!("Error: {}", in_words(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes. Many messages name their cause themselves, before the advice: it is said once.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{cause}");
        }
    }
    text
}

/// Prints help to stdout, errors to stderr.
fn explain(error: &clap::Error) -> ExitCode {
    // A closed stdout is all that can go wrong, and there is nobody left to tell.
    let _ = error.print();
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Errors may come before logging is set up, and are for people anyway. Where stderr takes nothing there is nobody to
/// tell; the exit code says it.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The output that was asked for. An error, not a panic, where it cannot be written: the disk is full, the reader gone.
fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn act(args: &Args) -> anyhow::Result<ExitCode> {
    match args.version {
        Some(VersionFormat::Short) => {
            print(&version::short())?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(VersionFormat::Raw) => {
            print(&version::raw())?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(VersionFormat::Not) | None => {}
    }
    let config = config::load(args)?;
    logging::init(&config.logging);
    // What they say of traffic is of no interest when rules are removed.
    if !matches!(config.action, Action::Cleanup(_)) {
        logging::notices(&config.notices);
    }
    Ok(run(config).unwrap_or_else(|error| {
        error!("{}", in_words(&error));
        ExitCode::FAILURE
    }))
}

/// Does what the configuration says.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    match &config.action {
        Action::WriteConfig(path) => write_config(&config, path)?,
        Action::InitOnly => init_only(&config)?,
        Action::Cleanup(whose) => cleanup::cleanup(*whose, &config)?,
        Action::DryRun(kind) => dry_run::dry_run(&config, *kind)?,
        Action::Run => return proxy(config, start::sync),
    }
    Ok(ExitCode::SUCCESS)
}

fn write_config(config: &Config, path: &Path) -> anyhow::Result<()> {
    let yaml = config.object.to_yaml().map_err(anyhow::Error::msg)?;
    write::write_whole(path, &yaml)
        .with_context(|| format!("cannot write the configuration to {}", path.display()))?;
    info!(path = %path.display(), "wrote the configuration");
    Ok(())
}

/// `--init-only`: kernel settings, which take more privileges than forwarding does. They are all it was started for, so
/// one that is refused is an error, as in kube-proxy. Unlike it, this needs no API server.
fn init_only(config: &Config) -> anyhow::Result<()> {
    let refused = set_kernel(config);
    anyhow::ensure!(refused == 0, "{refused} kernel settings could not be made; see above");
    if let Some(settings) = &config.ipvs {
        let prepared = NetlinkIpvs::new(settings.exclude_cidrs.clone())
            .and_then(|mut ipvs| ipvs.prepare(settings));
        prepared.context("cannot make the host ready for IPVS")?;
    }
    info!("the kernel settings are as wanted");
    Ok(())
}

/// Kernel settings; returns how many were refused, but for the hash table's size, which is about speed alone.
///
/// A kernel that refuses them forwards all the same: that is told, and for a proxy no reason to die.
fn set_kernel(config: &Config) -> usize {
    let root = Path::new("/");
    let plan = sysctl::plan(&config.conntrack, sysctl::cpus(root));
    if sysctl::is_missing(&plan, root)
        && let Err(error) = Conntrack::new().and_then(|mut conntrack| conntrack.load())
    {
        debug!(%error, "connection tracking could not be loaded");
    }
    let mut count = 0;
    for result in sysctl::apply(&plan, root) {
        match result {
            Ok(written) => info!(before = written.before, "set {}", written.setting),
            Err(refused) => {
                count += usize::from(!refused.path.ends_with("hashsize"));
                warn!("{refused}");
            }
        }
    }
    count
}

/// What the sync loop is given of the shell.
#[derive(Debug)]
pub struct Shell {
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub health: SharedHealth,
    pub watch_stats: Arc<crate::watch::Stats>,
    /// The settings that may change while the loop runs.
    pub live: watch::Sender<Live>,
    pub pages: Arc<Pages>,
    /// Takes Events for the API server, from the start on: they are posted once there is a client.
    pub recorder: Recorder,
    /// Runs the servers and everything else that is async, on a thread of its own.
    pub runtime: Handle,
    /// Tells when to end, and is told when the loop cannot go on.
    pub stop: Stop,
    /// Told when this copy is the one that programs the kernel.
    pub turn: watch::Sender<bool>,
}

/// Runs the servers around `sync`, which runs on this thread until the end is asked for.
pub fn proxy(
    config: Config,
    sync: impl FnOnce(&Shell, Outbox) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    info!(version = version::OWN, flags = ?config.flags, node = &*config.node_name, "starting");
    set_kernel(&config);
    if let Err(refused) = sysctl::set_oom_score_adj(config.oom_score_adj, Path::new("/")) {
        warn!("{refused}");
    }
    let (shell, thread, outbox) = Shell::new(config)?;
    let servers = shell.start_tasks();
    if let Err(error) = sync(&shell, outbox) {
        shell.stop.ask(Ending::Failed(in_words(&error)));
    }
    let ending = shell.runtime.block_on(shell.stop.wait());
    drain(&shell, servers, &ending);
    thread.end();
    finish(&ending)
}

/// Lets answers that are under way go out, and Events that tell why it ends.
fn drain(shell: &Shell, servers: Vec<JoinHandle<()>>, ending: &Ending) {
    let events = async {
        if matches!(ending, Ending::Failed(_)) {
            shell.recorder.flush().await;
        }
    };
    let all = futures::future::join(futures::future::join_all(servers), events);
    let drained = shell.runtime.block_on(async { tokio::time::timeout(DRAIN, all).await });
    if drained.is_err() {
        debug!("some answers or Events were cut off");
    }
}

/// The end of the process in words and as an exit code.
fn finish(ending: &Ending) -> anyhow::Result<ExitCode> {
    match ending {
        Ending::Signal(name) => {
            info!("ended by {name}; rules stay in the kernel");
            Ok(ExitCode::SUCCESS)
        }
        Ending::ConfigChanged { path, fields } => anyhow::bail!(
            "the configuration file {} has changed, and {} cannot change while the process runs; ending so that a new start \
             reads it (rules stay in the kernel)",
            path.display(),
            fields.join(", ")
        ),
        Ending::Failed(why) => Err(anyhow::Error::msg(why.clone())),
    }
}

/// The thread that drives everything async.
struct RuntimeThread {
    /// Dropped to end the thread.
    end: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl RuntimeThread {
    fn end(self) {
        drop(self.end);
        if self.thread.join().is_err() {
            error!("the servers' thread panicked");
        }
    }
}

fn start_runtime() -> anyhow::Result<(Handle, RuntimeThread)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    let drive = move || {
        // The sender is dropped, never used: an error is the news.
        let _ = runtime.block_on(ended);
    };
    let thread = std::thread::Builder::new().name("serve".to_owned()).spawn(drive);
    let thread = thread.context("cannot start the servers' thread")?;
    Ok((handle, RuntimeThread { end, thread }))
}

impl Shell {
    fn new(config: Config) -> anyhow::Result<(Shell, RuntimeThread, Outbox)> {
        let metrics = Metrics::new(&config.feature_gates).context("cannot register the metrics")?;
        let watch_stats: Arc<crate::watch::Stats> = Arc::default();
        metrics.show_watches(watch_stats.clone());
        let pages = Pages::new(&config, metrics.clone(), Timestamp::now())
            .context("cannot show the configuration")?;
        let (recorder, outbox) = crate::watch::recorder(config.node_name.clone());
        metrics.show_events(recorder.clone());
        let (runtime, thread) = start_runtime()?;
        let shell = Shell {
            health: SharedHealth::new(config.sync_period),
            live: watch::Sender::new(start::live(&config)),
            config: Arc::new(config),
            metrics,
            watch_stats,
            pages: Arc::new(pages),
            recorder,
            runtime,
            stop: Stop::default(),
            turn: watch::Sender::new(false),
        };
        Ok((shell, thread, outbox))
    }

    /// Signals, the configuration file, and the two servers.
    fn start_tasks(&self) -> Vec<JoinHandle<()>> {
        let stop = self.stop.clone();
        self.runtime.spawn(async move {
            if let Err(error) = ending::on_signals(stop.clone()).await {
                stop.ask(Ending::Failed(format!("cannot wait for signals: {error}")));
            }
        });
        if let Some(file) = self.config.file.clone() {
            let reloader = reload::Reloader::new(self, file);
            self.runtime.spawn(reload::follow(reloader, CONFIG_CHECK));
        }
        self.runtime.spawn(waiting::tell(self.health.clone()));
        self.start_servers()
    }

    fn start_servers(&self) -> Vec<JoinHandle<()>> {
        let mut servers = Vec::new();
        let config = &self.config;
        let retry = (!config.bind_hard_fail).then_some(LISTEN_RETRY);
        if let Some(address) = config.healthz {
            let option = "--healthz-bind-address (healthzBindAddress)";
            let server = Server { purpose: "health", option, address, retry };
            let router = health_router(self.health.clone(), self.metrics.clone());
            servers.push(self.start(server, router, "FailedToStartProxierHealthcheck"));
        }
        let option = "--metrics-bind-address (metricsBindAddress)";
        let server = Server { purpose: "metrics", option, address: config.metrics, retry };
        let router = metrics_router(self.pages.clone());
        servers.push(self.start(server, router, "FailedToStartMetricServer"));
        servers
    }

    /// A server that cannot listen is told by an Event with this reason, kube-proxy's.
    fn start(&self, server: Server, router: axum::Router, reason: &'static str) -> JoinHandle<()> {
        let (stop, recorder) = (self.stop.clone(), self.recorder.clone());
        let turn = self.turn.subscribe();
        self.runtime.spawn(async move {
            let ended = stop.clone();
            let ended = async move {
                ended.wait().await;
            };
            let failed = |note| {
                let (kind, action) = (NoticeKind::Warning, "StartKubeProxy");
                recorder.record(Notice { kind, reason, action, note, regarding: Regarding::Node });
            };
            if let Err(error) = server.run(router, turn, ended, failed).await {
                stop.ask(Ending::Failed(error.to_string()));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_named_already_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read it: {0} (is it there?)")]
        struct Named(#[source] std::io::Error);
        let cause = || std::io::Error::other("gone");
        assert_eq!(in_words(&Named(cause()).into()), "cannot read it: gone (is it there?)");
        let plain = anyhow::Error::from(cause()).context("cannot start");
        assert_eq!(in_words(&plain), "cannot start: gone");
    }
}
