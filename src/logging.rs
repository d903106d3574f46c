//! Logs: `tracing` to stderr, as text or JSON, by klog's verbosity.
//!
//! | `-v`  | our own messages | those of libraries |
//! |-------|------------------|--------------------|
//! | 0, 1  | INFO             | WARN               |
//! | 2, 3  | INFO             | INFO               |
//! | 4, 5  | DEBUG            | INFO               |
//! | 6, 7  | TRACE            | DEBUG              |
//! | 8 ... | TRACE            | TRACE              |
//!
//! `--vmodule=PATTERN=N` sets the verbosity of source files whose name without `.rs` matches; the first pattern that
//! matches counts.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, error, info, warn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Logging, Notice};

mod patient;

use patient::Patient;

const OURS: &str = env!("CARGO_CRATE_NAME");

type Handle = reload::Handle<Wanted, Registry>;

/// What is logged can be changed while the process runs; as the log itself, there is one for the process.
static LIVE: OnceLock<Handle> = OnceLock::new();

/// Makes the process log; once, before anything else logs. A second call only says so.
pub fn init(settings: &Logging) {
    let json = settings.json;
    let stderr = move || Patient { stream: std::io::stderr(), json };
    let writer = if settings.split_stream {
        let stdout = move || Patient { stream: std::io::stdout(), json };
        let stdout = stdout.with_min_level(Level::INFO);
        BoxMakeWriter::new(stderr.with_max_level(Level::WARN).or_else(stdout))
    } else {
        BoxMakeWriter::new(stderr)
    };
    let (subscriber, handle) = subscriber(settings, writer);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        error!("logging was set up already; its settings are kept");
    } else {
        // Nobody else sets it: there is one global subscriber.
        let _ = LIVE.set(handle);
    }
}

/// Logs by another verbosity, and other verbosities of files, from now on. Format and streams stay.
pub fn set(settings: &Logging) {
    change(|wanted| *wanted = Wanted::of(settings));
}

/// Logs by another verbosity from now on; those of files stay.
pub fn set_verbosity(verbosity: u32) {
    change(|wanted| wanted.verbosity = verbosity);
}

fn change(change: impl FnOnce(&mut Wanted)) {
    // An error means that the subscriber is gone, which the global one never is.
    if let Some(Err(problem)) = LIVE.get().map(|live| live.modify(change)) {
        error!(%problem, "the log verbosity could not be changed");
    }
}

/// Logs what resolving the configuration found.
pub fn notices(notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Info(text) => info!("{text}"),
            Notice::Warn(text) => warn!("{text}"),
        }
    }
}

fn subscriber<W>(
    settings: &Logging,
    writer: W,
) -> (impl tracing::Subscriber + Send + Sync + use<W>, Handle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(Wanted::of(settings));
    let format = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        // A line that cannot be written (the disk is full, the reader gone) is lost. To complain of it would go to stderr,
        // where the complaint cannot be written either, and that panics.
        .log_internal_errors(false);
    let layer: Box<dyn Layer<Registry> + Send + Sync> =
        if settings.json { Box::new(format.json().flatten_event(true)) } else { Box::new(format) };
    (tracing_subscriber::registry().with(layer.with_filter(filter)), handle)
}

/// What is logged.
#[derive(Clone, Debug)]
struct Wanted {
    verbosity: u32,
    vmodule: Vec<(String, u32)>,
}

impl Filter<Registry> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, Registry>) -> bool {
        self.wants(metadata)
    }

    /// Asked once for each place in the source, and again when the verbosity changes.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most())
    }
}

impl Wanted {
    fn of(settings: &Logging) -> Wanted {
        Wanted { verbosity: settings.verbosity, vmodule: settings.vmodule.clone() }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level(metadata.target(), metadata.file())
    }

    fn level(&self, target: &str, file: Option<&str>) -> LevelFilter {
        let (own, libraries) = levels(self.verbosity_of(file));
        if target.split("::").next() == Some(OURS) { own } else { libraries }
    }

    fn verbosity_of(&self, file: Option<&str>) -> u32 {
        let name = file.and_then(|it| it.rsplit('/').next()).and_then(|it| it.strip_suffix(".rs"));
        let matching = |(pattern, _): &&(String, u32)| {
            name.is_some_and(|name| glob(pattern.as_bytes(), name.as_bytes()))
        };
        self.vmodule.iter().find(matching).map_or(self.verbosity, |(_, verbosity)| *verbosity)
    }

