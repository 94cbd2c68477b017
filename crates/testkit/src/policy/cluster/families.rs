//! The tests that each tier has for each direction and protocol: the order
//! of rules, single ports, and what passing on means.

use serde_json::json;
use weft_policy::{
    Transport,
    Transport::{Sctp, Tcp, Udp},
};

use super::{Case, Draft, Edit, G, H, Probe, R, S, Stage, between, houses, namespace, rule, step};

/// What the rules of one direction are about. Their order is: accept, deny
/// and pass everything of `ordered`; deny and pass slytherin's `closed`;
/// accept `specified`'s `opened`, and deny the rest of it.
struct Side {
    direction: &'static str,
    ordered: &'static str,
    /// Ports that no rule names.
    asked: &'static [Transport],
    closed: &'static [Transport],
    left_open: &'static [Transport],
    specified: &'static str,
    opened: &'static [Transport],
    left_closed: &'static [Transport],
}

struct Family {
    name: &'static str,
    subject: &'static str,
    sides: &'static [Side],
}

/// A side of one protocol, whose ports are `a` and `b`.
const fn side(
    direction: &'static str,
    ordered: &'static str,
    asked: &'static [Transport],
    closed: [&'static [Transport]; 2],
    specified: (&'static str, [&'static [Transport]; 2]),
) -> Side {
    Side {
        direction,
        ordered,
        asked,
        closed: closed[0],
        left_open: closed[1],
        specified: specified.0,
        opened: specified.1[0],
        left_closed: specified.1[1],
    }
}

const T80: &[Transport] = &[Tcp(80)];
const T8080: &[Transport] = &[Tcp(8080)];
const TCP: &[Transport] = &[Tcp(80), Tcp(8080)];
const U53: &[Transport] = &[Udp(53)];
const U5353: &[Transport] = &[Udp(5353)];
const UDP: &[Transport] = &[Udp(53), Udp(5353)];
const S9003: &[Transport] = &[Sctp(9003)];
const S9005: &[Transport] = &[Sctp(9005)];
const SCTP: &[Transport] = &[Sctp(9003), Sctp(9005)];
const FIRST: &[Transport] = &[Tcp(80), Udp(53), Sctp(9003)];
const SECOND: &[Transport] = &[Tcp(8080), Udp(5353), Sctp(9005)];

const FAMILIES: &[Family] = &[
    Family {
        name: "egress of TCP",
        subject: G,
        sides: &[side("egress", R, TCP, [T80, T8080], (H, [T8080, T80]))],
    },
    Family {
        name: "egress of UDP",
        subject: H,
        sides: &[side("egress", R, UDP, [U5353, U53], (G, [U53, U5353]))],
    },
    Family {
        name: "egress of SCTP",
        subject: R,
        sides: &[side("egress", G, SCTP, [S9003, S9005], (H, [S9003, S9005]))],
    },
    Family {
        name: "ingress of TCP",
        subject: G,
        sides: &[side("ingress", R, TCP, [T80, T8080], (H, [T80, T8080]))],
    },
    Family {
        name: "ingress of UDP",
        subject: H,
        sides: &[side("ingress", R, UDP, [U5353, U53], (G, [U53, U5353]))],
    },
    Family {
        name: "ingress of SCTP",
        subject: R,
        sides: &[side(
            "ingress",
            G,
            SCTP,
            [S9003, S9005],
            (H, [S9003, S9005]),
        )],
    },
    Family {
        name: "ingress and egress of every protocol",
        subject: G,
        sides: &[
            side(
                "egress",
                R,
                FIRST,
                [FIRST, SECOND],
                (
                    H,
                    [
                        &[Tcp(8080), Udp(5353), Sctp(9003)],
                        &[Tcp(80), Udp(53), Sctp(9005)],
                    ],
                ),
            ),
            side(
                "ingress",
                R,
                FIRST,
                [FIRST, SECOND],
                (
                    H,
                    [
                        &[Tcp(80), Udp(5353), Sctp(9003)],
                        &[Tcp(8080), Udp(53), Sctp(9005)],
                    ],
                ),
            ),
        ],
    },
];

