//! A folder in which weft puts files among others', and the record of them
//! that stands beside them.
//!
//! A file is ours as long as its content is one that we put there. Ours may be
//! replaced and removed; anybody else's only on demand, and then it is kept.
//! The record is written first, so that whatever ends the install half-way,
//! the next one and the uninstall know what is whose.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Begins with a dot and has no ending that runtimes read.
const RECORD: &str = ".weft-installed";
/// What somebody else's file is called while ours is in its place.
const KEPT: &str = "before-weft";
/// What names begin with before they are those that they are to be. Who
/// holds the folder's lock is alone with them.
const UNNAMED: &str = ".weft-new-";

/// What a file is to hold.
#[derive(Debug)]
pub enum Content {
    Program(Vec<u8>),
    Text(String),
    /// A symbolic link to a neighbour.
    Link(&'static str),
}

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Made(PathBuf),
    Replaced(PathBuf),
    Kept { file: PathBuf, as_file: PathBuf },
    Unchanged(PathBuf),
    Removed(PathBuf),
    Restored(PathBuf),
    Spared(PathBuf),
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made(file) => write!(f, "made {}", file.display()),
            Self::Replaced(file) => write!(f, "replaced {}", file.display()),
            Self::Kept { file, as_file } => {
                write!(f, "kept {} as {}", file.display(), as_file.display())
            }
            Self::Unchanged(file) => write!(f, "{} is as it should be", file.display()),
            Self::Removed(file) => write!(f, "removed {}", file.display()),
            Self::Restored(file) => write!(f, "put {} back as it was", file.display()),
            Self::Spared(file) => write!(
                f,
                "left {}: it was changed since weft wrote it",
                file.display()
            ),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The digests that our file of that name has, or had a moment ago.
    files: BTreeMap<String, Vec<String>>,
    /// Folders that were made for it, the outermost first.
    folders: Vec<PathBuf>,
}

#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    record: Record,
    /// Made by [`Place::open`], and gone again with this value if they are
    /// empty then.
    fresh: Vec<PathBuf>,
    /// Locked: one install at a time.
    _held: File,
}

/// A file that needs but its name.
#[derive(Debug)]
pub struct Staged {
    name: &'static str,
    digest: String,
    state: Found,
    /// None where the file has that content.
    ready: Option<Unnamed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    Foreign,
}

impl Place {
    /// Opens the folder, which is made where it is missing.
    pub fn open(folder: PathBuf) -> anyhow::Result<Self> {
        let fresh = missing(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("make folder {folder:?}"))?;
        let mut place = Self::lock(folder)?;
        place.record.folders.extend_from_slice(&fresh);
        place.fresh = fresh;
        place.sweep()?;
        Ok(place)
    }

    /// None where nothing is installed.
    pub fn open_existing(folder: PathBuf) -> anyhow::Result<Option<Self>> {
        match fs::symlink_metadata(folder.join(RECORD)) {
            Ok(_) => Self::lock(folder).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look into {folder:?}")),
        }
    }

