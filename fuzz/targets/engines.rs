//! What a peer, the arbiter and the machine can tell the two state machines, in any order.
#![no_main]

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_fuzz::{destination, source};
use libfuzzer_sys::fuzz_target;

/// Most inputs of one run.
const INPUTS_MAX: usize = 200;
/// Longest time between two inputs, in milliseconds: longer than all waiting of an engine.
const STEP_MS_MAX: u64 = 70_000;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // An input that is too short for what it began is as good as none.
    let _ = run(&mut input);
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let is_source = input.arbitrary()?;
    let (mut source, mut destination) = (source::Checked::new(input)?, destination::Checked::new());
    let mut now = Duration::ZERO;
    for _ in 0..INPUTS_MAX {
        if input.is_empty() {
            break;
        }
        now +=
            Duration::from_millis(if input.ratio(1, 4)? { input.int_in_range(0..=STEP_MS_MAX)? } else { 0 });
        if is_source {
            source.step(now, input)?;
        } else {
            destination.step(now, input)?;
        }
    }
    Ok(())
}
