//! `godwit-vmm`: one process that runs one VM.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use godwit_types::control::VmmConfig;
use godwit_vmm::kvm::chain;
use godwit_vmm::supervisor::{self, QUIT_SIGNALS};
use vmm_sys_util::signal::block_signal;

const USAGE: &str = "\
Runs one virtual machine. Started by 'godwit host'; rarely by hand.

Usage: godwit-vmm --config FILE
       godwit-vmm --copy
       godwit-vmm --offer

Options:
  --config FILE  the VM and what this host provides for it, as JSON
  --copy         copy disks of a VM that does not run, as ordered over the socket that is standard input
  --offer        print what this build on this host can run, as JSON
  --version      print the version
  --help         print this";

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Command::Run(config)) => match start(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => fail(&message, 1),
        },
        Ok(Command::Copy) => match copy() {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => fail(&message, 1),
        },
        Ok(Command::Offer) => match offer() {
            Ok(text) => print(&text),
            Err(message) => fail(&message, 1),
        },
        Ok(Command::Print(text)) => print(&text),
        Err(message) => fail(&format!("{message}; see godwit-vmm --help"), 2),
    }
}

enum Command {
    Run(PathBuf),
    Copy,
    Offer,
    Print(String),
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let command = match arguments.next().as_deref() {
        Some("--config") => Command::Run(arguments.next().ok_or("--config needs a file")?.into()),
        Some("--copy") => Command::Copy,
        Some("--offer") => Command::Offer,
        Some("--version") => Command::Print(concat!("godwit-vmm ", env!("CARGO_PKG_VERSION")).into()),
        Some("--help" | "-h") => Command::Print(USAGE.into()),
        Some(other) => return Err(format!("unknown argument '{other}'")),
        None => return Err("no configuration is given".into()),
    };
    match arguments.next() {
        Some(extra) => Err(format!("unexpected argument '{extra}'")),
        None => Ok(command),
    }
}

fn copy() -> Result<(), String> {
    log();
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = socket.map_err(|error| format!("cannot use standard input: {error}"))?;
    godwit_vmm::copier::run(socket.into()).map_err(|error| format!("standard input: {error}"))
}

fn offer() -> Result<String, String> {
    let offer = godwit_vmm::offer::offer().map_err(|error| chain(&error))?;
    serde_json::to_string(&offer).map_err(|error| error.to_string())
}

fn start(file: &Path) -> Result<(), String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut config: VmmConfig = serde_json::from_slice(&text)
        .map_err(|error| format!("{} is not a VM configuration: {error}", file.display()))?;
    let numbers = config.descriptors.take().ok_or_else(|| {
        format!("{} names no descriptors: start VMs through their host's agent", file.display())
    })?;
    // SAFETY: nothing was opened yet that is still open.
    let descriptors = unsafe { godwit_provision::inherit(numbers) }.map_err(|error| chain(&error))?;
    godwit_faults::check().map_err(|refused| refused.to_string())?;
    // Before any thread starts, so that all inherit it and one waits for them.
    for signal in QUIT_SIGNALS {
        block_signal(signal).map_err(|error| format!("cannot block a signal: {error:?}"))?;
    }
    log();
    supervisor::run(config, descriptors).map_err(|error| chain(&error))
}

fn log() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
}

#[allow(clippy::print_stdout)]
fn print(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("godwit-vmm: {message}");
    ExitCode::from(code)
}
