//! The control socket's file: made, guarded, and removed at the end.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net,
        },
    },
    path::{Path, PathBuf},
};

use mio::net::UnixListener;
use nix::{
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
    unistd::geteuid,
};
use weft_api::forwarder::{Code, Error};

use crate::publish::refusal;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "control socket {}: another forwarder listens there; stop it, or choose another --control",
        .0.display()
    )]
    Listens(PathBuf),
    #[error(
        "control socket {}: the path holds something that is no socket; move it away",
        .0.display()
    )]
    NotASocket(PathBuf),
    #[error("control socket {}: {error}; {hint}", path.display())]
    Bind {
        path: PathBuf,
        error: io::Error,
        hint: &'static str,
    },
}

#[derive(Debug)]
pub struct ControlSocket {
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to tell our file from one that took its place.
    file: (u64, u64),
    uids: Vec<u32>,
}

impl ControlSocket {
    /// Listens at `path` with the file mode `mode`. A socket file at which
    /// nobody listens is replaced. To be called while no other thread makes
    /// files: the process's umask changes for a moment.
    pub fn bind(path: &Path, mode: u32, uids: &[u32]) -> Result<Self, SocketError> {
        make_way(path)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let fault = |hint| {
            move |error| SocketError::Bind {
                path: path.to_owned(),
                error,
                hint,
            }
        };
        let listener = bound.map_err(fault("choose a writable place and at most 107 bytes"))?;
        let opened = fs::set_permissions(path, Permissions::from_mode(mode));
        let file = opened
            .and_then(|()| inode(path))
            .map_err(fault("choose another place"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file,
            uids: uids.to_vec(),
        })
    }

    /// Whether whoever holds the other end may give orders.
    pub fn admit(&self, client: &impl AsFd) -> Result<(), Error> {
        let credentials = getsockopt(client, PeerCredentials).map_err(|fault| {
            let message = format!("who connects cannot be told: {fault}");
            refusal(Code::Forbidden, message, "connect again")
        })?;
        let uid = credentials.uid();
        if uid == 0 || uid == geteuid().as_raw() || self.uids.contains(&uid) {
            return Ok(());
        }
        let message = format!("uid {uid} may not give orders here");
        Err(refusal(
            Code::Forbidden,
            message,
            "list it in the configuration's control.uids",
        ))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|file| file == self.file) {
            // The process ends: nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_way(path: &Path) -> Result<(), SocketError> {
    let fault = |hint| {
        move |error| SocketError::Bind {
            path: path.to_owned(),
            error,
            hint,
        }
    };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let Some(folder) = path.parent() else {
                return Ok(());
            };
            return fs::create_dir_all(folder).map_err(fault("make its folder"));
        }
        Err(e) => return Err(fault("choose another place")(e)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Listens(path.to_owned())),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fault("remove it"))
        }
        Err(e) => Err(fault("find out who holds it")(e)),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("weft-socket-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = folder("stale");
        let path = folder.join("deep/control.sock");
        let first = ControlSocket::bind(&path, 0o640, &[]).expect("nobody is there");
        let mode = fs::metadata(&path)
            .expect("the file exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        let second = ControlSocket::bind(&path, 0o600, &[]);
        assert!(matches!(second, Err(SocketError::Listens(_))));
        drop(first);
        assert!(!path.exists());

        drop(net::UnixListener::bind(&path).expect("nobody is there"));
        assert!(path.exists(), "a plain listener leaves its file");
        let third = ControlSocket::bind(&path, 0o600, &[]).expect("the stale file is replaced");
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "somebody else's").expect("write");
        drop(third);
        assert!(path.exists(), "only its own file is removed");
        let fourth = ControlSocket::bind(&path, 0o600, &[]);
        assert!(matches!(fourth, Err(SocketError::NotASocket(_))));
        fs::remove_dir_all(&folder).expect("remove");
    }

    #[test]
    fn a_path_that_cannot_be_is_told() {
        let path = folder("long").join("x".repeat(120));
        let error = ControlSocket::bind(&path, 0o600, &[]).expect_err("too long for sun_path");
        assert!(error.to_string().contains("107 bytes"), "{error}");
        fs::remove_dir_all(folder("long")).unwrap_or_default();
    }
}
