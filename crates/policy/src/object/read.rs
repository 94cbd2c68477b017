//! Text to objects: YAML or JSON, one document or many, lists too.
//!
//! A field that the API does not know is an error in policies and in every
//! object's metadata, as `kubectl apply` has it: a rule that its author
//! misspelled must not vanish. Of pods, namespaces and nodes everything else
//! is left to those who own it and ignored.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use serde_saphyr::budget::BudgetBreach;

use super::{
    Labels, Namespace, Node, Object, PodName, cluster,
    labels::check,
    network,
    place::{NodeStatus, PodSpec, PodStatus},
    spelling,
};

/// Where a namespaced object lives that does not say so.
const DEFAULT_NAMESPACE: &str = "default";
const NAMESPACED: [&str; 2] = ["NetworkPolicy", "Pod"];

/// Objects of one text: several times what the largest clusters have.
const OBJECTS_MAX: usize = 1 << 18;
/// Scalars, lists and maps; a pod as kubectl prints it has some hundreds.
const NODES_MAX: usize = OBJECTS_MAX << 9;
/// Text in scalars; a pod as kubectl prints it has some kilobytes.
const SCALAR_BYTES_MAX: usize = OBJECTS_MAX << 13;
const DEPTH_MAX: usize = 64;

/// Fields of an object's metadata that weft knows and has no use for.
const UNUSED_METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    #[error("neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("too large: {0}; leave out what policies do not speak of, or split the text")]
    Budget(String),
    #[error("{0} is no object: it needs apiVersion, kind and metadata")]
    NoObject(Origin),
    #[error(
        "{object}: {kind} of {version} is not understood; NetworkPolicy of networking.k8s.io/v1, \
         ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2, and Pod, Namespace and \
         Node of v1 are"
    )]
    Kind {
        object: String,
        version: String,
        kind: String,
    },
    #[error("{object}: {field}: {problem}")]
    Field {
        object: String,
        field: String,
        problem: String,
    },
}

/// Where something stands, for the case that it has no name. Counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    whole: &'static str,
    number: usize,
    /// Of a list.
    item: Option<usize>,
}

impl Origin {
    /// Of a text; empty ones do not count.
    pub fn document(number: usize) -> Self {
        Self {
            whole: "document",
            number,
            item: None,
        }
    }

    /// Of some that came together.
    pub fn object(number: usize) -> Self {
        Self {
            whole: "object",
            number,
            item: None,
        }
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(item) = self.item {
            write!(f, "item {item} of ")?;
        }
        write!(f, "{} {}", self.whole, self.number)
    }
}

/// All the objects of a text, in its order. Bad text yields none.
pub fn read(text: &str) -> Result<Vec<Object>, ReadError> {
    let documents = documents(text)?.into_iter();
    documents
        .map(|(origin, document)| read_single(origin, document))
        .collect()
}

/// The documents of a text as they stand there, the items of lists each by
/// itself; [`read_value`] makes objects of them.
pub fn documents(text: &str) -> Result<Vec<(Origin, Value)>, ReadError> {
    let documents = (1..).zip(parse(text)?);
    let documents = documents.filter(|(_, document)| !document.is_null());
    Ok(documents
        .flat_map(|(number, document)| singles(Origin::document(number), document))
        .collect())
}

/// The object of one document, or those of a list. Bad documents yield none.
pub fn read_value(origin: Origin, document: Value) -> Result<Vec<Object>, ReadError> {
    let singles = singles(origin, document).into_iter();
    singles
        .map(|(origin, document)| read_single(origin, document))
        .collect()
}

fn parse(text: &str) -> Result<Vec<Value>, ReadError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: OBJECTS_MAX,
            max_nodes: NODES_MAX,
            // A list or a map has a beginning and an end, a document too.
            max_events: 2 * (NODES_MAX + OBJECTS_MAX),
            max_total_scalar_bytes: SCALAR_BYTES_MAX,
            max_depth: DEPTH_MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        match error.without_snippet() {
            serde_saphyr::Error::Budget { breach, location } => {
                ReadError::Budget(format!("{} at line {}", told(breach), location.line()))
            }
            _ => ReadError::Syntax(error.to_string()),
        }
    })
}

fn told(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Documents { .. } => format!("more than {OBJECTS_MAX} documents"),
        BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
            format!("more than {NODES_MAX} values")
        }
        BudgetBreach::ScalarBytes { .. } => format!("more than {SCALAR_BYTES_MAX} bytes"),
        BudgetBreach::Depth { .. } => format!("more than {DEPTH_MAX} levels"),
        other => format!("{other:?}"),
    }
}

fn singles(origin: Origin, document: Value) -> Vec<(Origin, Value)> {
    let mut singles = Vec::new();
    let is_list = unlist(document, &mut singles);
    let origin = |item| Origin {
        item: is_list.then_some(item),
        ..origin
    };
    (1..).map(origin).zip(singles).collect()
}

