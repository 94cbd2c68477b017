//! What a runtime may say to the CNI plugin: lines of `NAME=VALUE`, an empty
//! line, and what stands on stdin. `fuzz_targets/cni.rs` calls it with bytes
//! that libFuzzer makes up, `tests/corpus.rs` with the committed corpus.

use serde_json::Value;
use weft_cni::protocol::{Args, Config, Environment, Failure, Outcome, Verb, Version, versions};

/// Every input is taken or refused with a sentence, DEL takes what ADD took,
/// and a result reads back as it was written.
pub fn cni(bytes: &[u8]) {
    let cut = bytes.windows(2).position(|pair| pair == b"\n\n");
    let (lines, stdin) = cut.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 2..]));
    let lines = String::from_utf8_lossy(lines);
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let environment = Environment::new(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let call = told(environment.parse());
    let args = match call.map(|call| call.verb) {
        Some(Verb::Add(pod, _) | Verb::Check(pod, _) | Verb::Del(pod, _)) => pod.args,
        _ => Args::default(),
    };
    let alone = told(Config::parse(stdin));
    let with_args = told(Config::parse_for(stdin, &args));
    let for_del = told(Config::parse_for_del(stdin));
    assert!(
        alone.is_some() || with_args.is_none(),
        "CNI_ARGS mend nothing"
    );
    if let Some(config) = alone {
        let for_del = for_del.expect("DEL takes what ADD took");
        assert_eq!(
            (
                for_del.version,
                for_del.name,
                for_del.ipam,
                for_del.forwarder
            ),
            (config.version, config.name, config.ipam, config.forwarder)
        );
        config.previous.iter().for_each(converted);
    }
    versions(Config::named_version(stdin).as_deref());
    if let Ok(result) = serde_json::from_slice::<Value>(stdin) {
        for version in Version::ALL {
            let outcome = told(Outcome::parse("the result", result.clone(), version));
            outcome.iter().for_each(converted);
        }
    }
}

fn told<T>(result: Result<T, Failure>) -> Option<T> {
    let told = |failure: Failure| {
        let json = failure.to_json("1.1.0");
        assert!(failure.code > 0 && !failure.msg.is_empty(), "{json}");
    };
    result.map_err(told).ok()
}

fn converted(outcome: &Outcome) {
    for version in Version::ALL {
        let written = outcome.to_json(version);
        let again = Outcome::parse("the result", written.clone(), version);
        let again = again.expect("what was just written");
        assert_eq!(again.to_json(version), written);
        if version == Version::V1_1_0 {
            assert_eq!(again, *outcome, "the newest version loses nothing");
        }
    }
}
