//! What the gateway says is understood by the kernels of pods: they find it,
//! trace through it, learn the path's MTU from it, and give up at once on
//! whom nobody holds.

use std::{
    io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use nix::libc::{EHOSTUNREACH, EMSGSIZE};
use weft_api::forwarder::{GATEWAY_V4, GATEWAY_V6};
use weft_lab::{
    Attach, Lab, Ledger, Pod, Spec,
    exchange::{self, always_fragment, never_fragment, path_mtu},
    icmp::{Answer, Question, Says},
    probe::{Family, patiently},
    use_executable,
    workshop::run,
};
use weft_testkit::needs_namespaces;

#[test]
fn it_answers_pings_of_any_size_that_the_link_takes() {
    needs_namespaces!();
    for attach in [Attach::Tap, Attach::Veth] {
        let lab = lab(Spec {
            nodes: 1,
            attach,
            ..Spec::default()
        });
        for gateway in [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
            for size in [0, 56, 1400] {
                let question = Question {
                    size,
                    ..Question::to(gateway)
                };
                let answer = question.ask(&lab.pods[0].netns).expect("an answer");
                let expected = Answer {
                    from: gateway,
                    says: Says::Here,
                };
                assert_eq!(answer, expected, "{attach:?}, {size} B");
            }
        }
        // So does the node's own address in the pod network.
        for own in lab.nodes[0].plan.tunnel {
            let answer = Question::to(own)
                .ask(&lab.pods[0].netns)
                .expect("an answer");
            assert_eq!((answer.from, answer.says), (own, Says::Here));
        }
    }
}

#[test]
fn a_trace_shows_the_gateway_then_the_other_node_then_the_pod() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let (from, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
    let gateways = [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()];
    for ((family, gateway), tunnel) in Family::ALL
        .into_iter()
        .zip(gateways)
        .zip(lab.nodes[1].plan.tunnel)
    {
        let first = (gateway, Says::TimeExceeded);
        let across = [
            first,
            (tunnel, Says::TimeExceeded),
            (family.of(remote), Says::Here),
        ];
        assert_eq!(trace(from, family.of(remote)), across);
        let beside = [first, (family.of(neighbour), Says::Here)];
        assert_eq!(trace(from, family.of(neighbour)), beside);
    }
}

/// As traceroute does, hop by hop.
fn trace(from: &Pod, to: IpAddr) -> Vec<(IpAddr, Says)> {
    let mut hops = Vec::new();
    for hop_limit in 1..10 {
        let question = Question {
            hop_limit,
            ..Question::to(to)
        };
        let answer = question.ask(&from.netns).expect("an answer");
        hops.push((answer.from, answer.says));
        if answer.says == Says::Here {
            break;
        }
    }
    hops
}

#[test]
fn the_kernel_learns_the_mtu_of_a_narrower_path() {
    needs_namespaces!();
    let lab = lab_with_a_narrow_path();
    let (from, to) = (pod(&lab, "n1p1"), pod(&lab, "n2p1"));

    // The gateway fragments for those who let it.
    let (asking, answering) = exchange::sockets(from, to, Family::V4).expect("sockets");
    always_fragment(&asking).expect("set");
    asking.send(&[7; 1422]).expect("sent");
    let mut bytes = [0; 2000];
    assert_eq!(
        patiently(|| answering.recv(&mut bytes)).expect("it arrives"),
        1422
    );
    assert_eq!(ledger(&lab).value("fragmented"), 1);

    // It tells those who do not.
    for (family, full) in [(Family::V4, 1450 - 28), (Family::V6, 1450 - 48)] {
        let (asking, answering) = exchange::sockets(from, to, family).expect("sockets");
        never_fragment(&asking).expect("set");
        assert_eq!(path_mtu(&asking).expect("connected"), 1450);
        asking
            .send(&vec![7; full])
            .expect("the kernel knows no better");
        eventually("the kernel is told", || {
            path_mtu(&asking).expect("connected") == 1430
        });
        // The news is an error of the socket's too, which it tells once.
        asking.take_error().expect("asked");
        let refused = asking.send(&vec![7; full]).expect_err("too large");
        assert_eq!(refused.raw_os_error(), Some(EMSGSIZE));
        asking
            .send(&vec![7; full - 20])
            .expect("as large as the path takes");
        assert_eq!(
            patiently(|| answering.recv(&mut bytes)).expect("it arrives"),
            full - 20
        );
        assert_eq!(told(from, family.of(to)), Says::TooBig { mtu: 1430 });
    }
}

/// What a question is told that is larger than the path takes, once the
/// pod's kernel has forgotten what it knew of the path.
fn told(from: &Pod, to: IpAddr) -> Says {
    let route = match to {
        IpAddr::V4(_) => "ip route flush cache",
        IpAddr::V6(_) => "ip -6 route flush cache",
    };
    run(&from.netns, route).expect("flushed");
    let header = if to.is_ipv4() { 28 } else { 48 };
    let question = Question {
        size: 1450 - header,
        ..Question::to(to)
    };
    question.ask(&from.netns).expect("an answer").says
}

#[test]
fn tcp_goes_through_a_narrower_path() {
    needs_namespaces!();
    let lab = lab_with_a_narrow_path();
    // Each pair's kernels know nothing of the path yet.
    for (family, from, to) in [
        (Family::V4, "n1p1", "n2p1"),
        (Family::V6, "n1p1", "n2p1"),
        (Family::V4, "n2p2", "n1p2"),
        (Family::V6, "n2p2", "n1p2"),
    ] {
        exchange::bulk(pod(&lab, from), pod(&lab, to), family, 1 << 20).expect("every byte");
    }
    let books = ledger(&lab);
    assert!(books.dropped("too_big") > 0, "the path was not narrower");
}

#[test]
fn an_address_that_nobody_holds_is_unreachable_at_once() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let from = pod(&lab, "n1p1");
    let [gateway_v4, gateway_v6] = [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()];
    let [tunnel_v4, tunnel_v6] = lab.nodes[1].plan.tunnel;
    // The last address of a block, which is given out last.
    let unused = |node: usize| lab.nodes[node].plan.blocks.map(|block| block.broadcast());
    let ([own_v4, own_v6], [other_v4, other_v6]) = (unused(0), unused(1));
    // In the node's own block, in no block, in the other node's block.
    for (to, who) in [
        (own_v4, gateway_v4),
        (IpAddr::from([10, 99, 0, 1]), gateway_v4),
        (other_v4, tunnel_v4),
        (own_v6, gateway_v6),
        (IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, 1]), gateway_v6),
        (other_v6, tunnel_v6),
    ] {
        let code = if to.is_ipv4() { 1 } else { 3 };
        let answer = Question::to(to).ask(&from.netns).expect("an error");
        let says = Says::Unreachable { code };
        assert_eq!(answer, Answer { from: who, says }, "{to}");

        let started = Instant::now();
        let connect = from.netns.run(|| std::net::TcpStream::connect((to, 80)));
        let refused: io::Error = connect.expect("enter").expect_err("nobody there");
        assert_eq!(refused.raw_os_error(), Some(EHOSTUNREACH), "{to}");
        assert!(started.elapsed() < Duration::from_secs(1), "{to}");
    }
}

