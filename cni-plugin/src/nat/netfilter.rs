//! The one user of a netfilter socket: transactions of nftables, and what its
//! maps hold. A socket speaks for the network namespace in which it was opened.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    NetfilterSubsystem,
    nftables::{GenMessage, NfTablesMessage, SetElementList, SetElementMessage},
    none::ControlMessage,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv,
            send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};
use rtnetlink::packet_core::{
    DefaultNla, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage, NlasIterator,
};

use super::NatError;

/// The kernel answers at once; longer only where it gets no processor.
const DEADLINE: TimeVal = TimeVal::new(10, 0);

/// Most that the kernel puts into one answer (NLMSG_GOODSIZE and up), and more.
const ANSWER_MAX: usize = 64 << 10;

/// For a transaction of all that a node may publish. In a user namespace it is
/// what `net.core.wmem_max` allows, by default some 4000 ports.
const TRANSACTION_MAX: usize = 8 << 20;

/// NFNL_BATCH_GENID.
const GENERATION: u16 = 1;

// Attributes of answers (linux/netfilter/nf_tables.h).
const NFTA_GEN_ID: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// Of `struct nfgenmsg`, before the attributes.
const NETFILTER_HEADER: usize = 4;

#[derive(Debug)]
pub struct Netfilter {
    fd: OwnedFd,
    sequence: u32,
    /// The request's first message; answers to earlier ones are late.
    first: u32,
}

