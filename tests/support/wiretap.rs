//! What is on a node's wire, and how tshark dissects it.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt,
    },
};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use weft_cni::netns::Netns;

/// Hears every frame on a node's wire, its `eth0`, in both directions.
pub struct Wiretap {
    socket: OwnedFd,
    wire: usize,
}

impl Wiretap {
    pub fn on(node: &Netns) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let wire = node.run(|| if_nametoindex("eth0"));
        let wire = usize::try_from(wire.expect("enter").expect("a wire")).expect("small");
        let raw = node.run(|| socket(AddressFamily::Packet, SockType::Raw, flags, all));
        let socket = raw.expect("enter").expect("a packet socket");
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("room");
        Self { socket, wire }
    }

    /// What has come by now.
    pub fn heard(self) -> Vec<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        let mut heard = Vec::new();
        while let Ok((len, link)) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
            if link.is_some_and(|link| link.ifindex() == self.wire) {
                heard.push(bytes[..len].to_vec());
            }
        }
        heard
    }
}

/// One row a frame: protocols, IPv4 sources and destinations, IPv6 ones, the
/// state of IPv4 header checksums, DF, TTL.
pub fn dissect(frames: &[Vec<u8>]) -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("wire.pcap");
    write_pcap(&path, frames);
    let fields = [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
        "ip.checksum.status",
        "ip.flags.df",
        "ip.ttl",
    ];
    let output = Command::new("tshark")
        // The kernel's VXLAN port is not the one that tshark knows.
        .args(["-n", "-d", "udp.port==8472,vxlan"])
        .args(["-o", "ip.check_checksum:TRUE", "-T", "fields", "-r"])
        .arg(&path)
        .args(fields.iter().flat_map(|field| ["-e", *field]))
        .output()
        .expect("tshark runs; install it");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let row = |line: &str| line.split('\t').map(str::to_owned).collect();
    text.lines().map(row).collect()
}

fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut writer = PcapWriter::new(File::create(path).expect("a file")).expect("a header");
    for frame in frames {
        let len = u32::try_from(frame.len()).expect("a frame");
        let packet = PcapPacket::new(Duration::ZERO, len, frame);
        writer.write_packet(&packet).expect("written");
    }
}
