//! What etcd's v3 JSON gateway is told and tells. 64-bit numbers are strings
//! there, bytes are base64, and what has its default value is left out.
//! Sources: etcd's `rpc.proto`, `kv.proto`, and the proto3 JSON mapping.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error},
};

pub const RANGE: &str = "/v3/kv/range";
pub const TXN: &str = "/v3/kv/txn";
pub const WATCH: &str = "/v3/watch";
pub const LEASE_GRANT: &str = "/v3/lease/grant";
pub const LEASE_KEEP_ALIVE: &str = "/v3/lease/keepalive";
pub const LEASE_REVOKE: &str = "/v3/lease/revoke";
pub const AUTHENTICATE: &str = "/v3/auth/authenticate";

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

#[derive(Debug, Clone, Default, Serialize)]
pub struct RangeRequest {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "is_zero", serialize_with = "write_number")]
    pub limit: u64,
    #[serde(skip_serializing_if = "is_zero", serialize_with = "write_number")]
    pub revision: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keys_only: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RangeResponse {
    pub header: Header,
    pub kvs: Vec<KeyValue>,
    pub more: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Header {
    #[serde(deserialize_with = "read_number")]
    pub cluster_id: u64,
    #[serde(deserialize_with = "read_number")]
    pub revision: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    #[serde(deserialize_with = "read_number")]
    pub mod_revision: u64,
    /// 0: none.
    #[serde(deserialize_with = "read_number")]
    pub lease: u64,
}

/// When all of `compare` holds, `success` is done, else `failure`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TxnRequest {
    pub compare: Vec<Compare>,
    pub success: Vec<Operation>,
    pub failure: Vec<Operation>,
}

/// Of one row.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "target")]
pub enum Compare {
    /// That it was written last at this revision.
    #[serde(rename = "MOD")]
    Modified {
        key: Bytes,
        #[serde(serialize_with = "write_number")]
        mod_revision: u64,
    },
    /// 0: that there is none.
    #[serde(rename = "CREATE")]
    Created {
        key: Bytes,
        #[serde(serialize_with = "write_number")]
        create_revision: u64,
    },
    /// With [`Relation::NotEqual`], that there is one with another value.
    #[serde(rename = "VALUE")]
    Value {
        key: Bytes,
        result: Relation,
        value: Bytes,
    },
}

