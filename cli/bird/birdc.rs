//! BIRD's control socket, as far as it is needed: each reply is lines of
//! which the last has a space behind its four digits.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail, ensure};

const PATIENCE: Duration = Duration::from_secs(10);
/// Longest conversation in bytes.
const TALK_MAX: u64 = 64 << 10;

/// BIRD's "Reconfigured" and "Reconfiguration in progress".
const DONE: [&str; 2] = ["0003", "0004"];

pub fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("connect to BIRD at {socket:?}; is it running?"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Has BIRD read its configuration anew.
pub fn configure(mut stream: &UnixStream) -> anyhow::Result<()> {
    let mut replies = BufReader::new(stream.take(TALK_MAX));
    reply(&mut replies)?;
    stream.write_all(b"configure\n")?;
    let text = reply(&mut replies)?;
    let last = text.lines().last().unwrap_or_default();
    if !DONE.iter().any(|code| last.starts_with(code)) {
        bail!(
            "it keeps its old configuration: {}",
            text.trim_end().replace('\n', ", ")
        );
    }
    Ok(())
}

fn reply(replies: &mut impl BufRead) -> anyhow::Result<String> {
    let mut text = String::new();
    loop {
        let start = text.len();
        ensure!(replies.read_line(&mut text)? > 0, "it hung up");
        let line = &text.as_bytes()[start..];
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 4 && line.get(4) == Some(&b' ') {
            return Ok(text);
        }
    }
}
