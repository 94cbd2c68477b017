//! What others write, on two threads: one reads etcd's stream and opens it
//! again, here or at another endpoint, where it broke off; the other asks a
//! silent endpoint whether it still works, and ends the stream if not.
//!
//! Invariant: each revision above the start is told once, in order and whole,
//! or `Missed` is told.

use std::{
    io::BufRead,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ureq::Agent;

use crate::{
    cluster::Cluster,
    end_of,
    fault::Fault,
    message::{Event, Refusal, WATCH, WatchCreate, WatchLine, WatchRequest},
    shared::Shared,
};

/// etcd tells its progress every ten to eleven minutes: a stream that is
/// silent for longer is dead, whatever the endpoint says on others.
const SILENCE: Duration = Duration::from_secs(12 * 60);

/// Between two tries to open the stream; doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What is told; false ends the watch.
pub type Tell = Box<dyn FnMut(Told) -> bool + Send>;

#[derive(Debug)]
pub enum Told {
    /// All events of one revision.
    Events { revision: u64, events: Vec<Event> },
    /// Not all is known any more: nothing follows. Load and watch anew.
    Missed,
}

/// Dropping it ends both threads, at once where they wait.
#[derive(Debug)]
pub struct Watch(Arc<Shared<Current>>);

/// The stream that is read now.
type Current = Option<Stream>;

#[derive(Debug)]
struct Stream {
    endpoint: usize,
    agent: Agent,
    /// When its endpoint last showed that it works.
    heard: Instant,
}

/// Why a stream is not read on.
enum End {
    /// To be opened again.
    Broken(Fault),
    Missed,
    Stopped,
}

impl Watch {
    pub fn start(cluster: Arc<Cluster>, revision: u64, tell: Tell) -> Self {
        let shared = Arc::<Shared<Current>>::default();
        let (reading, asking) = (Arc::clone(&shared), Arc::clone(&shared));
        let asked = Arc::clone(&cluster);
        let spawned = thread::Builder::new()
            .name("etcd watch".to_owned())
            .spawn(move || reading.read(&cluster, revision, tell))
            .and_then(|_| {
                thread::Builder::new()
                    .name("etcd pulse".to_owned())
                    .spawn(move || asking.ask(&asked))
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the watch: others' changes are seen late");
        }
        Self(shared)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Shared<Current> {
    fn read(&self, cluster: &Cluster, revision: u64, mut tell: Tell) {
        let mut reached = revision;
        let mut pause = PAUSE.0;
        loop {
            let endpoint = cluster.current();
            let agent = cluster.stream_agent(SILENCE);
            if !self.open(endpoint, agent.clone()) {
                return;
            }
            let before = reached;
            let end = self.follow(cluster, endpoint, &agent, &mut reached, &mut tell);
            if reached > before {
                pause = PAUSE.0;
            }
            match end {
                End::Stopped => {
                    self.end();
                    return;
                }
                End::Missed => {
                    self.tell(&mut tell, Told::Missed);
                    self.end();
                    return;
                }
                End::Broken(fault) => {
                    // A watch with an expired token is told that it may not.
                    if fault.wants_login() || fault.says("permission denied") {
                        cluster.forget_token();
                    }
                    tracing::info!(endpoint = cluster.object(endpoint), ?fault, "watching anew");
                    cluster.leave(endpoint);
                }
            }
            if self.wait(pause) {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Reads one stream to its end.
    fn follow(
        &self,
        cluster: &Cluster,
        endpoint: usize,
        agent: &Agent,
        reached: &mut u64,
        tell: &mut Tell,
    ) -> End {
        let query = request(&cluster.config.prefix, *reached);
        let mut stream = match cluster.stream(agent, endpoint, WATCH, &query) {
            Ok(stream) => stream,
            Err(fault) => return End::Broken(fault),
        };
        loop {
            let line = match read_line(&mut *stream) {
                Ok(line) => line,
                Err(fault) => return End::Broken(fault),
            };
            self.heard();
            match self.take(cluster, endpoint, line, reached, tell) {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    fn take(
        &self,
        cluster: &Cluster,
        endpoint: usize,
        line: WatchLine,
        reached: &mut u64,
        tell: &mut Tell,
    ) -> Result<(), End> {
        if let Some(refusal) = line.error {
            return Err(End::Broken(Fault::Refused(refusal)));
        }
        let Some(result) = line.result else {
            return Ok(());
        };
        cluster
            .check_cluster(endpoint, Some(&result.header))
            .map_err(End::Broken)?;
        if result.compact_revision > 0 {
            return Err(End::Missed);
        }
        if result.canceled {
            return Err(End::Broken(Fault::Refused(Refusal {
                code: 0,
                message: result.cancel_reason,
            })));
        }
        if result.events.is_empty() && !result.created {
            *reached = result.header.revision.max(*reached);
        }
        for (revision, events) in by_revision(result.events, *reached) {
            *reached = revision;
            if !self.tell(tell, Told::Events { revision, events }) {
                return Err(End::Stopped);
            }
        }
        Ok(())
    }

    /// Asks silent endpoints, until stopped.
    fn ask(&self, cluster: &Cluster) {
        let pulse = cluster.config.times.pulse;
        while !self.wait(pulse / 2) {
            let silent = {
                let state = self.state();
                state
                    .value
                    .as_ref()
                    .filter(|stream| stream.heard.elapsed() >= pulse)
                    .map(|stream| (stream.endpoint, stream.agent.clone()))
            };
            let Some((endpoint, agent)) = silent else {
                continue;
            };
            match cluster.probe(endpoint, cluster.config.times.request) {
                Ok(()) => self.heard(),
                Err(fault) => {
                    tracing::info!(endpoint = cluster.object(endpoint), ?fault, "no pulse");
                    agent.shutdown();
                }
            }
        }
    }

    /// False when the watch was stopped.
    fn open(&self, endpoint: usize, agent: Agent) -> bool {
        let mut state = self.state();
        state.value = Some(Stream {
            endpoint,
            agent,
            heard: Instant::now(),
        });
        !state.stopped
    }

    fn heard(&self) {
        if let Some(stream) = &mut self.state().value {
            stream.heard = Instant::now();
        }
    }

    /// False when the watch was stopped, before or by whoever is told.
    fn tell(&self, tell: &mut Tell, told: Told) -> bool {
        let stopped = self.state().stopped;
        !stopped && tell(told)
    }

    fn end(&self) {
        self.stop();
        if let Some(stream) = self.state().value.take() {
            stream.agent.shutdown();
        }
    }
}

/// From `reached` itself on, whose events are known: a watch from a revision
/// that was just compacted would not be told that this revision's deletions
/// are gone. From the one before, it is.
fn request(prefix: &str, reached: u64) -> WatchRequest {
    WatchRequest {
        create_request: WatchCreate {
            key: crate::below(prefix, ""),
            range_end: end_of(prefix),
            start_revision: reached.max(1),
            progress_notify: true,
        },
    }
}

fn read_line(stream: &mut dyn BufRead) -> Result<WatchLine, Fault> {
    let mut line = Vec::new();
    stream
        .read_until(b'\n', &mut line)
        .map_err(|error| Fault::Unanswered(error.to_string()))?;
    if line.last() != Some(&b'\n') {
        return Err(Fault::Unanswered("the stream ended".to_owned()));
    }
    serde_json::from_slice(&line)
        .map_err(|error| Fault::Foreign(format!("a stream's line is not understood: {error}")))
}

/// The events that are new, cut where the revision changes.
fn by_revision(events: Vec<Event>, reached: u64) -> Vec<(u64, Vec<Event>)> {
    let mut commits: Vec<(u64, Vec<Event>)> = Vec::new();
    for event in events {
        let revision = event.kv.mod_revision;
        if revision <= reached {
            continue;
        }
        match commits.last_mut() {
            Some((last, events)) if *last == revision => events.push(event),
            _ => commits.push((revision, vec![event])),
        }
    }
    commits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{EventKind, KeyValue};

    #[test]
    fn events_of_one_revision_stay_together_and_known_ones_are_left_out() {
        let event = |revision: u64| Event {
            kind: EventKind::Put,
            kv: KeyValue {
                mod_revision: revision,
                ..KeyValue::default()
            },
        };
        let events = [3, 4, 4, 5, 7, 7].map(event).into();
        let sizes: Vec<_> = by_revision(events, 3)
            .into_iter()
            .map(|(revision, events)| (revision, events.len()))
            .collect();
        assert_eq!(sizes, [(4, 2), (5, 1), (7, 2)]);
    }

    #[test]
    fn half_a_line_is_a_broken_stream() {
        let mut stream = &b"{\"result\":{}}\n{\"resu"[..];
        assert!(read_line(&mut stream).is_ok());
        assert!(matches!(read_line(&mut stream), Err(Fault::Unanswered(_))));
    }
}
