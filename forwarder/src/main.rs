use std::process::ExitCode;

fn main() -> ExitCode {
    weft_forwarder::cli::run(std::env::args_os())
}
