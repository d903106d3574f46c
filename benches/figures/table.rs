//! The figures: printed as a table, kept as JSON in `target/bench.json`.

use std::path::PathBuf;
use std::{env, fs};

use serde_json::{Value, json};

use super::program::output;

/// One measurement and what it should be at most.
pub(crate) struct Figure {
    pub(crate) what: String,
    /// The size of the cluster.
    pub(crate) at: String,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
    pub(crate) must: Option<f64>,
    pub(crate) want: Option<f64>,
}

impl Figure {
    pub(crate) fn new(what: &str, at: impl ToString, measured: f64, unit: &'static str) -> Figure {
        Figure { what: what.to_owned(), at: at.to_string(), measured, unit, must: None, want: None }
    }

    pub(crate) fn must(self, must: f64) -> Figure {
        Figure { must: Some(must), ..self }
    }

    pub(crate) fn want(self, want: f64) -> Figure {
        Figure { want: Some(want), ..self }
    }

    fn verdict(&self) -> &'static str {
        match (self.must, self.want) {
            (Some(must), _) if self.measured > must => "MISSED",
            (_, Some(want)) if self.measured <= want => "as wanted",
            (Some(_), _) => "as required",
            (None, Some(_)) => "not as wanted",
            (None, None) => "",
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "at": self.at, "measured": self.measured, "unit": self.unit,
            "must": self.must, "want": self.want, "verdict": self.verdict(),
        })
    }

    fn row(&self) -> [String; 6] {
        let limit = |it: Option<f64>| it.map_or(String::new(), |it| format!("≤ {}", number(it)));
        let measured = format!("{} {}", number(self.measured), self.unit);
        [
            self.what.clone(),
            self.at.clone(),
            measured.trim_end().to_owned(),
            limit(self.must),
            limit(self.want),
            self.verdict().to_owned(),
        ]
    }
}

/// Three digits that count, or all before the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Prints the figures as a Markdown table, as the README has it.
pub(crate) fn show(figures: &[Figure]) {
    let machine = machine();
    let text = |name: &str| machine[name].as_str().unwrap_or_default().to_owned();
    println!(
        "\nMeasured on {}: Linux {}, {} CPUs ({}), load {}, {}.",
        text("date"),
        text("kernel"),
        machine["cpus"],
        text("cpu"),
        text("load").split(' ').next().unwrap_or_default(),
        text("nft"),
    );
    print(figures);
}

/// Writes the figures to the JSON file.
pub(crate) fn keep(figures: &[Figure]) {
    let machine = machine();
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let path = target.join("bench.json");
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    let all = json!({ "machine": machine, "figures": figures });
    fs::write(&path, format!("{all:#}\n")).unwrap();
    println!("\nalso in {}", path.display());
}

fn print(figures: &[Figure]) {
    let head = ["what", "at", "measured", "must", "want", "verdict"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(figures.iter().map(Figure::row)).collect();
    let wide = |column: usize| rows.iter().map(|it| it[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(wide).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
    };
    println!("\n{}", line(&rows[0]));
    let rule: Vec<String> = widths.iter().map(|it| "-".repeat(*it)).collect();
    println!("| {} |", rule.join(" | "));
    rows[1..].iter().for_each(|row| println!("{}", line(row)));
}

fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|it| it.strip_prefix("model name")?.split_once(": "));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "date": output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "kernel": output("uname", &["-r"]),
        "nft": output("nft", &["--version"]),
        "cpus": cpus,
        "cpu": model.map(|it| it.1),
        "load": load.trim(),
    })
}
