//! The client of a VMM's control socket; the protocol is [`godwit_types::control`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_types::capability::GuestFacts;
use godwit_types::control::{LINE_BYTES_MAX, Notice, Reply, Request, Status, StorageOrder};
use godwit_types::forecast::Survey;
use godwit_types::storage::StorageStatus;
use godwit_types::{ApiError, ErrorCode, MigrationId};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long a VMM may take to answer. Starting a migration includes the handshake with the destination.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a VMM did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the VM's process cannot be reached on its control socket; see its vmm.log")]
    Connection {
        #[from]
        source: io::Error,
    },
    #[error("the VM's process did not answer within {} s; see its vmm.log", REPLY_TIMEOUT.as_secs())]
    Timeout,
    #[error(
        "the VM's process sent what this agent cannot read ({0}); check that godwit and godwit-vmm are of the same version"
    )]
    Malformed(String),
    #[error("{0}")]
    Refused(ApiError),
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(error) => error,
            ControlError::Connection { ref source } => {
                Self::new(ErrorCode::Failed, format!("{error}: {source}"))
            }
            other => Self::new(ErrorCode::Failed, other.to_string()),
        }
    }
}

/// Asks a VMM, each time over a connection of its own: a slow answer holds up nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Control(PathBuf);

impl Control {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self(socket)
    }

    /// How the VMM is.
    pub(crate) async fn status(&self) -> Result<Status, ControlError> {
        match self.request(&Request::Status, &[]).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What the VM would need elsewhere.
    pub(crate) async fn guest(&self) -> Result<GuestFacts, ControlError> {
        match self.request(&Request::Guest, &[]).await? {
            Reply::Guest(guest) => Ok(*guest),
            other => Err(unexpected(&other)),
        }
    }

    /// What the running guest does to its memory.
    pub(crate) async fn survey(&self, sample_ms: u32) -> Result<Survey, ControlError> {
        match self.request(&Request::Survey { sample_ms }, &[]).await? {
            Reply::Survey(survey) => Ok(*survey),
            other => Err(unexpected(&other)),
        }
    }

    /// Orders something about disks that move to other places on this host, or looks at them.
    pub(crate) async fn storage(
        &self,
        migration: MigrationId,
        order: StorageOrder,
        descriptors: &[OwnedFd],
    ) -> Result<StorageStatus, ControlError> {
        match self.request(&Request::Storage { migration, order }, descriptors).await? {
            Reply::Storage(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for something that is answered with "done".
    pub(crate) async fn order(&self, request: &Request) -> Result<(), ControlError> {
        self.order_with(request, &[]).await
    }

    /// [`Self::order`] with descriptors for the VMM to have.
    pub(crate) async fn order_with(
        &self,
        request: &Request,
        descriptors: &[OwnedFd],
    ) -> Result<(), ControlError> {
        done(self.request(request, descriptors).await?)
    }

    /// A connection that carries the VMM's notices.
    pub(crate) async fn subscribe(&self) -> Result<Subscription, ControlError> {
        let in_time = timeout(REPLY_TIMEOUT, async {
            let mut connection = Connection::open(&self.0).await?;
            connection.send(&Request::Subscribe).await?;
            match connection.lines.next().await? {
                Line::Reply(reply) => done(reply)?,
                Line::Notice(notice) => return Err(ControlError::Malformed(format!("{notice:?}"))),
            }
            Ok(Subscription(connection))
        });
        in_time.await.unwrap_or(Err(ControlError::Timeout))
    }

    /// The process at the other end of the socket, if there is one.
    pub(crate) async fn peer(&self) -> io::Result<u32> {
        let pid = UnixStream::connect(&self.0).await?.peer_cred()?.pid();
        pid.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn request(&self, request: &Request, descriptors: &[OwnedFd]) -> Result<Reply, ControlError> {
        let in_time = timeout(REPLY_TIMEOUT, async {
            let mut connection = Connection::open(&self.0).await?;
            connection.send_with(request, descriptors).await?;
            match connection.lines.next().await? {
                Line::Reply(reply) => Ok(reply),
                Line::Notice(notice) => Err(ControlError::Malformed(format!("{notice:?}"))),
            }
        });
        in_time.await.unwrap_or(Err(ControlError::Timeout))
    }
}

fn done(reply: Reply) -> Result<(), ControlError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Error { error } => Err(ControlError::Refused(error)),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> ControlError {
    match reply {
        Reply::Error { error } => ControlError::Refused(error.clone()),
        other => ControlError::Malformed(format!("{other:?}")),
    }
}

/// A connection on which a VMM sends notices, and takes requests too.
#[derive(Debug)]
pub(crate) struct Subscription(Connection);

impl Subscription {
    /// The next notice or reply. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Line, ControlError> {
        self.0.lines.next().await
    }

    /// Sends a request, whose reply [`Self::next`] returns.
    pub(crate) async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        timeout(REPLY_TIMEOUT, self.0.send(request)).await.unwrap_or(Err(ControlError::Timeout))
    }
}

/// One line from a VMM.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Notice(Box<Notice>),
    Reply(Reply),
}

#[derive(Debug)]
struct Connection {
    lines: Lines,
    writer: OwnedWriteHalf,
}

impl Connection {
    async fn open(socket: &Path) -> Result<Self, ControlError> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        Ok(Self { lines: Lines { reader: BufReader::new(reader), line: Vec::new() }, writer })
    }

    async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        self.send_with(request, &[]).await
    }

    async fn send_with(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<(), ControlError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        let socket: &UnixStream = self.writer.as_ref();
        let send = || godwit_provision::send(socket, &line, descriptors);
        let sent = socket.async_io(Interest::WRITABLE, send).await?;
        Ok(self.writer.write_all(&line[sent..]).await?)
    }
}

#[derive(Debug)]
struct Lines {
    reader: BufReader<OwnedReadHalf>,
    /// What has come of the next line; kept here so that a cancelled read loses nothing.
    line: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Result<Line, ControlError> {
        let room = (LINE_BYTES_MAX - self.line.len()) as u64;
        (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            return Err(if self.line.len() >= LINE_BYTES_MAX {
                ControlError::Malformed(format!("a line of more than {LINE_BYTES_MAX} bytes"))
            } else {
                io::Error::from(io::ErrorKind::UnexpectedEof).into()
            });
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line).map_err(|error| ControlError::Malformed(error.to_string()))
    }
}
