//! Process 1 of an emulated host: KVM, the network and the shared directory, then commands from outside.
//!
//! The kernel's command line says who it is: `lab.name=host-a lab.management=10.76.0.11/24 lab.service=10.78.0.11/24`.
//! The network cards come in this order: management, guest network, service.

use std::net::{Ipv4Addr, TcpListener};
use std::{fs, io};

use godwit_linux_guest::{boot, remote};

/// The tag of the file system that all hosts share, and where it is mounted.
const SHARED: (&str, &str) = ("shared", "/shared");
const CARDS: [(&str, &str); 3] = [("eth0", "mgmt0"), ("eth1", "uplink0"), ("eth2", "service0")];

fn main() {
    let outcome = match std::env::args().nth(1) {
        None => boot::mount_basics().and_then(|()| boot::supervise("host")),
        Some(_) => serve(),
    };
    if let Err(error) = outcome {
        eprintln!("host: {error}");
    }
}

fn serve() -> io::Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    boot::load_modules()?;
    boot::mount_at("cgroup2", "cgroup2", "/sys/fs/cgroup")?;
    boot::run(&["--install", "-s", "/bin"])?;
    let name = required(&command_line, "lab.name")?;
    nix::unistd::sethostname(name)?;
    boot::configure_interface("lo", None)?;
    for (card, name) in CARDS {
        boot::await_path(format!("/sys/class/net/{card}"));
        boot::run(&["ip", "link", "set", card, "name", name])?;
    }
    boot::configure_interface("mgmt0", Some(address(&command_line, "lab.management")?))?;
    boot::configure_interface("uplink0", None)?;
    boot::mount_at("virtiofs", SHARED.0, SHARED.1)?;
    let service = address(&command_line, "lab.service")?;
    boot::configure_interface("service0", Some(service))?;
    let listener = TcpListener::bind((service.0, remote::PORT))?;
    eprintln!("host: {name} is ready");
    remote::serve(&listener)
}

fn required<'a>(command_line: &'a str, key: &str) -> io::Result<&'a str> {
    boot::parameter(command_line, key)
        .ok_or_else(|| io::Error::other(format!("{key} is not on the command line")))
}

fn address(command_line: &str, key: &str) -> io::Result<(Ipv4Addr, u8)> {
    let text = required(command_line, key)?;
    let parsed = text
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    parsed.ok_or_else(|| io::Error::other(format!("{key}={text} is no address with a prefix length")))
}
