//! Network namespaces as values: open one, make one, run a closure inside.
//!
//! `setns` moves one thread, and a thread that came back would be a thread
//! that may have failed to. So every visit has a thread of its own that ends
//! afterwards; the caller's thread never moves.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    sched::{self, CloneFlags},
};

use crate::sys;

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("open network namespace {path:?}: {error}; does its pod still run?")]
    Open { path: PathBuf, error: io::Error },
    #[error("{path:?} is no network namespace; pass a path such as /proc/PID/ns/net")]
    NotNetns { path: PathBuf },
    #[error(
        "enter network namespace {path:?}: {error}; this takes CAP_SYS_ADMIN in the user \
         namespace that owns it"
    )]
    Enter { path: PathBuf, error: io::Error },
    #[error(
        "make a network namespace: {error}; this takes root or a user namespace (unshare -Urn)"
    )]
    Make { error: io::Error },
    #[error("start a thread to enter {path:?}: {error}")]
    Thread { path: PathBuf, error: io::Error },
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// Where it was found, for messages.
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at `path`, as a container runtime names it.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // O_NONBLOCK: a fifo at this path must not hang the caller.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| NetnsError::Open {
                path: path.to_owned(),
                error,
            })?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new namespace without a name: it is gone with its last user.
    /// `label` stands for its path in messages.
    pub fn make(label: &str) -> Result<Self, NetnsError> {
        let path = PathBuf::from(label);
        let make = || {
            sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Make {
                error: errno.into(),
            })?;
            Self::current()
        };
        let (made, ()) = on_a_thread(&path, make, || ());
        Ok(Self {
            path,
            ..made.flatten()?
        })
    }

    /// Runs `visit` on a fresh thread inside the namespace.
    pub fn run<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        self.run_beside(visit, || ()).0
    }

    /// As [`Netns::run`], and `meanwhile` on the caller's thread.
    pub fn run_beside<T: Send, U>(
        &self,
        visit: impl FnOnce() -> T + Send,
        meanwhile: impl FnOnce() -> U,
    ) -> (Result<T, NetnsError>, U) {
        let inside = || self.enter().map(|()| visit());
        let (visited, done) = on_a_thread(&self.path, inside, meanwhile);
        (visited.flatten(), done)
    }

    /// Moves the calling thread for good. For a process that is about to
    /// become something else; everybody else wants [`Netns::run`].
    pub fn enter(&self) -> Result<(), NetnsError> {
        match sched::setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(()),
            // Where one is already, CAP_NET_ADMIN may be all that one has.
            Err(Errno::EPERM) if self.is_here() => Ok(()),
            Err(Errno::EINVAL) => Err(NetnsError::NotNetns {
                path: self.path.clone(),
            }),
            Err(errno) => Err(NetnsError::Enter {
                path: self.path.clone(),
                error: errno.into(),
            }),
        }
    }

    /// Whether the calling thread is inside.
    fn is_here(&self) -> bool {
        let here = Self::current().map(|here| here.file.metadata());
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (here, self.file.metadata()) {
            (Ok(Ok(here)), Ok(own)) => id(here) == id(own),
            _ => false,
        }
    }

    /// What /proc/PID/ns/net has for it. Once the namespace is gone, another
    /// may get the same.
    pub fn inode(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.ino())
    }

    /// A number of its own for as long as the machine runs; None where the
    /// kernel has none to give (before 5.14) or lets nobody enter.
    pub fn cookie(&self) -> Option<u64> {
        let cookie = || {
            let socket = UnixDatagram::unbound()?;
            sys::netns_cookie(&socket)
        };
        self.run(cookie).ok()?.ok()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn on_a_thread<T: Send, U>(
    path: &Path,
    f: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce() -> U,
) -> (Result<T, NetnsError>, U) {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|error| NetnsError::Thread {
                path: path.to_owned(),
                error,
            });
        let done = meanwhile();
        let value = thread.map(|thread| match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        (value, done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net")
            .expect("procfs")
            .ino()
    }

    #[test]
    fn a_visit_is_inside_and_the_caller_stays_outside() {
        weft_testkit::needs_namespaces!();
        let before = inode();
        let netns = Netns::make("visited").expect("a namespace; needs root or unshare -Urn");
        let inside = netns.run(inode).expect("enter");
        assert_ne!(inside, before);
        assert_eq!(inside, netns.file.metadata().expect("stat").ino());
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_namespace_is_known_by_its_cookie() {
        weft_testkit::needs_namespaces!();
        let make = || Netns::make("a namespace").expect("a namespace; root or unshare -Urn");
        let (one, other) = (make(), make());
        let again = Netns::open(Path::new(&format!("/proc/self/fd/{}", one.as_raw_fd())));
        let again = again.expect("it is open");
        assert!(one.cookie().is_some(), "the kernel is 5.14 or later");
        assert_eq!(one.cookie(), again.cookie());
        assert_ne!(one.cookie(), other.cookie());
        assert_eq!(one.inode().expect("stat"), again.inode().expect("stat"));
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        weft_testkit::needs_namespaces!();
        let missing = Netns::open(Path::new("/nonexistent/netns")).expect_err("missing");
        assert!(matches!(missing, NetnsError::Open { .. }), "{missing}");
        for other in ["/proc/self/status", "/proc/self/ns/uts", "/dev/null", "/"] {
            let netns = Netns::open(Path::new(other)).expect("opens");
            let error = netns.run(|| ()).expect_err(other);
            assert!(matches!(error, NetnsError::NotNetns { .. }), "{error}");
        }
    }
}
