use super::*;
use crate::object::read;

fn changes(text: &str) -> impl Iterator<Item = Change> {
    read(text).expect("objects").into_iter().map(Change::Put)
}

fn pod(name: &str, labels: &str, address: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, labels: \
         {labels}}}, status: {{podIP: {address}}}}}\n"
    )
}

/// Three pods, and a policy for those of `app: web` that names `app: db`.
fn small_world() -> Compiler {
    let mut compiler = Compiler::default();
    compiler.apply(changes(&format!(
        "{}{}{}---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, \
         namespace: x}}, spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: \
         [{{podSelector: {{matchLabels: {{app: db}}}}}}]}}]}}}}",
        pod("a", "{app: web}", "10.0.0.1"),
        pod("b", "{app: web}", "10.0.0.2"),
        pod("c", "{app: db}", "10.0.0.3"),
    )));
    compiler
}

#[test]
fn pods_that_the_same_policies_select_share_one_program() {
    let mut compiler = small_world();
    assert_eq!(compiler.programs.len(), 1);
    let work = compiler.apply(changes(&pod("d", "{app: web, v: '2'}", "10.0.0.4")));
    assert_eq!((work.identities_matched, work.programs_built), (1, 0));
    assert_eq!(compiler.programs.len(), 1);
}

#[test]
fn a_pod_like_another_costs_no_selector() {
    let work = small_world().apply(changes(&pod("d", "{app: db}", "10.0.0.4")));
    let judges_otherwise = true;
    let expected = Work {
        judges_otherwise,
        ..Work::default()
    };
    assert_eq!(work, expected);
}

#[test]
fn only_what_a_rule_can_see_judges_otherwise() {
    let namespace = |name: &str, labels: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {labels}}}}}")
    };
    let named_port = "---\n{apiVersion: v1, kind: Pod, metadata: {name: d, namespace: x}, spec: \
                      {containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}, status: \
                      {podIP: 10.0.0.4}}\n";
    for (what, change, expected) in [
        (
            "a pod of whose port a rule may ask by name",
            named_port.to_owned(),
            true,
        ),
        (
            "a pod that no policy sees",
            pod("d", "{app: x}", "10.0.0.4"),
            false,
        ),
        ("it moves", pod("d", "{app: x}", "10.0.0.5"), false),
        ("it is named", pod("d", "{app: db}", "10.0.0.5"), true),
        ("it is selected", pod("d", "{app: web}", "10.0.0.5"), true),
        (
            "its address is given away",
            pod("d", "{app: x}", "null"),
            true,
        ),
        (
            "a pod without address",
            pod("e", "{app: db}", "null"),
            false,
        ),
        ("a namespace of nobody", namespace("z", "{a: b}"), false),
        (
            "labels that nobody asks for",
            namespace("x", "{a: b}"),
            false,
        ),
    ] {
        let mut compiler = small_world();
        let known = pod(
            "d",
            if what == "its address is given away" {
                "{app: web}"
            } else {
                "{app: x}"
            },
            "10.0.0.9",
        );
        if what.starts_with("it") {
            compiler.apply(changes(&known));
        }
        let work = compiler.apply(changes(&change));
        assert_eq!(work.judges_otherwise, expected, "{what}");
    }
}

#[test]
fn a_relabelled_pod_costs_its_own_identity_and_no_neighbours() {
    let mut compiler = small_world();
    let work = compiler.apply(changes(&pod("c", "{app: web, db: ''}", "10.0.0.3")));
    let expected = Work {
        identities_matched: 1,
        identities_ruled: 1,
        programs_built: 0,
        judges_otherwise: true,
    };
    assert_eq!(work, expected);
}

#[test]
fn what_is_told_again_costs_nothing() {
    let mut compiler = small_world();
    let again: Vec<_> = changes(&pod("a", "{app: web}", "10.0.0.1"))
        .chain(
            compiler
                .policies
                .values()
                .map(|k| Change::Put(Object::Policy(k.policy.as_ref().clone()))),
        )
        .collect();
    assert_eq!(compiler.apply(again), Work::default());
}

#[test]
fn programs_and_sets_that_nobody_uses_are_dropped() {
    let mut compiler = small_world();
    let name = compiler.policies.keys().next().expect("the policy").clone();
    compiler.apply([Change::Remove(ObjectName::Policy(name))]);
    assert!(compiler.programs.is_empty());
    assert!(
        compiler
            .rulebook
            .identities()
            .iter()
            .all(|identity| identity.sets.is_empty())
    );
    assert!(compiler.by_subject.is_empty() && compiler.subjects.is_empty());
}
