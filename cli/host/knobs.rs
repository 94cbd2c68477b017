//! What the node's kernel has to be told for packets to pass weft0 (sysctl).
//! What cannot be set is told, with the command that sets it.

use std::{fs, io, path::PathBuf};

use weft_api::forwarder::HOST_LINK;

/// What of this node the knobs depend on.
#[derive(Debug, Default)]
pub struct Scene {
    /// The families that weft0 carries.
    v4: bool,
    v6: bool,
    /// The underlay's links.
    underlay: Vec<String>,
    /// Those that take a packet only if its sender is reached by them.
    strict: Vec<String>,
    /// IPv6 is forwarded for each link as it says (kernel 6.17).
    by_link: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Knob {
    /// Below net, with dots.
    name: String,
    value: &'static str,
    /// What does not work without.
    need: &'static str,
}

const ANSWERS: &str = "packets whose way back leads elsewhere are lost";
const ERRORS: &str = "others hear no ICMP error about what comes by this node";
const LOCALHOST: &str = "published ports are not reached by 127.0.0.1 of this node";
const FORWARDING: &str = "pods reach this node, and not what is behind it";
const ROUTERS: &str = "this node forgets its own routers";

const STRICT: &str =
    "packets of pods that come plain may be lost, and none of weft's counters tells";

impl Scene {
    pub fn look(v4: bool, v6: bool, underlay: Vec<String>) -> Self {
        let strict = underlay.iter().filter(|link| is_strict(link));
        Self {
            v4,
            v6,
            strict: strict.cloned().collect(),
            underlay,
            by_link: path(&force_forwarding(HOST_LINK)).exists(),
        }
    }
}

/// The larger of the link's and that of all links counts (ip-sysctl).
fn is_strict(link: &str) -> bool {
    let of = |link: &str| {
        let value = fs::read_to_string(path(&rp_filter(link))).unwrap_or_default();
        value.trim().parse().unwrap_or(0)
    };
    of(link).max(of("all")) == 1
}

/// Turns what is needed, and tells what that was. `forwarding`: whether what
/// concerns more than weft0 may be turned too.
pub fn turn(scene: &Scene, forwarding: bool) -> String {
    let knobs = knobs(scene).into_iter();
    knobs.map(|knob| told(&knob, forwarding)).collect()
}

/// What stands otherwise than needed, and what does not work for it.
pub fn amiss(scene: &Scene) -> Vec<(String, &'static str)> {
    let amiss = |Knob { name, value, need }: Knob| match fs::read_to_string(path(&name)) {
        Ok(found) if found.trim() == value => None,
        Ok(found) if need == ROUTERS && found.trim() == "0" => None,
        Ok(found) => Some((format!("net.{name} = {}", found.trim()), need)),
        Err(fault) => Some((format!("net.{name}: {fault}"), need)),
    };
    knobs(scene).into_iter().filter_map(amiss).collect()
}

fn knobs(scene: &Scene) -> Vec<Knob> {
    let knob = |name: String, value, need| Knob { name, value, need };
    let underlay = &scene.underlay;
    let all = || {
        [HOST_LINK]
            .into_iter()
            .chain(underlay.iter().map(String::as_str))
    };
    let mut knobs = Vec::new();
    if scene.v4 {
        // 2 is loose, whatever all links have.
        knobs.push(knob(rp_filter(HOST_LINK), "2", ANSWERS));
        let loosened = scene.strict.iter();
        knobs.extend(loosened.map(|link| knob(rp_filter(link), "2", STRICT)));
        // Errors about others' packets come from an address of the node.
        let accept = format!("ipv4.conf.{HOST_LINK}.accept_local");
        knobs.push(knob(accept, "1", ERRORS));
        // What pods send to 127.0.0.0/8 does not come to weft0 all the same.
        let local = format!("ipv4.conf.{HOST_LINK}.route_localnet");
        knobs.push(knob(local, "1", LOCALHOST));
        let forwarding = |link| format!("ipv4.conf.{link}.forwarding");
        knobs.extend(all().map(|link| knob(forwarding(link), "1", FORWARDING)));
    }
    if scene.v6 && scene.by_link {
        knobs.extend(all().map(|link| knob(force_forwarding(link), "1", FORWARDING)));
    } else if scene.v6 {
        // Who forwards IPv6 is a router, and heeds other routers only if told.
        let accept = |link: &String| format!("ipv6.conf.{link}.accept_ra");
        knobs.extend(underlay.iter().map(|link| knob(accept(link), "2", ROUTERS)));
        knobs.push(knob("ipv6.conf.all.forwarding".to_owned(), "1", FORWARDING));
    }
    knobs
}

fn rp_filter(link: &str) -> String {
    format!("ipv4.conf.{link}.rp_filter")
}

fn force_forwarding(link: &str) -> String {
    format!("ipv6.conf.{link}.force_forwarding")
}

fn told(knob: &Knob, may_forward: bool) -> String {
    let Knob { name, value, need } = knob;
    let before = fs::read_to_string(path(name));
    let before = before.as_deref().map(str::trim);
    let kept = [FORWARDING, ROUTERS, STRICT].contains(need) && !may_forward;
    match before {
        Ok(before) if before == *value => format!("set net.{name} = {value} already\n"),
        // Without routers there are none to forget.
        Ok("0") if *need == ROUTERS => String::new(),
        Ok(before) if kept => format!("kept net.{name} = {before}: {need}\n"),
        Ok(before) => match fs::write(path(name), value) {
            Ok(()) => format!("set net.{name} = {value}, was {before}\n"),
            Err(fault) => warned(knob, &fault),
        },
        Err(fault) => warned(knob, fault),
    }
}

fn warned(knob: &Knob, fault: &io::Error) -> String {
    let Knob { name, value, need } = knob;
    let path = path(name);
    let path = path.display();
    format!("warn: net.{name} is not set: {fault}\n  so: {need}\n  do: echo {value} > {path}\n")
}

/// A link's name may hold dots, and stands between the third and the last.
fn path(name: &str) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    let (head, last) = name.rsplit_once('.').unwrap_or(("", name));
    path.extend(head.splitn(3, '.'));
    path.join(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scene: Scene) -> Vec<String> {
        let scene = Scene {
            underlay: vec!["eth0.7".to_owned()],
            ..scene
        };
        let name = |knob: Knob| format!("{}={}", knob.name, knob.value);
        knobs(&scene).into_iter().map(name).collect()
    }

