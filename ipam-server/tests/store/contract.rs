//! What every store has to keep, whatever it is made of.

use std::{sync::mpsc, time::Duration};

use weft_api::ipam::{AffinityState, Reservation};
use weft_ipam::{
    model::{Affinity, Key, Revision, Value},
    store::{Change, CommitError, Guard, News, Row, Store, Update},
};

/// An empty store of two servers on the same rows; of one where the store
/// has no others.
pub fn holds(mut one: Box<dyn Store>, other: Option<Box<dyn Store>>) {
    an_empty_store_has_no_rows(&mut *one);
    what_is_committed_is_loaded(&mut *one);
    a_commit_is_all_or_nothing(&mut *one);
    a_guard_is_compared_and_not_written(&mut *one);
    what_is_gone_may_be_made_again(&mut *one);
    many_rows_are_loaded_whole(&mut *one);
    if let Some(mut other) = other {
        others_see_and_hear_what_is_committed(&mut *one, &mut *other);
    }
}

pub fn reservation(name: &str, cidr: &str) -> (Key, Value) {
    let name = weft_api::names::Name::new(name).expect("a name");
    let cidrs = vec![cidr.parse().expect("a CIDR")];
    (
        Key::Reservation(name.clone()),
        Value::Reservation(Reservation { name, cidrs }),
    )
}

pub fn put(row: &(Key, Value), expected: Option<Revision>) -> Change {
    Change {
        key: row.0.clone(),
        value: Some(row.1.clone()),
        expected,
    }
}

pub fn delete(key: &Key, expected: Option<Revision>) -> Change {
    Change {
        key: key.clone(),
        value: None,
        expected,
    }
}

/// The row as it stands now.
pub fn find(store: &mut dyn Store, key: &Key) -> Option<Row> {
    let loaded = store.load().expect("it loads");
    let found = loaded.rows.into_iter().find(|(other, _)| other == key);
    found.map(|(_, row)| row)
}

fn an_empty_store_has_no_rows(store: &mut dyn Store) {
    assert!(store.load().expect("it loads").rows.is_empty());
}

fn what_is_committed_is_loaded(store: &mut dyn Store) {
    let before = store.load().expect("it loads").revision;
    let affinity = (
        Key::parse("affinity/rack/7/fd00::40-122").expect("a key"),
        Value::Affinity(Affinity {
            state: AffinityState::Pending,
        }),
    );
    let rows = [reservation("a", "10.0.0.0/30"), affinity];
    let changes = rows.each_ref().map(|row| put(row, None));
    let revision = store.commit(&changes, &[]).expect("it commits");
    assert!(revision > before, "{revision} after {before}");
    let loaded = store.load().expect("it loads");
    assert!(loaded.revision >= revision);
    for (key, value) in rows {
        assert!(loaded.rows.contains(&(key, Row { value, revision })));
    }
}

