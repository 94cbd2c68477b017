//! What a thread gives up once it holds all it needs. Capabilities belong to
//! a thread, not to a process: each thread calls [`confine`] for itself, and
//! those it starts later are born without.

use caps::{CapSet, Capability, errors::CapsError};
use nix::{
    errno::Errno,
    sys::{
        prctl::set_no_new_privs,
        resource::{Resource, getrlimit, setrlimit},
    },
};

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("drop capabilities: {0}; a daemon that keeps them is not started")]
    Capabilities(#[from] CapsError),
    #[error("set no_new_privs: {0}; a daemon that could gain privileges is not started")]
    Privileges(Errno),
}

/// Drops every capability of the calling thread, for good.
pub fn confine() -> Result<(), ConfineError> {
    // Emptying the bounding set needs CAP_SETPCAP. Without it nothing is
    // lost: no_new_privs keeps execve from granting what is left there.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Permitted)?;
    caps::clear(None, CapSet::Inheritable)?;
    set_no_new_privs().map_err(ConfineError::Privileges)
}

/// Lets this process hold as many fds as it may, and tells how many: the usual
/// soft limit is 1024.
pub fn raise_open_files() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn confined() {
        confine().expect("nothing here needs a privilege");
        for set in [
            CapSet::Effective,
            CapSet::Permitted,
            CapSet::Inheritable,
            CapSet::Ambient,
        ] {
            assert!(
                caps::read(None, set).expect("readable").is_empty(),
                "{set:?}"
            );
        }
        assert_eq!(nix::sys::prctl::get_no_new_privs(), Ok(true));
    }

    #[test]
    fn a_confined_thread_and_its_children_hold_no_capability() {
        thread::spawn(|| {
            confined();
            confine().expect("confining twice changes nothing");
            thread::spawn(confined)
                .join()
                .expect("the child is confined too");
        })
        .join()
        .expect("confined");
    }

    #[test]
    fn the_soft_limit_rises_to_the_hard_one() {
        let hard = raise_open_files().expect("limits can be read");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}
