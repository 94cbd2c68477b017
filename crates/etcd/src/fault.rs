//! What one request to one endpoint can come to, other than its answer: what
//! it means for the request, and what a person is told.

use std::io;

use crate::{Error, message::Refusal};

#[derive(Debug)]
pub enum Fault {
    /// Nothing was asked.
    Unreachable(String),
    /// It was asked, or part of it was, and there is no answer.
    Unanswered(String),
    /// etcd's own answer.
    Refused(Refusal),
    /// The answer is not that of etcd's gateway.
    Foreign(String),
    /// A member of another cluster answered.
    OtherCluster,
}

/// gRPC's status codes, as far as they matter here.
mod code {
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const NOT_FOUND: u32 = 5;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const UNAUTHENTICATED: u32 = 16;
}

impl Fault {
    /// Whether a write may have been made, or may still be.
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Unreachable(_) => false,
            Self::Unanswered(_) | Self::Foreign(_) | Self::OtherCluster => true,
            Self::Refused(refusal) => !matches!(
                refusal.code,
                code::INVALID_ARGUMENT
                    | code::NOT_FOUND
                    | code::PERMISSION_DENIED
                    | code::RESOURCE_EXHAUSTED
                    | code::FAILED_PRECONDITION
                    | code::OUT_OF_RANGE
                    | code::UNIMPLEMENTED
                    | code::UNAUTHENTICATED
            ),
        }
    }

    /// Whether another endpoint, or the same one later, may do better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unanswered(_) | Self::Foreign(_) => true,
            Self::OtherCluster => false,
            Self::Refused(refusal) => {
                self.may_be_done() || refusal.message.contains("too many requests")
            }
        }
    }

    /// The token is of the past: etcd restarted, it expired, or the users
    /// were changed.
    pub fn wants_login(&self) -> bool {
        self.says("invalid auth token") || self.says("revision in header is old")
    }

    pub fn is_compacted(&self) -> bool {
        self.says("required revision has been compacted")
    }

    pub fn is_without_lease(&self) -> bool {
        self.says("requested lease not found")
    }

    pub fn is_auth_disabled(&self) -> bool {
        self.says("authentication is not enabled")
    }

    pub fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.message.contains(words))
    }

    pub fn tell(self, object: String) -> Error {
        let hint = self.hint().to_owned();
        let away = self.is_away();
        let reason = match self {
            Self::Unreachable(reason) | Self::Unanswered(reason) | Self::Foreign(reason) => reason,
            Self::Refused(refusal) => refusal.message,
            Self::OtherCluster => "it belongs to another cluster than before".to_owned(),
        };
        Error {
            object,
            reason,
            hint,
            away,
        }
    }

    /// Whether waiting is the remedy, rather than another configuration.
    fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(reason) | Self::Unanswered(reason) => !is_certificate(reason),
            Self::Refused(_) => self.is_passing(),
            Self::Foreign(_) | Self::OtherCluster => false,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable(reason) if is_certificate(reason) => {
                "name the authority that signed etcd's certificate, and a host that it is for"
            }
            Self::Unreachable(_) => "check that etcd runs and that the address is right",
            Self::Unanswered(reason) if is_certificate(reason) => {
                "name a client certificate that etcd trusts"
            }
            // How the refusal of a client certificate looks when the reset
            // overtakes the alert.
            Self::Unanswered(reason) if is_hang_up(reason) => {
                "check etcd's health and the network to it; over TLS, \
                 name a client certificate that etcd trusts"
            }
            Self::Unanswered(_) => "check etcd's health and the network to it",
            Self::Foreign(_) => {
                "name a client address of etcd 3.4 or newer with its JSON gateway on, \
                 and etcds:// where it speaks TLS"
            }
            Self::OtherCluster => "name members of one cluster only; after a restore, restart weft",
            Self::Refused(_) => self.refusal_hint(),
        }
    }

    fn refusal_hint(&self) -> &'static str {
        REFUSALS
            .iter()
            .find(|(words, _)| self.says(words))
            .map_or("see etcd's log", |(_, hint)| hint)
    }
}

