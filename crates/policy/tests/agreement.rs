//! The compiled rules say of every flow what the interpreter says, whatever
//! the objects, and whether they came at once or one by one.

use std::net::IpAddr;

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};
use weft_policy::{
    Change, Compiler, Flow, ObjectName, Objects, Origin, Transport, interpret, object::Direction,
    read, read_value,
};

/// Pods', then nodes', then strangers'.
const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "fd00::1",
    "10.9.0.1",
    "10.9.0.2",
    "192.0.2.1",
    "fd00:9::1",
];
const NAMES: [&str; 3] = ["a", "b", "c"];
const BLOCKS: [&str; 7] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.2/32",
    "10.9.0.0/16",
    "::/0",
    "fd00::/16",
];
const TRANSPORTS: [Transport; 9] = [
    Transport::Tcp(80),
    Transport::Tcp(81),
    Transport::Tcp(90),
    Transport::Udp(80),
    Transport::Udp(53),
    Transport::Sctp(81),
    Transport::Sctp(7),
    Transport::Other(1),
    Transport::Other(58),
];

fn name() -> impl Strategy<Value = &'static str> {
    select(&NAMES[..])
}

fn labels() -> impl Strategy<Value = Value> {
    let pair = (select(&["k", "l"][..]), select(&["1", "2"][..]));
    vec(pair, 0..3).prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k, json!(v))).collect())
}

fn selector() -> impl Strategy<Value = Value> {
    let key = || select(&["k", "l", "kubernetes.io/metadata.name"][..]);
    let values = vec(select(&["1", "2", "a", "b"][..]), 1..3);
    let set = (key(), select(&["In", "NotIn"][..]), values).prop_map(
        |(key, operator, values)| json!({"key": key, "operator": operator, "values": values}),
    );
    let presence = (key(), select(&["Exists", "DoesNotExist"][..]))
        .prop_map(|(key, operator)| json!({"key": key, "operator": operator}));
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|labels| json!({"matchLabels": labels})),
        3 => vec(prop_oneof![set, presence], 1..3)
            .prop_map(|expressions| json!({"matchExpressions": expressions})),
    ]
}

fn network_port() -> impl Strategy<Value = Value> {
    let protocol = option::of(select(&["TCP", "UDP", "SCTP"][..]));
    let port = prop_oneof![
        Just(json!({})),
        Just(json!({"port": 80})),
        Just(json!({"port": 81})),
        Just(json!({"port": 80, "endPort": 81})),
        Just(json!({"port": 50, "endPort": 85})),
        Just(json!({"port": "web"})),
        Just(json!({"port": "dns"})),
    ];
    (protocol, port).prop_map(|(protocol, mut port)| {
        if let Some(protocol) = protocol {
            port["protocol"] = json!(protocol);
        }
        port
    })
}

fn block() -> impl Strategy<Value = Value> {
    let holed = json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24", "10.9.0.2/32"]});
    prop_oneof![
        select(&BLOCKS[..]).prop_map(|cidr| json!({"cidr": cidr})),
        Just(holed),
    ]
}

fn network_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector()).prop_map(
            |(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})
        ),
        block().prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn network_policy() -> impl Strategy<Value = Value> {
    let rules = |peers: &'static str| {
        let rule = (vec(network_peer(), 0..3), vec(network_port(), 0..3));
        vec(
            rule.prop_map(move |(from, ports)| json!({peers: from, "ports": ports})),
            0..3,
        )
    };
    let types = vec(select(&["Ingress", "Egress"][..]), 0..3);
    let spec = (selector(), rules("from"), rules("to"), types);
    (name(), name(), spec).prop_map(|(name, namespace, (pods, ingress, egress, types))| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"podSelector": pods, "ingress": ingress, "egress": egress,
                     "policyTypes": types},
        })
    })
}

fn cluster_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        (selector(), selector()).prop_map(|(namespaces, pods)| {
            json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
        }),
    ]
}

fn wide_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => cluster_peer(),
        1 => selector().prop_map(|nodes| json!({"nodes": nodes})),
        1 => vec(select(&BLOCKS[..]), 1..3).prop_map(|networks| json!({"networks": networks})),
    ]
}

