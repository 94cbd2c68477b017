use std::time::Duration;

use serde_json::{Value, json};
use weft_api::forwarder::{Explain, ObjectRef, Policies};
use weft_policy::{Flow, Transport};

use super::{
    gather::{Gathered, Gathering},
    *,
};

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn pod(number: u8, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": format!("p{number}"), "labels": {"app": app}},
        "status": {"podIPs": [{"ip": format!("10.1.0.{number}")}]}
    })
}

/// Lets only `app` in.
fn policy(app: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "web"},
        "spec": {"podSelector": {}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}
        ]}
    })
}

fn replace(feeds: &mut Feeds, source: &str, objects: Vec<Value>) -> Result<Outcome, Error> {
    let plan = feeds.plan_replacement(name(source), given::read(objects)?)?;
    Ok(feeds.commit(plan, Instant::now()))
}

fn change(feeds: &mut Feeds, put: Vec<Value>, delete: &[&str]) -> Result<Outcome, Error> {
    let pod = |name: &&str| ObjectRef {
        kind: "Pod".into(),
        namespace: Some("x".into()),
        name: (*name).into(),
    };
    let plan = feeds.plan_change(PolicyChange {
        source: name("files"),
        put,
        delete: delete.iter().map(pod).collect(),
    })?;
    Ok(feeds.commit(plan, Instant::now()))
}

fn passes(feeds: &Feeds, from: u8, to: u8) -> bool {
    let flow = Flow {
        source: [10, 1, 0, from].into(),
        destination: [10, 1, 0, to].into(),
        transport: Transport::Tcp(80),
    };
    feeds.rulebook().judge(&flow).allowed()
}

fn edition(feeds: &Feeds) -> Option<u32> {
    feeds.policy().map(|policy| policy.edition)
}

#[test]
fn rules_come_change_and_go_with_their_sources() {
    let mut feeds = Feeds::default();
    assert_eq!(edition(&feeds), None);
    let objects = vec![pod(1, "a"), pod(2, "b"), policy("a")];
    assert_eq!(
        replace(&mut feeds, "files", objects.clone()),
        Ok(Outcome::Rules)
    );
    assert_eq!(edition(&feeds), Some(1));
    assert!(passes(&feeds, 1, 2) && !passes(&feeds, 2, 1));
    assert_eq!(
        replace(&mut feeds, "files", objects),
        Ok(Outcome::Nothing),
        "the same"
    );
    assert_eq!(edition(&feeds), Some(1));
    assert_eq!(
        change(&mut feeds, vec![pod(2, "a")], &["p1"]),
        Ok(Outcome::Rules)
    );
    assert_eq!(edition(&feeds), Some(2));
    assert!(passes(&feeds, 2, 1), "p1 is a stranger");
    let rules = feeds.rules();
    let row = &rules.policies[0];
    assert_eq!((row.pods, row.edition), (1, 1), "{rules:?}");
    let plan = feeds.plan_end(name("files")).expect("it is there");
    assert_eq!(feeds.commit(plan, Instant::now()), Outcome::Rules);
    assert_eq!(edition(&feeds), None);
    assert!(feeds.objects().policies.is_empty() && feeds.objects().pods.is_empty());
    assert_eq!(
        feeds
            .plan_end(name("files"))
            .map(|_| ())
            .map_err(|e| e.code),
        Err(Code::NotFound)
    );
}

/// A connection that is judged by this edition is not judged again.
#[test]
fn what_no_rule_sees_keeps_the_edition() {
    let mut feeds = Feeds::default();
    let stranger = |number: u8| {
        let mut pod = pod(number, "a");
        pod["metadata"]["namespace"] = json!("elsewhere");
        pod
    };
    replace(&mut feeds, "files", vec![pod(1, "a"), policy("a")]).expect("good");
    let quiet = vec![stranger(7)];
    assert_eq!(change(&mut feeds, quiet, &[]), Ok(Outcome::Objects));
    assert_eq!(replace(&mut feeds, "more", vec![]), Ok(Outcome::Objects));
    assert_eq!(edition(&feeds), Some(1));
    let address = "10.1.0.7".parse().expect("an address");
    assert!(feeds.rulebook().endpoint(address).is_some(), "it is known");
    let plan = feeds.plan_end(name("more")).expect("it is there");
    assert_eq!(feeds.commit(plan, Instant::now()), Outcome::Objects);
    assert_eq!(
        change(&mut feeds, vec![pod(2, "a")], &[]),
        Ok(Outcome::Rules)
    );
    assert_eq!(edition(&feeds), Some(2));
}