/// What etcd says, and what to do.
const REFUSALS: [(&str, &str); 14] = [
    (
        "database space exceeded",
        "compact and defragment etcd or raise its quota, then run `etcdctl alarm disarm`",
    ),
    (
        "permission denied",
        "grant the etcd user readwrite on the prefix (`etcdctl role grant-permission --prefix`)",
    ),
    (
        "user name is empty",
        "etcd asks for a user: set user and password",
    ),
    ("authentication failed", "check user and password"),
    (
        "invalid auth token",
        "check that etcd's members agree on the token kind",
    ),
    (
        "request is too large",
        "raise etcd's --max-request-bytes, or lower request_bytes here to what it is",
    ),
    (
        "too many operations",
        "raise etcd's --max-txn-ops, or lower operations here to what it is",
    ),
    ("too many requests", "etcd is overloaded: try again later"),
    (
        "no leader",
        "a majority of etcd's members must run and reach each other",
    ),
    (
        "leader changed",
        "try again: etcd has just elected a leader",
    ),
    (
        "timed out",
        "check the load and the disks of etcd's members, and that a majority runs",
    ),
    (
        "server stopped",
        "check that etcd runs: it is shutting down",
    ),
    (
        "corrupt",
        "etcd found its data corrupt: restore the member from a healthy one",
    ),
    (
        "future revision",
        "etcd's data went back in time: restart weft after a restore",
    ),
];

impl From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Self {
        use ureq::{Error, Timeout};
        let reason = match &error {
            Error::Timeout(Timeout::Connect) => "no connection within the time for it".to_owned(),
            Error::Timeout(_) => "no answer within the time for it".to_owned(),
            Error::Rustls(error) => format!("TLS failed: {error}"),
            Error::Io(error) => error.to_string(),
            _ => error.to_string(),
        };
        match error {
            Error::HostNotFound | Error::ConnectionFailed | Error::Tls(_) => {
                Self::Unreachable(reason)
            }
            Error::Timeout(Timeout::Resolve | Timeout::Connect) => Self::Unreachable(reason),
            Error::Rustls(_) => Self::Unreachable(reason),
            Error::Io(error) if never_left(&error) => Self::Unreachable(reason),
            Error::Protocol(_) | Error::LargeResponseHeader(..) => Self::Foreign(reason),
            _ => Self::Unanswered(reason),
        }
    }
}

fn never_left(error: &io::Error) -> bool {
    use io::ErrorKind;
    // The handshake's errors come wrapped; a refused *client* certificate is
    // only learnt by the first read, with the request already sent.
    let handshake = error
        .get_ref()
        .is_some_and(|inner| is_certificate(&inner.to_string()) && !is_alert(&inner.to_string()));
    handshake
        || matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable
        )
}

fn is_certificate(reason: &str) -> bool {
    reason.to_ascii_lowercase().contains("certificate")
}

fn is_hang_up(reason: &str) -> bool {
    reason.contains("Broken pipe") || reason.contains("reset by peer")
}

fn is_alert(reason: &str) -> bool {
    reason.contains("fatal alert")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u32, message: &str) -> Fault {
        Fault::Refused(Refusal {
            code,
            message: message.to_owned(),
        })
    }

    #[test]
    fn a_write_is_in_doubt_exactly_when_etcd_may_have_proposed_it() {
        for (fault, may_be_done, passing) in [
            (Fault::Unreachable("refused".into()), false, true),
            (Fault::Unanswered("reset".into()), true, true),
            (Fault::OtherCluster, true, false),
            (refused(14, "etcdserver: request timed out"), true, true),
            (refused(14, "etcdserver: leader changed"), true, true),
            (refused(2, "raft proposal dropped"), true, true),
            (refused(7, "etcdserver: permission denied"), false, false),
            (refused(8, "mvcc: database space exceeded"), false, false),
            (refused(8, "etcdserver: too many requests"), false, true),
            (refused(3, "request is too large"), false, false),
            (refused(16, "etcdserver: invalid auth token"), false, false),
        ] {
            assert_eq!(fault.may_be_done(), may_be_done, "{fault:?}");
            assert_eq!(fault.is_passing(), passing, "{fault:?}");
        }
    }

    #[test]
    fn a_wrong_configuration_is_not_waited_for() {
        for (fault, away) in [
            (Fault::Unreachable("Connection refused".into()), true),
            (
                Fault::Unanswered("no answer within the time for it".into()),
                true,
            ),
            (refused(14, "etcdserver: no leader"), true),
            (
                Fault::Unreachable("TLS failed: invalid peer certificate".into()),
                false,
            ),
            (Fault::Foreign("404".into()), false),
            (refused(7, "etcdserver: permission denied"), false),
        ] {
            let told = format!("{fault:?}");
            assert_eq!(fault.tell("etcd h:1".into()).away, away, "{told}");
        }
    }

    #[test]
    fn what_is_told_names_object_reason_and_remedy() {
        let error = refused(8, "etcdserver: mvcc: database space exceeded").tell("etcd h:1".into());
        let text = error.to_string();
        for part in ["etcd h:1", "space exceeded", "alarm disarm"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
