//! The probe matrix of Kubernetes' own policy suite over real namespaces: nine
//! pods of three namespaces on two nodes, which try to reach each other by TCP,
//! UDP and SCTP under the policies of each of its 48 cases.
//!
//! What is denied must not arrive, and a forwarder must list it, each flow by
//! itself, as denied by the step's own rules: so nobody waits for a silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Type};
use weft_api::{
    forwarder::{Nodes, ObjectRef, Policies, PolicyChange, Reply, Request},
    names::{Mac, Name},
};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Pod, PodPlan, Spec, use_executable,
    workshop::{self, Workshop},
};
use weft_policy::{ObjectName, Transport};
use weft_testkit::{
    needs_namespaces,
    policy::{Case, Edit, Probe, Step, expect_right, kubernetes, nine_pods},
};

#[path = "support/kernel_node.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod kernel_node;

const LIMIT: Duration = Duration::from_secs(20);
const PORTS: [u16; 2] = [80, 81];
/// `IPPROTO_SCTP`.
const SCTP: i32 = 132;

#[test]
fn nine_pods_on_two_nodes_reach_whom_they_may() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let site = Site::up();
    expect_right(&kubernetes(), |case| site.run(case));
}

struct Site {
    forwarders: [Forwarder; 2],
    servers: BTreeMap<IpAddr, Server>,
    _workshop: Workshop,
    _nodes: [Netns; 2],
}

impl Site {
    fn up() -> Self {
        let plan = Spec::default().plan();
        let nodes = ["n1", "n2"].map(|name| workshop::node(name).expect("a node"));
        kernel_node::join(&nodes[0], &nodes[1]);
        let workshop = Workshop::open().expect("a workshop");
        let forwarders = [0, 1].map(|place| {
            let NodePlan {
                name,
                vtep_mac,
                underlay,
                ..
            } = &plan[place];
            let configuration = format!(
                "node = '{name}'\nvtep_mac = '{vtep_mac}'\n[uplink]\naddresses = ['{}', '{}']\n",
                underlay[0], underlay[1]
            );
            let started = workshop.forwarder(name, &configuration, &nodes[place]);
            started.expect("a forwarder")
        });
        let mut records = [0, 1].map(|place| plan[place].record().expect("a record"));
        records.iter_mut().for_each(|record| record.blocks.clear());
        let mut servers = BTreeMap::new();
        for (number, (name, place)) in (0u8..).zip(nine_pods().places) {
            let node = usize::from(number % 2);
            let pod = pod(&name, number, place.address, node);
            let attach = Attach::Tap { queues: 1 };
            pod.plug(attach, 1450, &nodes[node], &forwarders[node])
                .expect("wired");
            records[node].blocks.push(place.address.into());
            servers.insert(place.address, Server::new(pod).expect("sockets"));
        }
        for (place, forwarder) in forwarders.iter().enumerate() {
            ask(
                forwarder,
                &Request::Apply(Nodes {
                    node: records[place].clone(),
                    peers: vec![records[1 - place].clone()],
                }),
            );
        }
        Self {
            forwarders,
            servers,
            _workshop: workshop,
            _nodes: nodes,
        }
    }

    /// What of a case is not as expected.
    fn run(&self, case: &Case) -> Vec<String> {
        self.tell(&Request::Policies(Policies {
            source: source(),
            objects: Vec::new(),
            part: 0,
            more: false,
            dry_run: false,
        }));
        let steps = case.steps.iter().flat_map(|step| {
            self.tell(&Request::PolicyChange(change(&step.edits)));
            self.wrong(case, step)
        });
        steps.collect()
    }

    fn tell(&self, request: &Request) {
        for forwarder in &self.forwarders {
            ask(forwarder, request);
        }
    }

