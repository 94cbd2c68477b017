//! Ports come and go, with real devices and with fds that are none.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use weft_api::{
    forwarder::{Answer, Code, Driver, PortState, QUEUES_MAX, Reply},
    names::{Mac, Name},
};
use weft_cni::{
    link::{self, Attach, Device, Role, Wiring},
    netns::Netns,
};

use crate::server::{Client, LIMIT, Server, plain_file};

/// A request to attach, which an edit may spoil.
pub fn request(name: &str, number: u8) -> String {
    format!(
        "{{\"op\":\"attach\",\"name\":\"{name}\",\"driver\":\"tap\",\
         \"mac\":\"02:00:00:00:00:{number:02x}\",\"addresses\":[\"10.1.0.{number}\"],\"mtu\":1450}}\n"
    )
}

pub struct Pod {
    pub netns: Netns,
    device: Device,
}

pub fn pod(number: u8) -> Pod {
    let netns = Netns::make("a pod").expect("a network namespace: root, or unshare -Urn");
    let wiring = Wiring {
        interface: "eth0".to_owned(),
        mac: Mac([2, 0, 0, 0, 0, number]),
        addresses: vec![[10, 1, 0, number].into()],
        mtu: 1450,
        attach: Attach::Tap { queues: 2 },
        gso: None,
        role: Role::Pod,
    };
    let name = Name::new("pod").expect("valid");
    let device = link::add(&netns, &name, &wiring).expect("a tap");
    Pod { netns, device }
}

impl Pod {
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.device.fds.iter().map(AsFd::as_fd).collect()
    }
}

pub fn attached(client: &mut Client, line: &str, pod: &Pod) {
    client.pass(line, &pod.fds());
    let answer = client.answer();
    assert!(
        matches!(answer, Answer::Ok(Reply::Done { .. })),
        "{answer:?}"
    );
}

