//! Questions that one node asks another inside the tunnel: ICMP echo requests
//! from its own address in the pod network to the other's, which weft and
//! every kernel answer. They bear a token that nobody else can make.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use weft_wire::{ETHERNET_LEN, Mac, Packet, parse::Fragment, protocol};

use super::envelope::Envelope;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Type, code, checksum, identifier, number.
const HEADER_LEN: usize = 8;
const TOKEN_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;

/// By what this node knows its own questions, as long as it runs.
#[derive(Debug, Clone)]
pub struct Seal {
    identifier: u16,
    /// Keys that nobody else knows (SipHash).
    keys: RandomState,
}

/// An echo request to be written.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub number: u16,
    /// Bytes of the IP packet; at least [`least`].
    pub len: usize,
}

/// An answer that belongs to a question of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Who was asked, and has answered.
    pub from: IpAddr,
    pub number: u16,
}

/// Bytes of the least question.
pub fn least(v4: bool) -> usize {
    ip_header(v4) + HEADER_LEN + TOKEN_LEN
}

fn ip_header(v4: bool) -> usize {
    if v4 { 20 } else { 40 }
}

impl Seal {
    pub fn new(keys: RandomState) -> Self {
        let [high, low, ..] = keys.hash_one("identifier").to_be_bytes();
        Self {
            identifier: u16::from_be_bytes([high, low]),
            keys,
        }
    }

    /// Writes the question's Ethernet frame. Says whether it could: both
    /// addresses must be of one family, and the length one that a packet has.
    pub fn write(&self, question: &Question, frame: &mut Vec<u8>) -> bool {
        let v4 = question.src.is_ipv4();
        let token = self.token(question.dst, question.number, question.len);
        let Some(len) = (question.len >= least(v4)).then(|| question.len - ip_header(v4)) else {
            return false;
        };
        let envelope = Envelope {
            dst_mac: question.dst_mac,
            src_mac: question.src_mac,
            src: question.src,
            dst: question.dst,
            hop_limit: HOP_LIMIT,
        };
        envelope.write(len, frame, |message| {
            message[0] = if v4 { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 };
            message[4..6].copy_from_slice(&self.identifier.to_be_bytes());
            message[6..8].copy_from_slice(&question.number.to_be_bytes());
            message[HEADER_LEN..][..TOKEN_LEN].copy_from_slice(&token);
        })
    }

    /// Whether the packet passes for an answer to this node's questions,
    /// which nobody else wants to see.
    pub fn is_claimed(&self, frame: &[u8], packet: &Packet) -> bool {
        let kind = match packet.key.protocol {
            protocol::ICMP if packet.is_v4() => ECHO_REPLY_V4,
            protocol::ICMPV6 if !packet.is_v4() => ECHO_REPLY_V6,
            _ => return false,
        };
        let message = &frame[packet.transport..packet.end];
        packet.fragment == Fragment::Whole
            && message.starts_with(&[kind, 0])
            && message.get(4..6) == Some(&self.identifier.to_be_bytes())
    }

    /// The answer in a packet that is claimed to be one, if it is.
    pub fn read(&self, frame: &[u8], packet: &Packet) -> Option<Answer> {
        let message = &frame[packet.transport..packet.end];
        let number = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
        let from = packet.key.src;
        let token = self.token(from, number, packet.end - ETHERNET_LEN);
        let is_ours = message.get(HEADER_LEN..HEADER_LEN + TOKEN_LEN)? == token;
        is_ours.then_some(Answer { from, number })
    }

    /// What the answer has to repeat: only whom the question was sent to can
    /// know it.
    fn token(&self, asked: IpAddr, number: u16, len: usize) -> [u8; TOKEN_LEN] {
        self.keys.hash_one((asked, number, len)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::{Ethernet, parse};

    use super::*;
    use crate::gateway::icmp;

    fn question(src: &str, dst: &str, len: usize) -> Question {
        Question {
            dst_mac: [2, 0, 0, 0, 0, 2],
            src_mac: [2, 0, 0, 0, 0, 1],
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            number: 7,
            len,
        }
    }

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            other => panic!("no packet: {other:?}"),
        }
    }

    fn answer(seal: &Seal, question: &Question) -> Vec<u8> {
        let (mut asked, mut reply) = (Vec::new(), Vec::new());
        assert!(seal.write(question, &mut asked));
        assert_eq!(packet(&asked).ip_len(), question.len);
        icmp::echo(&asked, &packet(&asked), &mut reply).expect("answered");
        reply
    }

    const ENDS: [(&str, &str); 2] = [("10.1.0.0", "10.2.0.0"), ("fd00:1::", "fd00:2::")];

    #[test]
    fn an_answer_is_known_and_tells_whom_it_is_from() {
        let seal = Seal::new(RandomState::new());
        for (src, dst) in ENDS {
            for len in [least(src.contains('.')), 1280, 1450, 8950] {
                let asked = question(src, dst, len);
                let frame = answer(&seal, &asked);
                assert!(seal.is_claimed(&frame, &packet(&frame)));
                let expected = Answer {
                    from: asked.dst,
                    number: 7,
                };
                assert_eq!(seal.read(&frame, &packet(&frame)), Some(expected));
            }
        }
    }

    #[test]
    fn what_was_not_asked_is_no_answer() {
        let seal = Seal::new(RandomState::new());
        for (src, dst) in ENDS {
            let frame = answer(&seal, &question(src, dst, 100));
            let transport = packet(&frame).transport;
            // The number, the token, the peer, the length.
            let mut forged: Vec<_> = [transport + 7, transport + 15]
                .into_iter()
                .map(|place| {
                    let mut frame = frame.clone();
                    frame[place] ^= 1;
                    frame
                })
                .collect();
            let other = answer(&seal, &question(src, src, 100));
            let mut spoken = frame.clone();
            spoken[transport + 8..transport + 16]
                .copy_from_slice(&other[transport + 8..transport + 16]);
            forged.push(spoken);
            for frame in forged {
                assert_eq!(seal.read(&frame, &packet(&frame)), None);
            }
            let stranger = Seal::new(RandomState::new());
            assert_eq!(stranger.read(&frame, &packet(&frame)), None);
            let (mut asked, mut short) = (Vec::new(), question(src, dst, 100));
            assert!(seal.write(&short, &mut asked));
            assert!(!seal.is_claimed(&asked, &packet(&asked)), "a question");
            short.len = least(src.contains('.')) - 1;
            assert!(!seal.write(&short, &mut asked));
            short.len = 70_000;
            assert!(!seal.write(&short, &mut asked));
        }
    }
}
