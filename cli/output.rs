//! Text to standard output, for people and for programs.

use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

use comfy_table::{Table, presets};

/// Writes the text. A reader that has gone has read enough: that is no
/// fault, and there is nothing more to do.
pub fn show(text: &str) -> anyhow::Result<ExitCode> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(fault) if fault.kind() != ErrorKind::BrokenPipe => Err(fault.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

pub fn show_json(value: &impl serde::Serialize) -> anyhow::Result<ExitCode> {
    show(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// A table without rules.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    table
}

/// The table's lines, without the blanks that comfy-table leaves at both
/// ends of a line.
pub fn lines(table: &Table) -> String {
    let bare = |line: String| {
        line.strip_prefix(' ')
            .unwrap_or(&line)
            .trim_end()
            .to_owned()
    };
    table.lines().map(|line| bare(line) + "\n").collect()
}

/// So many of a thing.
pub fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A number of bytes to three digits, in powers of 1024.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = count.ilog2() / 10;
    let unit = UNITS[power as usize - 1];
    let whole = count >> (10 * power);
    // One digit behind the point, rounded down.
    let tenths = ((count >> (10 * (power - 1))) % 1024) * 10 / 1024;
    if whole >= 100 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{tenths} {unit}")
    }
}

/// A number with a thin gap between its thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(
            (counted(1, "port"), counted(0, "port")),
            ("1 port".into(), "0 ports".into())
        );
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (1_234_567, "1 234 567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