#[test]
fn a_port_is_adopted_listed_and_let_go() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    client.ok(r#"{"op":"list"}"#);
    let fds = server.open_fds();
    let pod = pod(1);
    attached(&mut client, &request("n1p1", 1), &pod);
    let [port] = &server.list()[..] else {
        panic!("one port is attached")
    };
    assert_eq!(
        (port.name.as_str(), port.driver, port.queues),
        ("n1p1", Driver::Tap, 2)
    );
    assert_eq!((port.state, port.mtu), (PortState::Up, 1450));
    // The connection that `list` made has ended by now.
    client.ok(r#"{"op":"list"}"#);
    assert_eq!(server.open_fds(), fds + 2);
    client.ok(r#"{"op":"detach","name":"n1p1"}"#);
    let until = Instant::now() + Duration::from_secs(10);
    while server.open_fds() != fds {
        assert!(Instant::now() < until, "its fds are closed");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(server.list(), []);
    attached(&mut client, &request("n1p1", 1), &pod);
}

#[test]
fn what_another_port_has_is_refused() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    let first = pod(1);
    attached(&mut client, &request("n1p1", 1), &first);
    let before = server.list();
    client.ok(r#"{"op":"list"}"#);
    let fds = server.open_fds();
    let second = pod(2);
    let same_address = request("n1p2", 2).replace("10.1.0.2", "10.1.0.1");
    let same_mac = request("n1p2", 2).replace("00:02\"", "00:01\"");
    for line in [request("n1p1", 2), same_address, same_mac] {
        client.pass(&line, &second.fds());
        assert_eq!(client.refusal(), Code::Taken, "{line}");
    }
    assert_eq!(server.open_fds(), fds, "refused fds are closed");
    assert_eq!(server.list(), before);
    attached(&mut client, &request("n1p2", 2), &second);
    assert_eq!(server.list().len(), 2);
}

#[test]
fn fds_that_are_no_queues_are_refused() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    client.ok(r#"{"op":"list"}"#);
    let fds = server.open_fds();
    let file = plain_file();
    let pod = pod(1);
    let line = request("n1p1", 1);
    let (a_file, a_queue) = (file.as_fd(), pod.fds()[0]);
    for passed in [
        &[a_file][..],
        &[a_queue, a_file],
        &[client.stream.try_clone().expect("clone").as_fd()],
    ] {
        client.pass(&line, passed);
        assert_eq!(client.refusal(), Code::Descriptor);
    }
    for driver in ["basic", "veth"] {
        client.pass(&line.replace("tap", driver), &[a_file]);
        assert_eq!(client.refusal(), Code::Descriptor, "{driver}");
    }
    client.pass(&line.replace("tap", "basic"), &pod.fds());
    assert_eq!(
        client.refusal(),
        Code::Descriptor,
        "a basic port has one queue"
    );
    assert_eq!(
        client.refused(line.trim()),
        Code::Descriptor,
        "no fds at all"
    );
    client.pass(&line, &vec![a_file; QUEUES_MAX + 1]);
    assert_eq!(client.refusal(), Code::Descriptor, "too many");
    assert_eq!(server.open_fds(), fds, "every fd is closed");
    assert_eq!(server.list(), []);
}

#[test]
fn a_refused_queue_leaves_the_others_device_as_it_was() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    let pod = pod(1);
    let queue = pod.fds()[0];
    // struct virtio_net_hdr with num_buffers, which the forwarder never sets.
    let theirs = 12;
    // SAFETY: the fd is open and the pointer is to a whole int.
    unsafe { set_header_size(queue.as_raw_fd(), &theirs) }.expect("a tap");
    client.pass(&request("n1p1", 1), &[queue, plain_file().as_fd()]);
    assert_eq!(client.refusal(), Code::Descriptor);
    let mut found = 0;
    // SAFETY: as above.
    unsafe { header_size(queue.as_raw_fd(), &mut found) }.expect("a tap");
    assert_eq!(found, theirs);
}

nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);
nix::ioctl_read_bad!(header_size, libc::TUNGETVNETHDRSZ, libc::c_int);

#[test]
fn fds_where_none_belong_are_closed_and_told() {
    let server = Server::start();
    let mut client = server.client();
    client.ok(r#"{"op":"list"}"#);
    let fds = server.open_fds();
    let file = plain_file();
    client.pass("{\"op\":\"list\"}\n", &[file.as_fd()]);
    assert_eq!(client.refusal(), Code::Descriptor);
    client.pass("nonsense\n", &[file.as_fd()]);
    assert_eq!(client.refusal(), Code::Malformed);
    client.send("{\"op\":\"list\"");
    client.pass("}\n", &[file.as_fd()]);
    assert_eq!(client.refusal(), Code::Descriptor);
    client.ok(r#"{"op":"list"}"#);
    assert_eq!(server.open_fds(), fds);

    let mut gone = server.client();
    gone.pass("{\"op\":\"attach\",", &[file.as_fd()]);
    drop(gone);
    client.ok(r#"{"op":"list"}"#);
    let until = Instant::now() + LIMIT;
    while server.open_fds() > fds {
        assert!(
            Instant::now() < until,
            "fds of a client that left stay open"
        );
    }
    assert_eq!(server.list(), []);
}

#[test]
fn pipelined_attaches_get_their_own_fds() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    let pods: Vec<Pod> = (1..=4).map(pod).collect();
    let file = plain_file();
    for (pod, number) in pods.iter().zip(1..) {
        client.send("{\"op\":\"list\"}\n");
        client.pass(&request(&format!("n1p{number}"), number), &pod.fds());
        client.pass(
            &request(&format!("bad{number}"), number + 100),
            &[file.as_fd()],
        );
    }
    for _ in &pods {
        assert!(matches!(client.answer(), Answer::Ok(Reply::Ports(_))));
        assert!(matches!(client.answer(), Answer::Ok(Reply::Done { .. })));
        assert_eq!(client.refusal(), Code::Descriptor);
    }
    let names: Vec<String> = server.list().iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["n1p1", "n1p2", "n1p3", "n1p4"]);
}

#[test]
fn a_port_whose_link_is_deleted_is_shown_as_gone() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    let pod = pod(1);
    attached(&mut client, &request("n1p1", 1), &pod);
    link::remove(&pod.netns, "eth0").expect("delete the link");
    let until = Instant::now() + LIMIT;
    while server.list()[0].state != PortState::Gone {
        assert!(Instant::now() < until, "the port stays up");
    }
    client.ok(r#"{"op":"detach","name":"n1p1"}"#);
    assert_eq!(server.list(), []);
}
