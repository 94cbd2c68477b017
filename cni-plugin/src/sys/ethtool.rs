//! Features of a network device (`ethtool -K`), by SIOCETHTOOL.

use std::{ffi::c_char, io, net::UdpSocket, os::fd::AsRawFd};

/// Commands and sets of ethtool.h.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETHTOOL_F_UNSUPPORTED: i32 = 1;
/// ETH_GSTRING_LEN, in 32-bit words.
const NAME_WORDS: usize = 32 / 4;

mod ioctl {
    nix::ioctl_readwrite_bad!(siocethtool, libc::SIOCETHTOOL, libc::ifreq);
}

#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    #[error("ask for the features of {interface}: {error}")]
    Ask { interface: String, error: io::Error },
    #[error("{interface} has no feature {feature}; this kernel may name it otherwise")]
    Unknown { interface: String, feature: String },
    #[error("set {feature} of {interface}: {error}")]
    Set {
        interface: String,
        feature: String,
        error: io::Error,
    },
}

/// Turns one feature of a device of the calling thread's namespace on or
/// off, by the kernel's name for it.
pub fn set_feature(interface: &str, feature: &str, on: bool) -> Result<(), FeatureError> {
    let ask = |error| FeatureError::Ask {
        interface: interface.to_owned(),
        error,
    };
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(ask)?;
    let names = names(&socket, interface).map_err(ask)?;
    let bit = names
        .iter()
        .position(|name| name == feature)
        .ok_or_else(|| FeatureError::Unknown {
            interface: interface.to_owned(),
            feature: feature.to_owned(),
        })?;
    let words = names.len().div_ceil(32);
    // struct ethtool_sfeatures: cmd, size, then (valid, requested) per word.
    let mut request = vec![0; 2 + 2 * words];
    request[0] = ETHTOOL_SFEATURES;
    request[1] = u32::try_from(words).expect("features are few");
    request[2 + 2 * (bit / 32)] = 1 << (bit % 32);
    request[3 + 2 * (bit / 32)] = u32::from(on) << (bit % 32);
    let set = |error| FeatureError::Set {
        interface: interface.to_owned(),
        feature: feature.to_owned(),
        error,
    };
    let answer = call(&socket, interface, &mut request).map_err(set)?;
    if answer & ETHTOOL_F_UNSUPPORTED != 0 {
        return Err(set(io::Error::other("the device keeps it as it is")));
    }
    Ok(())
}

/// The names of all features, in the order of their bits.
fn names(socket: &UdpSocket, interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, a 64-bit mask in host order,
    // then a length per set bit.
    let mut info = [0; 5];
    info[0] = ETHTOOL_GSSET_INFO;
    let mask = (1_u64 << ETH_SS_FEATURES).to_ne_bytes();
    let [low, high] =
        [0, 4].map(|at| u32::from_ne_bytes([mask[at], mask[at + 1], mask[at + 2], mask[at + 3]]));
    (info[2], info[3]) = (low, high);
    call(socket, interface, &mut info)?;
    let count = info[4] as usize;

    // struct ethtool_gstrings: cmd, set, length, then the names.
    let mut strings = vec![0; 3 + count * NAME_WORDS];
    strings[0] = ETHTOOL_GSTRINGS;
    strings[1] = ETH_SS_FEATURES;
    strings[2] = info[4];
    call(socket, interface, &mut strings)?;
    let name = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    Ok(strings[3..].chunks_exact(NAME_WORDS).map(name).collect())
}

/// One exchange. `request` must be as long as its command and its own length
/// field say: the kernel reads and writes that much.
fn call(socket: &UdpSocket, interface: &str, request: &mut [u32]) -> io::Result<i32> {
    let mut ifreq = super::named_request(interface)?;
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast::<c_char>();
    // SAFETY: the fd is open, ifreq is whole, and both callers above size
    // `request` by the length that they put into it.
    let answer = unsafe { ioctl::siocethtool(socket.as_raw_fd(), &mut ifreq) }?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netlink::Netlink, netns::Netns};

    #[test]
    fn a_feature_is_set_by_name_and_an_unknown_one_is_refused() {
        weft_testkit::needs_namespaces!();
        let netns = Netns::make("features").expect("a namespace; needs root or unshare -Urn");
        let netlink = Netlink::open_in(&netns).expect("enter").expect("netlink");
        netlink.add_veth("left", "right", &netns).expect("a veth");
        netns
            .run(|| {
                for on in [false, true] {
                    set_feature("left", "tx-udp_tnl-segmentation", on).expect("set");
                }
                let error = set_feature("left", "tx-telepathy", true).expect_err("unknown");
                assert!(matches!(error, FeatureError::Unknown { .. }), "{error}");
                let error = set_feature("middle", "tx-checksum", true).expect_err("no device");
                assert!(matches!(error, FeatureError::Ask { .. }), "{error}");
            })
            .expect("enter");
    }
}
