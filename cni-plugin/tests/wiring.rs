//! Pods wired for real, with a small peer in the forwarder's place that
//! takes the fds and reads what the pod sends.

use std::{
    io::{IoSliceMut, Write},
    net::{IpAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use tempfile::TempDir;
use weft_api::{
    forwarder::{
        Answer, Attach as AttachRequest, Capabilities, Code, Driver, Error, GATEWAY_MAC,
        OverBandwidth, Port, PortState, Reply, Request, Traffic,
    },
    framing,
    names::{Mac, Name},
};
use weft_cni::{
    forwarder::{Client, ClientError},
    gso::Gso,
    link::{self, Attach, LinkError, Role, Wiring},
    netlink::Netlink,
    netns::Netns,
    wire_pod::{self, WireError},
};
use weft_socket::line::LineError;

const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
const VNET: usize = 10;

#[test]
fn a_tap_carries_both_families_to_the_gateway() {
    weft_testkit::needs_namespaces!();
    let (request, frames) = wired_frames(Attach::Tap { queues: 2 }, VNET);
    assert_eq!(request.driver, Driver::Tap);
    assert_eq!(frames.fds, 2);
}

#[test]
fn a_basic_tap_carries_both_families_to_the_gateway() {
    weft_testkit::needs_namespaces!();
    let (request, frames) = wired_frames(Attach::Basic, 0);
    assert_eq!(request.driver, Driver::Basic);
    assert_eq!(frames.fds, 1);
}

#[test]
fn a_veth_carries_both_families_to_the_gateway() {
    weft_testkit::needs_namespaces!();
    let (request, frames) = wired_frames(Attach::Veth, VNET);
    assert_eq!(request.driver, Driver::Veth);
    assert_eq!(frames.fds, 1);
}

/// The first packet to a new pod may be there before the next system call.
/// Other pods come and go meanwhile, and the kernel does such things one at a
/// time.
#[test]
fn a_new_pod_takes_packets_to_all_its_addresses_at_once() {
    weft_testkit::needs_namespaces!();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| greet_a_new_pod()));
        }
    });
}

fn greet_a_new_pod() {
    let (node, pod) = namespaces();
    let wiring = wiring(Attach::Tap { queues: 1 });
    let _device = node
        .run(|| link::add(&pod, &port(), &wiring))
        .expect("enter")
        .expect("a link");
    for &address in &wiring.addresses {
        let heard = pod.run(|| hear_oneself(address)).expect("enter");
        heard.unwrap_or_else(|error| panic!("{address}: {error}"));
    }
}

/// A datagram to an address that is not in use yet leaves by the default
/// route.
fn hear_oneself(address: IpAddr) -> std::io::Result<usize> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(b"me", socket.local_addr()?)?;
    socket.recv(&mut [0; 2])
}

#[test]
fn an_address_of_nobody_is_not_waited_for_in_vain() {
    weft_testkit::needs_namespaces!();
    let netlink = Netlink::open_in(&namespaces().1)
        .expect("enter")
        .expect("netlink");
    let late = netlink.wait_for_address("fd00::1".parse().expect("an address"));
    let text = late.expect_err("it is on no link").to_string();
    assert!(text.starts_with("address fd00::1 is not in use"), "{text}");
}

#[test]
fn a_refused_pod_has_no_link() {
    weft_testkit::needs_namespaces!();
    for attach in [Attach::Tap { queues: 1 }, Attach::Veth] {
        let error = Error {
            code: Code::Taken,
            message: "port p1 exists".to_owned(),
            hint: "detach it".to_owned(),
        };
        let peer = Peer::start(Answer::Error(error.clone()));
        let (node, pod) = namespaces();
        let refused = peer
            .attach(&node, &pod, &wiring(attach))
            .expect_err("refused");
        match refused {
            WireError::Attach {
                error: ClientError::Refused(told),
                ..
            } => assert_eq!(told, error),
            other => panic!("{other}"),
        }
        assert_eq!(index(&pod, "eth0"), None);
        assert_eq!(index(&node, &link::host_end(&port())), None);
    }
}

