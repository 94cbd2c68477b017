//! A small CNI runtime: it runs the plugins of a network configuration list
//! as the specification's section 3 says, and remembers each attachment's
//! result. It makes no namespaces, and judges nothing.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Map, Value, json};

/// What a runtime says of one attachment.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    pub container: String,
    /// Empty where the namespace is gone.
    pub netns: String,
    pub interface: String,
    pub args: String,
    /// What plugins get that declare the capability.
    pub capabilities: Map<String, Value>,
}

#[derive(Debug)]
pub struct Runtime {
    /// Where plugins are looked for (CNI_PATH).
    pub path: Vec<PathBuf>,
    results: BTreeMap<(String, String), Value>,
}

/// What a plugin printed on stdout; null where it printed nothing. An error
/// is what it printed when it failed.
pub type Answer = Result<Value, Value>;

impl Runtime {
    pub fn new(path: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            path: path.into_iter().collect(),
            results: BTreeMap::new(),
        }
    }

    /// Each plugin in order, each with the result of the one before. The
    /// first that fails ends it.
    pub fn add(&mut self, list: &Value, pod: &Attachment) -> Answer {
        let mut previous = Value::Null;
        for plugin in plugins(list) {
            let config = derive(list, plugin, Some(pod), &previous);
            previous = self.run("ADD", plugin, Some(pod), &config)?;
        }
        self.results.insert(key(pod), previous.clone());
        Ok(previous)
    }

    /// Each plugin in reverse, each with the result of the ADD, if there is one.
    pub fn del(&mut self, list: &Value, pod: &Attachment) -> Result<(), Value> {
        let result = self.result(pod);
        for plugin in plugins(list).iter().rev() {
            let config = derive(list, plugin, Some(pod), &result);
            self.run("DEL", plugin, Some(pod), &config)?;
        }
        self.forget(pod);
        Ok(())
    }

    pub fn check(&self, list: &Value, pod: &Attachment) -> Result<(), Value> {
        let result = self.result(pod);
        for plugin in plugins(list) {
            let config = derive(list, plugin, Some(pod), &result);
            self.run("CHECK", plugin, Some(pod), &config)?;
        }
        Ok(())
    }

    /// All plugins, whatever fails; all failures.
    pub fn gc(&self, list: &Value, valid: &[&Attachment]) -> Result<(), Vec<Value>> {
        let entry =
            |pod: &&Attachment| json!({"containerID": pod.container, "ifname": pod.interface});
        let valid: Vec<_> = valid.iter().map(entry).collect();
        let run = |plugin| {
            let mut config = derive(list, plugin, None, &Value::Null);
            config["cni.dev/valid-attachments"] = valid.clone().into();
            self.run("GC", plugin, None, &config).err()
        };
        let failures: Vec<_> = plugins(list).iter().filter_map(run).collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    pub fn status(&self, list: &Value) -> Result<(), Value> {
        for plugin in plugins(list) {
            let config = derive(list, plugin, None, &Value::Null);
            self.run("STATUS", plugin, None, &config)?;
        }
        Ok(())
    }

    /// What the last plugin answered to ADD; null where it was never asked.
    pub fn result(&self, pod: &Attachment) -> Value {
        self.results.get(&key(pod)).cloned().unwrap_or_default()
    }

    /// As a runtime that has lost its state.
    pub fn forget(&mut self, pod: &Attachment) {
        self.results.remove(&key(pod));
    }

    fn run(&self, verb: &str, plugin: &Value, pod: Option<&Attachment>, config: &Value) -> Answer {
        let name = plugin["type"].as_str().expect("a plugin has a type");
        let file = self.path.iter().map(|dir| dir.join(name));
        let file = file.into_iter().find(|file| file.is_file());
        let file = file.unwrap_or_else(|| panic!("{name} lies in none of {:?}", self.path));
        let child = self.start(&file, verb, pod);
        answer(&finish(child, config.to_string().as_bytes()))
    }

    /// Starts `plugin`, which waits for its stdin.
    pub fn start(&self, plugin: &Path, verb: &str, pod: Option<&Attachment>) -> Child {
        let path: Vec<_> = self
            .path
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        let mut command = Command::new(plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", path.join(":"));
        if let Some(pod) = pod {
            command
                .env("CNI_CONTAINERID", &pod.container)
                .env("CNI_NETNS", &pod.netns)
                .env("CNI_IFNAME", &pod.interface)
                .env("CNI_ARGS", &pod.args);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = command.spawn();
        started.unwrap_or_else(|error| panic!("run {}: {error}", plugin.display()))
    }
}

/// Gives a plugin its configuration and waits for its end.
pub fn finish(mut child: Child, config: &[u8]) -> Output {
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // It need not read, and may have been killed.
    let _ = stdin.write_all(config);
    drop(stdin);
    child.wait_with_output().expect("it can be waited for")
}

/// What the plugin printed, which is one JSON value or nothing.
pub fn answer(output: &Output) -> Answer {
    let said = &*output.stdout;
    let json = match said {
        [] => Value::Null,
        said => serde_json::from_slice(said)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(said))),
    };
    if output.status.success() {
        Ok(json)
    } else {
        Err(json)
    }
}

fn key(pod: &Attachment) -> (String, String) {
    (pod.container.clone(), pod.interface.clone())
}

fn plugins(list: &Value) -> &[Value] {
    list["plugins"].as_array().expect("a list of plugins")
}

/// The configuration that one plugin of the list is given.
fn derive(list: &Value, plugin: &Value, pod: Option<&Attachment>, previous: &Value) -> Value {
    let mut config = plugin.clone();
    let fields = config.as_object_mut().expect("a plugin is an object");
    let declared = fields.remove("capabilities").unwrap_or_default();
    for key in ["cniVersion", "name"] {
        fields.insert(key.to_owned(), list[key].clone());
    }
    if !previous.is_null() {
        fields.insert("prevResult".to_owned(), previous.clone());
    }
    let asked = pod.map(|pod| pod.capabilities.clone()).unwrap_or_default();
    let heard = asked
        .into_iter()
        .filter(|(capability, _)| declared[capability] == true);
    let heard: Map<_, _> = heard.collect();
    if !heard.is_empty() {
        fields.insert("runtimeConfig".to_owned(), heard.into());
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_capabilities_that_it_declares() {
        let list = json!({"cniVersion": "1.0.0", "name": "pods"});
        let plugin = json!({"type": "t", "capabilities": {"mac": true, "ips": false}});
        let pod = Attachment {
            capabilities: Map::from_iter([
                ("mac".to_owned(), "m".into()),
                ("ips".to_owned(), "i".into()),
            ]),
            ..Attachment::default()
        };
        let config = derive(&list, &plugin, Some(&pod), &json!({"ips": []}));
        let expected = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "t",
            "runtimeConfig": {"mac": "m"}, "prevResult": {"ips": []},
        });
        assert_eq!(config, expected);
    }
}
