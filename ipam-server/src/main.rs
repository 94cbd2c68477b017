use std::process::ExitCode;

fn main() -> ExitCode {
    weft_ipam::cli::run(std::env::args_os())
}