    fn lock(folder: PathBuf) -> anyhow::Result<Self> {
        let held = File::open(&folder).with_context(|| format!("open folder {folder:?}"))?;
        held.lock()
            .with_context(|| format!("lock folder {folder:?}"))?;
        let path = folder.join(RECORD);
        let record = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("read {path:?}: it is no record of weft; move it away, and use --force")
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(error).with_context(|| format!("read {path:?}")),
        };
        Ok(Self {
            folder,
            record,
            fresh: Vec::new(),
            _held: held,
        })
    }

    /// Removes what an install left that was killed.
    fn sweep(&self) -> anyhow::Result<()> {
        let sweep = || -> io::Result<()> {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                if entry.file_name().as_bytes().starts_with(UNNAMED.as_bytes()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep().with_context(|| format!("tidy folder {:?}", self.folder))
    }

    /// Writes all contents under names of no meaning, after having looked
    /// whether they may take the places of what is there.
    pub fn stage(
        &self,
        contents: &[(&'static str, Content)],
        force: bool,
    ) -> anyhow::Result<Vec<Staged>> {
        let mut staged = Vec::new();
        for (name, content) in contents {
            let path = self.folder.join(name);
            let digest = content.digest();
            let found = digest_of(&path).with_context(|| format!("read {path:?}"))?;
            let state = match &found {
                None => Found::Nothing,
                // Also what an install left that was ended before its record.
                Some(found) if *found == digest || self.is_ours(name, found) => Found::Ours,
                Some(_) => Found::Foreign,
            };
            if state == Found::Foreign && !force {
                bail!(
                    "{path:?} is not as weft wrote it, or is somebody else's; move it away, or \
                     let --force replace it"
                );
            }
            let ready = if found.as_ref() == Some(&digest) {
                None
            } else {
                let ready = content.write(&self.folder, name);
                Some(ready.with_context(|| format!("write into {:?}", self.folder))?)
            };
            staged.push(Staged {
                name,
                digest,
                state,
                ready,
            });
        }
        Ok(staged)
    }

    /// Gives the staged files their names.
    pub fn put(&mut self, staged: Vec<Staged>) -> anyhow::Result<Vec<Deed>> {
        for one in &staged {
            let digests = self.record.files.entry(one.name.to_owned()).or_default();
            digests.retain(|digest| *digest != one.digest);
            digests.push(one.digest.clone());
        }
        self.write_record()?;
        let mut deeds = Vec::new();
        for one in staged {
            let path = self.folder.join(one.name);
            let Some(ready) = one.ready else {
                deeds.push(Deed::Unchanged(path));
                continue;
            };
            if one.state == Found::Foreign {
                deeds.push(self.keep(&path)?);
            }
            ready
                .persist(&path)
                .with_context(|| format!("write {path:?}"))?;
            deeds.push(match one.state {
                Found::Nothing => Deed::Made(path),
                Found::Ours | Found::Foreign => Deed::Replaced(path),
            });
        }
        self.sync()?;
        for digests in self.record.files.values_mut() {
            digests.drain(..digests.len().saturating_sub(1));
        }
        self.write_record()?;
        Ok(deeds)
    }

    /// A second name for somebody else's file, which thus is never missing.
    fn keep(&self, path: &Path) -> anyhow::Result<Deed> {
        let kept = kept(path);
        fs::hard_link(path, &kept)
            .with_context(|| format!("keep {path:?} as {kept:?}; move away what is there"))?;
        Ok(Deed::Kept {
            file: path.to_owned(),
            as_file: kept,
        })
    }

    /// Removes what is ours, and the record.
    pub fn clear(self) -> anyhow::Result<Vec<Deed>> {
        let mut deeds = Vec::new();
        for name in self.record.files.keys() {
            let path = self.folder.join(name);
            let found = digest_of(&path).with_context(|| format!("read {path:?}"))?;
            let kept = kept(&path);
            let is_kept = fs::symlink_metadata(&kept).is_ok();
            match found {
                Some(found) if !self.is_ours(name, &found) => deeds.push(Deed::Spared(path)),
                _ if is_kept => {
                    fs::rename(&kept, &path).with_context(|| format!("put {path:?} back"))?;
                    deeds.push(Deed::Restored(path));
                }
                Some(_) => {
                    fs::remove_file(&path).with_context(|| format!("remove {path:?}"))?;
                    deeds.push(Deed::Removed(path));
                }
                None => {}
            }
        }
        self.sync()?;
        let record = self.folder.join(RECORD);
        fs::remove_file(&record).with_context(|| format!("remove {record:?}"))?;
        for folder in self.record.folders.iter().rev() {
            // Others may have put something there since.
            if fs::remove_dir(folder).is_ok() {
                deeds.push(Deed::Removed(folder.clone()));
            }
        }
        Ok(deeds)
    }

    fn is_ours(&self, name: &str, digest: &String) -> bool {
        let digests = self.record.files.get(name);
        digests.is_some_and(|digests| digests.contains(digest))
    }

    fn write_record(&self) -> anyhow::Result<()> {
        let path = self.folder.join(RECORD);
        let text = Content::Text(format!("{}\n", serde_json::to_string_pretty(&self.record)?));
        let write = || -> io::Result<()> { text.write(&self.folder, RECORD)?.persist(&path) };
        write().with_context(|| format!("write {path:?}"))?;
        self.sync()
    }

    fn sync(&self) -> anyhow::Result<()> {
        let folder = &self.folder;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("sync folder {folder:?}"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in self.fresh.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Content {
    fn digest(&self) -> String {
        match self {
            Self::Program(bytes) => digest("file", bytes),
            Self::Text(text) => digest("file", text.as_bytes()),
            Self::Link(target) => digest("link", target.as_bytes()),
        }
    }

    /// A file of this content that is to be `name` in `folder`, on the disc.
    fn write(&self, folder: &Path, name: &str) -> io::Result<Unnamed> {
        let path = folder.join(format!("{UNNAMED}{name}"));
        let (bytes, mode) = match self {
            Self::Program(bytes) => (bytes.as_slice(), 0o755),
            Self::Text(text) => (text.as_bytes(), 0o644),
            Self::Link(target) => {
                symlink(target, &path)?;
                return Ok(Unnamed(path));
            }
        };
        let mut file = File::create_new(&path)?;
        let unnamed = Unnamed(path);
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(unnamed)
    }
}

/// A file that is gone unless it is given its name.
#[derive(Debug)]
struct Unnamed(PathBuf);

impl Unnamed {
    fn persist(self, name: &Path) -> io::Result<()> {
        fs::rename(&self.0, name)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // It is there only where it was not persisted.
        let _ = fs::remove_file(&self.0);
    }
}

fn kept(path: &Path) -> PathBuf {
    path.with_added_extension(KEPT)
}

/// The folders on the way that are not there, the outermost first.
fn missing(folder: &Path) -> Vec<PathBuf> {
    let missing = folder.ancestors().take_while(|folder| {
        !folder.as_os_str().is_empty() && matches!(folder.try_exists(), Ok(false))
    });
    let mut missing: Vec<_> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Tells an accident, not an attack: the folder is root's.
fn digest(kind: &str, bytes: &[u8]) -> String {
    let hash = rapidhash::v3::rapidhash_v3(bytes);
    format!("{kind} {} {hash:016x}", bytes.len())
}

/// None where there is nothing.
fn digest_of(path: &Path) -> io::Result<Option<String>> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    if found.is_symlink() {
        let target = fs::read_link(path)?;
        return Ok(Some(digest("link", target.as_os_str().as_bytes())));
    }
    if !found.is_file() {
        return Ok(Some("neither file nor link".to_owned()));
    }
    Ok(Some(digest("file", &fs::read(path)?)))
}
