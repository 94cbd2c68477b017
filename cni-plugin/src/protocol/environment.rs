//! What a runtime says by environment variables.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use weft_api::names::Name;

use super::{Failure, code};

/// The variables as they are; an empty one counts as none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

/// What is to be done, with everything it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub verb: Verb,
    /// Where plugins are looked for that addresses are delegated to.
    pub path: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Add(Pod, PathBuf),
    Check(Pod, PathBuf),
    Del(Pod, Option<PathBuf>),
    Gc,
    Status,
    Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub container: Name,
    pub interface: Name,
    pub args: Args,
}

/// The pairs of CNI_ARGS that are understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    pub pod_name: Option<String>,
    pub pod_namespace: Option<String>,
    pub pod_uid: Option<String>,
    pub mac: Option<String>,
    pub ip: Option<String>,
}

/// Longest interface name in bytes: IFNAMSIZ is 16 with its closing zero.
const INTERFACE_MAX: usize = 15;

impl Environment {
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |(name, value): &(String, String)| name.starts_with("CNI_") && !value.is_empty();
        Self(variables.into_iter().filter(ours).collect())
    }

    pub fn parse(&self) -> Result<Call, Failure> {
        let verb = match self.needed("CNI_COMMAND", "every call")? {
            "ADD" => Verb::Add(self.pod("ADD", self.args()?)?, self.netns("ADD")?),
            "CHECK" => Verb::Check(self.pod("CHECK", self.args()?)?, self.netns("CHECK")?),
            // Nothing that CNI_ARGS say is needed, and what ADD has refused
            // for them is to be deleted.
            "DEL" => Verb::Del(
                self.pod("DEL", Args::default())?,
                self.value("CNI_NETNS").map(PathBuf::from),
            ),
            "GC" => {
                self.needed("CNI_PATH", "GC")?;
                Verb::Gc
            }
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            other => {
                return Err(wrong(format!(
                    "CNI_COMMAND is {other:?}; use ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        };
        let path = self.value("CNI_PATH").unwrap_or_default().split(':');
        let path = path.filter(|part| !part.is_empty()).map(PathBuf::from);
        Ok(Call {
            verb,
            path: path.collect(),
        })
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn needed(&self, name: &str, verb: &str) -> Result<&str, Failure> {
        self.value(name)
            .ok_or_else(|| wrong(format!("{name} is not set; {verb} needs it")))
    }

    fn args(&self) -> Result<Args, Failure> {
        Args::parse(self.value("CNI_ARGS").unwrap_or_default())
    }

    fn pod(&self, verb: &str, args: Args) -> Result<Pod, Failure> {
        Ok(Pod {
            container: identifier(
                "CNI_CONTAINERID",
                self.needed("CNI_CONTAINERID", verb)?,
                code::ENVIRONMENT,
            )?,
            interface: interface(self.needed("CNI_IFNAME", verb)?)?,
            args,
        })
    }

    fn netns(&self, verb: &str) -> Result<PathBuf, Failure> {
        let path = Path::new(self.needed("CNI_NETNS", verb)?);
        if path.is_absolute() {
            Ok(path.to_owned())
        } else {
            Err(wrong(format!(
                "CNI_NETNS is {path:?}; give an absolute path"
            )))
        }
    }
}

fn wrong(msg: String) -> Failure {
    Failure::new(code::ENVIRONMENT, msg)
}

/// A container ID or a network name: begins with a letter or digit and goes
/// on with those, `_`, `.` or `-`.
pub(super) fn identifier(what: &str, text: &str, code: u32) -> Result<Name, Failure> {
    let mut characters = text.chars();
    let starts = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !starts || !characters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return Err(Failure::new(
            code,
            format!(
                "{what} is {text:?}; begin with a letter or digit, \
                 and go on with those, '_', '.' or '-'"
            ),
        ));
    }
    Name::new(text).map_err(|error| Failure::new(code, format!("{what}: {error}")))
}

fn interface(text: &str) -> Result<Name, Failure> {
    let refused = |why: &str| wrong(format!("CNI_IFNAME is {text:?}; {why}"));
    if text.len() > INTERFACE_MAX {
        return Err(refused("use at most 15 bytes"));
    }
    if text == "." || text == ".." {
        return Err(refused("the kernel takes no such name"));
    }
    if text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(refused("use no '/', ':' or space"));
    }
    Name::new(text).map_err(|_| refused("use letters, digits, '.', '-' and '_'"))
}

impl Args {
    fn parse(text: &str) -> Result<Self, Failure> {
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut ignore = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("CNI_ARGS holds {pair:?}; write KEY=VALUE")))?;
            let place = match key {
                "IgnoreUnknown" => {
                    ignore = truth(value)?;
                    continue;
                }
                "K8S_POD_NAME" => &mut args.pod_name,
                "K8S_POD_NAMESPACE" => &mut args.pod_namespace,
                "K8S_POD_UID" => &mut args.pod_uid,
                "MAC" => &mut args.mac,
                "IP" => &mut args.ip,
                "K8S_POD_INFRA_CONTAINER_ID" => continue,
                _ => {
                    unknown.push(key);
                    continue;
                }
            };
            *place = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
        if ignore || unknown.is_empty() {
            return Ok(args);
        }
        Err(wrong(format!(
            "CNI_ARGS holds {}, which nobody here knows; take it out, or add IgnoreUnknown=1",
            unknown.join(", ")
        )))
    }
}

fn truth(value: &str) -> Result<bool, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(wrong(format!(
            "CNI_ARGS: IgnoreUnknown is {value:?}; write 1 or 0"
        ))),
    }
}
