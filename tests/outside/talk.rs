//! Servers that tell whoever asks from which address he was seen.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use weft_cni::netns::Netns;
use weft_lab::{
    Pod,
    probe::{DEADLINE, Family},
};

const TICK: Duration = Duration::from_millis(50);

/// Serves TCP and UDP on one port of a pod until it is dropped.
pub struct Server {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn at(netns: &Netns, address: SocketAddr) -> Self {
        let bind = || (TcpListener::bind(address), UdpSocket::bind(address));
        let (listener, socket) = netns.run(bind).expect("enter");
        let (listener, socket) = (listener.expect("listen"), socket.expect("bind"));
        listener.set_nonblocking(true).expect("set");
        socket.set_read_timeout(Some(TICK)).expect("set");
        let over = Arc::new(AtomicBool::new(false));
        let (one, other) = (over.clone(), over.clone());
        let connections = move || {
            while !one.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, from)) => {
                        // Who has gone meanwhile hears nothing.
                        let _ = stream.write_all(from.ip().to_string().as_bytes());
                    }
                    Err(_) => thread::sleep(TICK / 10),
                }
            }
        };
        let datagrams = move || {
            let mut buffer = [0; 64];
            while !other.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
                }
            }
        };
        Self {
            over,
            threads: vec![thread::spawn(connections), thread::spawn(datagrams)],
        }
    }

    /// On a port of all a pod's addresses of a family.
    pub fn of(pod: &Pod, family: Family, port: u16) -> Self {
        Self::at(&pod.netns, (family.of(pod), port).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    Tcp,
    Udp,
}

impl Speech {
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As whom a server sees who asks from that namespace.
    pub fn seen(self, from: &Netns, server: SocketAddr) -> io::Result<IpAddr> {
        let said = from.run(|| match self {
            Self::Tcp => ask_tcp(server),
            Self::Udp => ask_udp(server),
        });
        let said = said.expect("enter")?;
        Ok(said.parse().expect("an address"))
    }
}

fn ask_tcp(server: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn ask_udp(server: SocketAddr) -> io::Result<String> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send(b"who am I?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
