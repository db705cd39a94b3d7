//! The output of `cargo test -- --show-output`.

use super::tally::{Tally, skip_reason};

/// Counts the tests of an output.
pub(crate) fn read(output: &str) -> Tally {
    let mut tally = Tally::default();
    let mut section = "";
    for line in output.lines() {
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.split(" stdout ----").next()) {
            section = test;
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            match outcome {
                "ok" => tally.passed += 1,
                "FAILED" => tally.failures.push(name.to_owned()),
                // `ignored`, with a reason or without.
                other => tally.skips.push(format!("{name}: {other}")),
            }
        } else if let Some(reason) = skip_reason(line) {
            // It was counted as passed when its line came.
            tally.passed -= usize::from(tally.passed > 0);
            tally.skips.push(format!("{section}: {reason}"));
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test quick ... ok
test moves ... ok
test broken ... FAILED
test src/lib.rs - f (line 3) - compile ... ok
test later ... ignored, needs hardware

successes:

---- moves stdout ----
SKIPPED: no /dev/kvm

successes:
    quick

failures:

---- broken stdout ----
panicked

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn passed_failed_and_skipped_tests_are_told_apart() {
        let tally = read(OUTPUT);
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failures, ["broken"]);
        assert_eq!(tally.skips, ["later: ignored, needs hardware", "moves: no /dev/kvm"]);
    }
}
