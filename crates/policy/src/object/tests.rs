use super::*;

fn one(text: &str) -> Object {
    let mut objects = read(text).expect("an object that reads");
    assert_eq!(objects.len(), 1);
    objects.remove(0)
}

fn policy(text: &str) -> Policy {
    match one(text) {
        Object::Policy(policy) => policy,
        other => panic!("{other:?} is no policy"),
    }
}

fn network(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {{name: web, namespace: x}}, spec: {spec}}}"
    )
}

fn cluster(rule: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, \
         metadata: {{name: all}}, spec: {{tier: Admin, priority: 7, \
         subject: {{namespaces: {{}}}}, egress: [{rule}]}}}}"
    )
}

fn refusal(text: &str) -> String {
    read(text).expect_err("a refusal").to_string()
}

#[test]
fn a_network_policy_speaks_of_ingress_unless_it_says_otherwise() {
    let none = policy(&network("{podSelector: {}}"));
    assert_eq!((none.ingress, none.egress), (Some(vec![]), None));
    let egress = policy(&network("{podSelector: {}, egress: [{}]}"));
    assert!(egress.ingress.is_some() && egress.egress.is_some());
    let empty_egress = policy(&network("{podSelector: {}, egress: []}"));
    assert!(empty_egress.egress.is_none());
    let only = policy(&network("{policyTypes: [Egress], ingress: [{}]}"));
    assert_eq!((only.ingress, only.egress), (None, Some(vec![])));
}

#[test]
fn a_network_policys_rules_are_read() {
    let text = network(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}, \
         {namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.5/8, except: [10.1.0.0/16]}}], \
         ports: [{}, {port: 80}, {port: 80, endPort: 90, protocol: UDP}, {port: dns}]}]}",
    );
    let rules = policy(&text).ingress.expect("rules of ingress");
    let all = Selector::default;
    let pods = |namespaces| {
        Peer::Pods(Group {
            namespaces,
            pods: all(),
        })
    };
    assert_eq!(
        rules[0].peers,
        [
            pods(Scope::Named("x".into())),
            pods(Scope::Matching(all())),
            Peer::Block(Block {
                net: "10.0.0.0/8".parse().expect("a network"),
                except: vec!["10.1.0.0/16".parse().expect("a network")],
            }),
        ]
    );
    let ports: Vec<_> = rules[0].ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["all TCP", "80/TCP", "80-90/UDP", "dns/TCP"]);
}

fn refused(spec: &str, said: &str) {
    let sentence = refusal(&network(spec));
    assert!(sentence.contains(said), "{spec}: {sentence}");
}

#[test]
fn ports_that_a_network_policy_may_not_name_are_told() {
    for (port, said) in [
        ("{port: 0}", "spec.ingress[0].ports[0]: 0 is no port"),
        ("{port: 65536}", "65536 is no port"),
        ("{port: 9, endPort: 8}", "endPort 8 is less than port 9"),
        ("{port: a, endPort: 8}", "a range begins with a number"),
        ("{endPort: 8}", "endPort without port"),
        ("{port: Web_1}", "\"Web_1\" is no port name"),
        ("{port: [1]}", "expected a port's number or name"),
        ("{protocol: ICMP}", "unknown variant `ICMP`"),
    ] {
        refused(&format!("{{ingress: [{{ports: [{port}]}}]}}"), said);
    }
}

#[test]
fn peers_that_a_network_policy_may_not_name_are_told() {
    for (peer, said) in [
        ("{}", "spec.ingress[0].from[0]: an empty peer"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", "ipBlock.cidr: "),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}",
            "11.0.0.0/9 is no part of",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}",
            "10.0.0.0/8 is no part of",
        ),
        (
            "{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}",
            "ipBlock stands alone",
        ),
    ] {
        refused(&format!("{{ingress: [{{from: [{peer}]}}]}}"), said);
    }
}

