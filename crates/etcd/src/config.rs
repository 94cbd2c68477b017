//! Where the cluster is and how it is spoken to: parsed once, valid from
//! then on. Reads no file but those of TLS.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// Whom the machine trusts, where no authority is named.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, Clone)]
pub struct Config {
    /// At least one. The first is asked until it fails, then the next.
    pub endpoints: Vec<Endpoint>,
    /// Starts with a slash, ends without.
    pub prefix: String,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
    pub times: Times,
    pub limits: Limits,
}

/// `HOST:PORT`; an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

/// PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who signs the endpoints' certificates; none: whom the system trusts.
    pub authority: Option<PathBuf>,
    pub client: Option<ClientFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// An etcd user. The password is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// For a connection to one endpoint, TLS included.
    pub connect: Duration,
    /// For one request to one endpoint, from its start to its answer's end.
    pub request: Duration,
    /// For a whole operation over all endpoints; for a load, one page.
    pub deadline: Duration,
    /// A watched endpoint that was silent for so long is asked whether it
    /// still is part of a working cluster.
    pub pulse: Duration,
    /// What a store that was not heard for so long has left of its own, apart
    /// from rows, goes. In whole seconds.
    pub lease: Duration,
    /// Likewise for the rows of nodes that registered.
    pub tenure: Duration,
}

/// What the cluster accepts in one transaction; a cluster that was started
/// with other limits needs them here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `--max-txn-ops`
    pub operations: usize,
    /// `--max-request-bytes`
    pub request_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("store {url:?}: {reason}; write etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")]
    Url { url: String, reason: String },
    #[error("TLS file {}: {reason}; name a readable PEM file", .path.display())]
    Tls { path: PathBuf, reason: String },
}

impl Config {
    /// `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`, or `etcds://` for TLS.
    /// `usual` is the prefix of one that names none.
    pub fn parse(url: &str, usual: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: &str| ConfigError::Url {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong("no scheme is written"))?;
        let tls = match scheme {
            "etcd" => None,
            "etcds" => Some(Tls::default()),
            _ => return Err(wrong("the scheme is neither etcd nor etcds")),
        };
        let (hosts, prefix) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if hosts.contains('@') {
            // A URL is seen in the process list.
            return Err(wrong("user and password belong into the TOML file"));
        }
        let endpoints = hosts
            .split(',')
            .map(|host| host.parse().map_err(|reason: String| wrong(&reason)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            endpoints,
            prefix: parse_prefix(prefix, usual).map_err(|reason| wrong(&reason))?,
            tls,
            login: None,
            times: Times::default(),
            limits: Limits::default(),
        })
    }

    pub fn url(&self, endpoint: &Endpoint, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{endpoint}{path}")
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("endpoint {text:?} has no port, often 2379"))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            }
        };
        if !valid {
            return Err(format!("endpoint {text:?} has no valid host"));
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self(text.to_owned())),
            _ => Err(format!("endpoint {text:?} has no valid port")),
        }
    }
}

fn parse_prefix(text: &str, usual: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.is_empty() {
        return Ok(usual.to_owned());
    }
    let valid = text
        .split('/')
        .skip(1)
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic()));
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| format!("prefix {text:?} has empty parts or unprintable letters"))
}

impl Tls {
    pub fn read(&self) -> Result<TlsConfig, ConfigError> {
        let authority = match &self.authority {
            Some(path) => path.clone(),
            None => PathBuf::from(SYSTEM_AUTHORITIES),
        };
        let roots = RootCerts::new_with_certs(&certificates(&authority)?);
        let client = match &self.client {
            Some(files) => Some(files.read()?),
            None => None,
        };
        Ok(TlsConfig::builder()
            .root_certs(roots)
            .client_cert(client)
            .unversioned_rustls_crypto_provider(provider())
            .build())
    }
}

impl ClientFiles {
    fn read(&self) -> Result<ClientCert, ConfigError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKey::from_pem(&read(&self.key)?)
            .map_err(|_| tls_error(&self.key, "it holds no private key"))?;
        check_pair(&chain, &key).map_err(|error| tls_error(&self.key, &error.to_string()))?;
        Ok(ClientCert::new_with_certs(&chain, key))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// ureq would panic at the first connection.
fn check_pair(chain: &[Certificate<'static>], key: &PrivateKey) -> Result<(), rustls::Error> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = chain
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der().to_vec()));
    let key = PrivateKeyDer::try_from(key.der().to_vec())
        .map_err(|reason| rustls::Error::General(reason.to_owned()))?;
    rustls::sign::CertifiedKey::from_der(chain.collect(), key, &provider()).map(|_| ())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ConfigError> {
    let mut found = Vec::new();
    for item in parse_pem(&read(path)?) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(tls_error(path, &error.to_string())),
        }
    }
    if found.is_empty() {
        return Err(tls_error(path, "it holds no certificate"));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|error| tls_error(path, &error.to_string()))
}

fn tls_error(path: &Path, reason: &str) -> ConfigError {
    ConfigError::Tls {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Default for Times {
    /// etcd itself gives a request up after 7 s (5 s and two elections), so a
    /// request is given up before, and an operation outlasts an election.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(5),
            deadline: Duration::from_secs(12),
            pulse: Duration::from_secs(10),
            lease: Duration::from_secs(600),
            tenure: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    /// etcd's own defaults.
    fn default() -> Self {
        Self {
            operations: 128,
            request_bytes: 3 * 1024 * 1024 / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let config = Config::parse("etcd://10.0.0.1:2379,[::1]:2379,etcd-2.infra:1/a/b/", "/x")
            .expect("a valid URL");
        let hosts: Vec<_> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["10.0.0.1:2379", "[::1]:2379", "etcd-2.infra:1"]);
        assert_eq!(config.prefix, "/a/b");
        assert_eq!(config.tls, None);

        let config = Config::parse("etcds://h:2379", "/weft/x").expect("a valid URL");
        assert_eq!(config.prefix, "/weft/x");
        assert_eq!(config.tls, Some(Tls::default()));
        assert_eq!(
            config.url(&config.endpoints[0], "/v3/x"),
            "https://h:2379/v3/x"
        );
    }

    #[test]
    fn wrong_urls_are_refused_with_a_reason() {
        for (url, reason) in [
            ("h:2379", "no scheme"),
            ("http://h:2379", "neither etcd nor etcds"),
            ("etcd://", "has no port"),
            ("etcd://h", "has no port"),
            ("etcd://h:0", "no valid port"),
            ("etcd://h:65536", "no valid port"),
            ("etcd://:2379", "no valid host"),
            ("etcd://[::g]:2379", "no valid host"),
            ("etcd://h:2379,", "has no port"),
            ("etcd://h:2379//x", "prefix"),
            ("etcd://u:p@h:2379", "TOML"),
        ] {
            let error = Config::parse(url, "/x").expect_err(url).to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let login = Login {
            user: "weft".to_owned(),
            password: "secret".to_owned(),
        };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
