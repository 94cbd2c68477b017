//! One TCP connection: the pod's ends here, in smoltcp, and a stream of the
//! kernel's goes on outside.
//!
//! A pod's SYN is answered once outside has taken the connection. Each side
//! takes from the other what it has room for and no more, so that a slow
//! reader on the one side holds back the writer on the other. An end of the
//! stream, and a reset, passes on as what it is.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use mio::net::TcpStream;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use smoltcp::socket::tcp::State;
use weft_wire::Key;

use crate::{
    link::Link,
    metrics::Counters,
    refusal::{Trouble, tell},
    stack::{End, Stack},
};

/// How long outside may take to take a connection. Pods' kernels give up after
/// about two minutes.
const CONNECT: Duration = Duration::from_secs(130);

#[derive(Debug)]
pub struct Tcp {
    pub stream: TcpStream,
    phase: Phase,
    pub readable: bool,
    pub writable: bool,
    /// That it came by, if it was not the pod that called.
    pub door: Option<usize>,
}

#[derive(Debug)]
enum Phase {
    /// Outside has not answered; the SYN waits, from its IP header on.
    Connecting {
        syn: Box<[u8]>,
        mss: u16,
        until: Instant,
    },
    Joined(Joined),
    Over,
}

#[derive(Debug)]
struct Joined {
    end: End,
    /// Outside has said all.
    eof: bool,
    /// The pod has said all,
    heard_all: bool,
    /// and outside knows.
    shut: bool,
    /// Outside is gone; the pod is told by a reset.
    failed: bool,
}

/// What a connection works with.
#[derive(Debug)]
pub struct Tools<'a> {
    pub stack: &'a mut Stack,
    pub link: &'a mut Link,
    pub counters: &'a Counters,
    pub now: Instant,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The flow goes on; something is to be done then at the latest.
    Waits(Option<Instant>),
    Over,
}

impl Tcp {
    /// Starts to connect. `syn` is the packet that asks for it, and says that
    /// its sender takes segments of `mss` bytes.
    pub fn open(target: SocketAddr, syn: &[u8], mss: u16, now: Instant) -> io::Result<Self> {
        let stream = TcpStream::connect(target)?;
        // What a pod wrote is to go out as it wrote it.
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            phase: Phase::Connecting {
                syn: syn.into(),
                mss,
                until: now + CONNECT,
            },
            readable: false,
            writable: false,
            door: None,
        })
    }

    /// Passes on to a pod what has come by that door. `end` calls the pod.
    pub fn call(stream: TcpStream, end: End, door: usize) -> Self {
        // As above; where it cannot be set, small writes come later.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            phase: Phase::Joined(Joined::new(end)),
            readable: false,
            writable: false,
            door: Some(door),
        }
    }

    /// A packet of the pod's: from its IP header on, and from its TCP header.
    pub fn hear(&mut self, tools: &mut Tools<'_>, key: &Key, packet: &[u8], header: &[u8]) {
        // While outside has not answered, what comes is the SYN again.
        if let Phase::Joined(joined) = &mut self.phase {
            joined.end.learn(header);
            tools
                .stack
                .feed(tools.link, tools.now, key.dst, &mut joined.end, packet);
        }
    }

    /// Does all that can be done without waiting.
    pub fn turn(&mut self, tools: &mut Tools<'_>, key: &Key) -> Turn {
        if let Phase::Connecting { until, .. } = &self.phase {
            let until = *until;
            match self.connected() {
                Ok(true) => self.join(tools, key),
                Ok(false) if tools.now >= until => {
                    return self.fail(tools, key, &ErrorKind::TimedOut.into());
                }
                Ok(false) => return Turn::Waits(Some(until)),
                Err(error) => return self.fail(tools, key, &error),
            }
        }
        let Phase::Joined(joined) = &mut self.phase else {
            return Turn::Over;
        };
        let streams = Streams {
            stream: &mut self.stream,
            readable: &mut self.readable,
            writable: &mut self.writable,
        };
        joined.turn(streams, tools, key.dst)
    }

    /// Has both ends know that it is over.
    pub fn cut(&mut self, tools: &mut Tools<'_>, key: &Key) {
        reset(&self.stream);
        if let Phase::Joined(joined) = &mut self.phase {
            joined.end.socket().abort();
            let Tools { stack, link, .. } = tools;
            stack.flush(link, tools.now, key.dst, &mut joined.end);
        }
    }

    /// Gives its memory back.
    pub fn end(&mut self, stack: &mut Stack) {
        if let Phase::Joined(joined) = std::mem::replace(&mut self.phase, Phase::Over) {
            stack.give_back(joined.end);
        }
    }

    fn connected(&self) -> io::Result<bool> {
        if !self.writable && !self.readable {
            return Ok(false);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn join(&mut self, tools: &mut Tools<'_>, key: &Key) {
        let Phase::Connecting { syn, mss, .. } = &self.phase else {
            return;
        };
        let Some(mut end) = tools.stack.listen(key.dst, key.dst_port, *mss) else {
            self.phase = Phase::Over;
            return;
        };
        tools.counters.tcp_opened.add(1);
        tools
            .stack
            .feed(tools.link, tools.now, key.dst, &mut end, syn);
        self.phase = Phase::Joined(Joined::new(end));
    }

    fn fail(&mut self, tools: &mut Tools<'_>, key: &Key, error: &io::Error) -> Turn {
        if let Phase::Connecting { syn, .. } = &self.phase {
            fail(tools, key, error, syn);
        }
        Turn::Over
    }
}

/// Tells the pod that its connection cannot be: as outside would have said it.
pub fn fail(tools: &mut Tools<'_>, key: &Key, error: &io::Error, syn: &[u8]) {
    let counters = tools.counters;
    let v4 = key.src.is_ipv4();
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
            counters.tcp_refused.add(1);
            tools.stack.refuse(tools.link, tools.now, key.dst, syn);
        }
        // As from outside, there is no answer.
        ErrorKind::TimedOut => counters.tcp_timed_out.add(1),
        kind => {
            counters.tcp_unreachable.add(1);
            let trouble = match kind {
                ErrorKind::PermissionDenied => Trouble::prohibited(v4),
                _ => Trouble::host_unreachable(v4),
            };
            if tell(tools.link, key, key.dst, trouble, syn).is_err() {
                counters.dropped_link.add(1);
            }
        }
    }
}

