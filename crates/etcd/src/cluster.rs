//! The cluster as one thing to ask: endpoints in turn, the login's token, one
//! deadline. One request is one HTTP POST to one endpoint.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use ureq::{Agent, BodyReader, tls::TlsConfig};

use crate::{
    Error,
    config::{Config, ConfigError},
    fault::Fault,
    message::{
        AUTHENTICATE, Answer, AuthenticateRequest, AuthenticateResponse, Header, RANGE,
        RangeRequest, RangeResponse, Refusal,
    },
};

/// Between two rounds over the endpoints; doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// An idle connection is not used again after it.
const IDLE: Duration = Duration::from_secs(60);

/// Of a stream's answer that is not 200.
const REFUSAL_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub struct Cluster {
    pub config: Config,
    tls: Option<TlsConfig>,
    agent: Agent,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The endpoint that answered last, or is to be tried next.
    current: usize,
    token: Option<String>,
    /// Of the first answer; all others must be from it too.
    cluster: Option<u64>,
    /// By endpoint: whether it was seen to be of that cluster.
    known: Vec<bool>,
}

/// The attempts of one operation: which endpoint comes next, and until when.
#[derive(Debug)]
pub struct Attempts<'a> {
    cluster: &'a Cluster,
    end: Instant,
    pause: Duration,
    made: usize,
}

