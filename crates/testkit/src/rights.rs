//! Tests of network namespaces for everybody: a test that finds itself
//! without the rights runs once more in a user namespace where it has them.

use std::{
    env, fs,
    io::{self, Write},
    process::Command,
};

/// CAP_SYS_ADMIN of capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// To stand first in a test that makes network namespaces.
#[macro_export]
macro_rules! needs_namespaces {
    () => {
        fn here() {}
        if $crate::rights::ran_elsewhere(std::any::type_name_of_val(&here)) {
            return;
        }
    };
}

/// False where this process has the rights. True where it has not, and the
/// test that holds the function of that path has passed where it has.
pub fn ran_elsewhere(function: &str) -> bool {
    if may_make_namespaces() {
        return false;
    }
    let test = test_of(function);
    let executable = env::current_exe().expect("a test has an executable");
    let status = Command::new("unshare")
        .args(["--map-root-user", "--net", "--", "sh", "-c"])
        // Loopback works there, as it does where tests usually run.
        .arg("ip link set lo up && exec \"$0\" \"$@\"")
        .arg(executable)
        .args(["--exact", test, "--nocapture"])
        .status()
        .expect("unshare (util-linux) starts; without it, test as root");
    assert!(
        status.success(),
        "{test} in a user namespace: {status}; where those are forbidden, test as root"
    );
    true
}

/// Says that a test did not run, past the runner's capture. Where CI is set
/// nothing is skipped.
pub fn skipped(test: &str, reason: &str) {
    assert!(
        env::var_os("CI").is_none(),
        "{test} was not run, and CI is set: {reason}"
    );
    // The runner captures what the print macros write, and this not.
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: {reason}");
}

fn may_make_namespaces() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(line.expect("a CapEff line").trim(), 16);
    effective.expect("hexadecimal digits") & (1 << CAP_SYS_ADMIN) != 0
}

/// What the test runner calls the test: the path without the crate's name
/// and without the function inside.
fn test_of(function: &str) -> &str {
    let inside = function
        .rsplit_once("::")
        .map_or(function, |(test, _)| test);
    inside.split_once("::").map_or(inside, |(_, test)| test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_knows_its_name() {
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        assert_eq!(test_of(path), "rights::tests::a_test_knows_its_name");
        assert_eq!(test_of("lab::one::here"), "one");
    }
}
