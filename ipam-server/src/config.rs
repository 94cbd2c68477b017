//! The configuration file: TOML, every key optional, no key unknown. The
//! command line wins over it. What leaves this file is within its limits.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Group, User};
use serde::Deserialize;
use weft_api::ipam::Pool;
use weft_socket::guard::Access;

use crate::{
    server::Limits,
    store::etcd,
    writer::{GRACE, NODE_GRACE},
};

const SOCKET_DEFAULT: &str = "/run/weft/ipam.sock";
const STORE_DEFAULT: &str = "/var/lib/weft/ipam.redb";

#[derive(Debug, Clone)]
pub struct Config {
    pub socket: PathBuf,
    pub access: Access,
    /// A file, or `etcd://…`.
    pub store: String,
    etcd: EtcdKeys,
    pub limits: Limits,
    /// How old what `gc` frees is at least.
    pub gc_grace: Duration,
    /// How long a node that registered stays known while it is not heard.
    pub node_grace: Duration,
    /// Made at the start where they are not there yet.
    pub pools: Vec<Pool>,
}

/// What the URL of an etcd does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EtcdKeys {
    user: Option<String>,
    /// Holds the password, so that the configuration may be shown.
    password_file: Option<PathBuf>,
    /// PEM files.
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}: {error}; name a readable file or leave it out", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {problem}", path.display())]
    Parse {
        path: PathBuf,
        problem: toml::de::Error,
    },
    #[error(transparent)]
    Etcd(#[from] etcd::ConfigError),
    #[error("{key}: {problem}; {remedy}")]
    Value {
        key: &'static str,
        problem: String,
        remedy: &'static str,
    },
}

impl Config {
    /// The file at `path`, or the defaults without one.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return File::default().complete();
        };
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        let file: File = toml::from_str(&text).map_err(|problem| ConfigError::Parse {
            path: path.to_owned(),
            problem,
        })?;
        file.complete()
    }

    /// How the store is reached, where it is an etcd.
    pub fn etcd(&self) -> Result<etcd::Config, ConfigError> {
        let mut config = etcd::Config::parse(&self.store, etcd::PREFIX)?;
        config.times.tenure = self.node_grace;
        config.login = self.etcd.login()?;
        match (&mut config.tls, self.etcd.tls()?) {
            (Some(tls), Some(given)) => *tls = given,
            (None, Some(_)) => {
                return Err(ConfigError::Value {
                    key: "etcd.authority, certificate, key",
                    problem: format!("{} does not speak TLS", self.store),
                    remedy: "write etcds://, or leave the keys out",
                });
            }
            (_, None) => {}
        }
        Ok(config)
    }
}

impl EtcdKeys {
    fn login(&self) -> Result<Option<etcd::Login>, ConfigError> {
        match (&self.user, &self.password_file) {
            (None, None) => Ok(None),
            (Some(user), Some(path)) => {
                let password = fs::read_to_string(path).map_err(|error| ConfigError::Read {
                    path: path.clone(),
                    error,
                })?;
                Ok(Some(etcd::Login {
                    user: user.clone(),
                    password: password.trim_end_matches(['\r', '\n']).to_owned(),
                }))
            }
            _ => Err(ConfigError::Value {
                key: "etcd.user, password_file",
                problem: "one is given without the other".to_owned(),
                remedy: "give both, or none",
            }),
        }
    }

