//! The conformance tables, each judged by the interpreter and by the
//! compiled rules.

use weft_policy::{Compiler, Objects, interpret};
use weft_testkit::policy::{Case, cluster, expect_right, generated, kubernetes};

#[test]
fn kubernetes_end_to_end_suite() {
    run(&kubernetes());
}

#[test]
fn cyclonus_dimensions() {
    run(&generated::cases());
}

#[test]
fn cluster_network_policy_suite() {
    run(&cluster::cases());
}

fn run(cases: &[Case]) {
    expect_right(cases, judge);
}

/// Every probe that is not as expected.
fn judge(case: &Case) -> Vec<String> {
    let mut objects = Objects::default();
    let mut compiler = Compiler::default();
    let mut wrong = Vec::new();
    for step in &case.steps {
        let changes = step.changes();
        changes
            .iter()
            .cloned()
            .for_each(|change| objects.apply(change));
        compiler.apply(changes);
        let rulebook = compiler.rulebook();
        for probe in &step.probes {
            let judges = [
                ("interpreter", interpret(&objects, &probe.flow)),
                ("compiled", rulebook.judge(&probe.flow)),
            ];
            for (judge, verdict) in judges {
                if verdict.allowed() != probe.allowed {
                    wrong.push(format!(
                        "{}, {}: {judge}: {} to {} at {}: allowed {}, expected {}",
                        case.name,
                        step.name,
                        probe.from,
                        probe.to,
                        probe.flow.transport,
                        verdict.allowed(),
                        probe.allowed,
                    ));
                }
            }
        }
    }
    wrong
}
