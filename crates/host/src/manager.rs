//! The manager, as the agent sees it: whom to report to, and the arbiter.

use std::time::Duration;

use godwit_api::{BaseUrl, Client, Token};
use godwit_types::api::{Empty, Health};
use godwit_types::control::Question;
use godwit_types::host::HostReport;
use godwit_types::ownership::{ClaimRequest, CommitRequest, Verdict};
use godwit_types::{ApiError, HostName};
use tokio::time::sleep;

/// How long one attempt to ask the arbiter may take before the next.
const ARBITER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the first attempt that failed; doubles with each up to the longest.
const ARBITER_PAUSE_MIN: Duration = Duration::from_millis(10);
const ARBITER_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the manager's API.
#[derive(Debug, Clone)]
pub(crate) struct Manager {
    host: HostName,
    reports: Client,
    /// With connections of its own, so that no report is ever in front of a question.
    arbiter: Client,
}

impl Manager {
    pub(crate) fn new(host: HostName, base: BaseUrl, token: Token) -> Self {
        let client = |timeout| Client::new(base.clone(), Some(token.clone())).with_timeout(timeout);
        Self { host, reports: client(REPORT_TIMEOUT), arbiter: client(ARBITER_TIMEOUT) }
    }

    /// Sends a heartbeat.
    pub(crate) async fn report(&self, report: &HostReport) -> Result<(), ApiError> {
        let path = format!("/v1/hosts/{}/heartbeat", self.host);
        self.reports.post::<_, Empty>(&path, report).await.map(drop)
    }

    /// Makes sure that a connection to the arbiter is open before it is needed.
    pub(crate) async fn warm_arbiter(&self) {
        // A manager that cannot be reached now may be reached when it is asked.
        let _ = self.arbiter.get::<Health>("/v1/health").await;
    }

    /// The arbiter's verdict on `question`.
    ///
    /// Asks for as long as it takes. Nothing but the arbiter's own word is a verdict: no error, no silence. `waiting`
    /// is told why it takes longer, each time anew.
    pub(crate) async fn verdict(&self, question: &Question, waiting: impl Fn(String)) -> Verdict {
        let mut pause = ARBITER_PAUSE_MIN;
        loop {
            match self.ask(question).await {
                Ok(verdict) => return verdict,
                Err(error) => waiting(format!("the arbiter has not answered: {error}")),
            }
            sleep(pause).await;
            pause = (pause * 2).min(ARBITER_PAUSE_MAX);
        }
    }

    async fn ask(&self, question: &Question) -> Result<Verdict, ApiError> {
        let host = self.host.clone();
        match question.clone() {
            Question::Commit { migration, vm, epoch, destination } => {
                let request = CommitRequest { vm, migration, source: host, epoch, destination };
                self.arbiter.post("/v1/arbiter/commit", &request).await
            }
            Question::Claim { migration, vm, epoch, witness } => {
                let request = ClaimRequest { vm, migration, host, epoch, witness };
                self.arbiter.post("/v1/arbiter/claim", &request).await
            }
        }
    }
}