#[test]
fn what_else_a_network_policy_may_not_say_is_told() {
    refused(
        "{podselector: {}}",
        "NetworkPolicy x/web: spec.podselector: unknown field",
    );
    refused(
        "{ingress: [{frm: []}]}",
        "spec.ingress[0].frm: unknown field",
    );
    refused(
        "{policyTypes: [Both]}",
        "spec.policyTypes[0]: unknown variant",
    );
    refused(
        "{podSelector: {matchLabels: {-a: b}}}",
        "\"-a\" is no label key",
    );
    for (expression, said) in [
        (
            "{key: a, operator: In}",
            "operator In takes one value at least",
        ),
        (
            "{key: a, operator: Exists, values: [b]}",
            "operator Exists takes no values",
        ),
        (
            "{key: a, operator: Near, values: [b]}",
            "unknown variant `Near`",
        ),
        (
            "{key: a, operator: In, values: [-b]}",
            "\"-b\" is no label value",
        ),
    ] {
        refused(
            &format!("{{podSelector: {{matchExpressions: [{expression}]}}}}"),
            said,
        );
    }
}

#[test]
fn a_cluster_policy_is_read() {
    let text = cluster(
        "{name: out, action: Pass, to: [{networks: [10.0.0.0/8, 'fd00::/8']}, {nodes: {}}], \
         protocols: [{tcp: {destinationPort: {number: 80}}}, \
         {sctp: {destinationPort: {range: {start: 1, end: 2}}}}]}",
    );
    let policy = policy(&text);
    assert_eq!(policy.tier, Tier::Admin(7));
    assert_eq!(policy.ingress, None, "no rules say nothing");
    let rule = &policy.egress.expect("rules of egress")[0];
    assert_eq!((rule.name.as_str(), rule.action), ("out", Action::Pass));
    assert_eq!(rule.peers.len(), 3);
    let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["80/TCP", "1-2/SCTP"]);
}

#[test]
fn what_a_cluster_policy_may_not_say_is_named() {
    let many = format!(
        "{{action: Deny, to: [{}]}}",
        ["{namespaces: {}}"; 26].join(", ")
    );
    for (rule, said) in [
        (
            "{action: Accept, to: [{domainNames: [example.org]}]}",
            "ClusterNetworkPolicy all: spec.egress[0].to[0]: domainNames are not supported",
        ),
        (
            "{action: Allow, to: [{namespaces: {}}]}",
            "unknown variant `Allow`",
        ),
        ("{action: Deny, to: []}", "spec.egress[0].to: no item"),
        (
            "{action: Deny, to: [{}]}",
            "say exactly one of namespaces, pods, nodes and networks",
        ),
        (
            "{action: Deny, to: [{namespaces: {}, nodes: {}}]}",
            "say exactly one of",
        ),
        (
            "{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]}",
            "whose ports have no names",
        ),
        (
            "{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {}}]}",
            "missing field `destinationPort`",
        ),
        (
            "{action: Deny, to: [{namespaces: {}}], \
             protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}",
            "end 5 is not greater than start 5",
        ),
        (many.as_str(), "26 items, of at most 25"),
    ] {
        let sentence = refusal(&cluster(rule));
        assert!(sentence.contains(said), "{rule}: {sentence}");
    }
    let far = cluster("").replace("priority: 7", "priority: 1001");
    assert!(refusal(&far).contains("spec.priority: 1001 is no priority"));
}

#[test]
fn a_pod_keeps_what_policies_ask_about() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}, uid: u}, \
        spec: {nodeName: n1, volumes: [], containers: [{name: c, ports: [{containerPort: 80, \
        name: http}, {containerPort: 81}]}], initContainers: [{restartPolicy: Always, ports: \
        [{containerPort: 53, name: dns, protocol: UDP}]}, {ports: [{containerPort: 1, name: \
        gone}]}]}, status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}";
    let Object::Pod(pod) = one(text) else {
        panic!("not a pod");
    };
    assert_eq!(pod.name.to_string(), "default/a");
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert_eq!(pod.addresses.len(), 2);
    let named: Vec<_> = pod
        .ports
        .iter()
        .map(|p| (p.name.as_str(), p.port))
        .collect();
    assert_eq!(named, [("http", 80), ("dns", 53)]);
    for without in [
        text.replace("nodeName: n1", "hostNetwork: true"),
        text.replace("status: {", "status: {phase: Succeeded, "),
    ] {
        assert!(matches!(one(&without), Object::Pod(pod) if pod.addresses.is_empty()));
    }
}

