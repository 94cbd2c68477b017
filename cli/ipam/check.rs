//! `weft ipam check`: leaks, double owners and faults of structure, of the
//! server's store or of another program's.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use weft_api::{
    ipam::{InUse, Reply, Report, Request},
    names::Handle,
};
use weft_ipam::{
    check::check,
    import::{self, Imported},
};

use super::{Session, age::now, print, words::word};
use crate::output::{counted, lines, table};

/// Look for leaks, double owners and faults of structure.
///
/// What another program keeps is checked without a server. Exits with 1 when
/// there are problems; what is kept for withdrawn nodes is none.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hold what runs against what is allocated: a file, or - for standard
    /// input, with an address and perhaps its handle a line, or a JSON list
    /// of {"address", "handle"}.
    #[arg(long, value_name = "FILE")]
    in_use: Option<PathBuf>,
    /// Check a dump of Calico's objects: what kubectl get -o json or etcdctl
    /// get -w json printed.
    #[arg(long, value_name = "DUMP", conflicts_with = "host_local")]
    calico: Option<PathBuf>,
    /// Check the directory of a network of the host-local plugin, as
    /// /var/lib/cni/networks/NAME.
    #[arg(long, value_name = "DIR")]
    host_local: Option<PathBuf>,
}

/// What another program keeps.
#[derive(Debug, Clone, Copy)]
pub enum Foreign<'a> {
    Calico(&'a Path),
    HostLocal(&'a Path),
}

impl Args {
    pub fn foreign(&self) -> Option<Foreign<'_>> {
        let calico = self.calico.as_deref().map(Foreign::Calico);
        calico.or(self.host_local.as_deref().map(Foreign::HostLocal))
    }
}

pub fn run(args: &Args, session: &mut Session) -> anyhow::Result<ExitCode> {
    let in_use = args.in_use.as_deref().map(in_use).transpose()?;
    let report = session.ask(&Request::Check { in_use }, |reply| match reply {
        Reply::Report(report) => Some(report),
        _ => None,
    })?;
    end(&report, session.json)
}

pub fn foreign(args: &Args, foreign: Foreign<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let in_use = args.in_use.as_deref().map(in_use).transpose()?;
    let imported = foreign.read()?;
    let rows = imported.rows.iter().map(|(key, value)| (key, value));
    let mut report = check(rows, in_use.as_deref(), now());
    report.problems.extend(imported.problems);
    end(&report, json)
}

impl Foreign<'_> {
    fn read(self) -> anyhow::Result<Imported> {
        match self {
            Self::Calico(path) => {
                let dump = fs::read(path).with_context(|| format!("read {path:?}"))?;
                import::calico(&dump).with_context(|| format!("{path:?}"))
            }
            Self::HostLocal(dir) => {
                let files = files(dir).with_context(|| format!("read {dir:?}"))?;
                Ok(import::host_local(files.into_iter()))
            }
        }
    }
}

fn files(dir: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, fs::read(entry.path())?));
        }
    }
    files.sort();
    Ok(files)
}

fn end(report: &Report, json: bool) -> anyhow::Result<ExitCode> {
    print(json, report, page)?;
    Ok(if is_sound(report) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn is_sound(report: &Report) -> bool {
    report.problems.is_empty()
}

fn in_use(path: &Path) -> anyhow::Result<Vec<InUse>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("read {path:?}"))?;
    parse(&text).with_context(|| format!("{path:?} does not tell what is in use"))
}

fn parse(text: &str) -> anyhow::Result<Vec<InUse>> {
    if text.trim_start().starts_with('[') {
        return Ok(serde_json::from_str(text)?);
    }
    let mut in_use = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        let number = || format!("line {}: write an address and perhaps its handle", at + 1);
        in_use.push(InUse {
            address: address
                .parse()
                .with_context(|| format!("{address:?}"))
                .with_context(number)?,
            handle: words
                .next()
                .map(Handle::new)
                .transpose()
                .with_context(number)?,
        });
        anyhow::ensure!(words.next().is_none(), number());
    }
    Ok(in_use)
}

fn page(report: &Report) -> String {
    let summary = format!(
        "{}, {}, addresses: {}; {}\n",
        counted(report.pools, "pool"),
        counted(report.blocks, "block"),
        report.allocations,
        match (report.problems.len(), report.notes.len()) {
            (0, 0) => "no problem".to_owned(),
            (0, notes) => format!("no problem, {}", counted(notes, "note")),
            (problems, 0) => counted(problems, "problem"),
            (problems, notes) => format!(
                "{}, {}",
                counted(problems, "problem"),
                counted(notes, "note")
            ),
        }
    );
    if report.problems.is_empty() && report.notes.is_empty() {
        return summary;
    }
    let mut rows = table(&["problem", "object", "what is wrong", "what to do"]);
    for problem in report.problems.iter().chain(&report.notes) {
        let kind = word(&problem.kind);
        rows.add_row([&kind, &problem.object, &problem.message, &problem.hint]);
    }
    format!("{}\n{summary}", lines(&rows))
}

#[cfg(test)]
mod tests {
    use weft_api::ipam::{Problem, ProblemKind};

    use super::*;

    #[test]
    fn what_is_in_use_is_read_from_lines_and_from_json() {
        let lines =
            parse("# pods\n10.1.0.1 weft/c1/eth0\n\n fd00::1  # no handle\n").expect("lines");
        let json = r#" [{"address":"10.1.0.1","handle":"weft/c1/eth0"},{"address":"fd00::1"}]"#;
        assert_eq!(parse(json).expect("JSON"), lines);
        assert_eq!(lines.len(), 2);
        assert_eq!(parse("").expect("nothing runs"), []);
        for (text, part) in [
            ("10.1.0.1\n10.1.0", "line 2"),
            ("10.1.0.1 a b", "line 1"),
            ("[7]", "invalid type"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }

    #[test]
    fn problems_are_told_with_their_remedy() {
        let mut report = Report {
            pools: 1,
            blocks: 2,
            allocations: 3,
            problems: Vec::new(),
            notes: Vec::new(),
        };
        assert_eq!(
            page(&report),
            "1 pool, 2 blocks, addresses: 3; no problem\n"
        );
        report.notes.push(Problem {
            kind: ProblemKind::Kept,
            object: "10.1.0.2".to_owned(),
            message: "kept".to_owned(),
            hint: "delete the node".to_owned(),
        });
        let noted = super::page(&report);
        assert!(noted.contains("delete the node"), "{noted}");
        assert!(noted.ends_with("; no problem, 1 note\n"), "{noted}");
        assert!(is_sound(&report));
        report.problems.push(Problem {
            kind: ProblemKind::NotAllocated,
            object: "10.1.0.1".to_owned(),
            message: "runs unallocated".to_owned(),
            hint: "allocate it".to_owned(),
        });
        assert!(!is_sound(&report));
        let page = page(&report);
        for part in [
            "not-allocated",
            "runs unallocated",
            "allocate it",
            "; 1 problem, 1 note\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
    }
}
