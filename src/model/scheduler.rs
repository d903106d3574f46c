//! IPVS schedulers, by name.

use std::fmt;

/// Name of a scheduler, e.g. `wlc`: 1 to 15 bytes of `a-z`, `0-9`, `_`, `-` (IP_VS_SCHEDNAME_MAXLEN counts the zero).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler([u8; Scheduler::LONGEST]);

impl Scheduler {
    pub const LONGEST: usize = 15;

    /// `None` if the name cannot be one. Whether the kernel has it is another question.
    pub fn new(name: &str) -> Option<Scheduler> {
        let usable = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"_-".contains(&it);
        if name.is_empty() || name.len() > Self::LONGEST || !name.bytes().all(usable) {
            return None;
        }
        let mut bytes = [0; Self::LONGEST];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Some(Scheduler(bytes))
    }

    pub fn name(&self) -> &str {
        let end = self.0.iter().position(|it| *it == 0).unwrap_or(Self::LONGEST);
        self.0.get(..end).and_then(|it| std::str::from_utf8(it).ok()).unwrap_or_default()
    }
}

impl Default for Scheduler {
    /// `rr`, as kube-proxy has it.
    fn default() -> Scheduler {
        Scheduler::new("rr").unwrap_or(Scheduler([0; Self::LONGEST]))
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
