//! `process_*` and connection tracking's fill, read from /proc when somebody asks.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// Reads /proc at each scrape. What cannot be read is left out of the answer.
#[derive(Clone, Debug)]
pub(super) struct ProcessCollector {
    cpu: Counter,
    start_time: Gauge,
    resident: Gauge,
    virtual_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    conntrack_entries: Gauge,
    conntrack_limit: Gauge,
    /// Scrapes may overlap; the CPU counter must not go through reset and increase twice at once.
    one_at_a_time: Arc<Mutex<()>>,
}

impl ProcessCollector {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(ProcessCollector {
            cpu: Counter::new("process_cpu_seconds_total", "User and system CPU time, in seconds")?,
            start_time: Gauge::new(
                "process_start_time_seconds",
                "When the process started, in seconds since the epoch",
            )?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory, in bytes")?,
            virtual_memory: Gauge::new("process_virtual_memory_bytes", "Virtual memory, in bytes")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors")?,
            max_fds: Gauge::new("process_max_fds", "File descriptors that may be open")?,
            conntrack_entries: Gauge::new(
                "kubeferry_conntrack_entries",
                "Flows that connection tracking holds",
            )?,
            conntrack_limit: Gauge::new(
                "kubeferry_conntrack_entries_limit",
                "Flows that connection tracking may hold (nf_conntrack_max)",
            )?,
            one_at_a_time: Arc::default(),
        })
    }

    fn read_process(&self) -> Vec<MetricFamily> {
        let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|it| Stat::parse(&it))
        else {
            return Vec::new();
        };
        let ticks = as_f64(rustix::param::clock_ticks_per_second());
        let page = as_f64(u64::try_from(rustix::param::page_size()).unwrap_or(4096));
        self.cpu.reset();
        self.cpu.inc_by(as_f64(stat.cpu_ticks) / ticks);
        self.resident.set(as_f64(stat.resident_pages) * page);
        self.virtual_memory.set(as_f64(stat.virtual_bytes));
        let mut found =
            vec![self.cpu.collect(), self.resident.collect(), self.virtual_memory.collect()];
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|it| boot_time(&it)) {
            self.start_time.set(as_f64(boot) + as_f64(stat.start_ticks) / ticks);
            found.push(self.start_time.collect());
        }
        found.into_iter().flatten().collect()
    }

    fn read_descriptors(&self) -> Vec<MetricFamily> {
        let mut found = Vec::new();
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The directory itself is open while it is read.
            let open = u64::try_from(entries.count()).unwrap_or(0).saturating_sub(1);
            self.open_fds.set(as_f64(open));
            found.extend(self.open_fds.collect());
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.max_fds.set(limit.map_or(f64::INFINITY, as_f64));
        found.extend(self.max_fds.collect());
        found
    }

    fn read_conntrack(&self) -> Vec<MetricFamily> {
        let rows = [
            ("/proc/sys/net/netfilter/nf_conntrack_count", &self.conntrack_entries),
            ("/proc/sys/net/netfilter/nf_conntrack_max", &self.conntrack_limit),
        ];
        let mut found = Vec::new();
        for (path, gauge) in rows {
            if let Some(value) = fs::read_to_string(path).ok().and_then(|it| it.trim().parse().ok())
            {
                gauge.set(as_f64(value));
                found.extend(gauge.collect());
            }
        }
        found
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [
            &self.start_time,
            &self.resident,
            &self.virtual_memory,
            &self.open_fds,
            &self.max_fds,
            &self.conntrack_entries,
            &self.conntrack_limit,
        ];
        gauges.into_iter().flat_map(Collector::desc).chain(self.cpu.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.read_process();
        found.extend(self.read_descriptors());
        found.extend(self.read_conntrack());
        found
    }
}

/// What is of interest in `/proc/self/stat`, see proc(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the program's name in parentheses, which may itself hold blanks and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // `rest` begins with the third field.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Seconds since the epoch, from `/proc/stat`.
fn boot_time(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' values are doubles; above 2^53 the last digits do not matter"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_program_is_called() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194304 9 0 0 0 150 50 0 0 20 0 3 0 1234 1048576 256 18446744073709551615";
        let expected = Stat {
            cpu_ticks: 200,
            start_ticks: 1234,
            virtual_bytes: 1_048_576,
            resident_pages: 256,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000));
    }
}
