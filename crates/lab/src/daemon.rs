//! A process of a lab that serves a socket: started, awaited, and gone with
//! the lab, however the lab ends.
//!
//! The kernel kills a daemon with the *thread* that started it
//! (PR_SET_PDEATHSIG), so one thread starts them all and lives as long as
//! the lab.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const START_DEADLINE: Duration = Duration::from_secs(10);
const STOP_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Daemon {
    program: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`, which writes to the file `log`, and waits until it
    /// `answers`.
    pub(crate) fn start(
        starter: &Starter,
        program: &'static str,
        mut command: Command,
        log: PathBuf,
        answers: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let output = File::create(&log).with_context(|| format!("create {log:?}"))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A terminal's Ctrl-C is for the lab, which then ends its parts.
            .process_group(0);
        let child = starter
            .spawn(command)
            .with_context(|| format!("start {program}"))?;
        let mut daemon = Self {
            program,
            child,
            log,
        };
        daemon.wait_until(answers)?;
        Ok(daemon)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until(&mut self, answers: impl Fn() -> bool) -> anyhow::Result<()> {
        let program = self.program;
        let until = Instant::now() + START_DEADLINE;
        while !answers() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{program} ended at once ({status}): {}", self.last_words());
            }
            if Instant::now() > until {
                bail!(
                    "{program} does not answer after {} s: {}",
                    START_DEADLINE.as_secs(),
                    self.last_words()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        match lines.len() {
            0 => "it said nothing".to_owned(),
            len => lines[len.saturating_sub(5)..].join("\n"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Reaped below, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + STOP_DEADLINE;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The thread whose end is the daemons' end.
#[derive(Debug)]
pub(crate) struct Starter {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

impl Starter {
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<Order>();
        let thread = thread::Builder::new()
            .name("starter".to_owned())
            .spawn(move || {
                for (mut command, answer) in taken {
                    // Whoever asked waits for it.
                    let _ = answer.send(command.spawn());
                }
            })?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    fn spawn(&self, command: Command) -> anyhow::Result<Child> {
        let (answer, answered) = mpsc::channel();
        let orders = self.orders.as_ref().context("the lab is going down")?;
        orders
            .send((command, answer))
            .ok()
            .context("the starter thread ended")?;
        Ok(answered.recv().context("the starter thread ended")??)
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
