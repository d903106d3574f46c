//! Kernel settings at start: connection tracking (reference 7.2) and our own oom_score_adj.
//!
//! In comes what the configuration asks for; out goes what was written and what could not be. [`plan`] is arithmetic;
//! only [`apply`] touches files. A /proc that cannot be written is a [`Refused`] for the log and no reason to die:
//! forwarding works without these settings.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Conntrack;

/// kube-proxy never asks for more entries than this unless the CPUs times maxPerCore do.
const MAX_ENTRIES: u64 = 1 << 20;

/// Raised to a quarter of nf_conntrack_max, as the kernel's own ratio was.
const ENTRIES_PER_BUCKET: u64 = 4;

/// One setting and the value that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Below `/`, e.g. `proc/sys/net/netfilter/nf_conntrack_max`.
    pub path: &'static str,
    pub value: u64,
    pub rule: Rule,
}

/// When a value that is there already is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Equal,
    /// Anything not smaller is left alone.
    AtLeast,
}

/// A setting that was written, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub setting: Setting,
    pub before: u64,
}

/// A setting that is not as it was asked for.
#[derive(Debug)]
pub struct Refused {
    pub path: PathBuf,
    pub value: i64,
    /// What is in force instead, if it could be read.
    pub found: Option<u64>,
    pub source: io::Error,
}

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const BE_LIBERAL: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const UDP: &str = "proc/sys/net/netfilter/nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";

/// What is to be set on a machine with so many CPUs; pure.
pub fn plan(conntrack: &Conntrack, cpus: usize) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |path, value, rule| settings.push(Setting { path, value, rule });
    if let Some(max) = conntrack_max(conntrack, cpus) {
        set(MAX, max, Rule::Equal);
        set(HASHSIZE, max / ENTRIES_PER_BUCKET, Rule::AtLeast);
    }
    let timeouts = [
        (ESTABLISHED, conntrack.tcp_established),
        (CLOSE_WAIT, conntrack.tcp_close_wait),
        (UDP, conntrack.udp),
        (UDP_STREAM, conntrack.udp_stream),
    ];
    for (path, timeout) in timeouts {
        // Whole seconds. A timeout below one becomes one: 0 would make the kernel forget flows at once.
        if let Some(secs) = timeout.map(|it| it.as_secs()) {
            set(path, secs.max(1), Rule::Equal);
        }
    }
    if conntrack.tcp_be_liberal {
        set(BE_LIBERAL, 1, Rule::Equal);
    }
    settings
}

/// `None`: the kernel's value is left alone, and `min` with it.
fn conntrack_max(conntrack: &Conntrack, cpus: usize) -> Option<u64> {
    let cpus = u64::try_from(cpus).unwrap_or(1);
    let scaled = u64::from(conntrack.max_per_core?).saturating_mul(cpus);
    let min = u64::from(conntrack.min);
    Some(if scaled > MAX_ENTRIES { MAX_ENTRIES } else { scaled.max(min) })
}

/// Carries out the plan below `root` (`/` but in tests). Each setting is tried, whatever became of the others.
pub fn apply(plan: &[Setting], root: &Path) -> Vec<Result<Written, Refused>> {
    plan.iter().filter_map(|setting| apply_one(setting, root).transpose()).collect()
}

/// Whether a file of the plan is not there: connection tracking is not loaded yet, as on a node that has just started.
pub fn is_missing(plan: &[Setting], root: &Path) -> bool {
    plan.iter().any(|setting| !root.join(setting.path).exists())
}

/// `Ok(None)`: the setting was good already.
fn apply_one(setting: &Setting, root: &Path) -> Result<Option<Written>, Refused> {
    let path = root.join(setting.path);
    let refused = |found, source| Refused {
        path: path.clone(),
        value: setting.value.cast_signed(),
        found,
        source,
    };
    let before = read(&path).map_err(|source| refused(None, source))?;
    let good = match setting.rule {
        Rule::Equal => before == setting.value,
        Rule::AtLeast => before >= setting.value,
    };
    if good {
        return Ok(None);
    }
    std::fs::write(&path, setting.value.to_string())
        .map_err(|source| refused(Some(before), source))?;
    // A kernel may take a value and do with another: hash tables are rounded up, and a sandbox pretends.
    let after = read(&path).map_err(|source| refused(Some(before), source))?;
    if setting.rule == Rule::Equal && after != setting.value {
        return Err(refused(
            Some(after),
            io::Error::other("the kernel took it and has another value"),
        ));
    }
    Ok(Some(Written { setting: setting.clone(), before }))
}