    /// The most that any file may log, so that everything above costs nothing.
    fn most(&self) -> LevelFilter {
        let highest = self.vmodule.iter().map(|(_, verbosity)| *verbosity).max().unwrap_or(0);
        levels(highest.max(self.verbosity)).0
    }
}

/// Of our own messages and of those of libraries.
fn levels(verbosity: u32) -> (LevelFilter, LevelFilter) {
    match verbosity {
        0..=1 => (LevelFilter::INFO, LevelFilter::WARN),
        2..=3 => (LevelFilter::INFO, LevelFilter::INFO),
        4..=5 => (LevelFilter::DEBUG, LevelFilter::INFO),
        6..=7 => (LevelFilter::TRACE, LevelFilter::DEBUG),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    }
}

/// `*` stands for any run of characters, `?` for one.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, name) || name.split_first().is_some_and(|(_, tail)| glob(pattern, tail))
        }
        (Some((b'?', rest)), Some((_, tail))) => glob(rest, tail),
        (Some((wanted, rest)), Some((found, tail))) => wanted == found && glob(rest, tail),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn levels_follow_the_verbosity() {
        check(0, &[], "kube_ferry::sync", "src/sync.rs", LevelFilter::INFO);
        check(0, &[], "kube_client::client", "lib.rs", LevelFilter::WARN);
        check(2, &[], "kube_client::client", "lib.rs", LevelFilter::INFO);
        check(4, &[], "kube_ferry", "src/lib.rs", LevelFilter::DEBUG);
        check(4, &[], "hyper", "lib.rs", LevelFilter::INFO);
        check(6, &[], "kube_ferry::nft", "src/nft.rs", LevelFilter::TRACE);
        check(10, &[], "hyper", "lib.rs", LevelFilter::TRACE);
        check(6, &[], "kube_ferry_other", "lib.rs", LevelFilter::DEBUG);
    }

    #[test]
    fn vmodule_overrides_single_files() {
        let vmodule = [("netlink*", 6), ("s?nc", 4), ("*", 2)];
        check(
            0,
            &vmodule,
            "kube_ferry::kernel::netlink_nft",
            "src/kernel/netlink_nft.rs",
            LevelFilter::TRACE,
        );
        check(0, &vmodule, "kube_ferry::sync", "src/sync.rs", LevelFilter::DEBUG);
        check(9, &vmodule, "kube_ferry::watch", "src/watch.rs", LevelFilter::INFO);
        let wanted = Wanted { verbosity: 0, vmodule: vec![("a".into(), 5)] };
        assert_eq!(wanted.most(), LevelFilter::DEBUG);
    }

    #[test]
    fn both_formats_write_fields() {
        let text = logged(&Logging::default());
        assert!(text.contains(" INFO kube_ferry::logging::tests: synced ops=3"), "{text}");
        let json = logged(&Logging { json: true, ..Logging::default() });
        let line: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
        assert_eq!(
            (&line["level"], &line["message"], &line["ops"]),
            (&"INFO".into(), &"synced".into(), &3.into())
        );
    }

    #[test]
    fn the_verbosity_changes_while_it_logs() {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, handle) = subscriber(&Logging::default(), move || writer.clone());
        let speak = |text| tracing::debug!("{text}");
        tracing::subscriber::with_default(subscriber, || {
            speak("before");
            handle.modify(|wanted| wanted.verbosity = 4).unwrap();
            speak("during");
            handle.modify(|wanted| wanted.verbosity = 0).unwrap();
            speak("after");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("during") && text.lines().count() == 1, "{text}");
    }

    #[track_caller]
    fn check(
        verbosity: u32,
        vmodule: &[(&str, u32)],
        target: &str,
        file: &str,
        level: LevelFilter,
    ) {
        let vmodule = vmodule.iter().map(|(pattern, it)| ((*pattern).to_owned(), *it)).collect();
        assert_eq!(Wanted { verbosity, vmodule }.level(target, Some(file)), level);
    }

    /// What one INFO and one DEBUG event leave behind.
    fn logged(settings: &Logging) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, _) = subscriber(settings, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            info!(ops = 3, "synced");
            tracing::debug!("too much");
        });
        let bytes = sink.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().map_err(|_| std::io::ErrorKind::Other)?.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