impl Netfilter {
    pub fn open() -> Result<Self, NatError> {
        let of = |error: Errno| NatError::Open(error.into());
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(of)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &DEADLINE).map_err(of)?;
        let _ = setsockopt(&fd, sockopt::SndBuf, &TRANSACTION_MAX);
        let _ = setsockopt(&fd, sockopt::SndBufForce, &TRANSACTION_MAX);
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(of)?;
        Ok(Self {
            fd,
            sequence: 0,
            first: 1,
        })
    }

    /// The ruleset's generation, which every transaction of anybody raises.
    pub fn generation(&mut self) -> Result<u32, NatError> {
        const WHAT: &str = "ask for the ruleset's generation";

        let ask = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
        let message = self.message(NetfilterProtoFamily::Unspec, 0, ask.into());
        self.tell(WHAT, &message)?;
        let mut found = None;
        self.hear(WHAT, |attributes| {
            found = within(attributes, NFTA_GEN_ID).next().and_then(number);
            found.is_some()
        })?;
        found.ok_or(NatError::Confused { what: WHAT })
    }

    /// Changes all of it or nothing. With a generation, nothing unless the
    /// ruleset is still of that one.
    pub fn commit(
        &mut self,
        what: &'static str,
        generation: Option<u32>,
        changes: Vec<NfTablesMessage>,
    ) -> Result<(), NatError> {
        let begin = match generation {
            None => ControlMessage::BatchBegin,
            Some(generation) => {
                let generation = DefaultNla::new(GENERATION, generation.to_be_bytes().into());
                ControlMessage::Other {
                    message_type: ControlMessage::BatchBegin.message_type().into(),
                    attributes: vec![generation],
                }
            }
        };
        let mut batch = self.bracket(begin);
        let count = changes.len();
        for (place, change) in changes.into_iter().enumerate() {
            let last = if place + 1 == count { NLM_F_ACK } else { 0 };
            // A rule goes behind those before it.
            let flags = NLM_F_CREATE | NLM_F_APPEND | last;
            batch.extend(self.message(NetfilterProtoFamily::Inet, flags, change.into()));
        }
        batch.extend(self.bracket(ControlMessage::BatchEnd));
        self.tell(what, &batch)?;
        match self.hear(what, |_| false) {
            Err(NatError::Refused { error, .. })
                if error.raw_os_error() == Some(Errno::ERESTART as i32) =>
            {
                Err(NatError::Overtaken)
            }
            done => done,
        }
    }

    /// Keys and values of a map; none where there is no such map.
    #[expect(clippy::type_complexity, reason = "a list of pairs of bytes")]
    pub fn elements(
        &mut self,
        table: &str,
        map: &str,
    ) -> Result<Option<Vec<(Vec<u8>, Vec<u8>)>>, NatError> {
        const WHAT: &str = "list what is published";

        let ask = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(map.to_owned()),
            ],
        });
        let message = self.message(NetfilterProtoFamily::Inet, NLM_F_DUMP, ask.into());
        self.tell(WHAT, &message)?;
        let mut found = Vec::new();
        let heard = self.hear(WHAT, |attributes| {
            let lists = within(attributes, NFTA_SET_ELEM_LIST_ELEMENTS);
            let elements = lists.flat_map(|list| within(list, NFTA_LIST_ELEM));
            found.extend(elements.filter_map(pair));
            false
        });
        match heard {
            Ok(()) => Ok(Some(found)),
            Err(NatError::Refused { error, .. })
                if error.raw_os_error() == Some(Errno::ENOENT as i32) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// One request of another part of netfilter, which the kernel acknowledges.
    pub fn ask(
        &mut self,
        what: &'static str,
        family: NetfilterProtoFamily,
        request: NetfilterMessageInner,
    ) -> Result<(), NatError> {
        // From version 1 on a request to delete heeds the family.
        let header = NetfilterHeader::new(family, 1, 0);
        let message = self.bytes(NLM_F_ACK, NetfilterMessage::new(header, request));
        self.tell(what, &message)?;
        self.hear(what, |_| false)
    }

    /// The begin or end of a transaction, which name nftables as its part.
    fn bracket(&mut self, bracket: ControlMessage) -> Vec<u8> {
        let part = u16::from(u8::from(NetfilterSubsystem::NfTables));
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, part);
        self.bytes(0, NetfilterMessage::new(header, bracket))
    }

    fn message(
        &mut self,
        family: NetfilterProtoFamily,
        flags: u16,
        inner: NetfilterMessageInner,
    ) -> Vec<u8> {
        let header = NetfilterHeader::new(family, 0, 0);
        self.bytes(flags, NetfilterMessage::new(header, inner))
    }

    fn bytes(&mut self, flags: u16, message: NetfilterMessage) -> Vec<u8> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn tell(&self, what: &'static str, bytes: &[u8]) -> Result<(), NatError> {
        match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(what, error.into())),
        }
    }

    /// Hears answers until the kernel has acknowledged or ended them, or
    /// `done` says of one's attributes that it is enough. The crate's own
    /// reader takes time by the square of their number.
    fn hear(
        &mut self,
        what: &'static str,
        mut done: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), NatError> {
        let confused = |_| NatError::Confused { what };
        let first = std::mem::replace(&mut self.first, self.sequence + 1);
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|error| refused(what, error.into()))?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(confused)?;
                let length = message.length() as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if message.sequence_number() < first {
                    continue;
                }
                let payload = message.payload();
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = payload.first_chunk().copied().map(i32::from_ne_bytes);
                        return ended(what, code.ok_or(NatError::Confused { what })?);
                    }
                    _ => {
                        let attributes = payload.get(NETFILTER_HEADER..).unwrap_or_default();
                        if done(attributes) {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// By the kernel's code: a negative errno, or nothing amiss.
fn ended(what: &'static str, code: i32) -> Result<(), NatError> {
    match code {
        0 => Ok(()),
        code => Err(refused(
            what,
            io::Error::from_raw_os_error(code.saturating_abs()),
        )),
    }
}

fn refused(what: &'static str, error: io::Error) -> NatError {
    NatError::Refused { what, error }
}

/// The values of the attributes of a kind.
fn within(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    let whole = NlasIterator::new(attributes).map_while(Result::ok);
    let those = whole.filter(move |attribute| attribute.kind() == kind);
    those.filter_map(|attribute| {
        let length = usize::from(attribute.length());
        attribute.into_inner().get(NLA_HEADER_SIZE..length)
    })
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}

fn pair(element: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let value = |kind| {
        let data = within(element, kind).next()?;
        Some(within(data, NFTA_DATA_VALUE).next()?.to_vec())
    };
    Some((value(NFTA_SET_ELEM_KEY)?, value(NFTA_SET_ELEM_DATA)?))
}
