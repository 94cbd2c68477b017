//! What policies cost: compiling all of them, one pod's change, one packet.
//!
//! Three clusters of 5 000 pods and 10 000 policies: `many` has a hundred
//! namespaces, whose policies select a tenth of their pods each; in `one` all
//! live in a single namespace and each policy selects ten pods; in `every`
//! each policy selects every pod. Every pod has labels of its own, so no two
//! share an identity, and every change is made while an older rulebook is
//! still held, as a running forwarder does.

use std::{hint::black_box, net::IpAddr, time::Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use weft_policy::{Change, Compiler, Flow, Origin, Rulebook, Transport, read_value};

const PODS: usize = 5_000;
const POLICIES: usize = 10_000;
const APPS: usize = 10;

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    namespaces: usize,
    /// Labels that pods of a namespace are told apart by.
    apps: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "many",
        namespaces: 100,
        apps: APPS,
    },
    Shape {
        name: "one",
        namespaces: 1,
        apps: 50 * APPS,
    },
    Shape {
        name: "every",
        namespaces: 1,
        apps: 1,
    },
];

fn put(manifest: Value) -> Change {
    let mut objects = read_value(Origin::object(1), manifest).expect("a manifest that reads");
    Change::Put(objects.remove(0))
}

fn address(pod: usize) -> IpAddr {
    let [_, high, middle, low] = u32::try_from(pod).expect("few pods").to_be_bytes();
    IpAddr::from([10, high, middle, low])
}

impl Shape {
    fn pod(self, number: usize, version: usize) -> Change {
        let namespace = number % self.namespaces;
        let app = (number / self.namespaces) % self.apps;
        put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("p{number}"), "namespace": format!("n{namespace}"),
                "labels": {"app": format!("a{app}"), "pod": format!("p{number}"),
                           "version": format!("v{version}")},
            },
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": address(number)},
        }))
    }

    /// From two apps of its namespace and from a team, at two ports; to an
    /// app and to a network.
    fn policy(self, number: usize) -> Change {
        let app = |n: usize| json!({"matchLabels": {"app": format!("a{}", n % self.apps)}});
        let own = number / self.namespaces;
        let team = json!({"matchLabels": {"team": format!("t{}", number % 7)}});
        put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("q{number}"),
                         "namespace": format!("n{}", number % self.namespaces)},
            "spec": {
                "podSelector": app(own), "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {"from": [{"podSelector": app(own + 1)}, {"podSelector": app(own + 2)}],
                     "ports": [{"port": 8000 + number % 100}, {"port": "http"}]},
                    {"from": [{"namespaceSelector": team, "podSelector": app(own + 3)}],
                     "ports": [{"port": 9000, "endPort": 9010 + number % 50}]},
                ],
                "egress": [
                    {"to": [{"podSelector": app(own + 4)}]},
                    {"to": [{"ipBlock": {"cidr": "10.0.0.0/8",
                                         "except": [format!("10.{}.0.0/16", number % 250)]}}],
                     "ports": [{"protocol": "UDP", "port": 53}]},
                ],
            },
        }))
    }

    fn everything(self) -> Vec<Change> {
        let namespaces = (0..self.namespaces).map(|n| {
            let labels = json!({"team": format!("t{}", n % 7)});
            put(json!({"apiVersion": "v1", "kind": "Namespace",
                        "metadata": {"name": format!("n{n}"), "labels": labels}}))
        });
        let pods = (0..PODS).map(|number| self.pod(number, 0));
        let policies = (0..POLICIES).map(|number| self.policy(number));
        namespaces.chain(pods).chain(policies).collect()
    }
}

fn compile(changes: Vec<Change>) -> Compiler {
    let mut compiler = Compiler::default();
    compiler.apply(changes);
    compiler
}

