//! The demo, as `cargo xtask demo` runs it.

use godwit_lab::cluster::Setting;
use godwit_lab::demo::{self, DemoOptions};
use godwit_lab::guest::Guest;
use godwit_lab::setup;
use godwit_tests::{ensure, native};

#[test]
fn the_demo_moves_a_guest_there_and_back_and_nobody_notices() {
    native(|_| {
        let options = DemoOptions {
            guest: Guest::Reference,
            setting: Some(Setting::Kvm),
            moves: 2,
            vcpus: 1,
            build: setup::build_tested_programs,
        };
        let report = demo::run(&options)?;
        ensure(report.moves.len() == 2 && report.is_clean(), format!("somebody noticed: {report:?}"))?;
        ensure(report.moves[0].to == report.moves[1].from, format!("it did not come back: {report:?}"))?;
        let shown = report.to_string();
        ensure(shown.contains("silence"), format!("the table does not say what a client notices: {shown}"))
    });
}
