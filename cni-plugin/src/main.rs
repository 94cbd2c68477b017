//! The plugin under its two names, `weft-cni` and `weft-ipam-cni`.

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

use weft_cni::plugin;

fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(OsStr::to_str) {
        Some(plugin::IPAM_PLUGIN) => plugin::run(plugin::IPAM_PLUGIN),
        _ => plugin::run("weft-cni"),
    }
}
