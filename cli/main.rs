//! The `weft` binary: the operator's command, and by the name it is started
//! under every other program of weft.

use std::{env, ffi::OsString, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name());
    match name.and_then(|name| name.to_str()) {
        Some("weft-forwarder") => weft_forwarder::cli::run(arguments),
        _ => ExitCode::FAILURE,
    }
}
