//! `weft ipam pool`: the ranges that addresses come from.

use std::process::ExitCode;

use clap::Subcommand;
use ipnet::IpNet;
use weft_api::{
    ipam::{Encapsulation, Pool, PoolUsage, Request, Use, When},
    names::Name,
};

use super::{
    Session,
    words::{ENCAPSULATIONS, USES, WHENS, maybe, name, one_of, word},
};
use crate::output::{lines, table};

/// The ranges that addresses come from.
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(Box<Create>),
    /// List the pools and what they are for.
    List,
    /// Stop new allocations; what is held stays, and its routes.
    Disable {
        #[arg(value_parser = name)]
        name: Name,
    },
    /// Resume allocations.
    Enable {
        #[arg(value_parser = name)]
        name: Name,
    },
    /// Forget a pool without live addresses.
    Delete {
        #[arg(value_parser = name)]
        name: Name,
    },
}

/// Make a pool.
#[derive(Debug, clap::Args)]
pub struct Create {
    #[arg(value_parser = name)]
    name: Name,
    /// The range, as 10.244.0.0/16.
    cidr: IpNet,
    /// Prefix length of the blocks that nodes claim [default: 26, of IPv6
    /// 122].
    #[arg(long, value_name = "LENGTH")]
    block_size: Option<u8>,
    /// Nodes that may take from it, by their labels: Calico's language.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    node_selector: String,
    /// Namespaces whose pods may take from it.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    namespace_selector: String,
    /// What its addresses are for [default: workload and tunnel].
    #[arg(long = "use", value_name = "USE", value_parser = one_of::<Use>(USES))]
    uses: Vec<Use>,
    /// Only for requests that name it.
    #[arg(long)]
    manual: bool,
    /// Without allocations until it is enabled.
    #[arg(long)]
    disabled: bool,
    /// Hide its addresses behind the node's on the way out.
    #[arg(long)]
    nat_outgoing: bool,
    /// How packets between nodes travel.
    #[arg(long, default_value = "vxlan", value_parser = one_of::<Encapsulation>(ENCAPSULATIONS))]
    encapsulation: Encapsulation,
    /// Which way takes the encapsulation.
    #[arg(long, default_value = "always", value_parser = one_of::<When>(WHENS))]
    when: When,
}

pub fn run(command: Command, session: &mut Session) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(create) => {
            let made = format!("pool {} of {} is made", create.name, create.cidr);
            session.change(&Request::PoolCreate(Box::new(create.pool())), &made)
        }
        Command::List => {
            let pools = session.pools()?;
            session.print(&pools, |pools| page(pools))
        }
        Command::Disable { name } => disable(name, true, session),
        Command::Enable { name } => disable(name, false, session),
        Command::Delete { name } => {
            let made = format!("pool {name} is deleted");
            session.change(&Request::PoolDelete { name }, &made)
        }
    }
}

impl Create {
    fn pool(self) -> Pool {
        Pool {
            name: self.name,
            cidr: self.cidr,
            block_size: self.block_size,
            node_selector: self.node_selector,
            namespace_selector: self.namespace_selector,
            uses: if self.uses.is_empty() {
                vec![Use::Workload, Use::Tunnel]
            } else {
                self.uses
            },
            manual: self.manual,
            disabled: self.disabled,
            nat_outgoing: self.nat_outgoing,
            encapsulation: self.encapsulation,
            when: self.when,
        }
    }
}

fn disable(name: Name, disabled: bool, session: &mut Session) -> anyhow::Result<ExitCode> {
    let made = if disabled {
        format!("pool {name} is disabled; what is held stays")
    } else {
        format!("pool {name} is enabled")
    };
    session.change(&Request::PoolDisable { name, disabled }, &made)
}

fn page(pools: &[PoolUsage]) -> String {
    let mut rows = table(&[
        "pool",
        "cidr",
        "blocks of",
        "encapsulation",
        "uses",
        "nodes",
        "namespaces",
        "",
    ]);
    for PoolUsage { pool, .. } in pools {
        let encapsulation = match (pool.encapsulation, pool.when) {
            (Encapsulation::None, _) | (_, When::Always) => word(&pool.encapsulation),
            (_, When::CrossSubnet) => format!("{}, cross-subnet", word(&pool.encapsulation)),
        };
        let uses: Vec<_> = pool.uses.iter().map(word).collect();
        let notes = [
            (pool.disabled, "disabled"),
            (pool.manual, "manual"),
            (pool.nat_outgoing, "nat-outgoing"),
        ];
        let notes: Vec<_> = notes
            .iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, note)| *note)
            .collect();
        rows.add_row([
            pool.name.to_string(),
            pool.cidr.to_string(),
            maybe(&pool.block_size.map(|length| format!("/{length}"))),
            encapsulation,
            uses.join(", "),
            selected(&pool.node_selector),
            selected(&pool.namespace_selector),
            notes.join(", "),
        ]);
    }
    lines(&rows)
}

fn selected(selector: &str) -> String {
    if selector.is_empty() {
        "all".to_owned()
    } else {
        selector.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_what_a_pool_is_for() {
        let pools: Vec<PoolUsage> = serde_json::from_value(serde_json::json!([{
            "name": "lb", "cidr": "10.9.0.0/24", "block_size": 26, "uses": ["load-balancer"],
            "node_selector": "rack == 'a'", "disabled": true, "manual": true,
            "encapsulation": "ipip", "when": "cross-subnet", "blocks": 0,
            "total": 256, "used": 0, "kept": 0, "resting": 0, "reserved": 0, "free": 256
        }]))
        .expect("pools");
        let page = page(&pools);
        for part in [
            "/26",
            "ipip, cross-subnet",
            "load-balancer",
            "rack == 'a'",
            "disabled, manual",
        ] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
    }
}
