//! The report of nextest: an XML document with one `testcase` element for each test, one element a line.

use super::tally::{Tally, skip_reason};

/// A failed test is quoted with the beginning and the end of its message: what was done, and what became of it.
const FIRST_LINES_MAX: usize = 3;
const LAST_LINES_MAX: usize = 6;

/// Counts the tests of a report.
pub(crate) fn read(report: &str) -> Tally {
    let mut tally = Tally::default();
    for case in report.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (head, rest) = case.split_once('>').unwrap_or((case, ""));
        let name = format!("{} {}", attribute(head, "classname"), attribute(head, "name"));
        let body = if head.ends_with('/') { "" } else { rest };
        // A test that passed after a retry is reported as `flakyFailure`.
        if let Some(failure) = element(body, "failure").or_else(|| element(body, "error")) {
            let why = reason(failure);
            tally.failures.push(if why.is_empty() { name } else { format!("{name}: {}", unescape(&why)) });
        } else if let Some(reason) = output(body).find_map(skip_reason) {
            tally.skips.push(format!("{name}: {}", unescape(reason)));
        } else {
            tally.passed += 1;
        }
    }
    tally
}

/// The text of the first element of this name.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}"))?;
    let (_, text) = rest.split_once('>')?;
    text.split(&format!("</{name}>")).next()
}

/// What a failed test says, without where in the code it said so.
fn reason(failure: &str) -> String {
    let lines = failure.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.take_while(|line| !line.starts_with("stack backtrace:") && !line.starts_with("note: "));
    let mut lines: Vec<&str> =
        said.filter(|line| !(line.starts_with("thread ") && line.ends_with(':'))).collect();
    if lines.len() > FIRST_LINES_MAX + LAST_LINES_MAX {
        lines.splice(FIRST_LINES_MAX..lines.len() - LAST_LINES_MAX, ["[...]"]);
    }
    lines.join("; ")
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
            <failure message="thread &apos;fails&apos; panicked" type="test failure with exit code 101">thread &apos;fails&apos; (1) panicked at src/lib.rs:1:50:
3 is not &lt; 2
stack backtrace:
   0: somewhere</failure>
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
        assert_eq!(tally.failures, ["a tests::fails: 3 is not < 2"]);
        assert_eq!(tally.skips, ["b::c moves: /dev/kvm cannot be opened <here>"]);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let lines: Vec<_> = (1..=20).map(|line| line.to_string()).collect();
        assert_eq!(reason(&lines.join("\n")), "1; 2; 3; [...]; 15; 16; 17; 18; 19; 20");
        assert_eq!(reason("thread 'x' panicked at a.rs:1:\n1\n2"), "1; 2");
    }
}