#[test]
fn a_link_of_somebody_else_stays() {
    weft_testkit::needs_namespaces!();
    let (node, pod) = namespaces();
    let other = Netlink::open_in(&pod).expect("enter").expect("netlink");
    other.add_bridge("eth0").expect("a bridge");
    for attach in [Attach::Tap { queues: 1 }, Attach::Basic, Attach::Veth] {
        let refused = node
            .run(|| link::add(&pod, &port(), &wiring(attach)))
            .expect("enter");
        let error = refused.expect_err("eth0 is taken");
        assert!(matches!(error, LinkError::Exists { .. }), "{error}");
        assert!(index(&pod, "eth0").is_some());
    }
}

#[test]
fn a_link_that_cannot_be_finished_is_undone() {
    weft_testkit::needs_namespaces!();
    let (node, pod) = namespaces();
    let mut wiring = wiring(Attach::Veth);
    // A multicast address is nobody's own.
    wiring
        .addresses
        .push("ff02::1".parse().expect("an address"));
    let refused = node
        .run(|| link::add(&pod, &port(), &wiring))
        .expect("enter");
    assert!(refused.is_err());
    assert_eq!(index(&pod, "eth0"), None);
    assert_eq!(index(&node, &link::host_end(&port())), None);
}

#[test]
fn detach_takes_all_away_and_may_be_repeated() {
    weft_testkit::needs_namespaces!();
    let (node, pod) = namespaces();
    let device = node
        .run(|| link::add(&pod, &port(), &wiring(Attach::Veth)))
        .expect("enter");
    let device = device.expect("a veth");
    let peer = Peer::start(Answer::Ok(Reply::Done { epoch: 2 }));
    let mut client = Client::connect(&peer.path).expect("connect");
    let (errors, ()) = wire_pod::detach_pod(Some(&pod), &port(), "eth0", Some(&mut client), || ());
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(index(&pod, "eth0"), None);
    assert_eq!(index(&node, &link::host_end(&port())), None);
    let (errors, ()) = wire_pod::detach_pod(Some(&pod), &port(), "eth0", None, || ());
    assert!(errors.is_empty(), "{errors:?}");
    drop(device);
}

#[test]
fn a_port_that_was_taken_without_an_answer_is_let_go() {
    weft_testkit::needs_namespaces!();
    let (node, pod) = namespaces();
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("forwarder.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let peer = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let (line, _fds) = receive(&stream);
        let Ok(Request::Attach(attach)) = serde_json::from_slice(&line) else {
            panic!("an attach")
        };
        drop(stream);
        let (mut stream, _) = listener.accept().expect("accept");
        let mut answer = |answer: Reply| {
            let (line, _) = receive(&stream);
            let answer = framing::encode(&Answer::Ok(answer)).expect("encodes");
            stream.write_all(&answer).expect("write");
            serde_json::from_slice::<Request>(&line).expect("a request")
        };
        let listed = answer(Reply::Ports(vec![taken(attach)]));
        [listed, answer(Reply::Done { epoch: 2 })]
    });
    let mut client = Client::connect(&path).expect("connect");
    let attached = node
        .run(|| wire_pod::attach_pod(&pod, &port(), &wiring(Attach::Veth), plain(), &mut client));
    let error = attached.expect("enter").expect_err("it hung up");
    assert!(
        matches!(
            error,
            WireError::Attach {
                error: ClientError::Line(LineError::HungUp { .. }),
                ..
            }
        ),
        "{error}"
    );
    let asked = peer.join().expect("the peer ends");
    assert_eq!(asked, [Request::List, Request::Detach { name: port() }]);
    assert_eq!(index(&pod, "eth0"), None);
}

fn taken(attach: AttachRequest) -> Port {
    Port {
        name: attach.name,
        driver: attach.driver,
        state: PortState::Up,
        mac: attach.mac,
        addresses: attach.addresses,
        mtu: attach.mtu,
        queues: 1,
        uso: true,
        capabilities: attach.capabilities,
        host: attach.host,
        over_bandwidth: OverBandwidth::default(),
        age_ms: 0,
        from_pod: Traffic::default(),
        to_pod: Traffic::default(),
    }
}

fn plain() -> Capabilities {
    Capabilities::default()
}

struct Frames {
    fds: usize,
}