struct Streams<'a> {
    stream: &'a mut TcpStream,
    readable: &'a mut bool,
    writable: &'a mut bool,
}

impl Joined {
    fn new(end: End) -> Self {
        Self {
            end,
            eof: false,
            heard_all: false,
            shut: false,
            failed: false,
        }
    }

    fn turn(&mut self, mut streams: Streams<'_>, tools: &mut Tools<'_>, address: IpAddr) -> Turn {
        if !self.failed {
            let moved = self
                .pass_out(&mut streams, tools.counters)
                .and_then(|()| self.pass_in(&mut streams, tools.counters));
            if moved.is_err() {
                tools.counters.tcp_reset_by_outside.add(1);
                self.failed = true;
                self.end.socket().abort();
            }
        }
        tools
            .stack
            .flush(tools.link, tools.now, address, &mut self.end);
        let socket = self.end.socket();
        let waits = socket.recv_queue() > 0 && self.heard_all;
        match socket.state() {
            // A reset that found no room waits until there is.
            State::Closed if self.failed && socket.remote_endpoint().is_some() => Turn::Waits(None),
            State::Closed | State::Listen if self.failed => Turn::Over,
            // The pod is done, and outside has not taken all yet.
            State::Closed if self.eof && waits => Turn::Waits(None),
            // A reset of the pod's passes on.
            State::Closed | State::Listen if !(self.eof && self.shut) => {
                tools.counters.tcp_reset_by_pods.add(1);
                reset(streams.stream);
                Turn::Over
            }
            State::Closed | State::Listen => Turn::Over,
            // What comes back now is answered as of no connection.
            State::TimeWait if self.shut => Turn::Over,
            _ => Turn::Waits(tools.stack.due(tools.now, &self.end)),
        }
    }

    fn pass_out(&mut self, streams: &mut Streams<'_>, counters: &Counters) -> io::Result<()> {
        let socket = self.end.socket();
        while *streams.writable && socket.can_recv() {
            let written = socket.recv(|bytes| match streams.stream.write(bytes) {
                Ok(written) => (written, Ok(written)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(written)) => counters.tcp_bytes_to_outside.add(written as u64),
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                    *streams.writable = false;
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        self.heard_all |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if self.heard_all && socket.recv_queue() == 0 && !self.shut {
            self.shut = true;
            return match streams.stream.shutdown(Shutdown::Write) {
                Err(error) if error.kind() != ErrorKind::NotConnected => Err(error),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    fn pass_in(&mut self, streams: &mut Streams<'_>, counters: &Counters) -> io::Result<()> {
        let socket = self.end.socket();
        while *streams.readable && !self.eof && socket.can_send() {
            let read = socket.send(|room| match streams.stream.read(room) {
                Ok(read) => (read, Ok(read)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.eof = true;
                    socket.close();
                }
                Ok(Ok(read)) => counters.tcp_bytes_to_pods.add(read as u64),
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                    *streams.readable = false
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// Has the kernel reset the stream when it is closed.
pub fn reset(stream: &TcpStream) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Where that fails, the stream ends in good order instead.
    let _ = setsockopt(&stream.as_fd(), sockopt::Linger, &at_once);
}