#[test]
fn a_namespace_has_its_name_for_a_label() {
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: a}}}";
    let Object::Namespace(namespace) = one(text) else {
        panic!("not a namespace");
    };
    assert_eq!(
        namespace.labels.value("kubernetes.io/metadata.name"),
        Some("x")
    );
    assert_eq!(namespace.labels.value("team"), Some("a"));
    assert_eq!(Objects::default().namespace("x").labels.iter().count(), 1);
}

#[test]
fn a_node_keeps_its_addresses_and_not_its_names() {
    let text = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.0.0/24}, \
        status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, \
        address: 192.0.2.1}]}}";
    assert!(matches!(one(text), Object::Node(node) if node.addresses.len() == 1));
}

#[test]
fn texts_of_several_documents_and_lists_are_read_in_order() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: x}}";
    let text = format!(
        "---\n{namespace}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {namespace}\n\
         - {}\n",
        network("{}")
    );
    let names: Vec<_> = read(&text)
        .expect("objects")
        .iter()
        .map(|o| o.name().to_string())
        .collect();
    assert_eq!(names, ["Namespace x", "Namespace x", "NetworkPolicy x/web"]);
    assert_eq!(read("").expect("nothing"), []);
}

#[test]
fn what_is_no_object_is_refused() {
    for (text, said) in [
        ("{", "neither YAML nor JSON"),
        ("[1]", "document 1 is no object"),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n[1]",
            "document 2 is",
        ),
        (
            "{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}, {}]}",
            "item 2 of document 1 is no object",
        ),
        (
            "{apiVersion: v1, kind: PodList, items: [{metadata: {}}]}",
            "Pod at item 1 of document 1: metadata: missing field `name`",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, lables: {}}}",
            "Pod default/a: metadata.lables: unknown",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: '', lables: {}}}",
            "Pod default/a: metadata.lables: unknown",
        ),
        ("{kind: Pod}", "document 1 is no object"),
        ("{apiVersion: v1, kind: Pod}", "document 1 is no object"),
        (
            "{apiVersion: v1, kind: Secret, metadata: {name: a}}",
            "Secret a: Secret of v1 is not understood",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: A}}",
            "Pod default/A: metadata: \"A\" is no name",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {b: y}}}",
            "metadata.labels.b: invalid type: boolean `true`, expected a string",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a, lables: {}}}",
            "Namespace a: metadata.lables: unknown field `lables`",
        ),
    ] {
        let sentence = refusal(text);
        assert!(sentence.contains(said), "{text}: {sentence}");
    }
}

#[test]
fn selectors_that_ask_the_same_are_equal() {
    let spec = |selector| policy(&network(&format!("{{podSelector: {selector}}}"))).subject;
    assert_eq!(
        spec("{matchLabels: {a: b, c: d}}"),
        spec("{matchLabels: {c: d}, matchExpressions: [{key: a, operator: In, values: [b]}]}")
    );
}

#[test]
fn absent_keys_meet_what_forbids_values() {
    let subject = policy(&network(
        "{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}}",
    ))
    .subject;
    let namespace = Namespace::nameless("x");
    let labels = |text| serde_json::from_str(text).expect("labels");
    assert!(subject.holds(&namespace, &labels("{}")));
    assert!(subject.holds(&namespace, &labels(r#"{"a": "c"}"#)));
    assert!(!subject.holds(&namespace, &labels(r#"{"a": "b"}"#)));
    assert!(!subject.holds(&Namespace::nameless("y"), &labels("{}")));
}

#[test]
fn bottomless_text_is_refused() {
    let deep = 100_000;
    let lists = "{apiVersion: v1, kind: List, items: [".repeat(deep);
    for text in [
        "[".repeat(deep),
        "{a: ".repeat(deep),
        "- ".repeat(deep),
        lists,
    ] {
        let refused = read(&text).expect_err("bottomless");
        assert!(
            matches!(refused, ReadError::Syntax(_) | ReadError::Budget(_)),
            "{refused}"
        );
    }
}

#[test]
fn an_empty_namespace_is_the_default_one() {
    let at = |namespace| {
        let metadata = format!("{{name: a{namespace}}}");
        one(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {metadata}}}"
        ))
        .name()
    };
    assert_eq!(at(", namespace: ''"), at(", namespace: default"));
    assert_eq!(at(", namespace: ''"), at(""));
}
