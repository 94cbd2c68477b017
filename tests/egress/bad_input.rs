//! A forwarder that hands over what no forwarder would: the egress counts it,
//! lets nothing into the node, and goes on.

use std::{
    fs,
    io::{BufRead, BufReader, IoSliceMut, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use weft_testkit::frames::between;
use weft_wire::{VnetHeader, vnet};
use zerocopy::IntoBytes;

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

struct Fake {
    egress: Child,
    link: OwnedFd,
    _dir: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("forwarder.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let egress = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["egress", "--pool", "10.1.0.0/16", "--control"])
            .arg(&path)
            .stdin(Stdio::null())
            .spawn()
            .expect("start");
        let (mut stream, _) = listener.accept().expect("it comes");
        let mut line = String::new();
        BufReader::with_capacity(1, &stream)
            .read_line(&mut line)
            .expect("a line");
        assert!(line.contains("\"list\""), "{line}");
        stream
            .write_all(b"{\"ok\":{\"ports\":[]}}\n")
            .expect("answered");
        let link = passed(&stream);
        stream
            .write_all(b"{\"ok\":{\"done\":{\"epoch\":1}}}\n")
            .expect("answered");
        fcntl(&link, FcntlArg::F_SETFL(OFlag::empty())).expect("it waits from now on");
        let patience = TimeVal::new(10, 0);
        setsockopt(&link, sockopt::ReceiveTimeout, &patience).expect("set");
        let this = Self {
            egress,
            link,
            _dir: dir,
        };
        this.answers();
        this
    }

    fn send(&self, vnet: VnetHeader, frame: &[u8]) {
        let message = [vnet.as_bytes(), frame].concat();
        self.send_bytes(&message);
    }

    fn send_bytes(&self, bytes: &[u8]) {
        send(self.link.as_raw_fd(), bytes, MsgFlags::empty()).expect("sent");
    }

    /// The next frame from the egress.
    fn hear(&self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 17];
        let flags = MsgFlags::empty();
        let bytes = recv(self.link.as_raw_fd(), &mut buffer, flags).expect("a frame");
        buffer.truncate(bytes);
        buffer
    }

    /// It still does what it is for: a reset for what it knows nothing of.
    fn answers(&self) {
        const ACK: u8 = 0x10;
        let frame = between(POD, Ipv4Addr::new(192, 0, 2, 1))
            .tcp(4, 4)
            .flags(ACK)
            .build();
        self.send(VnetHeader::default(), &frame);
        loop {
            let heard = self.hear();
            // Its flags are at the end of the TCP header.
            if heard
                .get(vnet::LEN + 14 + 20 + 13)
                .is_some_and(|flags| flags & 0x04 != 0)
            {
                return;
            }
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.egress.kill();
        let _ = self.egress.wait();
    }
}

fn passed(stream: &std::os::unix::net::UnixStream) -> OwnedFd {
    let mut line = vec![0; 4096];
    let mut control = nix::cmsg_space!(i32);
    let mut room = [IoSliceMut::new(&mut line)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut room, Some(&mut control), flags).expect("a line");
    for one in message.cmsgs().expect("whole") {
        if let ControlMessageOwned::ScmRights(fds) = one {
            // SAFETY: the kernel has just made this descriptor for us.
            return unsafe { OwnedFd::from_raw_fd(fds[0]) };
        }
    }
    panic!("no descriptor came");
}

#[test]
fn garbage_is_counted_and_survived() {
    let fake = Fake::new();
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let whole = [
        between(POD, outside).tcp(1, 80).flags(0x02).build(),
        between(POD, outside)
            .udp(1, 53)
            .payload(b"question")
            .build(),
        between(POD, outside).echo_request(7, 1).build(),
        between(POD, outside).protocol(132).filled(40).build(),
    ];
    let headers = [
        VnetHeader::default(),
        VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            gso_size: 0,
            csum_start: u16::MAX,
            csum_offset: u16::MAX,
            hdr_len: u16::MAX,
        },
        VnetHeader {
            flags: 0xff,
            gso_type: 0xff,
            gso_size: u16::MAX,
            ..VnetHeader::default()
        },
    ];
    for len in 1..40 {
        fake.send_bytes(&vec![0xff; len]);
    }
    for frame in &whole {
        for header in headers {
            for len in 0..frame.len() {
                fake.send(header, &frame[..len]);
                let mut changed = frame.clone();
                changed[len] ^= 0xff;
                fake.send(header, &changed);
            }
        }
        fake.answers();
    }
    fake.send_bytes(&vec![0x45; 70_000]);
    fake.answers();
}

#[test]
fn nothing_leads_into_the_nodes_loopback() {
    let fake = Fake::new();
    let listener = TcpListener::bind((LOOPBACK, 0)).expect("listen");
    let socket = UdpSocket::bind((LOOPBACK, 0)).expect("a socket");
    let tcp = listener.local_addr().expect("bound").port();
    let udp = socket.local_addr().expect("bound").port();
    for address in [LOOPBACK, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(127, 1, 2, 3)] {
        for frame in [
            between(POD, address).tcp(9, tcp).flags(0x02).build(),
            between(POD, address).udp(9, udp).payload(b"in").build(),
        ] {
            fake.send(VnetHeader::default(), &frame);
            let heard = fake.hear();
            let icmp = &heard[vnet::LEN + 14 + 20..];
            assert_eq!(icmp[..2], [3, 13], "prohibited");
        }
    }
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody came");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("set");
    assert!(socket.recv(&mut [0; 8]).is_err(), "nothing came");
    assert!(fs::exists(format!("/proc/{}", fake.egress.id())).expect("/proc"));
}
