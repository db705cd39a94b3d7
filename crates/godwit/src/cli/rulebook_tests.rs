//! What the command line makes of it.

use clap::Parser;

use crate::cli::Cli;

fn parsed(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_examples_in_the_help_are_accepted() {
    let examples = [
        "godwit rule add databases --apart db1,db2,db3",
        "godwit rule add shop --together web1,cache1 --should",
        "godwit rule add two-at-most --max-per-host 2 --vms web1,web2,web3,web4",
        "godwit rule add over-racks --spread 3 --vms db1,db2,db3",
        "godwit rule add licence --run-on host-a,label:licensed --vms db1,db2",
        "godwit rule add not-there --not-on host-c --vms web1 --should",
        "godwit pool set production --cpu-shares 4000 --memory-reservation 64GiB",
        "godwit pool set databases --parent production --cpu-reservation 8GHz --memory-limit 96GiB --not-expandable",
        "godwit pool set databases --memory-limit none",
        "godwit pool set databases --no-parent --scalable-shares",
        "godwit vm set db1 --pool databases",
        "godwit vm set db1 --automation manual --cpu-reservation 2GHz",
        "godwit vm set db1 --no-pool --memory-limit none",
        "godwit host set host-a --label ssd --label licensed --domain rack1",
        "godwit host set host-a --power-driver ipmi --ipmi-address 10.0.0.7 --ipmi-user godwit --ipmi-password host-a",
        "godwit host set host-a --power-driver wake-on-lan --wake-mac 52:54:00:00:00:01 --watts 90,180",
        "godwit host set host-a --power-driver simulated --power-program lab",
        "godwit host set host-a --power-driver none --no-labels --no-domain",
        "godwit host power host-a --json",
        "godwit host wake host-a",
        "godwit host standby host-a",
        "godwit policy show --json",
        "godwit policy set --automation full --threshold 3",
        "godwit policy set --power on --power-target 60 --power-band 20",
        "godwit policy set policy.json",
    ];
    for example in examples {
        parsed(example).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
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
