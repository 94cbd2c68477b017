//! `weft policy apply --watch`: what the files say stays in force, through
//! files that are bad for a while and forwarders that come and go.

use std::{path::PathBuf, process::ExitCode, thread};

use serde_json::Value;
use weft_cni::forwarder::Client;
use weft_forwarder::watched::{PAUSE, Stamp, Watched};

use super::{Apply, files, give_all, objects, tell};

/// Most pauses between two tries of what failed: half a minute.
const PAUSES_MAX: u32 = 64;

struct Watch<'a> {
    args: &'a Apply,
    watched: Watched<Vec<(PathBuf, Stamp)>>,
    client: Option<Client>,
    /// What a forwarder took last.
    good: Option<Vec<Value>>,
    /// The forwarder at hand was given nothing yet.
    is_bare: bool,
    /// What the files say is yet to be given; only success ends it.
    is_due: bool,
    /// Pauses until the next try, and until the one after it if that fails.
    wait: u32,
    next_wait: u32,
    /// The last complaint, which is said once.
    said: String,
}

pub fn run(args: &Apply) -> anyhow::Result<ExitCode> {
    let mut watch = Watch {
        args,
        watched: Watched::new(files::version(&args.files)),
        client: None,
        good: None,
        is_bare: true,
        is_due: true,
        wait: 0,
        next_wait: 1,
        said: String::new(),
    };
    loop {
        watch.look()?;
        thread::sleep(PAUSE);
    }
}

impl Watch<'_> {
    /// Fails only if its own output does.
    fn look(&mut self) -> anyhow::Result<()> {
        if self.watched.is_new(files::version(&self.args.files)) {
            self.retry();
        }
        if let Err(fault) = self.reach() {
            self.complain(format!("{fault:#}; waiting for the forwarder"));
            return Ok(());
        }
        self.wait = self.wait.saturating_sub(1);
        if !self.is_due || self.wait > 0 {
            return Ok(());
        }
        match self.give() {
            Ok(applied) => {
                self.is_due = false;
                self.said.clear();
                tell(&applied, self.args.json).map(|_| ())
            }
            Err(fault) => {
                let stays = self.restore();
                self.complain(format!("{fault:#}; {stays}"));
                self.wait = self.next_wait;
                self.next_wait = (self.next_wait * 2).min(PAUSES_MAX);
                Ok(())
            }
        }
    }

    fn retry(&mut self) {
        (self.is_due, self.wait, self.next_wait) = (true, 0, 1);
    }

    /// A forwarder that went away is another once it is back.
    fn reach(&mut self) -> anyhow::Result<()> {
        let fault = match self.client.as_mut().map(Client::status) {
            Some(Ok(_)) => return Ok(()),
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        self.client = None;
        self.is_bare = true;
        match (self.args.target.connect(), fault) {
            (Ok(client), _) => self.client = Some(client),
            (Err(_), Some(fault)) => return Err(fault.into()),
            (Err(fault), None) => return Err(fault),
        }
        self.retry();
        Ok(())
    }

    fn give(&mut self) -> anyhow::Result<super::Applied> {
        let values = objects(self.args)?;
        let applied = self.hand_over(&values)?;
        self.good = Some(values);
        Ok(applied)
    }

    fn hand_over(&mut self, values: &[Value]) -> anyhow::Result<super::Applied> {
        let Some(client) = &mut self.client else {
            anyhow::bail!("the forwarder is away");
        };
        let applied = give_all(client, &self.args.source, values)?;
        self.is_bare = false;
        Ok(applied)
    }

    /// Gives a new forwarder what the last one took. Says what is in force.
    fn restore(&mut self) -> String {
        let source = &self.args.source;
        if !self.is_bare {
            return "what was in force stays".to_owned();
        }
        let Some(good) = self.good.take() else {
            return format!("nothing of {source} was given yet");
        };
        let given = self.hand_over(&good);
        self.good = Some(good);
        match given {
            Ok(_) => "the forwarder has what was in force before".to_owned(),
            Err(fault) => format!("nothing of {} is in force: {fault:#}", self.args.source),
        }
    }

    fn complain(&mut self, complaint: String) {
        if self.said != complaint {
            eprintln!("weft: {complaint}");
            self.said = complaint;
        }
    }
}
