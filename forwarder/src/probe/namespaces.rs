//! User and network namespaces: what a lab without root is made of.

use std::{fs, io};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use super::Check;
use crate::sys;

const NAME: &str = "user namespaces";

/// Whether an ordinary user gets a network of their own.
pub fn check() -> Check {
    let fault = match enter_as_user() {
        Ok(()) => return Check::ok(NAME, "a user may make a user and network namespace"),
        Err(fault) => fault,
    };
    let finding = format!("making a user and network namespace: {fault}");
    let consequence = "labs and the demo need root, and so does every pod";
    let remedy = remedy();
    if geteuid().is_root() {
        Check::warn(
            NAME,
            finding,
            "labs of users other than root do not work",
            &remedy,
        )
    } else {
        Check::fail(NAME, finding, consequence, &remedy)
    }
}

/// Moves this process into a network namespace of its own, with all rights
/// in it, and raises its loopback.
pub fn enter() -> io::Result<()> {
    if !geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        enter_as_user()?;
    }
    sys::link::raise("lo")
}

fn enter_as_user() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // Without this a user may not map a group (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Which of the known switches is off.
fn remedy() -> String {
    const SWITCHES: [(&str, &str, &str); 3] = [
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "kernel.unprivileged_userns_clone=1",
        ),
        (
            "user/max_user_namespaces",
            "0",
            "user.max_user_namespaces=10000",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    let off = SWITCHES.iter().find(|(path, off, _)| {
        fs::read_to_string(format!("/proc/sys/{path}")).is_ok_and(|value| value.trim() == *off)
    });
    match off {
        Some((_, _, on)) => format!("sysctl {on}"),
        None => "run as root, or leave the container or sandbox that forbids it".to_owned(),
    }
}