    fn tls(&self) -> Result<Option<etcd::Tls>, ConfigError> {
        let client = match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(etcd::ClientFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            _ => {
                return Err(ConfigError::Value {
                    key: "etcd.certificate, key",
                    problem: "one is given without the other".to_owned(),
                    remedy: "give both, or none",
                });
            }
        };
        let authority = self.authority.clone();
        let given = authority.is_some() || client.is_some();
        Ok(given.then_some(etcd::Tls { authority, client }))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    store: Option<String>,
    gc_grace_seconds: Option<usize>,
    node_grace_seconds: Option<usize>,
    socket: SocketKeys,
    etcd: EtcdKeys,
    limits: LimitKeys,
    #[serde(rename = "pool")]
    pools: Vec<Pool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SocketKeys {
    path: Option<PathBuf>,
    mode: Option<String>,
    /// Names or numbers.
    owner: Option<String>,
    group: Option<String>,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitKeys {
    clients: Option<usize>,
    requests: Option<usize>,
    batch: Option<usize>,
    deadline_seconds: Option<usize>,
    watch_backlog_bytes: Option<usize>,
}

impl File {
    fn complete(self) -> Result<Config, ConfigError> {
        let usual_grace = usize::try_from(GRACE.as_secs()).unwrap_or(usize::MAX);
        let grace = within(
            "gc_grace_seconds",
            self.gc_grace_seconds,
            usual_grace,
            86400,
        )?;
        let usual = usize::try_from(NODE_GRACE.as_secs()).unwrap_or(usize::MAX);
        let node_grace = within("node_grace_seconds", self.node_grace_seconds, usual, 3600)?;
        Ok(Config {
            node_grace: Duration::from_secs(node_grace as u64),
            gc_grace: Duration::from_secs(grace as u64),
            access: self.socket.access()?,
            socket: self.socket.path.unwrap_or_else(|| SOCKET_DEFAULT.into()),
            store: self.store.unwrap_or_else(|| STORE_DEFAULT.into()),
            etcd: self.etcd,
            limits: self.limits.complete()?,
            pools: self.pools,
        })
    }
}

impl SocketKeys {
    fn access(&self) -> Result<Access, ConfigError> {
        Ok(Access {
            mode: self.mode()?,
            owner: self.owner.as_deref().map(uid_of).transpose()?,
            group: self.group.as_deref().map(gid_of).transpose()?,
            uids: self.uids.clone(),
            gids: self.gids.clone(),
        })
    }

    fn mode(&self) -> Result<u32, ConfigError> {
        let Some(text) = &self.mode else {
            return Ok(Access::default().mode);
        };
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(ConfigError::Value {
                key: "socket.mode",
                problem: format!("{text:?} is no file mode"),
                remedy: "give three octal digits, as \"0660\"",
            }),
        }
    }
}

impl LimitKeys {
    fn complete(self) -> Result<Limits, ConfigError> {
        let usual = Limits::default();
        let usual_deadline = usize::try_from(usual.deadline.as_secs()).unwrap_or(usize::MAX);
        let deadline = within(
            "limits.deadline_seconds",
            self.deadline_seconds,
            usual_deadline,
            3600,
        )?;
        Ok(Limits {
            clients: within("limits.clients", self.clients, usual.clients, 65536)?,
            requests: within("limits.requests", self.requests, usual.requests, 65536)?,
            batch: within("limits.batch", self.batch, usual.batch, 65536)?,
            deadline: Duration::from_secs(deadline as u64),
            backlog: within(
                "limits.watch_backlog_bytes",
                self.watch_backlog_bytes,
                usual.backlog,
                1 << 30,
            )?,
        })
    }
}

fn within(
    key: &'static str,
    given: Option<usize>,
    usual: usize,
    most: usize,
) -> Result<usize, ConfigError> {
    match given.unwrap_or(usual) {
        value if (1..=most).contains(&value) => Ok(value),
        value => Err(ConfigError::Value {
            key,
            problem: format!("{value} is out of range 1 to {most}"),
            remedy: "give a value within it",
        }),
    }
}

fn uid_of(text: &str) -> Result<u32, ConfigError> {
    let by_name = || {
        User::from_name(text)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw())
    };
    text.parse()
        .ok()
        .or_else(by_name)
        .ok_or_else(|| ConfigError::Value {
            key: "socket.owner",
            problem: format!("user {text:?} is unknown"),
            remedy: "give a user's name or number",
        })
}

fn gid_of(text: &str) -> Result<u32, ConfigError> {
    let by_name = || {
        Group::from_name(text)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    };
    text.parse()
        .ok()
        .or_else(by_name)
        .ok_or_else(|| ConfigError::Value {
            key: "socket.group",
            problem: format!("group {text:?} is unknown"),
            remedy: "give a group's name or number",
        })
}

#[cfg(test)]
mod tests;