fn cluster_port() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!({"number": 80})),
        Just(json!({"number": 53})),
        Just(json!({"range": {"start": 60, "end": 85}})),
    ];
    (select(&["tcp", "udp", "sctp"][..]), port)
        .prop_map(|(protocol, port)| json!({protocol: {"destinationPort": port}}))
}

fn cluster_rule(peers: &'static str, peer: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    let action = select(&["Accept", "Deny", "Pass"][..]);
    let protocols = option::of(vec(cluster_port(), 1..3));
    let named = vec(cluster_peer(), 1..2).prop_map(move |to| {
        json!({"action": "Deny", peers: to, "protocols": [{"destinationNamedPort": "web"}]})
    });
    let plain = (action, vec(peer, 1..3), protocols).prop_map(
        move |(action, to, protocols)| json!({"action": action, peers: to, "protocols": protocols}),
    );
    prop_oneof![4 => plain, 1 => named]
}

fn cluster_policy() -> impl Strategy<Value = Value> {
    let tier = select(&["Admin", "Baseline"][..]);
    let rules = (
        vec(cluster_rule("from", cluster_peer().boxed()), 0..3),
        vec(cluster_rule("to", wide_peer().boxed()), 0..3),
    );
    (name(), tier, 0..3, cluster_peer(), rules).prop_map(
        |(name, tier, priority, subject, (ingress, egress))| {
            json!({
                "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                "metadata": {"name": name},
                "spec": {"tier": tier, "priority": priority, "subject": subject,
                         "ingress": ingress, "egress": egress},
            })
        },
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!({"name": "web", "containerPort": 80})),
        Just(json!({"name": "web", "containerPort": 81, "protocol": "SCTP"})),
        Just(json!({"name": "dns", "containerPort": 53, "protocol": "UDP"})),
    ];
    let addresses = vec(select(&ADDRESSES[..5]), 1..3);
    (
        name(),
        name(),
        labels(),
        addresses,
        option::of(name()),
        vec(port, 0..3),
    )
        .prop_map(|(name, namespace, labels, addresses, node, ports)| {
            let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
                "status": {"podIPs": ips},
            })
        })
}

fn node() -> impl Strategy<Value = Value> {
    (name(), labels(), select(&ADDRESSES[4..7])).prop_map(|(name, labels, address)| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    })
}

fn namespace() -> impl Strategy<Value = Value> {
    (name(), labels()).prop_map(|(name, labels)| {
        json!({"apiVersion": "v1", "kind": "Namespace",
               "metadata": {"name": name, "labels": labels}})
    })
}

fn change() -> impl Strategy<Value = Change> {
    let object = prop_oneof![
        4 => network_policy(),
        3 => cluster_policy(),
        5 => pod(),
        1 => node(),
        2 => namespace(),
    ];
    let put = |value: Value| {
        let mut objects =
            read_value(Origin::object(1), value).expect("an object as the API has it");
        objects.remove(0)
    };
    (object.prop_map(put), 0..4).prop_map(|(object, dice)| match dice {
        0 => Change::Remove(object.name()),
        _ => Change::Put(object),
    })
}

fn flows() -> impl Iterator<Item = Flow> {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let pairs = ADDRESSES
        .iter()
        .flat_map(|a| ADDRESSES.iter().map(move |b| (a, b)));
    pairs.flat_map(move |(a, b)| {
        TRANSPORTS.iter().map(move |transport| Flow {
            source: address(a),
            destination: address(b),
            transport: *transport,
        })
    })
}