fn whole_clusters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for shape in SHAPES {
        let everything = shape.everything();
        group.bench_function(format!("everything, {}", shape.name), |bencher| {
            bencher.iter_batched(|| everything.clone(), compile, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    for shape in SHAPES {
        let mut compiler = compile(shape.everything());
        let mut held = compiler.rulebook();
        let mut turn = 0;
        group.bench_function(format!("a pod's labels, {}", shape.name), |bencher| {
            bencher.iter_batched(
                || {
                    turn += 1;
                    shape.pod(turn * 37 % PODS, turn)
                },
                |change| {
                    compiler.apply([change]);
                    held = compiler.rulebook();
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("a policy, {}", shape.name), |bencher| {
            bencher.iter_batched(
                || {
                    turn += 1;
                    let (own, other) = (turn * 37 % POLICIES, turn * 53 % POLICIES);
                    let (own, other) = (shape.policy(own), shape.policy(other));
                    match (own, other) {
                        (Change::Put(own), Change::Put(weft_policy::Object::Policy(mut other))) => {
                            if let weft_policy::ObjectName::Policy(name) = own.name() {
                                other.name = name;
                            }
                            Change::Put(weft_policy::Object::Policy(other))
                        }
                        _ => unreachable!("both are policies"),
                    }
                },
                |change| {
                    compiler.apply([change]);
                    held = compiler.rulebook();
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// A pod under `rules` rules, each with peers and ports of its own, and
/// flows to it of which every second one matches, spread over the rules.
fn under_rules(rules: usize) -> (Rulebook, Vec<Flow>) {
    let pod = |name: String, number: usize| {
        put(json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "namespace": "x", "labels": {"pod": name}},
                    "status": {"podIP": address(number)}}))
    };
    let peer = |rule: usize| json!({"podSelector": {"matchLabels": {"pod": format!("p{rule}")}}});
    let list: Vec<_> = (0..rules)
        .map(|rule| json!({"from": [peer(rule), {"ipBlock": {"cidr": format!("{}/32", address(1 << 20 | rule))}}],
                           "ports": [{"port": 1000 + rule}]}))
        .collect();
    let policy = put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "rules", "namespace": "x"},
        "spec": {"podSelector": {"matchLabels": {"pod": "server"}}, "ingress": list},
    }));
    let clients = (0..rules).map(|rule| pod(format!("p{rule}"), 1 + rule));
    let changes = clients.chain([pod("server".into(), 0), policy]).collect();
    let flows = (0..1024).map(|turn| {
        let rule = turn * 37 % rules;
        let port = 1000 + rule + turn % 2;
        let client = if turn % 4 < 2 {
            1 + rule
        } else {
            1 << 20 | rule
        };
        Flow {
            source: address(client),
            destination: address(0),
            transport: Transport::Tcp(u16::try_from(port).expect("a port")),
        }
    });
    (compile(changes).rulebook(), flows.collect())
}

fn one_packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    for rules in [1, 10, 100, 1_000, 10_000] {
        let (rulebook, flows) = under_rules(rules);
        let mut turn = 0;
        group.bench_function(format!("{rules} rules"), |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % flows.len();
                rulebook.judge(black_box(&flows[turn]))
            });
        });
    }
    for shape in SHAPES {
        let rulebook = compile(shape.everything()).rulebook();
        let mut turn = 0;
        group.bench_function(format!("any pod to any other, {}", shape.name), |bencher| {
            bencher.iter(|| {
                turn += 1;
                rulebook.judge(black_box(&Flow {
                    source: address(turn * 37 % PODS),
                    destination: address(turn * 53 % PODS),
                    transport: Transport::Tcp(8080),
                }))
            });
        });
    }
    group.finish();
}

/// Medians beside the goals, as a share of them.
fn ratios(_: &mut Criterion) {
    println!("\n| what | median | goal | of the goal |\n|---|--:|--:|--:|");
    let row = |what: &str, median: f64, goal: f64, unit: &str| {
        println!(
            "| {what} | {median:.2} {unit} | {goal} {unit} | {:.2} |",
            median / goal
        );
    };
    for shape in SHAPES {
        let everything = shape.everything();
        let whole = median(5, |_| {
            let changes = everything.clone();
            let start = Instant::now();
            let compiler = black_box(compile(changes));
            let taken = start.elapsed().as_secs_f64();
            drop(compiler);
            taken
        });
        row(
            &format!("compile everything, {}", shape.name),
            whole,
            2.0,
            "s",
        );
        let mut compiler = compile(everything);
        let mut held = compiler.rulebook();
        let change = median(500, |turn| {
            let change = shape.pod(turn * 37 % PODS, turn + 1);
            let start = Instant::now();
            compiler.apply([change]);
            held = compiler.rulebook();
            start.elapsed().as_secs_f64() * 1e3
        });
        row(
            &format!("a pod's labels, {}", shape.name),
            change,
            5.0,
            "ms",
        );
    }
    let (rulebook, flows) = under_rules(1_000);
    let judged = median(20_000, |turn| {
        let flow = &flows[turn % flows.len()];
        let start = Instant::now();
        black_box(rulebook.judge(black_box(flow)));
        start.elapsed().as_secs_f64() * 1e6
    });
    row("judge under 1000 rules, clock included", judged, 1.0, "µs");
}

fn median(times: usize, run: impl FnMut(usize) -> f64) -> f64 {
    let mut times: Vec<_> = (0..times).map(run).collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

criterion_group!(benches, whole_clusters, one_change, one_packet, ratios);
criterion_main!(benches);
