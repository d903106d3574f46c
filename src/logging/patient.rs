//! Streams for a log that keeps nobody waiting.
//!
//! Whoever reads our output may have stopped: a container runtime that hangs, a journal whose disk does. A pipe takes 64 KiB
//! then, and the next line would stop whoever writes it, which is the loop that programs the kernel. So lines are lost
//! instead, as they are on a full disk, and their number is told as soon as somebody reads again.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A pipe that has room has room for a page.
const PIECE: usize = 4_096;

/// How long the first line waits that finds no room: a reader may be behind for a moment.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
const NONE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Lines, or parts of long ones, that nobody has read since it was last told.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes to a stream what it has room for.
#[derive(Debug)]
pub(super) struct Patient<W> {
    pub(super) stream: W,
    /// Whether lines are JSON.
    pub(super) json: bool,
}

impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room() {
            LOST.fetch_add(1, Ordering::Relaxed);
            return Ok(bytes.len());
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.stream.write_all(confession(lost, self.json).as_bytes())?;
        }
        // The rest asks for room again.
        self.stream.write(bytes.get(..PIECE).unwrap_or(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<W: AsFd> Patient<W> {
    fn has_room(&self) -> bool {
        let patience = if LOST.load(Ordering::Relaxed) > 0 { NONE } else { PATIENCE };
        let mut streams = [PollFd::new(&self.stream, PollFlags::OUT)];
        // What cannot be asked is tried; an error of the stream is for the writing to find.
        !matches!(poll(&mut streams, Some(&patience)), Ok(0))
    }
}

fn confession(lost: u64, json: bool) -> String {
    let now = Timestamp::now();
    let words = "log lines are lost, because nobody has read them";
    if json {
        format!(
            "{{\"timestamp\":\"{now:.6}\",\"level\":\"WARN\",\"message\":\"{words}\",\"lost\":{lost}}}\n"
        )
    } else {
        format!("{now:.6}  WARN {words} lost={lost}\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_full_pipe_loses_lines_and_says_so_when_it_is_read_again() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Patient { stream: writer, json: true };
        let line = [&[b'x'; 9_999][..], b"\n"].concat();
        for _ in 0..100 {
            log.write_all(&line).unwrap();
        }
        let mut text = vec![0; 32_768];
        reader.read_exact(&mut text).unwrap();
        log.write_all(b"again\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let lines: Vec<&str> = rest.lines().collect();
        assert_eq!(lines.last(), Some(&"again"));
        let told = &lines[lines.len() - 2];
        let told: serde_json::Value =
            serde_json::from_str(&told[told.find('{').unwrap()..]).unwrap();
        assert!(told["lost"].as_u64().unwrap() > 90, "{told}");
    }
}
