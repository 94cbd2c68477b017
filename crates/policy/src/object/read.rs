//! Text to objects: YAML or JSON, one document or many, lists too.
//!
//! A field that the API does not know is an error in policies and in every
//! object's metadata, as `kubectl apply` has it: a rule that its author
//! misspelled must not vanish. Of pods, namespaces and nodes everything else
//! is left to those who own it and ignored.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    Labels, Namespace, Node, Object, PodName, cluster,
    labels::check,
    network,
    place::{NodeStatus, PodSpec, PodStatus},
    spelling,
};

/// Where a namespaced object lives that does not say so.
const DEFAULT_NAMESPACE: &str = "default";

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
    #[error("document {0} is no object: it needs apiVersion, kind and metadata")]
    NoObject(usize),
    #[error(
        "{kind} of {version} is not understood; NetworkPolicy of networking.k8s.io/v1, \
         ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2, and Pod, Namespace and \
         Node of v1 are"
    )]
    Kind { version: String, kind: String },
    #[error("{object}: {field}: {problem}")]
    Field {
        object: String,
        field: String,
        problem: String,
    },
}

/// All the objects of a text, in its order. Bad text yields none.
pub fn read(text: &str) -> Result<Vec<Object>, ReadError> {
    let mut objects = Vec::new();
    for (place, document) in parse(text)?.into_iter().enumerate() {
        if !document.is_null() {
            read_document(document, place + 1, &mut objects)?;
        }
    }
    Ok(objects)
}

/// The documents of a text as they stand there, the items of lists each by
/// itself; [`read_value`] makes objects of them.
pub fn documents(text: &str) -> Result<Vec<Value>, ReadError> {
    let mut singles = Vec::new();
    for document in parse(text)? {
        if !document.is_null() {
            unlist(document, &mut singles);
        }
    }
    Ok(singles)
}

/// The object of one document, or those of a list. Bad documents yield none.
pub fn read_value(document: Value) -> Result<Vec<Object>, ReadError> {
    let mut objects = Vec::new();
    read_document(document, 1, &mut objects)?;
    Ok(objects)
}

fn parse(text: &str) -> Result<Vec<Value>, ReadError> {
    serde_saphyr::from_multiple(text).map_err(|e| ReadError::Syntax(e.to_string()))
}

fn read_document(
    document: Value,
    place: usize,
    objects: &mut Vec<Object>,
) -> Result<(), ReadError> {
    let mut singles = Vec::new();
    unlist(document, &mut singles);
    for single in singles {
        objects.push(read_single(single, place)?);
    }
    Ok(())
}

/// A list's items, which take kind and version from it where they have none;
/// anything else is left as it is.
fn unlist(mut document: Value, singles: &mut Vec<Value>) {
    let word = |name| {
        document
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let (version, kind) = (word("apiVersion"), word("kind"));
    let (Some(version), Some(kind)) = (version, kind) else {
        return singles.push(document);
    };
    let Some(Value::Array(items)) = document
        .get_mut("items")
        .filter(|items| kind.ends_with("List") && items.is_array())
        .map(Value::take)
    else {
        return singles.push(document);
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
}

fn read_single(document: Value, place: usize) -> Result<Object, ReadError> {
    let Value::Object(mut fields) = document else {
        return Err(ReadError::NoObject(place));
    };
    let mut word = |name| match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ReadError::NoObject(place)),
    };
    let (version, kind) = (word("apiVersion")?, word("kind")?);
    let document = Document {
        version,
        kind,
        fields,
    };
    document.object(place)
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
    fn object(mut self, place: usize) -> Result<Object, ReadError> {
        let Some(Value::Object(mut metadata)) = self.fields.remove("metadata") else {
            return Err(ReadError::NoObject(place));
        };
        metadata.retain(|field, _| !UNUSED_METADATA.contains(&field.as_str()));
        let text = |field| {
            metadata
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (namespace, name) = (text("namespace"), text("name"));
        let slash = if namespace.is_empty() { "" } else { "/" };
        let called = format!("{} {namespace}{slash}{name}", self.kind);
        let metadata: Metadata = decode(&called, "metadata", metadata)?;
        for name in [Some(&metadata.name), metadata.namespace.as_ref()]
            .into_iter()
            .flatten()
        {
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
                version: self.version,
                kind: self.kind,
            }),
        }
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
