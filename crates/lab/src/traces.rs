//! The processes of a lab whose state cannot be read, known by what they have
//! open, by their environment and by their namespaces.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use crate::{
    process::{self, Process},
    role::{FORWARDER, IPAM, KEEPER},
    state::{self, MARK},
};

/// Those of lab `name`, whose files are in `dir`.
pub(crate) fn of(name: &str, dir: &Path) -> io::Result<Vec<Process>> {
    let dir = fs::canonicalize(dir)?;
    let mut found = process::which(|process| is_part(process, &dir))?;
    let keeper = found.iter().find(|part| is_role(&folder(**part), KEEPER));
    let keeper = keeper.copied();
    // Of another keeper, they are another lab's of that name.
    let of_this_keeper = |mark: &str| match state::marked_keeper(name, mark) {
        Some(marked) => keeper == Some(marked) || !marked.runs(),
        None => false,
    };
    found.extend(process::which(|process| {
        is_ours(process) && mark_of(process).is_some_and(|mark| of_this_keeper(&mark))
    })?);
    if let Some(keeper) = keeper {
        let namespaces = namespaces_held_by(&folder(keeper));
        found.extend(process::which(|process| {
            let inside = fs::read_link(process.join("ns/net"));
            is_ours(process) && inside.is_ok_and(|inside| namespaces.contains(&inside))
        })?);
    }
    found.sort_by_key(|process| process.pid);
    found.dedup();
    Ok(found)
}

/// A daemon or keeper that writes its log into the lab's directory.
fn is_part(process: &Path, dir: &Path) -> bool {
    let is_inside = |log: PathBuf| log.starts_with(dir);
    is_ours(process)
        && [KEEPER, FORWARDER, IPAM]
            .iter()
            .any(|role| is_role(process, role))
        && fs::read_link(process.join("fd/2")).is_ok_and(is_inside)
}

fn is_role(process: &Path, role: &str) -> bool {
    let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
    let name = arguments
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Path::new(OsStr::from_bytes(name)).file_name() == Some(OsStr::new(role))
}

fn is_ours(process: &Path) -> bool {
    let user = geteuid();
    fs::metadata(process).is_ok_and(|found| user.is_root() || found.uid() == user.as_raw())
}

fn mark_of(process: &Path) -> Option<String> {
    let environment = fs::read(process.join("environ")).ok()?;
    let mut entries = environment.split(|&byte| byte == 0);
    entries.find_map(|entry| {
        let entry = std::str::from_utf8(entry).ok()?;
        Some(entry.strip_prefix(MARK)?.strip_prefix('=')?.to_owned())
    })
}

/// Other network namespaces than the one that it is in.
fn namespaces_held_by(keeper: &Path) -> Vec<PathBuf> {
    let own = fs::read_link(keeper.join("ns/net")).ok();
    let fds = fs::read_dir(keeper.join("fd")).into_iter().flatten();
    let links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    links
        .filter(|link| link.as_os_str().as_bytes().starts_with(b"net:["))
        .filter(|link| Some(link) != own.as_ref())
        .collect()
}

fn folder(process: Process) -> PathBuf {
    format!("/proc/{}", process.pid).into()
}