/// Wires a pod, lets it send a datagram of each family to another pod's
/// address, and checks the frames that come out of the fds.
fn wired_frames(attach: Attach, header: usize) -> (AttachRequest, Frames) {
    let peer = Peer::start(Answer::Ok(Reply::Done { epoch: 1 }));
    let (node, pod) = namespaces();
    peer.attach(&node, &pod, &wiring(attach)).expect("attached");
    let (request, fds) = peer.finish();
    assert_eq!(request.name, port());
    assert_eq!((request.mac, request.mtu), (MAC, 1450));

    for (to, ethertype) in [("10.244.2.10", 0x0800_u16), ("fd00:10:244:2::10", 0x86dd)] {
        let to: IpAddr = to.parse().expect("an address");
        pod.run(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket
                .send_to(b"weft says hello", (to, 4242))
                .expect("a route and a neighbour");
        })
        .expect("enter");
        let frame = frame_with(&fds, b"weft says hello");
        let ethernet = &frame[header..];
        assert_eq!(ethernet[..6], GATEWAY_MAC.0, "to the gateway");
        assert_eq!(ethernet[6..12], MAC.0, "from the pod");
        assert_eq!(ethernet[12..14], ethertype.to_be_bytes());
    }
    (request, Frames { fds: fds.len() })
}

/// The next frame that holds `text`, from whichever queue.
fn frame_with(fds: &[OwnedFd], text: &[u8]) -> Vec<u8> {
    let until = Instant::now() + Duration::from_secs(5);
    let mut bytes = [0; 2048];
    while Instant::now() < until {
        let mut ready: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut ready, PollTimeout::from(100_u8)).expect("poll");
        for fd in fds {
            while let Ok(read) = nix::unistd::read(fd, &mut bytes) {
                let frame = &bytes[..read];
                if frame.windows(text.len()).any(|window| window == text) {
                    return frame.to_vec();
                }
            }
        }
    }
    panic!("no such frame in 5 s");
}

/// A forwarder of one answer.
struct Peer {
    _dir: TempDir,
    path: PathBuf,
    thread: JoinHandle<(Option<AttachRequest>, Vec<OwnedFd>)>,
}

impl Peer {
    fn start(answer: Answer) -> Self {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("forwarder.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let (line, fds) = receive(&stream);
            let request = match serde_json::from_slice(&line).expect("a request") {
                Request::Attach(attach) => Some(attach),
                _ => None,
            };
            let answer = framing::encode(&answer).expect("encodes");
            stream.write_all(&answer).expect("write");
            (request, fds)
        });
        Self {
            _dir: dir,
            path,
            thread,
        }
    }

    fn attach(&self, node: &Netns, pod: &Netns, wiring: &Wiring) -> Result<Driver, WireError> {
        let mut client = Client::connect(&self.path).expect("connect");
        node.run(|| wire_pod::attach_pod(pod, &port(), wiring, plain(), &mut client))
            .expect("enter")
    }

    fn finish(self) -> (AttachRequest, Vec<OwnedFd>) {
        let (request, fds) = self.thread.join().expect("the peer ends");
        for fd in &fds {
            let nonblocking = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
            fcntl(fd, nonblocking).expect("fcntl");
        }
        (request.expect("an attach"), fds)
    }
}

fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 4096];
    let mut space = cmsg_space!([i32; 64]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .expect("recvmsg");
    let mut fds = Vec::new();
    for message in received.cmsgs().expect("whole control messages") {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel made these fds for this process just now.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let read = received.bytes;
    bytes.truncate(read);
    assert_eq!(bytes.pop(), Some(b'\n'), "one whole line");
    (bytes, fds)
}

fn wiring(attach: Attach) -> Wiring {
    let addresses = ["10.244.1.10", "fd00:10:244:1::10"];
    Wiring {
        interface: "eth0".to_owned(),
        mac: MAC,
        addresses: addresses
            .map(|text| text.parse().expect("an address"))
            .to_vec(),
        mtu: 1450,
        attach,
        gso: Some(Gso::one_send(1450)),
        role: Role::Pod,
    }
}

fn namespaces() -> (Netns, Netns) {
    let make = |label| Netns::make(label).expect("a namespace; needs root or unshare -Urn");
    (make("node"), make("pod"))
}

fn index(netns: &Netns, interface: &str) -> Option<u32> {
    let netlink = Netlink::open_in(netns).expect("enter").expect("netlink");
    netlink.index(interface).expect("an answer")
}

fn port() -> Name {
    Name::new("n1/p1").expect("a good name")
}