fn read(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is not a number", text.trim()))
    })
}

/// Tells the kernel how ready it may be to kill this process when memory runs out.
pub fn set_oom_score_adj(adj: i32, root: &Path) -> Result<(), Refused> {
    let path = root.join("proc/self/oom_score_adj");
    std::fs::write(&path, adj.to_string()).map_err(|source| Refused {
        path,
        value: i64::from(adj),
        found: None,
        source,
    })
}

/// CPUs present, whatever this process may use of them: connection tracking serves the whole node.
pub fn cpus(root: &Path) -> usize {
    std::fs::read_to_string(root.join("sys/devices/system/cpu/present"))
        .ok()
        .and_then(|text| count(text.trim()))
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
}

/// Counts a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let mut sum = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        sum += last.checked_sub(first)? + 1;
    }
    Some(sum)
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        if name.contains("timeout") {
            write!(f, "{name}={:?}", Duration::from_secs(self.value))
        } else {
            write!(f, "{name}={}", self.value)
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, value) = (self.path.display(), self.value);
        match self.found {
            Some(found) => {
                write!(f, "cannot write {value} to {path}, it stays {found}: {}", self.source)?
            }
            None => write!(f, "cannot set {path} to {value}: {}", self.source)?,
        }
        let kind = self.source.kind();
        let is_read_only =
            matches!(kind, io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied);
        f.write_str(if self.path.ends_with("oom_score_adj") {
            " (below the value it was started with it takes CAP_SYS_RESOURCE; set oomScoreAdj to -997 or more in a Pod)"
        } else if kind == io::ErrorKind::NotFound && path.to_string().contains("/vs/") {
            " (is the module ip_vs loaded? is /proc/sys visible?)"
        } else if kind == io::ErrorKind::NotFound {
            " (is the module nf_conntrack loaded? is /proc/sys visible?)"
        } else if is_read_only && path.to_string().contains("/vs/") {
            " (set it on the host, or run once with --init-only, mode ipvs and privileges)"
        } else if is_read_only {
            " (set it on the host, run once with --init-only and privileges, or set the option to 0)"
        } else {
            ""
        })
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_scale_with_cpus_between_min_and_a_million() {
        for (per_core, min, cpus, expected) in [
            (32_768, 131_072, 2, Some(131_072)),
            (32_768, 131_072, 4, Some(131_072)),
            (32_768, 131_072, 8, Some(262_144)),
            (32_768, 131_072, 32, Some(1_048_576)),
            (32_768, 131_072, 64, Some(1_048_576)),
            (10, 2_000_000, 2, Some(2_000_000)),
            (0, 131_072, 8, None),
        ] {
            let conntrack = Conntrack {
                max_per_core: Some(per_core).filter(|it| *it > 0),
                min,
                ..Conntrack::default()
            };
            assert_eq!(conntrack_max(&conntrack, cpus), expected, "{per_core} {min} {cpus}");
        }
    }

    #[test]
    fn nothing_asked_is_nothing_planned() {
        assert_eq!(plan(&Conntrack { min: 131_072, ..Conntrack::default() }, 8), []);
    }

    #[test]
    fn everything_asked_is_planned() {
        let secs = |secs: u64| Some(Duration::from_millis(secs * 1000 + 999));
        let conntrack = Conntrack {
            max_per_core: Some(100_000),
            min: 1,
            tcp_established: secs(86_400),
            tcp_close_wait: secs(3_600),
            tcp_be_liberal: true,
            udp: secs(30),
            udp_stream: secs(0),
        };
        let shown: Vec<String> = plan(&conntrack, 4).iter().map(ToString::to_string).collect();
        let expected = [
            "nf_conntrack_max=400000",
            "hashsize=100000",
            "nf_conntrack_tcp_timeout_established=86400s",
            "nf_conntrack_tcp_timeout_close_wait=3600s",
            "nf_conntrack_udp_timeout=30s",
            "nf_conntrack_udp_timeout_stream=1s",
            "nf_conntrack_tcp_be_liberal=1",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_differences_are_written() {
        let root = tree(&[(MAX, "65536\n"), (HASHSIZE, "200000\n"), (ESTABLISHED, "86400\n")]);
        let plan = [
            Setting { path: MAX, value: 400_000, rule: Rule::Equal },
            Setting { path: HASHSIZE, value: 100_000, rule: Rule::AtLeast },
            Setting { path: ESTABLISHED, value: 86_400, rule: Rule::Equal },
        ];
        let results = apply(&plan, root.path());
        let written: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(written, [Written { setting: plan[0].clone(), before: 65_536 }]);
        assert_eq!(read(&root.path().join(MAX)).unwrap(), 400_000);
        assert!(!is_missing(&plan, root.path()) && is_missing(&plan, Path::new("/does/not/exist")));
        assert!(apply(&plan, root.path()).is_empty(), "a second run finds nothing to do");
    }

    #[test]
    fn what_is_refused_is_told_and_the_rest_is_done() {
        let root = tree(&[(UDP, "30"), (CLOSE_WAIT, "soon")]);
        let plan = [
            Setting { path: MAX, value: 1, rule: Rule::Equal },
            Setting { path: CLOSE_WAIT, value: 1, rule: Rule::Equal },
            Setting { path: UDP, value: 60, rule: Rule::Equal },
        ];
        let results = apply(&plan, root.path());
        let shown: Vec<String> = results
            .iter()
            .map(|it| it.as_ref().map_or_else(ToString::to_string, |it| it.setting.to_string()))
            .collect();
        assert!(
            shown[0].contains("nf_conntrack_max to 1") && shown[0].contains("module"),
            "{shown:?}"
        );
        assert!(shown[1].contains("\"soon\" is not a number"), "{shown:?}");
        assert_eq!(shown[2], "nf_conntrack_udp_timeout=60s");
    }

    #[test]
    fn a_read_only_proc_says_what_to_do() {
        let refused = Refused {
            path: "/proc/sys/net/netfilter/nf_conntrack_max".into(),
            value: 2,
            found: Some(1),
            source: io::Error::from(io::ErrorKind::ReadOnlyFilesystem),
        };
        let shown = refused.to_string();
        assert!(shown.contains("cannot write 2") && shown.contains("it stays 1"), "{shown}");
        assert!(shown.contains("--init-only") && shown.contains("option to 0"), "{shown}");
        let shown =
            Refused { path: "/proc/sys/net/ipv4/vs/conntrack".into(), ..refused }.to_string();
        assert!(shown.contains("mode ipvs") && !shown.contains("option to 0"), "{shown}");
    }

    #[test]
    fn what_the_kernel_makes_of_a_value_is_read_back() {
        let root = tempfile::tempdir().unwrap();
        const SLACK: &str = "slack";
        // The kernel takes a 0 for the default value.
        std::os::unix::fs::symlink("/proc/self/timerslack_ns", root.path().join(SLACK)).unwrap();
        let plan = [Setting { path: SLACK, value: 0, rule: Rule::Equal }];
        let refused = apply(&plan, root.path()).remove(0).unwrap_err();
        assert!(refused.found.is_some_and(|it| it > 0), "{refused}");
        assert!(refused.to_string().contains("has another value"), "{refused}");
    }

    #[test]
    fn an_oom_score_that_is_refused_is_not_about_sysctls() {
        let root = tempfile::tempdir().unwrap();
        let shown = set_oom_score_adj(-999, root.path()).unwrap_err().to_string();
        assert!(shown.contains("oomScoreAdj") && !shown.contains("init-only"), "{shown}");
    }

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!((count("0"), count("0-3,8"), count("0-1,4-7")), (Some(1), Some(5), Some(6)));
        assert_eq!((count(""), count("3-1"), count("x")), (None, None, None));
        let root = tree(&[("sys/devices/system/cpu/present", "0-63\n")]);
        assert_eq!(cpus(root.path()), 64);
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }
}
