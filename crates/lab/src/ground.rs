//! Where tests may make networks: here, as root, or else in a user namespace
//! of their own. A test that has no ground to stand on says so, and fails on
//! CI.

use std::{
    any, env,
    fs::File,
    io::{self, Write},
    process::Command,
};

use crate::userns;

/// Set for a test that runs again in a user namespace.
const AGAIN: &str = "WEFT_TEST_AGAIN";

/// Runs a test where networks can be made. `test` must be the closure that
/// is all of a `#[test]` function: its name says which test to run again in
/// a user namespace.
pub fn on<F: FnOnce()>(test: F) {
    let rootless = userns::needed().unwrap_or(true);
    if !rootless || env::var_os(AGAIN).is_some() {
        return match missing() {
            None => test(),
            Some(what) => skip(name(&test), &what),
        };
    }
    let namespace = ["-Urn", "--"];
    let can = Command::new("unshare").args(namespace).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        return skip(
            name(&test),
            "neither root nor a user namespace (unshare -Urn)",
        );
    }
    let executable = env::current_exe().expect("a test knows its executable");
    let again = Command::new("unshare")
        .args(namespace)
        .arg(executable)
        .args(["--exact", name(&test), "--nocapture"])
        .env(AGAIN, "1")
        .output()
        .expect("unshare ran before");
    let said = String::from_utf8_lossy(&again.stdout);
    let _ = io::stderr().write_all(&again.stderr);
    assert!(
        again.status.success() && said.contains("test result: ok. 1 passed"),
        "in a user namespace: {said}"
    );
}

/// `crate::module::test::{{closure}}` without its first and last parts.
fn name<F>(_: &F) -> &'static str {
    let path = any::type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_, path)| path);
    path.trim_end_matches("::{{closure}}")
}

fn missing() -> Option<String> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = tun {
        return Some(format!("open /dev/net/tun: {error}"));
    }
    if let Err(error) = Command::new("ip").arg("-V").output() {
        return Some(format!("run ip (iproute2): {error}"));
    }
    None
}

/// Says that a test did not run, past the capture of its output, and fails
/// where that is not allowed.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    assert!(
        env::var_os("CI").is_none(),
        "{test} was skipped on CI: {why}"
    );
}