#[test]
fn two_sources_make_one_rulebook() {
    let mut feeds = Feeds::default();
    replace(&mut feeds, "pods", vec![pod(1, "a"), pod(2, "b")]).expect("good");
    replace(&mut feeds, "policies", vec![policy("b")]).expect("good");
    assert!(passes(&feeds, 2, 1) && !passes(&feeds, 1, 2));
    let sources = feeds.rules().sources;
    let counts: Vec<_> = sources.iter().map(|one| one.objects).collect();
    assert_eq!(counts, [2, 1]);
    let plan = feeds.plan_end(name("policies")).expect("it is there");
    feeds.commit(plan, Instant::now());
    assert!(passes(&feeds, 1, 2) && edition(&feeds).is_some());
    assert_eq!(feeds.objects().pods.len(), 2, "the other's stay");
}

#[test]
fn a_policy_is_shown_as_it_was_given_last() {
    let mut feeds = Feeds::default();
    let text = |feeds: &Feeds| {
        let named = ObjectRef {
            kind: "NetworkPolicy".into(),
            namespace: Some("x".into()),
            name: "web".into(),
        };
        feeds.rule(&named).expect("it is there").object
    };
    let mut given = policy("a");
    replace(&mut feeds, "files", vec![given.clone()]).expect("good");
    assert_eq!(text(&feeds), Some(given.clone()));
    given["metadata"]["annotations"] = json!({"note": "by hand"});
    replace(&mut feeds, "files", vec![given.clone()]).expect("good");
    assert_eq!(text(&feeds), Some(given), "though its rules are the same");
}

/// What is deleted twice, or deleted and put at once, makes no room.
#[test]
fn only_what_goes_is_counted_as_gone() {
    let mut feeds = Feeds::default();
    replace(&mut feeds, "files", vec![pod(1, "a"), pod(2, "a")]).expect("good");
    let gone = |feeds: &Feeds, put: Vec<Value>, delete: &[&str]| {
        let delete = delete.iter().map(|name| ObjectRef {
            kind: "Pod".into(),
            namespace: Some("x".into()),
            name: (*name).into(),
        });
        let change = PolicyChange {
            source: name("files"),
            put,
            delete: delete.collect(),
        };
        feeds.plan_change(change).expect("good").withdrawn()
    };
    assert_eq!(gone(&feeds, vec![], &["p1", "p1"]), 1);
    assert_eq!(gone(&feeds, vec![pod(1, "b")], &["p1", "p2"]), 1);
    change(&mut feeds, vec![pod(1, "b")], &["p1"]).expect("good");
    assert_eq!(feeds.objects().pods.len(), 2);
}

#[test]
fn a_replacement_forgets_what_it_leaves_out() {
    let mut feeds = Feeds::default();
    replace(&mut feeds, "files", vec![pod(1, "a"), policy("b")]).expect("good");
    assert!(!passes(&feeds, 2, 1));
    replace(&mut feeds, "files", vec![pod(1, "a")]).expect("good");
    assert!(passes(&feeds, 2, 1));
    replace(&mut feeds, "files", Vec::new()).expect("good");
    assert_eq!(feeds.rules().sources[0].objects, 0);
    assert!(feeds.policy().is_some(), "the source is still there");
}

#[test]
fn a_refused_change_changes_nothing() {
    let mut feeds = Feeds::default();
    replace(&mut feeds, "files", vec![pod(1, "a"), policy("a")]).expect("good");
    let before = feeds.rules();
    let mut bad = policy("a");
    bad["spec"]["ingres"] = json!([]);
    let list = json!({"apiVersion": "v1", "kind": "PodList", "items": [pod(1, "a"), pod(2, "a")]});
    for (put, delete, code, part) in [
        (
            vec![pod(3, "a"), bad],
            vec![],
            Code::Invalid,
            "NetworkPolicy x/web: spec.ingres",
        ),
        (vec![json!(7)], vec![], Code::Invalid, "no object"),
        (vec![list], vec![], Code::Invalid, "a list"),
        (
            vec![pod(3, "a"), pod(3, "b")],
            vec![],
            Code::Invalid,
            "Pod x/p3 is given twice",
        ),
        (
            vec![pod(3, "a")],
            vec!["p9"],
            Code::NotFound,
            "has no Pod x/p9",
        ),
    ] {
        let error = change(&mut feeds, put, &delete).expect_err(part);
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(part), "{error}");
    }
    let error = replace(&mut feeds, "others", vec![pod(1, "a")]).expect_err("another's");
    assert_eq!(error.code, Code::Taken);
    assert_eq!(error.message, "Pod x/p1 is source files's, not others's");
    assert_eq!(feeds.rules(), before);
}

