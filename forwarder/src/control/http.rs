//! One visitor of the metrics address: a single HTTP/1.1 request (RFC 9112),
//! a single answer, and the connection is closed.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use mio::net::TcpStream;

use super::Turn;
use crate::metrics::CONTENT_TYPE;

/// How long a visitor may take from connecting to having read all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest request head in bytes; what scrapers send is a tenth of it.
const HEAD_MAX: usize = 8 << 10;

/// Reads of one turn, after which others have theirs.
const STEPS: usize = 16;

#[derive(Debug)]
pub struct Visitor {
    pub stream: TcpStream,
    head: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    deadline: Instant,
}

impl Visitor {
    pub fn new(stream: TcpStream, now: Instant) -> Self {
        let deadline = now + PATIENCE;
        Self {
            stream,
            head: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            deadline,
        }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Does what can be done without waiting; `metrics` makes the page.
    pub fn turn(&mut self, metrics: impl FnOnce() -> String) -> io::Result<Turn> {
        while self.outgoing.is_empty() {
            if let Some(end) = head_end(&self.head) {
                self.outgoing = respond(&self.head[..end], metrics);
                break;
            }
            if self.head.len() >= HEAD_MAX {
                self.outgoing = page(
                    "431 Request Header Fields Too Large",
                    "",
                    TEXT,
                    "too long\n",
                );
                break;
            }
            let mut buffer = [0; 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Turn::Over),
                Ok(bytes) => self.head.extend_from_slice(&buffer[..bytes]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<Turn> {
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.part()
    }

    /// Waits for the visitor to close: to close before all it said is read
    /// would take back the answer (RFC 9112 section 9.6).
    fn part(&mut self) -> io::Result<Turn> {
        self.stream.shutdown(Shutdown::Write)?;
        for _ in 0..STEPS {
            match self.stream.read(&mut [0; 4096]) {
                Ok(0) => return Ok(Turn::Over),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Turn::Again)
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn head_end(head: &[u8]) -> Option<usize> {
    head.windows(4).position(|window| window == b"\r\n\r\n")
}

fn respond(head: &[u8], metrics: impl FnOnce() -> String) -> Vec<u8> {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let [method, target, version] = words[..] else {
        return page("400 Bad Request", "", TEXT, "that is no request line\n");
    };
    if !version.starts_with(b"HTTP/1.") {
        return page(
            "505 HTTP Version Not Supported",
            "",
            TEXT,
            "speak HTTP/1.1\n",
        );
    }
    if method != b"GET" {
        return page(
            "405 Method Not Allowed",
            "Allow: GET\r\n",
            TEXT,
            "only GET is served\n",
        );
    }
    let path = target.split(|&b| b == b'?').next().unwrap_or_default();
    match path {
        b"/metrics" => page("200 OK", "", CONTENT_TYPE, &metrics()),
        b"/healthz" => page("200 OK", "", TEXT, "ok\n"),
        _ => page(
            "404 Not Found",
            "",
            TEXT,
            "here are /metrics and /healthz\n",
        ),
    }
}

fn page(status: &str, header: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{header}\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(head: &str) -> String {
        String::from_utf8(respond(head.as_bytes(), || "weft_up 1\n".into())).expect("text")
    }

    #[test]
    fn each_request_has_its_status() {
        for (head, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: x", "200 OK"),
            ("GET /metrics?x=1 HTTP/1.0", "200 OK"),
            ("GET /healthz HTTP/1.1", "200 OK"),
            ("GET / HTTP/1.1", "404 Not Found"),
            ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
            ("GET /metrics HTTP/2", "505 HTTP Version Not Supported"),
            ("GET /metrics", "400 Bad Request"),
            ("", "400 Bad Request"),
        ] {
            let answer = answer(head);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{head}: {answer}"
            );
        }
        let metrics = answer("GET /metrics HTTP/1.1");
        assert!(metrics.ends_with("Content-Length: 10\r\nConnection: close\r\n\r\nweft_up 1\n"));
        assert!(answer("PUT / HTTP/1.1").contains("\r\nAllow: GET\r\n"));
    }

    #[test]
    fn a_head_ends_at_the_empty_line() {
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n\r\n"), Some(14));
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n"), None);
    }
}
