//! Durations as Go writes them: `30s`, `1h0m0s`, `250ms`. Flags and files use this spelling.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in nanoseconds; negative ones can be written and are refused by validation, not by parsing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    pub const ZERO: GoDuration = GoDuration(0);

    pub const fn from_secs(secs: u32) -> Self {
        GoDuration(secs as i64 * 1_000_000_000)
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The same as an unsigned duration; negative ones become zero.
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid duration {text:?}: write it like 30s, 1m30s or 1h");
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut total: i64 = 0;
        let mut rest = rest;
        while !rest.is_empty() {
            let (nanos, tail) = term(rest).ok_or_else(wrong)?;
            total = total.checked_add(nanos).ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(GoDuration(if negative { -total } else { total }))
    }
}

/// Reads one number and its unit, e.g. `1.5h`, and returns what follows.
fn term(text: &str) -> Option<(i64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(end);
    let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(end);
    let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(scale)?;
    let mut weight = scale;
    for digit in fraction.chars() {
        // Digits below a nanosecond weigh nothing, as in Go.
        weight /= 10;
        nanos = nanos.checked_add(weight.checked_mul(i64::from(digit.to_digit(10)?))?)?;
    }
    Some((nanos, tail))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (scale, unit) = match nanos {
            0..1_000 => return write!(f, "{nanos}ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let (mut whole, fraction) = (nanos / scale, nanos % scale);
        if scale == 1_000_000_000 {
            if whole >= 3600 {
                write!(f, "{}h", whole / 3600)?;
            }
            if whole >= 60 {
                write!(f, "{}m", whole / 60 % 60)?;
            }
            whole %= 60;
        }
        write!(f, "{whole}{}{unit}", decimals(fraction, scale))
    }
}

/// `.25` for a quarter of the unit; empty for nothing.
fn decimals(fraction: u64, scale: u64) -> String {
    if fraction == 0 {
        return String::new();
    }
    let digits = scale.ilog10() as usize;
    let padded = format!("{fraction:0digits$}");
    format!(".{}", padded.trim_end_matches('0'))
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// For `logging.flushFrequency`, which may also be a number of nanoseconds (kubeadm writes `0`).
pub(super) fn string_or_nanoseconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<GoDuration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Nanos(i64),
        Text(GoDuration),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Nanos(nanos) => GoDuration(nanos),
        Either::Text(duration) => duration,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_go_does() {
        check("30s", "30s", 30_000_000_000);
        check("0", "0s", 0);
        check("0s", "0s", 0);
        check("24h", "24h0m0s", 86_400_000_000_000);
        check("1h30m", "1h30m0s", 5_400_000_000_000);
        check("1.5h", "1h30m0s", 5_400_000_000_000);
        check("90s", "1m30s", 90_000_000_000);
        check("1m0.5s", "1m0.5s", 60_500_000_000);
        check("250ms", "250ms", 250_000_000);
        check("1500us", "1.5ms", 1_500_000);
        check("7ns", "7ns", 7);
        check("-1s", "-1s", -1_000_000_000);
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in ["", "-", "30", "s", ".s", "1d", "1 s", "1s ", "9999999999h", "1h-1m", "1.2.3s"]
        {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }

    #[track_caller]
    fn check(text: &str, printed: &str, nanos: i64) {
        let duration: GoDuration = text.parse().unwrap();
        assert_eq!((duration.0, duration.to_string().as_str()), (nanos, printed));
        assert_eq!(printed.parse(), Ok(duration), "what is printed can be read");
    }
}