    #[test]
    fn each_family_has_its_own_knobs() {
        let v4 = || Scene {
            v4: true,
            ..Scene::default()
        };
        let (first, others) = (
            "ipv4.conf.weft0.rp_filter=2",
            [
                "ipv4.conf.weft0.accept_local=1",
                "ipv4.conf.weft0.route_localnet=1",
                "ipv4.conf.weft0.forwarding=1",
                "ipv4.conf.eth0.7.forwarding=1",
            ],
        );
        assert_eq!(names(v4()), [&[first][..], &others].concat());
        let strict = Scene {
            strict: vec!["eth0.7".to_owned()],
            ..v4()
        };
        let loosened = [first, "ipv4.conf.eth0.7.rp_filter=2"];
        assert_eq!(names(strict), [&loosened[..], &others].concat());
        let v6 = |by_link| Scene {
            v6: true,
            by_link,
            ..Scene::default()
        };
        assert_eq!(
            names(v6(true)),
            [
                "ipv6.conf.weft0.force_forwarding=1",
                "ipv6.conf.eth0.7.force_forwarding=1",
            ]
        );
        assert_eq!(
            names(v6(false)),
            ["ipv6.conf.eth0.7.accept_ra=2", "ipv6.conf.all.forwarding=1"]
        );
        assert!(names(Scene::default()).is_empty());
    }

    #[test]
    fn a_links_dots_are_not_the_paths() {
        let path = path("ipv4.conf.eth0.7.forwarding");
        assert_eq!(
            path,
            PathBuf::from("/proc/sys/net/ipv4/conf/eth0.7/forwarding")
        );
    }
}
