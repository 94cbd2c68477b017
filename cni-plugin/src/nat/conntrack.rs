//! Flows of UDP that the kernel remembers. A client that does not cease to
//! send, as a resolver, keeps its flow alive, and would be led for ever to
//! where its first datagram was: to nobody, or to a pod that has gone.

use netlink_packet_netfilter::{NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem};
use rtnetlink::packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use weft_api::forwarder::Protocol;

use super::{
    NatError,
    entry::{Entry, Family, number},
    netfilter::Netfilter,
};

/// Forgets the flows to these ports of the node, whatever address they name.
/// Kernels before 6.9 cannot look for a port; there they end by themselves,
/// two minutes after the last datagram.
pub fn forget<'a>(
    netfilter: &mut Netfilter,
    changed: impl Iterator<Item = &'a Entry>,
) -> Result<(), NatError> {
    for entry in changed.filter(|entry| entry.protocol == Protocol::Udp) {
        let family = match entry.map().family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        match netfilter.ask("forget flows of UDP", family, flows(entry)) {
            // What is published is right all the same.
            // What is published is right all the same.
            Ok(()) | Err(NatError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The request to delete flows whose first packet went to the entry's port
/// (linux/netfilter/nfnetlink_conntrack.h).
fn flows(entry: &Entry) -> NetfilterMessageInner {
    const IPCTNL_MSG_CT_DELETE: u8 = 2;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_DST_PORT: u16 = 3;
    const CTA_FILTER: u16 = 25;
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    /// CTA_FILTER_F_CTA_PROTO_NUM and CTA_FILTER_F_CTA_PROTO_DST_PORT, in the
    /// machine's own order.
    const BY_PORT: u32 = 1 << 3 | 1 << 5;

    let protocol = DefaultNla::new(CTA_PROTO_NUM, vec![number(entry.protocol)]);
    let port = DefaultNla::new(CTA_PROTO_DST_PORT, entry.host_port.to_be_bytes().into());
    let flags = DefaultNla::new(CTA_FILTER_ORIG_FLAGS, BY_PORT.to_ne_bytes().into());
    let tuple = nested(
        CTA_TUPLE_ORIG,
        &[nested(CTA_TUPLE_PROTO, &[protocol, port])],
    );
    let filter = nested(CTA_FILTER, &[flags]);
    // The crate's own message drops the mark of what is nested.
    NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::Conntrack,
        message_type: IPCTNL_MSG_CT_DELETE,
        attributes: vec![tuple, filter],
    }
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}
