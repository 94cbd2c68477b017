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

use crate::{server::Limits, store::etcd};

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
        let mut config = etcd::Config::parse(&self.store)?;
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
        Ok(Config {
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
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_good_and_tells_the_defaults() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ipam.toml");
        let documented = Config::load(Some(&page)).expect("it is good");
        let usual = Config::load(None).expect("the defaults are good");
        assert_eq!(documented.socket, usual.socket);
        assert_eq!(documented.access.mode, usual.access.mode);
        assert_eq!(documented.store, usual.store);
        assert_eq!(documented.limits, usual.limits);
        assert_eq!(documented.pools.len(), 2);
    }

    #[test]
    fn keys_of_etcd_must_fit_the_url_and_each_other() {
        let etcd = |url: &str, keys: &str| {
            let text = format!("store = \"{url}\"\n[etcd]\n{keys}");
            let file: File = toml::from_str(&text).expect("TOML");
            file.complete().and_then(|config| config.etcd())
        };
        etcd("etcd://127.0.0.1:2379", "").expect("nothing more is needed");
        for (url, keys, told) in [
            ("etcd://127.0.0.1:2379", "authority = \"/ca\"", "etcds://"),
            ("etcds://127.0.0.1:2379", "key = \"/key\"", "give both"),
            ("etcd://127.0.0.1:2379", "user = \"weft\"", "give both"),
            ("http://127.0.0.1:2379", "", "etcd://HOST:PORT"),
        ] {
            let refusal = etcd(url, keys).expect_err(told).to_string();
            assert!(refusal.contains(told), "{refusal}");
        }
    }

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ipam.toml");
        fs::write(&path, text).expect("a file");
        Config::load(Some(&path)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_has_a_default() {
        let (file, none) = (load("").expect("empty"), Config::load(None).expect("none"));
        assert_eq!(file.limits, none.limits);
        assert_eq!(file.limits, Limits::default());
        assert_eq!(file.access, Access::default());
        assert_eq!(file.socket, Path::new(SOCKET_DEFAULT));
        assert_eq!((file.store.as_str(), file.pools.len()), (STORE_DEFAULT, 0));
    }

    #[test]
    fn all_keys_are_taken() {
        let text = "store = 'x.redb'\n\
            [socket]\npath = '/x'\nmode = '0660'\nowner = 'root'\ngroup = '7'\nuids = [1]\ngids = [2]\n\
            [etcd]\nuser = 'u'\npassword_file = '/p'\nauthority = '/a'\ncertificate = '/c'\nkey = '/k'\n\
            [limits]\nclients = 1\nrequests = 2\nbatch = 3\ndeadline_seconds = 4\nwatch_backlog_bytes = 5\n\
            [[pool]]\nname = 'a'\ncidr = '10.0.0.0/24'\n";
        let config = load(text).expect("all are known");
        let access = Access {
            mode: 0o660,
            owner: Some(0),
            group: Some(7),
            uids: vec![1],
            gids: vec![2],
        };
        let limits = Limits {
            clients: 1,
            requests: 2,
            batch: 3,
            deadline: Duration::from_secs(4),
            backlog: 5,
        };
        assert_eq!((config.access, config.limits), (access, limits));
        assert_eq!((config.store.as_str(), config.pools.len()), ("x.redb", 1));
        assert_eq!(config.etcd.user.as_deref(), Some("u"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let table = [
            ("colour = 1", "line 1"),
            ("store = 'x'\nstore = 'y'", "line 2"),
            ("\n[socket\n", "line 2"),
            ("[socket]\nmode = 432", "line 2"),
            ("[socket]\n\nuids = ['root']", "line 3"),
            ("[etcd]\npassword = 'x'", "line 2"),
            ("[limits]\nclients = -1", "line 2"),
            ("[[pool]]\nname = 'a'\ncidr = '10.0.0.0/33'", "line 3"),
            ("[[pool]]\nname = 'a'", "cidr"),
            ("[socket]\nmode = '0999'", "socket.mode"),
            ("[socket]\nmode = '1777'", "socket.mode"),
            ("[socket]\nowner = 'no such user'", "socket.owner"),
            ("[socket]\ngroup = 'no such group'", "socket.group"),
            ("[limits]\nclients = 0", "limits.clients"),
            ("[limits]\nrequests = 65537", "limits.requests"),
            ("[limits]\nbatch = 0", "limits.batch"),
            ("[limits]\ndeadline_seconds = 0", "limits.deadline_seconds"),
            (
                "[limits]\ndeadline_seconds = 3601",
                "limits.deadline_seconds",
            ),
            (
                "[limits]\nwatch_backlog_bytes = 0",
                "limits.watch_backlog_bytes",
            ),
        ];
        for (text, place) in table {
            let told = load(text).expect_err(text);
            assert!(told.contains(place), "{text}: {told}");
        }
        let missing = Config::load(Some(Path::new("/nowhere/ipam.toml")));
        let told = missing.expect_err("no file").to_string();
        assert!(told.contains("/nowhere/ipam.toml"), "{told}");
    }
}