/// The kernel tries a new IPv6 address for duplicates, and the gateway, which
/// holds all others, must let it have its own.
#[test]
fn a_pod_keeps_its_own_addresses_and_gets_no_other() {
    needs_namespaces!();
    for attach in [Attach::Tap, Attach::Veth] {
        let lab = lab(Spec {
            nodes: 1,
            pods: 1,
            attach,
            ..Spec::default()
        });
        let pod = &lab.pods[0];
        let own = format!("{}/128", pod.v6());
        run(&pod.netns, &format!("ip address del {own} dev eth0")).expect("taken away");
        run(&pod.netns, &format!("ip address add {own} dev eth0")).expect("given back");
        let gateway = format!("{GATEWAY_V6}/64");
        run(&pod.netns, &format!("ip address add {gateway} dev eth0")).expect("tried");
        eventually("no address is tentative but the gateway's", || {
            tentative(pod).iter().all(|line| line.contains(&gateway))
        });
        let lines = addresses(pod);
        let failed: Vec<_> = lines
            .iter()
            .filter(|line| line.contains("dadfailed"))
            .collect();
        assert_eq!(failed.len(), 1, "{lines:?}");
        assert!(failed[0].contains(&gateway), "{failed:?}");
        assert!(lines.iter().any(|line| line.contains(&own)), "{lines:?}");
        let link_locals = lines.iter().filter(|line| line.contains("fe80::")).count();
        assert_eq!(link_locals, 2, "its own, and the gateway's: {lines:?}");
    }
}

fn addresses(pod: &Pod) -> Vec<String> {
    let text = run(&pod.netns, "ip -6 -o address show dev eth0").expect("addresses");
    text.lines().map(str::to_owned).collect()
}

fn tentative(pod: &Pod) -> Vec<String> {
    let mut lines = addresses(pod);
    lines.retain(|line| line.contains("tentative"));
    lines
}

fn lab(spec: Spec) -> Lab {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let spec = Spec {
        workers: Some(2),
        ..spec
    };
    Lab::up(&spec).expect("a lab")
}

/// Pods with the MTU that fits VXLAN over IPv4, on nodes that know only IPv6
/// addresses of each other.
fn lab_with_a_narrow_path() -> Lab {
    let lab = lab(Spec::default());
    for node in &lab.nodes {
        let mut entry = node.plan.entry().expect("an entry");
        entry.underlay.retain(|net| net.addr().is_ipv6());
        lab.change_node(entry).expect("changed");
    }
    lab
}

fn pod<'a>(lab: &'a Lab, name: &str) -> &'a Pod {
    lab.pod(name).expect("a pod of the lab")
}

/// Of node 1.
fn ledger(lab: &Lab) -> Ledger {
    let forwarder = lab.nodes[0].forwarder.as_ref().expect("a forwarder");
    Ledger::of(forwarder).expect("balanced")
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "not in 10 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