/// Every flow is judged alike, with the same reason.
fn agree(compiler: &Compiler, objects: &Objects) -> Result<(), TestCaseError> {
    let rulebook = compiler.rulebook();
    for flow in flows() {
        let verdict = rulebook.judge(&flow);
        for direction in [Direction::Ingress, Direction::Egress] {
            let one = rulebook.judge_one(direction, &flow);
            prop_assert_eq!(&one, verdict.decision(direction));
        }
        prop_assert_eq!(verdict, interpret(objects, &flow), "{:?}", flow);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn all_at_once(changes in vec(change(), 0..40)) {
        let mut compiler = Compiler::default();
        let mut objects = Objects::default();
        changes.iter().for_each(|change| objects.apply(change.clone()));
        compiler.apply(changes);
        prop_assert_eq!(compiler.objects(), &objects);
        agree(&compiler, &objects)?;
    }

    #[test]
    fn one_by_one(start in vec(change(), 0..25), changes in vec(change(), 1..12)) {
        let mut compiler = Compiler::default();
        compiler.apply(start);
        for change in changes {
            let before = compiler.rulebook();
            let work = compiler.apply([change]);
            for flow in flows().filter(|_| !work.judges_otherwise) {
                let (was, is) = (before.judge(&flow), compiler.rulebook().judge(&flow));
                for side in [Direction::Ingress, Direction::Egress] {
                    prop_assert_eq!(was.decision(side).allowed, is.decision(side).allowed);
                }
            }
            let mut full = Compiler::default();
            full.apply(everything(compiler.objects()));
            let (grown, made) = (compiler.rulebook(), full.rulebook());
            for flow in flows() {
                prop_assert_eq!(grown.judge(&flow), made.judge(&flow), "{:?}", flow);
            }
            agree(&compiler, &compiler.objects().clone())?;
        }
    }

    #[test]
    fn what_judges_alike_is_called_so_of_batches_too(
        start in vec(change(), 0..12), changes in vec(change(), 1..4),
    ) {
        let mut compiler = Compiler::default();
        compiler.apply(start);
        let before = compiler.rulebook();
        let work = compiler.apply(changes);
        let after = compiler.rulebook();
        for flow in flows().filter(|_| !work.judges_otherwise) {
            let (was, is) = (before.judge(&flow), after.judge(&flow));
            for side in [Direction::Ingress, Direction::Egress] {
                prop_assert_eq!(was.decision(side).allowed, is.decision(side).allowed);
            }
        }
    }

    #[test]
    fn a_rulebook_stays_as_it_was_when_it_was_taken(
        start in vec(change(), 0..25), changes in vec(change(), 1..12),
    ) {
        let mut compiler = Compiler::default();
        compiler.apply(start);
        let (objects, rulebook) = (compiler.objects().clone(), compiler.rulebook());
        for change in changes {
            compiler.apply([change]);
        }
        for flow in flows() {
            prop_assert_eq!(rulebook.judge(&flow), interpret(&objects, &flow), "{:?}", flow);
        }
    }

    #[test]
    fn whatever_text_comes_is_read_or_refused(
        object in prop_oneof![network_policy(), cluster_policy(), pod()],
        place in any::<prop::sample::Index>(),
        noise in ".{0,8}",
    ) {
        let _ = read(&noise);
        let text: Vec<_> = object.to_string().chars().collect();
        let place = place.index(text.len());
        for gap in [0, 1, 20] {
            let rest = &text[(place + gap).min(text.len())..];
            let damaged: String =
                text[..place].iter().copied().chain(noise.chars()).chain(rest.iter().copied()).collect();
            let _ = read(&damaged);
        }
    }

    #[test]
    fn what_is_removed_leaves_nothing(changes in vec(change(), 0..30)) {
        let mut compiler = Compiler::default();
        compiler.apply(changes);
        let names: Vec<ObjectName> = everything(compiler.objects())
            .map(|change| match change {
                Change::Put(object) => object.name(),
                Change::Remove(name) => name,
            })
            .collect();
        for name in names {
            compiler.apply([Change::Remove(name)]);
        }
        prop_assert_eq!(compiler.objects(), &Objects::default());
        agree(&compiler, &Objects::default())?;
    }
}

fn everything(objects: &Objects) -> impl Iterator<Item = Change> + '_ {
    use weft_policy::Object;
    let policies = objects
        .policies
        .values()
        .map(|one| Object::Policy(one.as_ref().clone()));
    let pods = objects
        .pods
        .values()
        .map(|one| Object::Pod(one.as_ref().clone()));
    let nodes = objects
        .nodes
        .values()
        .map(|one| Object::Node(one.as_ref().clone()));
    let namespaces = objects
        .namespaces
        .values()
        .map(|one| Object::Namespace(one.as_ref().clone()));
    policies
        .chain(pods)
        .chain(nodes)
        .chain(namespaces)
        .map(Change::Put)
}