pub fn cases() -> Vec<Case> {
    let tiers = ["Admin", "Baseline"];
    tiers
        .iter()
        .flat_map(|tier| FAMILIES.iter().map(|family| family.case(tier)))
        .collect()
}

/// The policy of the family called `name`, for tests that change it their
/// own way.
pub fn draft(tier: &str, name: &str) -> Draft {
    let mut families = FAMILIES.iter();
    families
        .find(|family| family.name == name)
        .expect("a family of that name")
        .draft(tier)
}

impl Family {
    fn draft(&self, tier: &str) -> Draft {
        let priority = if tier == "Admin" { 6 } else { 10 };
        let mut spec = json!({
            "tier": tier, "priority": priority, "subject": namespace(self.subject),
        });
        for side in self.sides {
            let rules = side.rules(tier == "Admin");
            spec[side.direction] = json!(rules);
        }
        Draft {
            name: "houses",
            spec,
        }
    }

    fn case(&self, tier: &str) -> Case {
        let stage = houses();
        let mut draft = self.draft(tier);
        let each = |probes: &dyn Fn(&Side) -> Vec<Probe>| {
            self.sides.iter().flat_map(probes).collect::<Vec<_>>()
        };
        let ordered =
            |allowed| each(&|side| self.probes(&stage, side, side.ordered, side.asked, allowed));
        let slytherin = |allowed| {
            each(&|side| {
                let mut probes = self.probes(&stage, side, S, side.closed, allowed);
                probes.extend(self.probes(&stage, side, S, side.left_open, true));
                probes
            })
        };
        let specified = each(&|side| {
            let mut probes = self.probes(&stage, side, side.specified, side.opened, true);
            probes.extend(self.probes(&stage, side, side.specified, side.left_closed, false));
            probes
        });
        let mut first = stage.edits();
        first.push(draft.put());
        let mut steps = vec![
            step("accept, by the order of rules", first, ordered(true)),
            step("accept at the port", vec![], specified),
            step(
                "deny, by the order of rules",
                self.swapped(&mut draft, 0, 1),
                ordered(false),
            ),
            step("deny at the port", vec![], slytherin(false)),
        ];
        if tier == "Admin" {
            let passed = self.swapped(&mut draft, 0, 2);
            steps.push(step("pass, by the order of rules", passed, ordered(true)));
            let passed = self.swapped(&mut draft, 3, 4);
            steps.push(step("pass at the port", passed, slytherin(true)));
        }
        let name = format!("{tier} tier, {}", self.name);
        Case { name, steps }
    }

    /// The subject is the source of egress and the destination of ingress.
    fn probes(
        &self,
        stage: &Stage,
        side: &Side,
        house: &str,
        ports: &[Transport],
        allowed: bool,
    ) -> Vec<Probe> {
        match side.direction {
            "egress" => between(stage, self.subject, house, ports, allowed),
            _ => between(stage, house, self.subject, ports, allowed),
        }
    }

    fn swapped(&self, draft: &mut Draft, a: usize, b: usize) -> Vec<Edit> {
        for side in self.sides {
            draft.rules(side.direction).swap(a, b);
        }
        vec![draft.put()]
    }
}

impl Side {
    fn rules(&self, with_pass: bool) -> Vec<serde_json::Value> {
        let rule = |action, house, ports| rule(self.direction, action, &[namespace(house)], ports);
        let mut rules = vec![
            rule("Accept", self.ordered, &[]),
            rule("Deny", self.ordered, &[]),
        ];
        rules.extend(with_pass.then(|| rule("Pass", self.ordered, &[])));
        rules.push(rule("Deny", S, self.closed));
        rules.extend(with_pass.then(|| rule("Pass", S, self.closed)));
        rules.push(rule("Accept", self.specified, self.opened));
        rules.push(rule("Deny", self.specified, &[]));
        rules
    }
}
