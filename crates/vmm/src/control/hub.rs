//! What subscribers are told: the state, open questions, and how a migration gets on.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Mutex, MutexGuard};

use godwit_migration::driver::{Arbiter, Connections, Connector, Reach};
use godwit_types::control::{MigrationStatus, Notice, Question, Reply, VmmState};
use godwit_types::migration::{MigrationOutcome, MigrationProgress};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId};
use serde::Serialize;

use crate::machine::Observer;

/// Where a client's lines go; a thread writes them to its socket.
pub type Lines = SyncSender<String>;

/// Everything that a new subscriber has to know, and who is subscribed.
#[derive(Default)]
pub struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Option<(VmmState, Epoch)>,
    open: Vec<Open>,
    /// A source's wish for new connections.
    disconnected: Option<Disconnected>,
    migration: Option<MigrationStatus>,
    /// The last word about a migration, told to every new subscriber as well.
    last_word: Option<Notice>,
    /// Whether a subscriber has been sent the last word.
    told: bool,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    client: u64,
    lines: Lines,
}

struct Disconnected {
    migration: MigrationId,
    notice: Notice,
    answer: Box<dyn FnOnce(Result<Connections, ApiError>) + Send>,
}

struct Open {
    question: Question,
    answer: Box<dyn FnOnce(Verdict) + Send>,
}

impl Hub {
    /// Adds a subscriber, who first gets `reply`, then the state and what is open. A client subscribes once.
    pub fn subscribe(&self, client: u64, lines: Lines, reply: &Reply) {
        let mut inner = self.inner();
        let state = inner.state.map(|(state, epoch)| Notice::State { state, epoch });
        let questions = inner.open.iter().map(|open| Notice::Question { question: open.question.clone() });
        let wish = inner.disconnected.as_ref().map(|wish| wish.notice.clone());
        let notices: Vec<Notice> =
            state.into_iter().chain(questions).chain(wish).chain(inner.last_word.clone()).collect();
        let sent = std::iter::once(line(reply))
            .chain(notices.iter().map(line))
            .all(|line| lines.try_send(line).is_ok());
        if sent {
            inner.told |= inner.last_word.is_some();
            inner.subscribers.retain(|subscriber| subscriber.client != client);
            inner.subscribers.push(Subscriber { client, lines });
        }
    }

    /// Removes a client that is gone.
    pub fn unsubscribe(&self, client: u64) {
        self.inner().subscribers.retain(|subscriber| subscriber.client != client);
    }

    /// Answers the open question of a migration.
    pub fn answer(&self, migration: MigrationId, verdict: Verdict) -> Result<(), ApiError> {
        let mut inner = self.inner();
        let Some(index) = inner.open.iter().position(|open| open.question.migration() == migration) else {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("migration {migration} has no open question"),
            ));
        };
        let open = inner.open.swap_remove(index);
        drop(inner);
        (open.answer)(verdict);
        Ok(())
    }

    /// Answers a source's wish for new connections.
    pub fn connected(
        &self,
        migration: MigrationId,
        made: Result<Connections, ApiError>,
    ) -> Result<(), ApiError> {
        match self.inner().disconnected.take_if(|wish| wish.migration == migration) {
            Some(wish) => {
                (wish.answer)(made);
                Ok(())
            }
            None => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("migration {migration} does not wait for connections"),
            )),
        }
    }

    /// The state, the epoch and the migration, for [`godwit_types::control::Status`].
    pub fn status(&self) -> (Option<(VmmState, Epoch)>, Option<MigrationStatus>) {
        let inner = self.inner();
        (inner.state, inner.migration.clone())
    }

    /// A migration away begins.
    pub fn migration_begins(&self, migration: MigrationId) {
        let mut inner = self.inner();
        inner.migration = Some(MigrationStatus { migration, progress: None, outcome: None });
        inner.last_word = None;
    }

    /// It gets on.
    pub fn progress(&self, migration: MigrationId, progress: MigrationProgress) {
        let mut inner = self.inner();
        if let Some(status) = inner.migration.as_mut().filter(|status| status.migration == migration) {
            status.progress = Some(progress.clone());
        }
        inner.tell(&Notice::Progress { migration, progress });
    }

    /// It has ended.
    pub fn migration_ended(&self, outcome: MigrationOutcome) {
        let mut inner = self.inner();
        let Some(status) = &mut inner.migration else { return };
        status.outcome = Some(outcome.clone());
        let migration = status.migration;
        inner.open.retain(|open| open.question.migration() != migration);
        inner.disconnected = None;
        inner.say_last(Notice::MigrationEnded { migration, outcome });
    }

    /// The VM has arrived here.
    pub fn arrived(&self, migration: MigrationId) {
        self.inner().say_last(Notice::Arrived { migration });
    }

    /// The VM will not arrive here.
    pub fn incoming_failed(&self, migration: MigrationId, error: ApiError) {
        let mut inner = self.inner();
        inner.open.clear();
        inner.say_last(Notice::IncomingFailed { migration, error });
    }

    /// Whether a subscriber has been sent the last word.
    pub fn told(&self) -> bool {
        self.inner().told
    }

    /// Ends all subscriptions; what was sent is still written.
    pub fn close(&self) {
        self.inner().subscribers.clear();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics in the hub")
    }
}

