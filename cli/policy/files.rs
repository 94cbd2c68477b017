//! Objects in files: the YAML and JSON files of folders, whole or not at all.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use weft_forwarder::watched::{PAUSE, Stamp};
use weft_policy::{Object, documents, read_value};

/// Deepest folder; what links to itself ends here.
const DEPTH_MAX: usize = 16;

/// Tries to read what does not rest: 5 s.
const LOOKS: usize = 10;

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// An object, and what it was made of.
#[derive(Debug)]
pub struct Loaded {
    pub value: Value,
    pub object: Object,
}

/// All objects of files and folders, as of one moment: what is written
/// meanwhile is read again. No object may be there twice.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<Vec<Loaded>> {
    at_rest(paths, || read(paths))
}

/// What `read` yields while nobody writes to the files.
fn at_rest<T>(paths: &[PathBuf], mut read: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 0..LOOKS {
        let before = version(paths);
        let found = read();
        if version(paths) == before {
            return found;
        }
        thread::sleep(PAUSE);
    }
    bail!("the files change all the time; give them once nobody writes to them")
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Loaded>> {
    let mut loaded = Vec::new();
    let mut places = HashMap::new();
    for file in files(paths)? {
        let called = file.display().to_string();
        let text = fs::read_to_string(&file).with_context(|| called.clone())?;
        for (origin, value) in documents(&text).with_context(|| called.clone())? {
            let objects = read_value(origin, value.clone()).with_context(|| called.clone())?;
            for object in objects {
                let name = object.name();
                if let Some(other) = places.insert(name.clone(), called.clone()) {
                    bail!("{name} is in {other} and in {called}; leave one of them out");
                }
                let value = value.clone();
                loaded.push(Loaded { value, object });
            }
        }
    }
    Ok(loaded)
}

/// What tells one version of the files from another. A path that cannot be
/// looked at is a version too. A pipe, which reading changes, has only one.
pub fn version(paths: &[PathBuf]) -> Vec<(PathBuf, Stamp)> {
    let files = files(paths).unwrap_or_default();
    let is_kept = |file: &PathBuf| fs::metadata(file).is_ok_and(|about| about.is_file());
    let kept = files.into_iter().filter(is_kept);
    kept.map(|file| (file.clone(), Stamp::of(&file))).collect()
}

/// In order. A file that is named counts whatever it is called.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let about = fs::metadata(path).with_context(|| path.display().to_string())?;
        if about.is_dir() {
            walk(path, 0, &mut found)?;
        } else {
            found.push(path.clone());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let called = || folder.display().to_string();
    ensure!(
        depth < DEPTH_MAX,
        "{} lies more than {DEPTH_MAX} folders deep; does a link lead back?",
        folder.display()
    );
    for entry in fs::read_dir(folder).with_context(called)? {
        let path = entry.with_context(called)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden {
            continue;
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                          metadata: {name: web, namespace: x}\nspec: {podSelector: {}}\n";
    const NAMESPACES: &str = "apiVersion: v1\nkind: NamespaceList\nitems:\n\
                              - metadata: {name: x}\n- metadata: {name: z}\n";

    const POLICY_TOO: &str = "- metadata: {name: w}\n";

    #[test]
    fn what_is_written_meanwhile_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("all.yaml");
        let paths = [folder.path().to_owned()];
        fs::write(&file, NAMESPACES).expect("write");
        let mut looks = 0;
        let loaded = at_rest(&paths, || {
            looks += 1;
            if looks == 1 {
                fs::write(&file, "").expect("truncate");
                let half = read(&paths);
                fs::write(&file, NAMESPACES.to_owned() + POLICY_TOO).expect("write");
                return half;
            }
            read(&paths)
        });
        assert_eq!((loaded.expect("objects").len(), looks), (3, 2));
    }

    #[test]
    fn folders_are_read_whole_and_what_is_wrong_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let paths = [folder.path().to_owned()];
        fs::create_dir(at("deep")).expect("a folder");
        fs::write(at("deep/web.yaml"), POLICY).expect("write");
        fs::write(at("all.yml"), NAMESPACES).expect("write");
        fs::write(at("notes.txt"), "{").expect("write");
        fs::write(at(".hidden.yaml"), "{").expect("write");
        let names = |loaded: Vec<Loaded>| -> Vec<String> {
            let name = |one: &Loaded| one.object.name().to_string();
            loaded.iter().map(name).collect()
        };
        let loaded = load(&paths).expect("objects");
        assert_eq!(
            names(loaded),
            ["Namespace x", "Namespace z", "NetworkPolicy x/web"]
        );
        let before = version(&paths);
        fs::write(at("again.json"), POLICY).expect("write");
        assert_ne!(version(&paths), before);
        let twice = format!("{:#}", load(&paths).expect_err("twice"));
        assert!(twice.starts_with("NetworkPolicy x/web is in "), "{twice}");
        fs::write(
            at("again.json"),
            POLICY.replace("{podSelector: {}}", "{pods: {}}"),
        )
        .expect("write");
        let bad = format!("{:#}", load(&paths).expect_err("a bad field"));
        assert!(
            bad.contains("again.json: NetworkPolicy x/web: spec"),
            "{bad}"
        );
    }
}
