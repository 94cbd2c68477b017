//! A user namespace in which an ordinary user may make networks.

use std::fs;

use anyhow::{Context, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

/// Numbers of capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether this process lacks the rights that a lab takes.
pub fn needed() -> anyhow::Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = effective_capabilities(&status).context("/proc/self/status has no CapEff")?;
    Ok([CAP_NET_ADMIN, CAP_SYS_ADMIN]
        .into_iter()
        .any(|cap| effective & (1 << cap) == 0))
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Moves this process into user, mount and network namespaces of its own, as
/// their root. To be called before any thread starts.
pub fn enter() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).context(HINT)?;
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, line).with_context(|| format!("write {path}: {HINT}"))?;
    }
    ensure!(!needed()?, "the user namespace gives no rights: {HINT}");
    Ok(())
}

const HINT: &str = "make a user namespace; allow it by sysctl user.max_user_namespaces, \
                    kernel.unprivileged_userns_clone=1 or \
                    kernel.apparmor_restrict_unprivileged_userns=0, or run as root";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_from_its_line() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n";
        assert_eq!(
            effective_capabilities(status),
            Some(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN)
        );
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