fn a_commit_is_all_or_nothing(store: &mut dyn Store) {
    let (old, new) = (
        reservation("a", "10.0.0.0/30"),
        reservation("b", "10.9.0.0/30"),
    );
    let row = find(store, &old.0).expect("committed before");
    let wrong = [
        (vec![put(&new, None), put(&old, None)], "it exists"),
        (
            vec![put(&new, None), put(&old, Some(row.revision + 1))],
            "another revision",
        ),
        (
            vec![put(&new, None), delete(&old.0, Some(row.revision + 1))],
            "to delete another",
        ),
    ];
    for (changes, why) in wrong {
        match store.commit(&changes, &[]) {
            Err(CommitError::Conflict(updates)) => {
                let expected = Update {
                    key: old.0.clone(),
                    row: Some(row.clone()),
                };
                assert_eq!(updates, [expected], "{why}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }
    match store.commit(&[put(&new, Some(row.revision))], &[]) {
        Err(CommitError::Conflict(updates)) => assert_eq!(updates[0].row, None),
        other => panic!("a row that is not there has no revision: {other:?}"),
    }
    assert_eq!(find(store, &new.0), None);
    assert_eq!(find(store, &old.0), Some(row));
}

fn a_guard_is_compared_and_not_written(store: &mut dyn Store) {
    let (guarded, new) = (
        reservation("a", "10.0.0.0/30"),
        reservation("g", "10.8.0.0/30"),
    );
    let row = find(store, &guarded.0).expect("committed before");
    let guard = |expected| Guard {
        key: guarded.0.clone(),
        expected,
    };
    for wrong in [None, Some(row.revision + 1)] {
        match store.commit(&[put(&new, None)], &[guard(wrong)]) {
            Err(CommitError::Conflict(updates)) => assert_eq!(updates[0].row, Some(row.clone())),
            other => panic!("{wrong:?}: {other:?}"),
        }
    }
    let absent = Guard {
        key: reservation("nowhere", "10.8.0.0/30").0,
        expected: None,
    };
    store
        .commit(&[put(&new, None)], &[guard(Some(row.revision)), absent])
        .expect("both guards hold");
    assert_eq!(find(store, &guarded.0), Some(row));
}

fn what_is_gone_may_be_made_again(store: &mut dyn Store) {
    let made = reservation("c", "10.3.0.0/30");
    let first = store.commit(&[put(&made, None)], &[]).expect("it commits");
    let gone = store
        .commit(&[delete(&made.0, Some(first))], &[])
        .expect("it deletes");
    assert_eq!(find(store, &made.0), None);
    let again = store
        .commit(&[put(&made, None)], &[])
        .expect("it commits again");
    assert!(first < gone && gone < again);
    store
        .commit(&[delete(&made.0, Some(again))], &[])
        .expect("it deletes");
}

fn many_rows_are_loaded_whole(store: &mut dyn Store) {
    let rows: Vec<_> = (0..1500)
        .map(|n| reservation(&format!("many-{n:04}"), "10.4.0.0/30"))
        .collect();
    let mut revision = 0;
    for some in rows.chunks(50) {
        let changes: Vec<_> = some.iter().map(|row| put(row, None)).collect();
        revision = store.commit(&changes, &[]).expect("it commits");
    }
    let loaded = store.load().expect("it loads");
    let keys: std::collections::BTreeSet<_> = loaded.rows.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), loaded.rows.len(), "a row came twice");
    assert!(rows.iter().all(|(key, _)| keys.contains(key)));
    assert!(loaded.revision >= revision);
}

fn others_see_and_hear_what_is_committed(one: &mut dyn Store, other: &mut dyn Store) {
    let (tell, told) = mpsc::channel();
    let from = other.load().expect("it loads").revision;
    other.watch(
        from,
        Box::new(move |news| {
            // The test may be over.
            let _ = tell.send(news);
        }),
    );
    let row = reservation("told", "10.5.0.0/30");
    let second = reservation("told-too", "10.6.0.0/30");
    let made = one
        .commit(&[put(&row, None), put(&second, None)], &[])
        .expect("it commits");
    let gone = one
        .commit(&[delete(&row.0, Some(made))], &[])
        .expect("it deletes");
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match told.recv_timeout(Duration::from_secs(20)).expect("news") {
            News::Updates { updates, .. } if updates.is_empty() => {}
            News::Updates { revision, updates } => heard.push((revision, updates)),
            News::Missed => panic!("nothing was missed"),
        }
    }
    heard[0].1.sort_by(|a, b| a.key.cmp(&b.key));
    let update = |(key, value): (Key, Value), revision| Update {
        key,
        row: Some(Row { value, revision }),
    };
    let both = vec![update(row.clone(), made), update(second, made)];
    let none = vec![Update {
        key: row.0.clone(),
        row: None,
    }];
    assert_eq!(heard, [(made, both), (gone, none)]);
    match other.commit(&[put(&row, Some(made))], &[]) {
        Err(CommitError::Conflict(_)) => {}
        result => panic!("it is gone: {result:?}"),
    }
}
