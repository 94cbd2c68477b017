//! Objects as they come: Kubernetes' JSON, one object a value.

use serde_json::Value;
use weft_api::forwarder::{Code, Error, ObjectRef};
use weft_policy::{Object, ObjectName, Origin, PolicyName, object::PodName, read_value};

use super::OBJECTS_MAX;
use crate::publish::refusal;

const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug)]
pub struct Given {
    pub object: Object,
    /// Of a policy, its JSON.
    pub text: Option<Box<str>>,
}

/// Reads all, or refuses all.
pub fn read(values: Vec<Value>) -> Result<Vec<Given>, Error> {
    let origins = (1..).map(Origin::object);
    origins.zip(values).map(read_one).collect()
}

fn read_one((origin, value): (Origin, Value)) -> Result<Given, Error> {
    let hint = "docs/policy.md says which objects and fields are understood";
    let is_policy = |kind: &str| kind.ends_with("Policy");
    let kind = value.get("kind").and_then(Value::as_str);
    let text = kind
        .is_some_and(is_policy)
        .then(|| value.to_string().into_boxed_str());
    let mut objects = read_value(origin, value)
        .map_err(|fault| refusal(Code::Invalid, fault.to_string(), hint))?;
    match (objects.pop(), objects.is_empty()) {
        (Some(object), true) => Ok(Given { object, text }),
        _ => Err(refusal(
            Code::Invalid,
            "a list stands where one object should",
            "give the list's items",
        )),
    }
}

pub fn name_of(named: &ObjectRef) -> Result<ObjectName, Error> {
    let ObjectRef {
        kind,
        namespace,
        name,
    } = named;
    let name = name.clone();
    let namespace = || namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).to_owned();
    match kind.as_str() {
        "NetworkPolicy" => Ok(ObjectName::Policy(PolicyName {
            namespace: Some(namespace()),
            name,
        })),
        "ClusterNetworkPolicy" => Ok(ObjectName::Policy(PolicyName {
            namespace: None,
            name,
        })),
        "Pod" => Ok(ObjectName::Pod(PodName {
            namespace: namespace(),
            name,
        })),
        "Namespace" => Ok(ObjectName::Namespace(name)),
        "Node" => Ok(ObjectName::Node(name)),
        _ => Err(refusal(
            Code::Invalid,
            format!("kind {kind:?} is not understood"),
            "give NetworkPolicy, ClusterNetworkPolicy, Pod, Namespace or Node",
        )),
    }
}

pub fn too_many() -> Error {
    let message = format!("more than {OBJECTS_MAX} objects");
    refusal(
        Code::Oversized,
        message,
        "give the pods that policies speak of, and no others",
    )
}
