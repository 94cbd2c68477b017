//! Processes by pid *and* start time: a pid alone may be somebody else's by
//! the time it is used.

use std::{
    fmt, fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// In clock ticks since boot (proc(5), stat, field 22).
    started: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} started at {}", self.pid, self.started)
    }
}

impl Process {
    /// None where no such process runs.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            started: start_if_running(&stat)?,
        })
    }

    /// What [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, started) = text.split_once(" started at ")?;
        Some(Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }

    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id()).ok_or_else(|| io::Error::other("/proc is not mounted"))
    }

    pub fn runs(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Signals it if it still runs.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        if !self.runs() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it ended in time.
    pub fn ends_within(self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Asks it to end, then makes it.
    pub fn end(self, patience: Duration) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if !self.ends_within(patience) {
            self.signal(Signal::SIGKILL)?;
            if !self.ends_within(patience) {
                return Err(io::Error::other(format!(
                    "process {} survives SIGKILL",
                    self.pid
                )));
            }
        }
        Ok(())
    }
}

/// All running processes whose environment holds `variable`, as `NAME=value`.
pub fn with_environment(variable: &str) -> io::Result<Vec<Process>> {
    which(|process| holds(process, variable))
}

/// All running processes that are so, as their directory in /proc tells.
pub fn which(are_so: impl Fn(&Path) -> bool) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // Known before it is looked at, so that a process that gets its pid
        // meanwhile is not taken for it.
        if let Some(process) = pid.and_then(Process::of)
            && are_so(&entry.path())
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// False also where the process is another user's: then it is not ours.
fn holds(process: &Path, variable: &str) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment
        .split(|&byte| byte == 0)
        .any(|entry| entry == variable.as_bytes())
}

/// The start time, unless the process is only waiting to be reaped.
fn start_if_running(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if ["Z", "X"].contains(&state) {
        return None;
    }
    // The state is field 3, the start time field 22.
    fields.nth(22 - 3 - 1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_that_looks_like_fields_is_no_field() {
        let stat = "7 (a) Z 1) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(start_if_running(stat), Some(4242));
        assert_eq!(
            start_if_running("7 (a) Z 1 7 7 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 4242"),
            None
        );
        assert_eq!(start_if_running("7 (a"), None);
    }

    #[test]
    fn only_the_same_process_is_signalled() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = Process::of(child.id()).expect("it runs");
        let earlier = Process {
            started: process.started.wrapping_sub(1),
            ..process
        };
        earlier.signal(Signal::SIGKILL).expect("nothing to do");
        assert!(process.runs() && !earlier.runs());
        assert_eq!(Process::parse(&process.to_string()), Some(process));
        process.signal(Signal::SIGKILL).expect("killed");
        // Not yet reaped, and yet no longer running.
        assert!(process.ends_within(Duration::from_secs(5)));
        child.wait().expect("reaped");
    }

    #[test]
    fn a_marked_process_is_found() {
        let mut child = Command::new("sleep")
            .arg("60")
            .env("WEFT_PROCESS_TEST", "marked")
            .stdout(Stdio::null())
            .spawn()
            .expect("sleep");
        let mark = || with_environment("WEFT_PROCESS_TEST=marked").expect("procfs");
        // A spawned child is let go before its environment is in place.
        let until = Instant::now() + Duration::from_secs(5);
        while mark().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let found = mark();
        assert_eq!(
            found.iter().map(|p| p.pid).collect::<Vec<_>>(),
            [child.id()]
        );
        assert_eq!(
            with_environment("WEFT_PROCESS_TEST=mark").expect("procfs"),
            []
        );
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}
