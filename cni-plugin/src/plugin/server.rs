//! The IPAM server's and the forwarder's answers, as CNI has them.

use std::{fs, io::ErrorKind};

use ipnet::IpNet;
use weft_api::{
    forwarder::Code as ForwarderCode,
    ipam::{
        Allocate, Allocated, Assigned, Attachment, Code, Family, PodRef, Release, Reply, Request,
        Use,
    },
    names::Name,
};
use weft_socket::{
    ipam::{Client, ClientError},
    line::LineError,
};

use crate::{
    forwarder::ClientError as ForwarderError,
    protocol::{Args, Config, Failure, Weft, code},
};

/// One address of each family. Whether the attachment had them before, is in
/// the answer.
pub(super) fn allocate(
    weft: &Weft,
    config: &Config,
    node: Name,
    attachment: Attachment,
    args: &Args,
) -> Result<Allocated, ClientError> {
    let runtime = &config.runtime;
    // Ranges are pools, and say which families are wanted.
    let (pools, mut families) = if runtime.ranges.is_empty() {
        (weft.pools.clone(), weft.families.clone())
    } else {
        let pools = runtime.ranges.iter().map(ToString::to_string);
        (pools.collect(), Vec::new())
    };
    let ranges = runtime.ranges.iter().map(IpNet::addr);
    for family in ranges.chain(runtime.ips.clone()).map(Family::of) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    let asked = families.clone();
    let pod_name = |text: &Option<String>| Name::new(text.clone()?).ok();
    let pod = pod_name(&args.pod_namespace).zip(pod_name(&args.pod_name));
    let request = Request::Allocate(Box::new(Allocate {
        attachment,
        node,
        families,
        purpose: Use::Workload,
        addresses: runtime.ips.clone(),
        pools,
        identity: weft.identity.clone(),
        pod: pod.map(|(namespace, name)| PodRef { namespace, name }),
        namespace_labels: std::collections::BTreeMap::new(),
    }));
    allocated(Client::connect(&weft.socket)?.request(&request)?, &asked)
}

pub(super) fn allocated(reply: Reply, families: &[Family]) -> Result<Allocated, ClientError> {
    match reply {
        Reply::Allocated(allocated) if of_each(&allocated, families) => Ok(allocated),
        _ => Err(ClientError::Confused),
    }
}

/// One address of each family, and no other.
fn of_each(allocated: &Allocated, families: &[Family]) -> bool {
    let given = &allocated.addresses;
    let of = |family: &Family| {
        let of = |given: &&Assigned| Family::of(given.address) == *family;
        given.iter().filter(of).count()
    };
    given.len() == families.len() && families.iter().all(|family| of(family) == 1)
}

pub(super) fn release(weft: &Weft, attachment: Attachment) -> Result<(), ClientError> {
    let request = Request::Release(Release::Attachment(attachment));
    Client::connect(&weft.socket)?.request(&request).map(drop)
}

/// The configuration's node, or else the machine's name.
pub(super) fn host(config: &Config) -> Result<Name, Failure> {
    if let Some(node) = &config.node {
        return Ok(node.clone());
    }
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Name::new(name.trim()).map_err(|error| {
        Failure::new(
            code::CONFIG,
            format!("this node's name: {error}; write it as node"),
        )
    })
}

pub(super) fn of_ipam(error: &ClientError) -> Failure {
    let number = match error {
        ClientError::Line(error) => of_line(error),
        ClientError::Confused => code::DECODE,
        ClientError::Refused(refusal) => match refusal.code {
            Code::Exhausted | Code::NoPool | Code::BlockLimit => code::EXHAUSTED,
            Code::Contended | Code::Unavailable | Code::Deadline | Code::Busy => code::TRY_AGAIN,
            Code::Invalid | Code::NotFound => code::CONFIG,
            _ => code::REFUSED,
        },
    };
    Failure::new(number, error.to_string())
}

pub(super) fn of_forwarder(error: &ForwarderError) -> Failure {
    let number = match error {
        ForwarderError::Line(error) => of_line(error),
        ForwarderError::Refused(refusal) if refusal.code == ForwarderCode::Busy => code::TRY_AGAIN,
        ForwarderError::Refused(_) => code::REFUSED,
        ForwarderError::Confused => code::DECODE,
    };
    Failure::new(number, error.to_string())
}

/// A daemon that is away or stuck comes back; other faults stay.
fn of_line(error: &LineError) -> u32 {
    match error {
        LineError::Confused { .. } => code::DECODE,
        LineError::Connect { error, .. } if error.kind() == ErrorKind::PermissionDenied => code::IO,
        _ => code::TRY_AGAIN,
    }
}
