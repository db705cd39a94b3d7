//! The report of nextest: an XML document with one `testcase` element for each test, one element a line.

use super::tally::{Tally, skip_reason};

/// Counts the tests of a report.
pub(crate) fn read(report: &str) -> Tally {
    let mut tally = Tally::default();
    for case in report.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (head, rest) = case.split_once('>').unwrap_or((case, ""));
        let name = format!("{} {}", attribute(head, "classname"), attribute(head, "name"));
        let body = if head.ends_with('/') { "" } else { rest };
        // A test that passed after a retry is reported as `flakyFailure`.
        if body.contains("<failure") || body.contains("<error") {
            tally.failures.push(name);
        } else if let Some(reason) = output(body).find_map(skip_reason) {
            tally.skips.push(format!("{name}: {}", unescape(reason)));
        } else {
            tally.passed += 1;
        }
    }
    tally
}

/// The lines that the test printed.
fn output(body: &str) -> impl Iterator<Item = &str> {
    body.lines()
        .map(|line| line.trim_start().trim_start_matches("<system-out>").trim_start_matches("<system-err>"))
        .map(|line| line.trim_end().trim_end_matches("</system-out>").trim_end_matches("</system-err>"))
}

fn attribute<'a>(head: &'a str, name: &str) -> &'a str {
    let beginning = format!("{name}=\"");
    let found = head.match_indices(&beginning).find(|(at, _)| *at == 0 || head[..*at].ends_with(' '));
    let value = found.and_then(|(at, _)| head[at + beginning.len()..].split('"').next());
    value.unwrap_or("?")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0" time="1.2">
    <testsuite name="a" tests="4" disabled="0" errors="0" failures="1">
        <testcase name="tests::quick" classname="a" timestamp="2026-01-01T00:00:00+00:00" time="0.01"/>
        <testcase name="tests::talks" classname="a" timestamp="2026-01-01T00:00:00+00:00" time="0.01">
            <system-out>running 1 test
all is well
</system-out>
            <system-err>it says that nothing is SKIPPED: here</system-err>
        </testcase>
        <testcase name="tests::fails" classname="a" time="0.01">
            <failure type="test failure with exit code 101">panicked</failure>
        </testcase>
        <testcase name="moves" classname="b::c" time="0.01">
            <system-out>running 1 test
</system-out>
            <system-err>SKIPPED: /dev/kvm cannot be opened &lt;here&gt;
</system-err>
        </testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn passed_failed_and_skipped_tests_are_told_apart() {
        let tally = read(REPORT);
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failures, ["a tests::fails"]);
        assert_eq!(tally.skips, ["b::c moves: /dev/kvm cannot be opened <here>"]);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
    }
}