    /// Tries all probes of a step at once.
    fn wrong(&self, case: &Case, step: &Step) -> Vec<String> {
        let all = (0u16..).zip(&step.probes);
        let tries: Vec<_> = all
            .map(|(number, probe)| Try::start(&self.servers[&probe.flow.source], number, probe))
            .collect();
        let editions = self.forwarders.each_ref().map(edition);
        assert_eq!(editions[0], editions[1], "both are told the same");
        let until = Instant::now() + LIMIT;
        let mut arrived = BTreeSet::new();
        let denied = loop {
            self.servers
                .values()
                .for_each(|server| server.serve(&mut arrived));
            let denied = self.denied(editions[0]);
            let is_open = |one: &Try<'_>| one.wrong(&arrived, &denied).is_some();
            if !tries.iter().any(is_open) || Instant::now() > until {
                break denied;
            }
            tries
                .iter()
                .filter(|one| is_open(one))
                .for_each(|one| one.repeat());
            thread::sleep(Duration::from_millis(1));
        };
        let wrong = tries.iter().filter_map(|one| one.wrong(&arrived, &denied));
        wrong
            .map(|what| format!("{}, {}: {what}", case.name, step.name))
            .collect()
    }

    /// The flows that the rules of an edition denied.
    fn denied(&self, edition: u32) -> BTreeSet<Named> {
        let of = |forwarder: &Forwarder| match ask(forwarder, &Request::Denied) {
            Reply::Denied(denied) => denied.flows,
            other => panic!("{other:?}"),
        };
        let flows = self.forwarders.iter().flat_map(of);
        let of_now = flows.filter(|flow| flow.edition == edition);
        of_now
            .map(|flow| (flow.source, flow.destination, flow.port))
            .collect()
    }
}

/// A flow: its ends, and its port as text.
type Named = (IpAddr, IpAddr, String);

/// Of the rules in force; each step brings the next.
fn edition(forwarder: &Forwarder) -> u32 {
    match ask(forwarder, &Request::PolicyList) {
        Reply::Rules(rules) => rules.edition,
        other => panic!("{other:?}"),
    }
}

fn ask(forwarder: &Forwarder, request: &Request) -> Reply {
    let mut client = forwarder.client().expect("a client");
    client.request(request).expect("granted")
}

fn pod(name: &str, number: u8, address: IpAddr, node: usize) -> Pod {
    let IpAddr::V4(v4) = address else {
        panic!("{address} of the nine pods is IPv4");
    };
    let plan = PodPlan {
        name: name.replace('/', "-"),
        mac: Mac([2, 0, 0, 0, 1, number]),
        v4,
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, number.into()),
    };
    Pod::make(plan, node).expect("a pod")
}

fn source() -> Name {
    Name::new("suite").expect("valid")
}

fn change(edits: &[Edit]) -> PolicyChange {
    let mut change = PolicyChange {
        source: source(),
        put: Vec::new(),
        delete: Vec::new(),
    };
    for edit in edits {
        match edit {
            Edit::Put(manifest) => change.put.push(manifest.clone()),
            Edit::Remove(ObjectName::Policy(policy)) => change.delete.push(ObjectRef {
                kind: "NetworkPolicy".to_owned(),
                namespace: policy.namespace.clone(),
                name: policy.name.clone(),
            }),
            Edit::Remove(other) => panic!("the suite removes no {other:?}"),
        }
    }
    change
}

/// What a pod answers with.
struct Server {
    pod: Pod,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    sctp: UdpSocket,
}

impl Server {
    fn new(pod: Pod) -> io::Result<Self> {
        let address = pod.v4();
        let open = || -> io::Result<_> {
            let tcp = PORTS.map(|port| TcpListener::bind((address, port)));
            let udp = PORTS.map(|port| UdpSocket::bind((address, port)));
            Ok((
                tcp.into_iter().collect::<io::Result<Vec<_>>>()?,
                udp.into_iter().collect::<io::Result<Vec<_>>>()?,
                sctp()?,
            ))
        };
        let (tcp, udp, sctp) = pod.netns.run(open).map_err(io::Error::other)??;
        tcp.iter()
            .try_for_each(|socket| socket.set_nonblocking(true))?;
        udp.iter()
            .try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(Self {
            pod,
            tcp,
            udp,
            sctp,
        })
    }