fn part(part: u32, objects: Vec<Value>, more: bool) -> Policies {
    Policies {
        source: name("files"),
        objects,
        part,
        more,
        dry_run: false,
    }
}

#[test]
fn parts_make_one_whole_or_nothing() {
    let mut gathering = Gathering::default();
    let mut take = |client, part| gathering.take(client, part, Instant::now());
    assert!(matches!(
        take(1, part(0, vec![pod(1, "a")], true)),
        Ok(Gathered::Part(1))
    ));
    assert!(
        take(2, part(1, vec![], false)).is_err(),
        "another client's parts are its own"
    );
    assert!(matches!(
        take(1, part(1, vec![pod(2, "a")], false)),
        Ok(Gathered::Whole(_, objects)) if objects.len() == 2
    ));
    for broken in [part(1, vec![json!({})], true), part(2, vec![], true)] {
        assert!(take(1, part(0, vec![pod(1, "a")], true)).is_ok());
        assert!(take(1, broken).is_err());
        let rest = take(1, part(1, vec![], false)).expect_err("the beginning is gone");
        assert!(rest.message.contains("does not follow"), "{rest}");
    }
}

#[test]
fn an_idle_clients_parts_end_and_hold_nobody_up() {
    let mut gathering = Gathering::default();
    let now = Instant::now();
    let late = now + Duration::from_secs(31);
    assert!(
        gathering
            .take(1, part(0, vec![pod(1, "a")], true), now)
            .is_ok()
    );
    let whole = gathering.take(2, part(0, vec![pod(2, "a")], false), now);
    assert!(matches!(whole, Ok(Gathered::Whole(_, objects)) if objects.len() == 1));
    let rest = gathering.take(1, part(1, vec![], false), late);
    assert!(
        rest.expect_err("too late")
            .message
            .contains("does not follow")
    );
}

#[test]
fn there_are_only_so_many_sources() {
    let mut feeds = Feeds::default();
    for number in 0..SOURCES_MAX {
        replace(&mut feeds, &format!("s{number}"), vec![]).expect("room");
    }
    let error = replace(&mut feeds, "more", vec![]).expect_err("no room");
    assert_eq!(error.code, Code::Oversized);
    replace(&mut feeds, "s0", vec![pod(1, "a")]).expect("it is known");
}

#[test]
fn ends_are_found_by_name_and_by_family() {
    let mut feeds = Feeds::default();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "fd00::1"}]}
    });
    replace(&mut feeds, "files", vec![pod(1, "a"), node]).expect("good");
    let ports = |port: &str| {
        let both = ["fd00::7", "10.1.0.7"].map(|text| text.parse().expect("an address"));
        (port == "n1p1").then(|| both.to_vec())
    };
    let flow = |from: &str, to: &str, port: &str| {
        let asked = Explain {
            from: from.into(),
            to: to.into(),
            port: port.into(),
        };
        asked::flow(&asked, feeds.objects(), ports)
            .map(|flow| {
                format!("{} {} {}", flow.source, flow.destination, flow.transport).to_lowercase()
            })
            .map_err(|error| error.code)
    };
    for (from, to, port, found) in [
        ("n1p1", "x/p1", "80/tcp", Ok("10.1.0.7 10.1.0.1 80/tcp")),
        ("node/n1", "n1p1", "icmp", Ok("fd00::1 fd00::7 icmpv6")),
        (
            "192.0.2.1",
            "x/p1",
            "53/UDP",
            Ok("192.0.2.1 10.1.0.1 53/udp"),
        ),
        ("node/n1", "x/p1", "80/tcp", Err(Code::Invalid)),
        ("x/p9", "x/p1", "80/tcp", Err(Code::NotFound)),
        ("n1p1", "x/p1", "0/tcp", Err(Code::Invalid)),
        ("n1p1", "x/p1", "80/quic", Err(Code::Invalid)),
    ] {
        assert_eq!(
            flow(from, to, port),
            found.map(str::to_owned),
            "{from} {to} {port}"
        );
    }
}
