use super::*;
use crate::{Change, Compiler, interpret, object::read, verdict::Transport};

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: z, labels: {team: blue}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: web}},
 spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 80}]}]},
 status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: db}},
 status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: z, labels: {}},
 status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1},
 status: {addresses: [{address: 192.0.2.1}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: x},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [
  {from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}, {port: 443}]},
  {from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue]}]},
           podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]},
  {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24]}}]},
  {from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 53, protocol: UDP}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy,
 metadata: {name: guard}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [
  {name: no mail, action: Deny, to: [{networks: [0.0.0.0/0]}],
   protocols: [{tcp: {destinationPort: {number: 25}}}]}]}}
";

fn said(source: &str, destination: &str, transport: Transport) -> String {
    let mut compiler = Compiler::default();
    compiler.apply(read(WORLD).expect("objects").into_iter().map(Change::Put));
    let flow = Flow {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        transport,
    };
    let explanation = explain(&compiler.rulebook(), &flow);
    assert_eq!(explanation.verdict, interpret(compiler.objects(), &flow));
    explanation.to_string()
}

#[test]
fn a_closed_pod_names_the_nearest_rules_and_what_they_missed() {
    assert_eq!(
        said("10.0.0.3", "10.0.0.1", Transport::Tcp(81)),
        "z/c to x/a at 81/TCP is denied\n\
         egress of z/c is allowed: no policy has a word for this egress\n\
         ingress of x/a is denied: NetworkPolicy x/web isolates it and no rule permits the flow\n\
         \x20 NetworkPolicy x/web, ingress[2]: 10.0.0.3 is in 10.0.0.0/24, which is excepted\n\
         \x20 NetworkPolicy x/web, ingress[1]: namespace z has team=blue, which is shut out; \
         z/c has no label app\n\
         \x20 NetworkPolicy x/web, ingress[3]: 10.0.0.3 is not in 198.51.100.0/24; \
         port 81/TCP is not 53/UDP\n"
    );
}

#[test]
fn a_wrong_port_is_told_by_its_number() {
    let text = said("198.51.100.7", "10.0.0.1", Transport::Udp(54));
    assert!(
        text.contains("ingress[3]: port 54/UDP is not 53/UDP\n"),
        "{text}"
    );
    assert!(text.contains("198.51.100.7 is no pod"), "{text}");
    assert!(text.starts_with("198.51.100.7 to x/a at 54/UDP is denied\negress of 198.51.100.7"));
    let text = said("198.51.100.7", "10.0.0.1", Transport::Other(1));
    assert!(
        text.contains("ICMP has no port, and it names 53/UDP"),
        "{text}"
    );
}

#[test]
fn the_rule_that_decides_is_named() {
    let permitted = said("10.0.0.2", "10.0.0.1", Transport::Tcp(80));
    let rule = "ingress of x/a is allowed: NetworkPolicy x/web, ingress[0] permits it\n";
    assert!(permitted.contains(rule), "{permitted}");
    let forbidden = said("10.0.0.2", "10.0.0.3", Transport::Tcp(25));
    let rule = "egress of x/b is denied: ClusterNetworkPolicy guard, egress[0] \"no mail\" \
                forbids it\n";
    assert!(forbidden.contains(rule), "{forbidden}");
}

#[test]
fn what_is_always_allowed_says_so() {
    let probe = said("192.0.2.1", "10.0.0.1", Transport::Tcp(9));
    assert!(
        probe.contains("egress of node n1 is allowed: policies govern pods alone"),
        "{probe}"
    );
    assert!(
        probe.contains("a pod's own node may always reach it"),
        "{probe}"
    );
    let own = said("10.0.0.1", "10.0.0.1", Transport::Tcp(9));
    assert!(
        own.contains("ingress of x/a is allowed: a pod may always speak to itself"),
        "{own}"
    );
}

#[test]
fn a_candidate_that_misses_nothing_is_never_told() {
    let mut compiler = Compiler::default();
    compiler.apply(read(WORLD).expect("objects").into_iter().map(Change::Put));
    let rulebook = compiler.rulebook();
    let mut told = 0;
    for source in [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.1.0.1",
        "192.0.2.1",
        "198.51.100.7",
    ] {
        for destination in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            for transport in [Transport::Tcp(80), Transport::Udp(53), Transport::Other(1)] {
                let explanation = explain(
                    &rulebook,
                    &Flow {
                        source: source.parse().expect("an address"),
                        destination: destination.parse().expect("an address"),
                        transport,
                    },
                );
                for candidate in &explanation.ingress_candidates {
                    assert!(!candidate.misses.is_empty(), "{explanation}");
                    told += 1;
                }
            }
        }
    }
    assert!(told > 0);
}
