//! weft under the container runtimes that people use: containerd by `ctr`,
//! podman, and the reference plugins. Two nodes, each a network namespace
//! with a forwarder of its own; pods are made by the runtimes, from an image
//! that is packed here.

mod chain;
mod crowd;
mod engine;
mod gc;
mod image;
mod node;
mod pods;

use std::{env, fs, path::Path};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// To stand first in each test. What it needs are programs on the path, or
/// files.
macro_rules! needs {
    ($($what:expr),+) => {
        fn here() {}
        if let Some(reason) = $crate::missing(&[$($what),+]) {
            let test = std::any::type_name_of_val(&here).trim_end_matches("::here");
            weft_testkit::rights::skipped(test, &reason);
            return;
        }
    };
}
use needs;

/// Why tests with runtimes cannot run here.
fn missing(what: &[&str]) -> Option<String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole: Vec<_> = map.split_whitespace().collect();
    if !nix::unistd::geteuid().is_root() || whole != ["0", "0", "4294967295"] {
        return Some("container runtimes are started by root of the machine".to_owned());
    }
    let is_there = |what: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        Path::new(what).is_absolute() && Path::new(what).exists()
            || env::split_paths(&path).any(|folder| folder.join(what).is_file())
    };
    let missing: Vec<_> = what.iter().filter(|what| !is_there(what)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {missing:?}; .ci/run names the packages"))
}