impl Compare {
    /// That it was written last at this revision; 0: that there is none.
    pub fn last_written(key: Bytes, revision: u64) -> Self {
        match revision {
            0 => Self::Created {
                key,
                create_revision: 0,
            },
            mod_revision => Self::Modified { key, mod_revision },
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Relation {
    NotEqual,
}

#[derive(Debug, Clone, Serialize)]
pub enum Operation {
    #[serde(rename = "request_put")]
    Put {
        key: Bytes,
        value: Bytes,
        /// 0: none.
        #[serde(skip_serializing_if = "is_zero", serialize_with = "write_number")]
        lease: u64,
    },
    #[serde(rename = "request_delete_range")]
    Delete { key: Bytes },
    #[serde(rename = "request_range")]
    Range { key: Bytes },
    #[serde(rename = "request_txn")]
    Txn(TxnRequest),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TxnResponse {
    pub header: Header,
    pub succeeded: bool,
    pub responses: Vec<OperationResponse>,
}

/// Of all but reads nothing is of interest.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OperationResponse {
    pub response_range: Option<RangeResponse>,
}

impl OperationResponse {
    /// Of a read of one row.
    pub fn row(&self) -> Option<&KeyValue> {
        self.response_range.as_ref()?.kvs.first()
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct WatchRequest {
    pub create_request: WatchCreate,
}

/// Without `fragment`, etcd never splits the events of one revision.
#[derive(Debug, Clone, Serialize)]
pub struct WatchCreate {
    pub key: Bytes,
    pub range_end: Bytes,
    #[serde(serialize_with = "write_number")]
    pub start_revision: u64,
    /// An empty message every ten minutes says how far the watch has come.
    pub progress_notify: bool,
}

/// One line of the stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WatchLine {
    pub result: Option<WatchResponse>,
    pub error: Option<Refusal>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WatchResponse {
    pub header: Header,
    pub created: bool,
    pub canceled: bool,
    pub cancel_reason: String,
    #[serde(deserialize_with = "read_number")]
    pub compact_revision: u64,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: EventKind,
    pub kv: KeyValue,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventKind {
    #[default]
    Put,
    Delete,
}

#[derive(Debug, Clone, Serialize)]
pub struct LeaseGrantRequest {
    #[serde(rename = "TTL", serialize_with = "write_number")]
    pub seconds: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct LeaseRequest {
    #[serde(rename = "ID", serialize_with = "write_number")]
    pub id: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LeaseResponse {
    pub header: Header,
    #[serde(rename = "ID", deserialize_with = "read_number")]
    pub id: u64,
    /// 0: there is no such lease.
    #[serde(rename = "TTL", deserialize_with = "read_number")]
    pub seconds: u64,
}

/// The one line of its stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct KeepAliveResponse {
    pub result: Option<LeaseResponse>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RevokeResponse {
    pub header: Header,
}

#[derive(Debug, Clone, Serialize)]
pub struct AuthenticateRequest<'a> {
    pub name: &'a str,
    pub password: &'a str,
}

#[derive(Debug, Clone, Deserialize)]
pub struct AuthenticateResponse {
    pub token: String,
}

/// The body of an answer that is not 200, and a stream's last line.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Of gRPC.
    #[serde(alias = "grpc_code")]
    pub code: u32,
    pub message: String,
}

/// What an answer says about who gives it.
pub trait Answer: DeserializeOwned {
    fn header(&self) -> Option<&Header>;
}

macro_rules! headed {
    ($($answer:ty),*) => {$(
        impl Answer for $answer {
            fn header(&self) -> Option<&Header> {
                Some(&self.header)
            }
        }
    )*};
}

headed!(RangeResponse, TxnResponse, LeaseResponse, RevokeResponse);

impl Answer for KeepAliveResponse {
    fn header(&self) -> Option<&Header> {
        self.result.as_ref().map(|result| &result.header)
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text.as_bytes());
        bytes.map(Self).map_err(D::Error::custom)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn write_number<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

fn read_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number<'a> {
        Plain(u64),
        #[serde(borrow)]
        Text(Cow<'a, str>),
    }
    match Number::deserialize(deserializer)? {
        Number::Plain(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_the_gateway_reads_them() {
        let txn = TxnRequest {
            compare: vec![
                Compare::Modified {
                    key: "a".into(),
                    mod_revision: 5,
                },
                Compare::Created {
                    key: "b".into(),
                    create_revision: 0,
                },
            ],
            success: vec![Operation::Put {
                key: "a".into(),
                value: "x".into(),
                lease: 0,
            }],
            failure: vec![Operation::Range { key: "a".into() }],
        };
        assert_eq!(
            serde_json::to_string(&txn).expect("plain data"),
            concat!(
                r#"{"compare":[{"target":"MOD","key":"YQ==","mod_revision":"5"},"#,
                r#"{"target":"CREATE","key":"Yg==","create_revision":"0"}],"#,
                r#""success":[{"request_put":{"key":"YQ==","value":"eA=="}}],"#,
                r#""failure":[{"request_range":{"key":"YQ=="}}]}"#
            )
        );
    }

    #[test]
    fn answers_are_read_with_their_defaults() {
        let line = br#"{"result":{"header":{"revision":"7"},"events":[
            {"kv":{"key":"YQ==","value":"eA==","mod_revision":"7"}},
            {"type":"DELETE","kv":{"key":"Yg==","mod_revision":7}}]}}"#;
        let line: WatchLine = serde_json::from_slice(line).expect("a stream's line");
        let result = line.result.expect("a result");
        assert_eq!(result.header.revision, 7);
        assert_eq!(result.events[0].kind, EventKind::Put);
        assert_eq!(result.events[0].kv.value, "x".into());
        assert_eq!(result.events[1].kind, EventKind::Delete);
        assert_eq!(result.events[1].kv.mod_revision, 7);

        let line: WatchLine = serde_json::from_str(r#"{"error":{"grpc_code":14,"message":"m"}}"#)
            .expect("a stream's last line");
        assert_eq!(line.error.expect("a refusal").code, 14);

        for wrong in [
            r#"{"kvs":[{"key":"*"}]}"#,
            r#"{"kvs":[{"mod_revision":"x"}]}"#,
            r#"{"kvs":[{"mod_revision":-1}]}"#,
        ] {
            assert!(
                serde_json::from_str::<RangeResponse>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
