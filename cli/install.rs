//! `weft install` and `weft uninstall`: the CNI plugins where a container
//! runtime looks for them, and the network's configuration.
//!
//! Each folder that is written to is a [`Place`], which remembers what stands
//! there by weft's doing. The configuration comes last and goes first: it
//! never names a plugin that is not there.

mod conflist;
mod place;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, ensure};
use weft_cni::plugin::IPAM_PLUGIN;

use crate::output::show;
use conflist::Network;
use place::{Content, Deed, Place};

const PLUGIN: &str = "weft-cni";
const CONFLIST: &str = "10-weft.conflist";

/// Where container runtimes look.
#[derive(Debug, clap::Args)]
struct Folders {
    /// Where plugins are.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where networks' configurations are.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
}

/// Install the CNI plugins and a network's configuration.
///
/// Pods that start from then on are wired by weft. A plugin that runs
/// meanwhile goes on undisturbed.
#[derive(Debug, clap::Args)]
pub struct Install {
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    network: Network,
    /// Replace files that weft did not write, or that were changed since.
    /// They are kept, and `weft uninstall` puts them back.
    #[arg(long)]
    force: bool,
}

/// Undo `weft install`. What was changed since stays.
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    #[command(flatten)]
    folders: Folders,
}

pub fn install(args: Install) -> anyhow::Result<ExitCode> {
    let Folders {
        cni_bin_dir,
        cni_conf_dir,
    } = args.folders;
    let file = plugin(&cni_bin_dir)?;
    let program = fs::read(&file).with_context(|| format!("read {file:?}"))?;
    let plugins = [
        (PLUGIN, Content::Program(program)),
        (IPAM_PLUGIN, Content::Link(PLUGIN)),
    ];
    let conflist = [(CONFLIST, Content::Text(args.network.conflist()?))];
    let mut bin = Place::open(cni_bin_dir.clone())?;
    // However they are spelled: a folder that is locked twice waits for itself.
    ensure!(
        fs::canonicalize(&cni_conf_dir).ok() != fs::canonicalize(&cni_bin_dir).ok(),
        "plugins and configurations are both to stand in {cni_bin_dir:?}; give two folders"
    );
    let mut conf = Place::open(cni_conf_dir)?;
    // What can fail, fails before anything is replaced.
    let plugins = bin.stage(&plugins, args.force)?;
    let conflist = conf.stage(&conflist, args.force)?;
    let deeds = [bin.put(plugins)?, conf.put(conflist)?].concat();
    show(&page(&deeds))
}

/// The file that is to be the plugin: this program's, which holds the plugin
/// too, or the plugin alone where it stands beside it, since a smaller file
/// starts sooner. One of another version is not what this program installs,
/// and nor is what an older install has put there.
fn plugin(cni_bin_dir: &Path) -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("find this program's own file")?;
    let alone = own.with_file_name(PLUGIN);
    let place = fs::canonicalize(cni_bin_dir).ok();
    if place.is_some() && place.as_deref() == own.parent() {
        return Ok(own);
    }
    let version = format!("{PLUGIN} {}\n", env!("CARGO_PKG_VERSION"));
    let says = Command::new(&alone).arg("--version").output();
    match says {
        Ok(says) if says.stdout == version.as_bytes() => Ok(alone),
        _ => Ok(own),
    }
}

pub fn uninstall(args: Uninstall) -> anyhow::Result<ExitCode> {
    let mut deeds = Vec::new();
    for folder in [args.folders.cni_conf_dir, args.folders.cni_bin_dir] {
        if let Some(place) = Place::open_existing(folder)? {
            deeds.extend(place.clear()?);
        }
    }
    if deeds.is_empty() {
        return show("nothing is installed\n");
    }
    show(&page(&deeds))
}

fn page(deeds: &[Deed]) -> String {
    deeds.iter().map(|deed| format!("{deed}\n")).collect()
}