impl Inner {
    fn say_last(&mut self, notice: Notice) {
        self.told = self.tell(&notice) > 0;
        self.last_word = Some(notice);
    }

    /// Sends a notice to all subscribers; tells how many are left. One that does not keep up misses progress, which the
    /// next notice replaces; for anything else it is dropped, and learns everything when it subscribes again.
    fn tell(&mut self, notice: &Notice) -> usize {
        let (line, optional) = (line(notice), matches!(notice, Notice::Progress { .. }));
        self.subscribers.retain(|subscriber| match subscriber.lines.try_send(line.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => optional,
            Err(TrySendError::Disconnected(_)) => false,
        });
        self.subscribers.len()
    }
}

impl Observer for Hub {
    fn state(&self, state: VmmState, epoch: Epoch) {
        let mut inner = self.inner();
        inner.state = Some((state, epoch));
        inner.tell(&Notice::State { state, epoch });
    }

    fn device_error(&self, device: &str, message: &str) {
        let (device, message) = (device.to_owned(), message.to_owned());
        self.inner().tell(&Notice::DeviceError { device, message });
    }
}

impl Arbiter for Hub {
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Verdict) + Send>) {
        let mut inner = self.inner();
        // An engine asks again only when it no longer waits for the first answer.
        inner.open.retain(|open| open.question != question);
        inner.tell(&Notice::Question { question: question.clone() });
        inner.open.push(Open { question, answer });
    }
}

impl Connector for Hub {
    fn connect(
        &self,
        Reach { migration, destination, address, page_streams }: Reach<'_>,
        answer: Box<dyn FnOnce(Result<Connections, ApiError>) + Send>,
    ) {
        let notice =
            Notice::Disconnected { migration, destination: destination.clone(), address, page_streams };
        let mut inner = self.inner();
        inner.tell(&notice);
        inner.disconnected = Some(Disconnected { migration, notice, answer });
    }
}

/// A document as a line.
pub fn line<T: Serialize>(document: &T) -> String {
    let mut line = serde_json::to_string(document).expect("documents of the control socket have no odd keys");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel, sync_channel};

    use godwit_types::VmId;
    use godwit_types::ownership::Witness;

    use super::*;

    fn id(text: &str) -> MigrationId {
        text.parse().unwrap()
    }

    fn question() -> Question {
        let migration = id("6f2c0000-0000-0000-0000-000000000001");
        let vm: VmId = "6f2c0000-0000-0000-0000-000000000002".parse().unwrap();
        Question::Claim { migration, vm, epoch: Epoch(2), witness: Witness::None }
    }

    fn subscriber(hub: &Hub, client: u64) -> Receiver<String> {
        let (lines, received) = sync_channel(8);
        hub.subscribe(client, lines, &Reply::Done);
        received
    }

    #[test]
    fn a_question_is_asked_to_every_new_subscriber_until_it_is_answered() {
        let hub = Hub::default();
        hub.state(VmmState::Incoming, Epoch(2));
        let (answered, verdicts) = channel();
        hub.ask(question(), Box::new(move |verdict| answered.send(verdict).unwrap()));
        for client in 0..2 {
            let lines: Vec<_> = subscriber(&hub, client).try_iter().collect();
            assert!(lines[0].contains("\"done\"") && lines[1].contains("incoming"), "{lines:?}");
            assert!(lines[2].contains("\"claim\""), "{lines:?}");
        }
        let verdict = Verdict::Granted { epoch: Epoch(2) };
        hub.answer(question().migration(), verdict.clone()).unwrap();
        assert_eq!(verdicts.recv().unwrap(), verdict);
        assert_eq!(subscriber(&hub, 2).try_iter().count(), 2);
        assert!(hub.answer(question().migration(), verdict).is_err());
    }

    #[test]
    fn a_subscriber_that_does_not_keep_up_is_dropped_and_the_others_are_told() {
        let hub = Arc::new(Hub::default());
        let (stuck, good) = (subscriber(&hub, 1), subscriber(&hub, 2));
        for epoch in 0..20 {
            hub.state(VmmState::Running, Epoch(epoch));
            assert!(good.try_iter().any(|line| line.contains(&format!("\"epoch\":{epoch}"))), "{epoch}");
        }
        assert_eq!(stuck.iter().count(), 8, "what fitted, and then the end");
    }
}