impl Cluster {
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let tls = match &config.tls {
            Some(tls) => Some(tls.read()?),
            None => None,
        };
        Ok(Self {
            agent: agent(&config, tls.as_ref()),
            tls,
            state: Mutex::new(State {
                current: 0,
                token: None,
                cluster: None,
                known: vec![false; config.endpoints.len()],
            }),
            config,
        })
    }

    /// How it is called in errors.
    pub fn object(&self, endpoint: usize) -> String {
        format!("etcd {}", self.config.endpoints[endpoint])
    }

    /// Asks what may be asked twice, until an endpoint answers or the time
    /// is over.
    pub fn read<Q: Serialize, A: Answer>(&self, path: &str, query: &Q) -> Result<A, Error> {
        self.read_fault(path, query)
            .map_err(|(endpoint, fault)| fault.tell(self.object(endpoint)))
    }

    pub fn read_fault<Q: Serialize, A: Answer>(
        &self,
        path: &str,
        query: &Q,
    ) -> Result<A, (usize, Fault)> {
        let mut attempts = self.attempts();
        loop {
            let endpoint = self.current();
            match self.post(endpoint, path, query, attempts.left()) {
                Ok(answer) => return Ok(answer),
                Err(fault) if fault.is_passing() && attempts.next(endpoint) => {
                    tracing::debug!(endpoint = self.object(endpoint), ?fault, "asking again");
                }
                Err(fault) => return Err((endpoint, fault)),
            }
        }
    }

    pub fn attempts(&self) -> Attempts<'_> {
        Attempts {
            cluster: self,
            end: Instant::now() + self.config.times.deadline,
            pause: PAUSE.0,
            made: 0,
        }
    }

    /// One request to one endpoint, within `time`, with a valid token.
    pub fn post<Q: Serialize, A: Answer>(
        &self,
        endpoint: usize,
        path: &str,
        query: &Q,
        time: Duration,
    ) -> Result<A, Fault> {
        let answer: A = self.with_token(endpoint, time, |token, time| {
            let url = self.config.url(&self.config.endpoints[endpoint], path);
            let body = send(&self.agent, &url, query, token, Some(time))?;
            let answer: A = serde_json::from_reader(BufReader::new(body)).map_err(misread)?;
            Ok(answer)
        })?;
        self.check_cluster(endpoint, answer.header())?;
        Ok(answer)
    }

    /// Opens a stream of lines, with an agent that whoever wants it to end
    /// shuts down.
    pub fn stream<Q: Serialize>(
        &self,
        agent: &Agent,
        endpoint: usize,
        path: &str,
        query: &Q,
    ) -> Result<Box<dyn BufRead>, Fault> {
        self.with_token(endpoint, self.config.times.request, |token, _| {
            let url = self.config.url(&self.config.endpoints[endpoint], path);
            let body = send(agent, &url, query, token, None)?;
            Ok(Box::new(BufReader::new(body)) as Box<dyn BufRead>)
        })
    }

    /// An agent for one stream.
    pub fn stream_agent(&self, silence: Duration) -> Agent {
        let times = &self.config.times;
        let config = settings(&self.config, self.tls.as_ref())
            .timeout_recv_response(Some(times.request))
            .timeout_send_request(Some(times.request))
            .timeout_send_body(Some(times.request))
            .timeout_per_read(Some(silence))
            .build();
        config.new_agent()
    }

    /// Asks an endpoint that was not asked before who it is: a write must not
    /// reach another cluster.
    pub fn acquaint(&self, endpoint: usize, time: Duration) -> Result<(), Fault> {
        if self.state().known[endpoint] {
            return Ok(());
        }
        self.probe(endpoint, time)
    }

    /// Whether the endpoint is part of a working cluster: a read that needs
    /// the leader's word.
    pub fn probe(&self, endpoint: usize, time: Duration) -> Result<(), Fault> {
        let query = RangeRequest {
            key: crate::below(&self.config.prefix, ""),
            keys_only: true,
            ..RangeRequest::default()
        };
        self.post(endpoint, RANGE, &query, time)
            .map(|_: RangeResponse| ())
    }

    pub fn check_cluster(&self, endpoint: usize, header: Option<&Header>) -> Result<(), Fault> {
        let Some(id) = header.map(|header| header.cluster_id).filter(|id| *id > 0) else {
            return Ok(());
        };
        let mut state = self.state();
        if *state.cluster.get_or_insert(id) != id {
            return Err(Fault::OtherCluster);
        }
        state.known[endpoint] = true;
        Ok(())
    }

    pub fn current(&self) -> usize {
        self.state().current
    }

    /// The endpoint failed: the next one is asked from now on, unless another
    /// thread moved on already.
    pub fn leave(&self, endpoint: usize) {
        let mut state = self.state();
        if state.current == endpoint {
            state.current = (endpoint + 1) % self.config.endpoints.len();
        }
    }

    pub fn forget_token(&self) {
        self.state().token = None;
    }

    /// Interrupts what is asked now and refuses what is asked later.
    pub fn shut_down(&self) {
        self.agent.clone().shutdown();
    }

    /// Calls with the token that there is; with a new one, once, where etcd
    /// does not take the old.
    fn with_token<T>(
        &self,
        endpoint: usize,
        time: Duration,
        mut call: impl FnMut(Option<&str>, Duration) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let end = Instant::now() + time;
        let token = self.token(endpoint, time)?;
        let result = call(token.as_deref(), left(end));
        match result {
            Err(fault) if fault.wants_login() && self.config.login.is_some() => {
                self.forget_token();
                let token = self.token(endpoint, left(end))?;
                call(token.as_deref(), left(end))
            }
            result => result,
        }
    }

    /// None where no user is set, or etcd asks for none.
    fn token(&self, endpoint: usize, time: Duration) -> Result<Option<String>, Fault> {
        let Some(login) = &self.config.login else {
            return Ok(None);
        };
        let token = self.state().token.clone();
        if token.is_some() {
            return Ok(token);
        }
        let query = AuthenticateRequest {
            name: &login.user,
            password: &login.password,
        };
        let endpoint = &self.config.endpoints[endpoint];
        let url = self.config.url(endpoint, AUTHENTICATE);
        let sent = send(&self.agent, &url, &query, None, Some(time));
        match sent {
            Ok(body) => {
                let answer: AuthenticateResponse =
                    serde_json::from_reader(BufReader::new(body)).map_err(misread)?;
                self.state().token = Some(answer.token.clone());
                Ok(Some(answer.token))
            }
            // So that clients can be given their users before it is enabled.
            Err(fault) if fault.is_auth_disabled() => {
                tracing::warn!(%endpoint, user = login.user, "etcd asks for no user: authentication is off");
                Ok(None)
            }
            // A login changes no row, whatever became of it.
            Err(Fault::Unanswered(reason)) => Err(Fault::Unreachable(reason)),
            Err(fault) => Err(fault),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempts<'_> {
    /// For the next request.
    pub fn left(&self) -> Duration {
        left(self.end).min(self.cluster.config.times.request)
    }

    /// Moves on from an endpoint that failed; false when the time is over.
    pub fn next(&mut self, endpoint: usize) -> bool {
        self.cluster.leave(endpoint);
        self.made += 1;
        if self
            .made
            .is_multiple_of(self.cluster.config.endpoints.len())
        {
            thread::sleep(self.pause.min(left(self.end)));
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        Instant::now() < self.end
    }
}

/// Never zero: that would mean no limit to some.
fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

fn agent(config: &Config, tls: Option<&TlsConfig>) -> Agent {
    settings(config, tls).build().new_agent()
}

fn settings(
    config: &Config,
    tls: Option<&TlsConfig>,
) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    let settings = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // The environment's proxy is for the web.
        .proxy(None)
        .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
        .max_idle_age(IDLE)
        .timeout_connect(Some(config.times.connect));
    match tls {
        Some(tls) => settings.tls_config(tls.clone()),
        None => settings,
    }
}

/// The answer's body when it is 200.
fn send<Q: Serialize>(
    agent: &Agent,
    url: &str,
    query: &Q,
    token: Option<&str>,
    time: Option<Duration>,
) -> Result<BodyReader<'static>, Fault> {
    let mut request = agent.post(url).content_type("application/json");
    if let Some(token) = token {
        request = request.header("Authorization", token);
    }
    // A member that lost its leader ends the stream, rather than to keep silent.
    request = request.header("Grpc-Metadata-hasleader", "true");
    if time.is_some() {
        request = request.config().timeout_global(time).build();
    }
    let body = serde_json::to_vec(query).map_err(|error| Fault::Unreachable(error.to_string()))?;
    let response = request.send(&body[..])?;
    let status = response.status();
    let mut body = response.into_body().into_reader();
    if status == 200 {
        return Ok(body);
    }
    let mut text = Vec::new();
    // Whatever of it arrives.
    let _ = (&mut body).take(REFUSAL_BYTES).read_to_end(&mut text);
    match serde_json::from_slice::<Refusal>(&text) {
        Ok(refusal) if !refusal.message.is_empty() => Err(Fault::Refused(refusal)),
        _ => Err(Fault::Foreign(format!("it answers with HTTP {status}"))),
    }
}

fn misread(error: serde_json::Error) -> Fault {
    use serde_json::error::Category;
    match error.classify() {
        Category::Io | Category::Eof => Fault::Unanswered(error.to_string()),
        Category::Syntax | Category::Data => {
            Fault::Foreign(format!("its answer is not understood: {error}"))
        }
    }
}