/// A list's items, which take kind and version from it where they have none;
/// anything else is left as it is. Whether it was a list.
fn unlist(mut document: Value, singles: &mut Vec<Value>) -> bool {
    let word = |name| {
        document
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let (version, kind) = (word("apiVersion"), word("kind"));
    let (Some(version), Some(kind)) = (version, kind) else {
        singles.push(document);
        return false;
    };
    let Some(Value::Array(items)) = document
        .get_mut("items")
        .filter(|items| kind.ends_with("List") && items.is_array())
        .map(Value::take)
    else {
        singles.push(document);
        return false;
    };
    for mut item in items {
        if let Some(fields) = item.as_object_mut() {
            let singular = || kind.trim_end_matches("List").into();
            fields.entry("kind").or_insert_with(singular);
            fields
                .entry("apiVersion")
                .or_insert_with(|| version.clone().into());
        }
        unlist(item, singles);
    }
    true
}

fn read_single(origin: Origin, document: Value) -> Result<Object, ReadError> {
    let Value::Object(mut fields) = document else {
        return Err(ReadError::NoObject(origin));
    };
    let mut word = |name| match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ReadError::NoObject(origin)),
    };
    let (version, kind) = (word("apiVersion")?, word("kind")?);
    let document = Document {
        version,
        kind,
        fields,
    };
    document.object(origin)
}

struct Document {
    version: String,
    kind: String,
    fields: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict<S> {
    spec: S,
}

#[derive(Deserialize)]
struct Loose<S, T> {
    spec: Option<S>,
    status: Option<T>,
}

impl Document {
    fn object(mut self, origin: Origin) -> Result<Object, ReadError> {
        let Some(Value::Object(mut metadata)) = self.fields.remove("metadata") else {
            return Err(ReadError::NoObject(origin));
        };
        metadata.retain(|field, _| !UNUSED_METADATA.contains(&field.as_str()));
        let text = |field| {
            metadata
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let called = called(&self.kind, text("namespace"), text("name"), origin);
        let metadata: Metadata = decode(&called, "metadata", metadata)?;
        let namespace = metadata.namespace.iter().filter(|name| !name.is_empty());
        for name in namespace.chain([&metadata.name]) {
            check(name, spelling::subdomain).map_err(|problem| ReadError::Field {
                object: called.clone(),
                field: "metadata".into(),
                problem,
            })?;
        }
        self.specified(&called, metadata)
    }

    fn specified(mut self, called: &str, metadata: Metadata) -> Result<Object, ReadError> {
        let labels = metadata.labels.unwrap_or_default();
        let name = metadata.name;
        let namespace = metadata
            .namespace
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| DEFAULT_NAMESPACE.into());
        match (self.version.as_str(), self.kind.as_str()) {
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                self.fields.remove("status");
                let Strict::<network::Spec> { spec } = decode(called, "", self.fields)?;
                Ok(Object::Policy(spec.policy(namespace, name)))
            }
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
                self.fields.remove("status");
                let Strict::<cluster::Spec> { spec } = decode(called, "", self.fields)?;
                Ok(Object::Policy(spec.policy(name)))
            }
            ("v1", "Pod") => {
                let Loose::<PodSpec, PodStatus> { spec, status } = decode(called, "", self.fields)?;
                let name = PodName { namespace, name };
                let status = status.unwrap_or_default();
                Ok(Object::Pod(
                    spec.unwrap_or_default().pod(name, labels, status),
                ))
            }
            ("v1", "Namespace") => Ok(Object::Namespace(Namespace::new(name, labels))),
            ("v1", "Node") => {
                let Loose::<serde::de::IgnoredAny, NodeStatus> { status, .. } =
                    decode(called, "", self.fields)?;
                let addresses = status.unwrap_or_default().addresses();
                Ok(Object::Node(Node {
                    name,
                    labels,
                    addresses,
                }))
            }
            _ => Err(ReadError::Kind {
                object: called.to_owned(),
                version: self.version,
                kind: self.kind,
            }),
        }
    }
}

/// What errors call an object.
fn called(kind: &str, namespace: &str, name: &str, origin: Origin) -> String {
    match (namespace, name) {
        (_, "") => format!("{kind} at {origin}"),
        ("", name) if NAMESPACED.contains(&kind) => format!("{kind} {DEFAULT_NAMESPACE}/{name}"),
        ("", name) => format!("{kind} {name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}

fn decode<T: DeserializeOwned>(
    called: &str,
    root: &str,
    fields: Map<String, Value>,
) -> Result<T, ReadError> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let field = match (root, path.as_str()) {
            ("", path) => path.to_owned(),
            (root, ".") => root.to_owned(),
            (root, path) => format!("{root}.{path}"),
        };
        ReadError::Field {
            object: called.to_owned(),
            field,
            problem: error.into_inner().to_string(),
        }
    })
}
