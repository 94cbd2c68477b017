//! The plugin's verbs, each in a file of its own, over the wiring and the
//! clients of forwarder and IPAM server.
//!
//! A verb returns what goes to stdout, or a failure; only [`run`] writes
//! there, and once.

mod add;
mod capabilities;
mod check;
mod del;
mod delegate;
mod gc;
mod ipam;
mod publish;
mod server;
mod status;

use std::{
    env,
    ffi::OsStr,
    io::{self, Read, Write},
    process::ExitCode,
    time::Instant,
};

use serde_json::Value;
use weft_api::{
    ipam::Attachment,
    names::{Handle, Name},
};

use crate::protocol::{Call, Config, Environment, Failure, Pod, Verb, Version, code, versions};

/// The name under which the binary gives out addresses for other plugins.
pub const IPAM_PLUGIN: &str = "weft-ipam-cni";

/// A call with its configuration.
#[derive(Debug)]
struct Order {
    call: Call,
    config: Config,
    began: Instant,
    /// The configuration as it came, for plugins that are asked in turn.
    stdin: Vec<u8>,
}

/// Does what the environment and stdin ask, as plugin `name`.
pub fn run(name: &str) -> ExitCode {
    if env::args_os()
        .nth(1)
        .is_some_and(|first| first == OsStr::new("--version"))
    {
        return written(&format!("{name} {}\n", env!("CARGO_PKG_VERSION")), true);
    }
    let began = Instant::now();
    let variables = env::vars_os();
    let variables =
        variables.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let mut stdin = Vec::new();
    // One byte more than is taken: what is too long shows.
    let limit = crate::protocol::CONFIG_MAX as u64 + 1;
    if let Err(error) = io::stdin().lock().take(limit).read_to_end(&mut stdin) {
        let failure = Failure::new(
            code::IO,
            format!("read the configuration on stdin: {error}"),
        );
        return written(
            &failure.to_json(Version::V1_1_0.as_str()).to_string(),
            false,
        );
    }
    let version = Config::named_version(&stdin);
    match answer(name, began, &Environment::new(variables), stdin) {
        Ok(Some(json)) => written(&json.to_string(), true),
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{name}: {failure}");
            let version = version.as_deref().unwrap_or(Version::V1_1_0.as_str());
            written(&failure.to_json(version).to_string(), false)
        }
    }
}

fn written(text: &str, success: bool) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) if success => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn answer(
    name: &str,
    began: Instant,
    environment: &Environment,
    stdin: Vec<u8>,
) -> Result<Option<Value>, Failure> {
    let call = environment.parse()?;
    let config = match &call.verb {
        Verb::Version => return Ok(Some(versions(Config::named_version(&stdin).as_deref()))),
        Verb::Add(pod, _) | Verb::Check(pod, _) => Config::parse_for(&stdin, &pod.args)?,
        Verb::Del(..) => Config::parse_for_del(&stdin)?,
        Verb::Gc | Verb::Status => Config::parse(&stdin)?,
    };
    let order = Order {
        call,
        config,
        began,
        stdin,
    };
    order.speaks_the_verb()?;
    if name == IPAM_PLUGIN {
        return ipam::answer(&order);
    }
    match &order.call.verb {
        Verb::Add(pod, netns) => add::add(&order, pod, netns).map(Some),
        Verb::Check(pod, netns) => check::check(&order, pod, netns).map(|()| None),
        Verb::Del(pod, netns) => del::del(&order, pod, netns.as_deref()).map(|()| None),
        Verb::Gc => gc::gc(&order).map(|()| None),
        Verb::Status => status::status(&order).map(|()| None),
        Verb::Version => Ok(None),
    }
}

impl Order {
    /// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
    fn speaks_the_verb(&self) -> Result<(), Failure> {
        let (verb, since) = match self.call.verb {
            Verb::Check(..) => ("CHECK", Version::V0_4_0),
            Verb::Gc => ("GC", Version::V1_1_0),
            Verb::Status => ("STATUS", Version::V1_1_0),
            _ => return Ok(()),
        };
        if self.config.version >= since {
            return Ok(());
        }
        Err(Failure::new(
            code::VERSION,
            format!(
                "cniVersion {} has no {verb}; write {since} or later",
                self.config.version
            ),
        ))
    }

    fn attachment(&self, pod: &Pod) -> Attachment {
        Attachment {
            network: self.config.name.clone(),
            container: pod.container.clone(),
            interface: pod.interface.clone(),
        }
    }

    fn handle(&self, pod: &Pod) -> Handle {
        self.attachment(pod).handle()
    }
}

/// The attachment's name at the forwarder: its handle.
fn port(attachment: &Attachment) -> Result<Name, Failure> {
    Name::new(attachment.handle().as_str()).map_err(|error| {
        Failure::new(
            code::ENVIRONMENT,
            format!("network, container and interface together: {error}"),
        )
    })
}
