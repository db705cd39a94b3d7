//! What the command line makes of it.

use clap::Parser;

use crate::cli::Cli;

fn parsed(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn a_rule_says_one_thing_about_some_vms() {
    for wrong in [
        "godwit rule add r",
        "godwit rule add r --vms a,b",
        "godwit rule add r --apart a,b --together a,b",
        "godwit rule add r --apart a,b --vms c",
        "godwit rule add r --max-per-host 2",
        "godwit rule add r --run-on host-a",
        "godwit rule add r --run-on label:",
    ] {
        assert!(parsed(wrong).is_err(), "{wrong} was accepted");
    }
}

#[test]
fn what_contradicts_itself_or_lacks_something_is_refused() {
    for wrong in [
        "godwit pool set p --parent q --no-parent",
        "godwit pool set p --expandable --not-expandable",
        "godwit pool set p --cpu-shares 0",
        "godwit vm set v --pool p --no-pool",
        "godwit vm set v --automation sometimes",
        "godwit host set h --power-driver ipmi --ipmi-address 10.0.0.7",
        "godwit host set h --power-driver wake-on-lan",
        "godwit host set h --wake-mac 52:54:00:00:00:01",
        "godwit host set h --watts 90",
        "godwit policy set --power maybe",
    ] {
        assert!(parsed(wrong).is_err(), "{wrong} was accepted");
    }
}