    /// Asks for an SCTP association.
    fn initiate(&self, number: u16, to: SocketAddr) -> io::Result<()> {
        let [[a, b], [c, d]] = [number, to.port()].map(u16::to_be_bytes);
        let packet = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, INIT, 0, 0, 4];
        self.sctp.send_to(&packet, (to.ip(), 0)).map(|_| ())
    }

    /// Answers datagrams, and notes the numbers of SCTP's openings. The kernel
    /// answers TCP's.
    fn serve(&self, arrived: &mut BTreeSet<u16>) {
        let mut bytes = [0; 128];
        for listener in &self.tcp {
            while listener.accept().is_ok() {}
        }
        for socket in &self.udp {
            while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                socket.send_to(&bytes[..len], from).expect("an answer");
            }
        }
        while let Ok(len) = self.sctp.recv(&mut bytes) {
            // Behind the IP header: the ports, of which the first is the number.
            let chunk = bytes[..len].get(20..).expect("an IPv4 packet");
            assert_eq!(chunk[12], INIT);
            arrived.insert(u16::from_be_bytes([chunk[0], chunk[1]]));
        }
    }
}

/// The chunk that opens an association (RFC 9260, 3.3.2).
const INIT: u8 = 1;

struct Try<'a> {
    from: &'a Server,
    number: u16,
    probe: &'a Probe,
    socket: Socket,
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
    /// The number of an association's opening is its source port.
    Sctp,
}

impl<'a> Try<'a> {
    fn start(from: &'a Server, number: u16, probe: &'a Probe) -> Self {
        let to = probe.flow.destination;
        let opened = match probe.flow.transport {
            Transport::Tcp(port) => in_pod(from, || knock((to, port).into())).map(Socket::Tcp),
            Transport::Udp(port) => {
                in_pod(from, || datagram((to, port).into(), number)).map(Socket::Udp)
            }
            Transport::Sctp(port) => from
                .initiate(number, (to, port).into())
                .map(|()| Socket::Sctp),
            Transport::Other(other) => panic!("the suite knows no protocol {other}"),
        };
        let socket = opened.unwrap_or_else(|error| panic!("{} to {to}: {error}", probe.from));
        Self {
            from,
            number,
            probe,
            socket,
        }
    }

    /// A denial that comes while the list is read is counted and not listed, so
    /// what is to be denied goes again; of TCP the kernel sees to that.
    fn repeat(&self) {
        let sent = match (&self.socket, self.probe.flow.transport) {
            _ if self.probe.allowed => return,
            (Socket::Udp(socket), _) => socket.send(&self.number.to_be_bytes()).map(|_| ()),
            (Socket::Sctp, Transport::Sctp(port)) => {
                let to = (self.probe.flow.destination, port).into();
                self.from.initiate(self.number, to)
            }
            _ => return,
        };
        sent.expect("sent again");
    }

    fn arrived(&self, openings: &BTreeSet<u16>) -> bool {
        match &self.socket {
            Socket::Tcp(stream) => stream.peer_addr().is_ok(),
            Socket::Udp(socket) => socket.peek(&mut [0; 2]).is_ok(),
            Socket::Sctp => openings.contains(&self.number),
        }
    }

    fn wrong(&self, openings: &BTreeSet<u16>, denied: &BTreeSet<Named>) -> Option<String> {
        let Probe {
            from,
            to,
            flow,
            allowed,
        } = self.probe;
        let named = (flow.source, flow.destination, flow.transport.to_string());
        let what = match (allowed, self.arrived(openings), denied.contains(&named)) {
            (true, true, false) | (false, false, true) => return None,
            (true, _, true) => "was denied",
            (true, false, _) => "did not arrive",
            (false, true, _) => "arrived",
            (false, false, false) => "was lost, and denied by nobody",
        };
        Some(format!("{from} to {to} at {}: {what}", flow.transport))
    }
}

fn in_pod<T: Send>(from: &Server, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    from.pod.netns.run(open).map_err(io::Error::other)?
}

/// A connection that nobody waits for.
fn knock(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// By raw sockets, as not every kernel speaks it.
fn sctp() -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        Domain::IPV4,
        Type::RAW.nonblocking(),
        Some(Protocol::from(SCTP)),
    )?;
    Ok(socket.into())
}

fn datagram(to: SocketAddr, number: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    socket.send(&number.to_be_bytes())?;
    Ok(socket)
}
