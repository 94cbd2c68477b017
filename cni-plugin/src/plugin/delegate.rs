//! Addresses from another IPAM plugin, run with the same environment and
//! stdin.

use std::{
    io::{self, Read, Write},
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use weft_api::ipam::Attachment;

use super::Order;
use crate::protocol::{CONFIG_MAX, Failure, VALID_ATTACHMENTS, code};

/// Runs plugin `name` for `verb`. Its stderr is ours.
pub(super) fn run(order: &Order, name: &str, verb: &str) -> Result<Option<Value>, Failure> {
    run_with(order, name, verb, &order.stdin)
}

/// Lets plugin `name` free what is not listed. The attachments that are
/// `newer` than the list are added to it: their addresses are in use.
pub(super) fn gc(order: &Order, name: &str, newer: &[Attachment]) -> Result<(), Failure> {
    if newer.is_empty() {
        return run(order, name, "GC").map(drop);
    }
    let mut config: Value = serde_json::from_slice(&order.stdin).unwrap_or_default();
    let entry = |one: &Attachment| json!({"containerID": one.container, "ifname": one.interface});
    for key in VALID_ATTACHMENTS {
        match config.get_mut(key) {
            Some(Value::Array(listed)) => listed.extend(newer.iter().map(entry)),
            Some(listed) => *listed = newer.iter().map(entry).collect(),
            None => {}
        }
    }
    run_with(order, name, "GC", config.to_string().as_bytes()).map(drop)
}

fn run_with(order: &Order, name: &str, verb: &str, stdin: &[u8]) -> Result<Option<Value>, Failure> {
    let found = order.call.path.iter().map(|dir| dir.join(name));
    let plugin = found.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            format!(
                "ipam.type is {name:?}, which lies in no directory of CNI_PATH ({:?}); install it",
                order.call.path
            ),
        )
    })?;
    let failed = |what: &str, error: io::Error| {
        Failure::new(code::IO, format!("{what} {}: {error}", plugin.display()))
    };
    let mut child = Command::new(&plugin)
        .env("CNI_COMMAND", verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("run", error))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut said = Vec::new();
    let read = thread::scope(|scope| {
        // A plugin need not read what it is told.
        scope.spawn(|| input.map(|mut input| input.write_all(stdin)));
        output.map(|output| output.take(CONFIG_MAX as u64).read_to_end(&mut said))
    });
    let status = child.wait().map_err(|error| failed("wait for", error))?;
    if let Some(Err(error)) = read {
        return Err(failed("read from", error));
    }
    let json: Option<Value> = serde_json::from_slice(&said).ok();
    if status.success() {
        return Ok(json);
    }
    let text = |key: &str| json.as_ref()?.get(key)?.as_str().map(str::to_owned);
    let number = json.as_ref().and_then(|json| json.get("code")?.as_u64());
    let number = number
        .and_then(|code| u32::try_from(code).ok())
        .filter(|code| *code != 0);
    let msg = text("msg").unwrap_or_else(|| format!("it ended with {status} and said nothing"));
    Err(Failure::new(
        number.unwrap_or(code::IO),
        format!("IPAM plugin {name}: {msg}"),
    )
    .with_details(text("details").unwrap_or_default()))
}
