//! The embedded store and what may befall its file: each trouble is told with
//! the file's name and a remedy, and nothing that was answered is lost.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::contract::{delete, find, put, reservation};
use tempfile::TempDir;
use weft_ipam::{
    model::{Aside, Key, Value},
    store::{CommitError, Store, redb::Redb},
};

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ipam.redb");
    (directory, path)
}

/// A closed file with a few rows.
fn filled() -> (TempDir, PathBuf) {
    let (directory, path) = place();
    let mut store = Redb::open(&path).expect("it opens");
    for n in 0..200 {
        let row = reservation(&format!("row-{n:03}"), "10.0.0.0/30");
        store.commit(&[put(&row, None)], &[]).expect("it commits");
    }
    drop(store);
    (directory, path)
}

fn refusal(path: &Path) -> String {
    Redb::open(path)
        .expect_err("it is no good file")
        .to_string()
}

#[test]
fn rows_and_revisions_outlive_the_server() {
    let (_directory, path) = place();
    let row = reservation("a", "10.0.0.0/30");
    let mut store = Redb::open(&path).expect("it opens");
    let first = store.commit(&[put(&row, None)], &[]).expect("it commits");
    let gone = store
        .commit(&[delete(&row.0, Some(first))], &[])
        .expect("it deletes");
    drop(store);
    let mut store = Redb::open(&path).expect("it opens again");
    assert_eq!(store.load().expect("it loads").revision, gone);
    assert!(store.commit(&[put(&row, None)], &[]).expect("it commits") > gone);
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_in_use_is_left_alone() {
    let (_directory, path) = place();
    let _open = Redb::open(&path).expect("it opens");
    let told = refusal(&path);
    assert!(told.contains("stop the other weft-ipam"), "{told}");
    assert!(told.contains(path.to_str().expect("UTF-8")), "{told}");
}

#[test]
fn a_missing_directory_is_named() {
    let (directory, _) = place();
    let told = refusal(&directory.path().join("none/ipam.redb"));
    assert!(told.contains("make the directory"), "{told}");
    assert!(told.contains("/none"), "{told}");
}

#[test]
fn a_file_of_somebody_else_is_not_touched() {
    let (_directory, path) = place();
    let text = b"a note of somebody else, much longer than any header of ours";
    fs::write(&path, text).expect("a file");
    let told = refusal(&path);
    assert!(told.contains("no weft-ipam file"), "{told}");
    assert_eq!(fs::read(&path).expect("still there"), text);

    fs::remove_file(&path).expect("ours");
    let foreign = redb::Database::create(&path).expect("a database");
    let table = redb::TableDefinition::<&str, u64>::new("cats");
    let transaction = foreign.begin_write().expect("a transaction");
    transaction
        .open_table(table)
        .expect("a table")
        .insert("tom", 1)
        .expect("a cat");
    transaction.commit().expect("it commits");
    drop(foreign);
    let told = refusal(&path);
    assert!(told.contains("another program's"), "{told}");
    drop(redb::Database::open(&path).expect("it is as it was"));
}

#[test]
fn a_newer_format_is_not_guessed_at() {
    let (_directory, path) = filled();
    let newer = redb::Database::open(&path).expect("ours");
    let meta = redb::TableDefinition::<&str, u64>::new("weft-ipam");
    let transaction = newer.begin_write().expect("a transaction");
    transaction
        .open_table(meta)
        .expect("a table")
        .insert("format", 2)
        .expect("a number");
    transaction.commit().expect("it commits");
    drop(newer);
    let told = refusal(&path);
    assert!(told.contains("version 2"), "{told}");
}

#[test]
fn a_row_that_cannot_be_ends_the_start_with_its_name() {
    let (_directory, path) = filled();
    let mut store = Redb::open(&path).expect("it opens");
    let row = Value::Aside(Aside {
        bytes: br#"{"name": "p", "cidr": "10.0.0.0/24", "block_size": 0}"#.to_vec(),
        reason: String::new(),
    });
    let name = weft_api::names::Name::new("p").expect("a name");
    store
        .commit(&[put(&(Key::Pool(name), row), None)], &[])
        .expect("it commits");
    drop(store);
    let mut store = Redb::open(&path).expect("it opens again");
    let told = store.load().expect_err("it is not believed").to_string();
    let file = path.display().to_string();
    for part in [&file, "pool/p", "block size 0", "put a copy"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_panic() {
    let (directory, path) = filled();
    let whole = fs::read(&path).expect("a file");
    let copy = directory.path().join("copy.redb");
    // The header's first pages matter most; the rest is sampled.
    let places = (0..512).step_by(3).chain((512..whole.len()).step_by(4999));
    let mut refused = 0;
    for place in places {
        let mut bytes = whole.clone();
        bytes[place] ^= 0xff;
        fs::write(&copy, &bytes).expect("a copy");
        refused += u32::from(tell_of_damage(&copy));
    }
    assert!(refused > 0, "no damage was noticed");
    for length in [1, 100, 511, 4096, whole.len() / 2] {
        fs::write(&copy, &whole[..length]).expect("a copy");
        assert!(tell_of_damage(&copy), "{length} bytes are not the file");
    }
}

/// Whether the damage was noticed; where not, what is read must be right.
fn tell_of_damage(path: &Path) -> bool {
    let loaded = Redb::open(path).and_then(|mut store| store.load());
    match loaded {
        Err(error) => {
            let told = error.to_string();
            assert!(told.contains("redb") || told.contains("row"), "{told}");
            true
        }
        Ok(loaded) => {
            assert!(loaded.rows.len() <= 200);
            loaded.rows.len() < 200
        }
    }
}

/// A file system of one MiB, gone with the guard.
struct Small(TempDir);

impl Small {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "tests of a full disk mount a tmpfs, as root"
        );
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_and_is_got_over() {
    let small = Small::mount();
    let path = small.0.path().join("ipam.redb");
    let filler = small.0.path().join("filler");
    let mut store = Redb::open(&path).expect("it opens");
    let row = reservation("first", "10.0.0.0/30");
    store.commit(&[put(&row, None)], &[]).expect("it commits");
    let mut file = fs::File::create(&filler).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);

    let mut kept = Vec::new();
    let mut failure = None;
    for n in 0..20_000 {
        let row = reservation(&format!("row-{n}"), "10.1.0.0/30");
        match store.commit(&[put(&row, None)], &[]) {
            Ok(_) => kept.push(row.0),
            Err(error) => {
                failure = Some((error, row));
                break;
            }
        }
    }
    let (error, missing) = failure.expect("one MiB is soon full");
    let told = error.to_string();
    assert!(told.contains("make room"), "{told}");

    fs::remove_file(&filler).expect("ours");
    let there = find(&mut store, &missing.0).is_some();
    assert!(
        !there || matches!(error, CommitError::Unknown(_)),
        "{error} is untrue"
    );
    let rows = store.load().expect("it loads").rows;
    assert!(
        kept.iter()
            .all(|key| rows.iter().any(|(other, _)| other == key))
    );
    let after = reservation("after", "10.2.0.0/30");
    store
        .commit(&[put(&after, None)], &[])
        .expect("there is room again");
}

#[test]
fn a_read_only_file_system_is_named() {
    let small = Small::mount();
    let path = small.0.path().join("ipam.redb");
    drop(Redb::open(&path).expect("it opens"));
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(small.0.path())
        .status();
    assert!(remounted.is_ok_and(|status| status.success()));
    let told = refusal(&path);
    assert!(told.contains("let weft-ipam read and write it"), "{told}");
}

/// Set for the child of the test below: the file to write to.
const CHILD: &str = "WEFT_TEST_EMBEDDED_CHILD";

#[test]
fn what_was_answered_outlives_a_kill() {
    if let Some(path) = env::var_os(CHILD) {
        commit_for_ever(Path::new(&path));
    }
    let (_directory, path) = place();
    let mut answered = Vec::new();
    for round in 0..20_u64 {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args([
                "--exact",
                "embedded::what_was_answered_outlives_a_kill",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let told = BufReader::new(child.stdout.take().expect("piped"));
        let reader = thread::spawn(move || {
            told.lines()
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("row ").map(str::to_owned))
                .collect::<Vec<_>>()
        });
        thread::sleep(Duration::from_millis(60 + 7 * round));
        child.kill().expect("it runs");
        child.wait().expect("it ended");
        answered.extend(reader.join().expect("it reads"));
        let mut store = Redb::open(&path).expect("it opens after a kill");
        let rows = store.load().expect("it loads").rows;
        let keys: std::collections::BTreeSet<_> =
            rows.iter().map(|(key, _)| key.to_string()).collect();
        for row in &answered {
            assert!(keys.contains(row), "{row} was answered and is lost");
        }
    }
    assert!(answered.len() > 20, "the children came to nothing");
}

fn commit_for_ever(path: &Path) -> ! {
    let mut store = Redb::open(path).expect("it opens");
    let mut n = store.load().expect("it loads").revision;
    loop {
        let row = reservation(&format!("row-{n}"), "10.0.0.0/30");
        store.commit(&[put(&row, None)], &[]).expect("it commits");
        println!("row {}", row.0);
        n += 1;
    }
}
