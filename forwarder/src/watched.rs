//! Files that are replaced under their readers: by rename, by another target of
//! a symbolic link, or in place. They are looked at again and again, which sees
//! all of these on every file system.

use std::{fs, mem, os::unix::fs::MetadataExt, path::Path, time::Duration};

/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(500);

/// Tells of each version of a file, or of many, once.
#[derive(Debug)]
pub struct Watched<V> {
    seen: V,
    taken: V,
}

impl<V: PartialEq + Clone> Watched<V> {
    /// What is there now counts as taken.
    pub fn new(now: V) -> Self {
        let seen = now.clone();
        Self { seen, taken: now }
    }

    /// Whether there is another version than the one taken, at rest since the
    /// last look: who writes in place may not be done. It is taken then.
    pub fn is_new(&mut self, now: V) -> bool {
        let rests = mem::replace(&mut self.seen, now.clone()) == now;
        rests && mem::replace(&mut self.taken, now.clone()) != now
    }
}

/// Tells one version of a file from another, and from none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(Option<[i128; 5]>);

impl Stamp {
    pub fn of(path: &Path) -> Self {
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
        };
        let stamp = |file: fs::Metadata| {
            [
                file.dev().into(),
                file.ino().into(),
                file.size().into(),
                time(file.mtime(), file.mtime_nsec()),
                // A file that was given an old time, or whose mode changed.
                time(file.ctime(), file.ctime_nsec()),
            ]
        };
        Self(fs::metadata(path).ok().map(stamp))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_way_to_replace_a_file_is_seen_once_it_rests() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| fs::write(at(name), text).expect("write");
        write("a", "first");
        symlink("a", at("link")).expect("a link");
        let mut watched = Watched::new(Stamp::of(&at("link")));
        let mut is_new = || watched.is_new(Stamp::of(&at("link")));
        assert!(!is_new() && !is_new());
        let changes: [(&str, &dyn Fn()); 5] = [
            ("in place", &|| write("a", "second")),
            ("by rename", &|| {
                write("new", "second");
                fs::rename(at("new"), at("a")).expect("rename");
            }),
            ("by link", &|| {
                write("b", "second");
                symlink("b", at("link.new")).expect("a link");
                fs::rename(at("link.new"), at("link")).expect("rename");
            }),
            ("gone", &|| fs::remove_file(at("b")).expect("remove")),
            ("back", &|| write("b", "third")),
        ];
        for (what, change) in changes {
            change();
            assert!(!is_new(), "{what}: it may not be whole");
            assert!(is_new(), "{what}");
            assert!(!is_new(), "{what}: told once");
        }
    }
}
