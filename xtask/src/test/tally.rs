use std::fmt;

/// What a test prints, alone on a line, when it cannot run here; the reason follows.
pub(crate) const SKIPPED: &str = "SKIPPED: ";

/// Tests counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failures: Vec<String>,
    /// Names with reasons.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    pub(crate) fn failed(what: String) -> Self {
        Self { failures: vec![what], ..Self::default() }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// A runner that failed without naming a failed test has failed all the same.
    pub(crate) fn and_failed_unless(mut self, succeeded: bool, what: &str) -> Self {
        if !succeeded && self.failures.is_empty() {
            self.failures.push(format!("the {what} did not run to their end"));
        }
        self
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skips.len())
    }
}

/// The reason after [`SKIPPED`], if a line of the output begins with it.
pub(crate) fn skip_reason(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix(SKIPPED)
}
