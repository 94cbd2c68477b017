//! A daemon's socket file: made, guarded, and removed at the end.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
    unistd::geteuid,
};

/// Who may use a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The file's mode.
    pub mode: u32,
    /// The file's owner, where it is not to be the process's own.
    pub owner: Option<u32>,
    pub group: Option<u32>,
    /// Who may connect besides root and the process's own user.
    pub uids: Vec<u32>,
    /// By the group that they run as; their further groups do not count.
    pub gids: Vec<u32>,
}

impl Default for Access {
    /// Root's and the process's own.
    fn default() -> Self {
        Self {
            mode: 0o600,
            owner: None,
            group: None,
            uids: Vec::new(),
            gids: Vec::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("socket {}: another server listens there; stop it, or choose another path", .0.display())]
    Listens(PathBuf),
    #[error("socket {}: the path holds something that is no socket; move it away", .0.display())]
    NotASocket(PathBuf),
    #[error("socket {}: {error}; {hint}", path.display())]
    Bind {
        path: PathBuf,
        error: io::Error,
        hint: &'static str,
    },
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    #[error("who connects cannot be told: {0}")]
    Unknown(nix::Error),
    #[error("uid {uid}, gid {gid} may not give orders here")]
    Forbidden { uid: u32, gid: u32 },
}

#[derive(Debug)]
pub struct Socket {
    /// Does not block.
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to tell our file from one that took its place.
    file: (u64, u64),
    access: Access,
}

impl Socket {
    /// Listens at `path`. A socket file at which nobody listens is replaced.
    /// To be called while no other thread makes files: the process's umask
    /// changes for a moment.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, SocketError> {
        make_way(path)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener =
            bound.map_err(fault(path, "choose a writable place of at most 107 bytes"))?;
        let file = inode(path).map_err(fault(path, "choose another place"))?;
        // From here on the file goes when `socket` does.
        let socket = Self {
            listener,
            path: path.to_owned(),
            file,
            access: access.clone(),
        };
        socket
            .listener
            .set_nonblocking(true)
            .and_then(|()| chown(path, access.owner, access.group))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(access.mode)))
            .map_err(fault(path, "run as root, or leave its owner and group out"))?;
        Ok(socket)
    }

    /// Whether whoever holds the other end may give orders.
    pub fn admit(&self, client: &impl AsFd) -> Result<(), Stranger> {
        let credentials = getsockopt(client, PeerCredentials).map_err(Stranger::Unknown)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let allowed = uid == 0
            || uid == geteuid().as_raw()
            || self.access.uids.contains(&uid)
            || self.access.gids.contains(&gid);
        if allowed {
            return Ok(());
        }
        Err(Stranger::Forbidden { uid, gid })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|file| file == self.file) {
            // The process ends: nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_way(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let Some(folder) = path.parent() else {
                return Ok(());
            };
            return fs::create_dir_all(folder).map_err(fault(path, "make its folder"));
        }
        Err(e) => return Err(fault(path, "choose another place")(e)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Listens(path.to_owned())),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fault(path, "remove it"))
        }
        Err(e) => Err(fault(path, "find out who holds it")(e)),
    }
}

fn fault(path: &Path, hint: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    move |error| SocketError::Bind {
        path: path.to_owned(),
        error,
        hint,
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(mode: u32) -> Access {
        Access {
            mode,
            ..Access::default()
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/control.sock");
        let first = Socket::bind(&path, &access(0o640)).expect("nobody is there");
        let mode = fs::metadata(&path).expect("the file exists").mode();
        assert_eq!(mode & 0o777, 0o640);
        let second = Socket::bind(&path, &access(0o600));
        assert!(matches!(second, Err(SocketError::Listens(_))));
        drop(first);
        assert!(!path.exists());

        drop(UnixListener::bind(&path).expect("nobody is there"));
        assert!(path.exists(), "a plain listener leaves its file");
        let third = Socket::bind(&path, &access(0o600)).expect("the stale file is replaced");
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "somebody else's").expect("write");
        drop(third);
        assert!(path.exists(), "only its own file is removed");
        let fourth = Socket::bind(&path, &access(0o600));
        assert!(matches!(fourth, Err(SocketError::NotASocket(_))));
    }

    #[test]
    fn a_path_that_cannot_be_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x".repeat(120));
        let error = Socket::bind(&path, &access(0o600)).expect_err("too long for sun_path");
        assert!(error.to_string().contains("107 bytes"), "{error}");
    }
}
