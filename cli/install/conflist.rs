//! The network's configuration, as a container runtime reads it.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use weft_cni::protocol::Config;

/// What of the network is chosen at the install.
#[derive(Debug, clap::Args)]
pub struct Network {
    /// The network's name.
    #[arg(long, value_name = "NAME", default_value = "weft")]
    network: String,
    /// The forwarder's control socket.
    #[arg(long, value_name = "PATH", default_value = "/run/weft/forwarder.sock")]
    forwarder: PathBuf,
    /// The IPAM server's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/weft/ipam.sock")]
    ipam: PathBuf,
    /// Which addresses a pod gets.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "v4")]
    families: Vec<Family>,
    /// The MTU of pods' links: the underlay's less 50, over IPv6 less 70
    /// [default: 1450].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..))]
    mtu: Option<u16>,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t)]
    attach: Attach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Attach {
    #[default]
    Tap,
    Veth,
}

fn word(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Network {
    /// One that the plugin takes.
    pub fn conflist(&self) -> anyhow::Result<String> {
        let families: Vec<String> = self.families.iter().map(word).collect();
        let mut plugin = Map::from_iter([
            ("type".to_owned(), json!(super::PLUGIN)),
            ("forwarder".to_owned(), json!(self.forwarder)),
            ("attach".to_owned(), json!(word(&self.attach))),
            (
                "ipam".to_owned(),
                json!({"type": "weft", "socket": self.ipam, "families": families}),
            ),
            (
                "capabilities".to_owned(),
                json!({"bandwidth": true, "dns": true, "ipRanges": true, "ips": true, "mac": true,
                    "portMappings": true}),
            ),
        ]);
        if let Some(mtu) = self.mtu {
            plugin.insert("mtu".to_owned(), json!(mtu));
        }
        // Runtimes older than 1.1.0 know no `cniVersions`, and take
        // `cniVersion`; newer ones take the newest that they speak.
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
            "name": self.network,
            "plugins": [Value::Object(plugin)],
        });
        as_the_plugin_has_it(&list)?;
        Ok(format!("{list:#}\n"))
    }
}

/// The first plugin's configuration, made out of the list as a runtime does.
fn as_the_plugin_has_it(list: &Value) -> anyhow::Result<Config> {
    let mut plugin = list["plugins"][0].clone();
    for key in ["cniVersion", "name"] {
        plugin[key] = list[key].clone();
    }
    let taken = Config::parse(plugin.to_string().as_bytes());
    taken.map_err(|failure| anyhow!("the plugin would refuse this network: {failure}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use weft_cni::protocol;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        network: Network,
    }

    #[test]
    fn the_plugin_takes_what_the_options_say() {
        let line = "weft --network pods --forwarder /f.sock --ipam /i.sock --families v4,v6 \
                    --mtu 8950 --attach veth";
        let line = Line::try_parse_from(line.split_whitespace()).expect("good options");
        let list = line.network.conflist().expect("it is taken");
        let config = as_the_plugin_has_it(&list.parse().expect("JSON")).expect("it is taken");
        assert_eq!(config.name.as_str(), "pods");
        assert_eq!((config.mtu, config.attach), (8950, protocol::Attach::Veth));
        assert_eq!(config.forwarder, PathBuf::from("/f.sock"));
        let protocol::Ipam::Weft(weft) = config.ipam else {
            panic!("{config:?}");
        };
        assert_eq!(weft.socket, PathBuf::from("/i.sock"));
        assert_eq!(weft.families.len(), 2);
    }

    #[test]
    fn what_the_plugin_would_refuse_is_refused_here() {
        for line in ["weft --network a/b", "weft --ipam run/ipam.sock"] {
            let line = Line::try_parse_from(line.split_whitespace()).expect("good options");
            let refused = line.network.conflist().expect_err("refused");
            assert!(refused.to_string().contains("would refuse"), "{refused}");
        }
    }
}
