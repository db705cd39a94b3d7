//! Running commands in an emulated host from outside: one TCP connection per command.
//!
//! ```text
//! client                                      server (in the host)
//!   | request: length, words separated by NUL -->|  starts the program in a session of its own
//!   |<-- frame: kind, length, bytes -------------|  standard output and standard error as they come
//!   |<-- frame: the exit code -------------------|  128 + signal if a signal ended it
//!   | closes the connection early -------------->|  kills the program's whole session
//! ```
//!
//! Lengths are 32 bits, big-endian. There is no authentication: the service network of a lab reaches the lab only.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use nix::unistd::{Pid, setsid};

/// The port that the server listens on.
pub const PORT: u16 = 7499;

/// The longest request in bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest frame in bytes.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Frames on their way from the program to the connection.
const FRAMES_QUEUED: usize = 16;
/// How long output may still come after the program has ended: its children may hold the pipes open for ever.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// Seconds without a sign of life before the first probe, and between two; and how many are sent.
const KEEPALIVE_S: u32 = 5;
const KEEPALIVE_PROBES: u32 = 3;
const EXIT_POLL: Duration = Duration::from_millis(5);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a command on the server and hands its output, as it comes, to `stdout` and `stderr`. Returns its exit code.
///
/// # Errors
/// `TimedOut` when it has not ended after `limit`; it is killed then. Others when the server cannot be reached.
pub fn stream(
    server: SocketAddr,
    words: &[&str],
    limit: Duration,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> io::Result<i32> {
    let deadline = Instant::now() + limit;
    let mut connection = TcpStream::connect_timeout(&server, limit)?;
    connection.set_nodelay(true)?;
    notice_death(&connection)?;
    let request = words.join("\0");
    let length = u32::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    connection.write_all(&[&length.to_be_bytes(), request.as_bytes()].concat())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.set_read_timeout(Some(left))?;
        let (kind, bytes) = read_frame(&mut connection).map_err(timed_out)?;
        match kind {
            STDOUT => stdout.write_all(&bytes)?,
            STDERR => stderr.write_all(&bytes)?,
            EXIT => {
                return bytes
                    .try_into()
                    .map(i32::from_be_bytes)
                    .map_err(|_| io::ErrorKind::InvalidData.into());
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Makes a read fail some 20 s after the server has vanished without a word, as one does whose power is cut.
fn notice_death(connection: &TcpStream) -> io::Result<()> {
    setsockopt(connection, KeepAlive, &true)?;
    setsockopt(connection, TcpKeepIdle, &KEEPALIVE_S)?;
    setsockopt(connection, TcpKeepInterval, &KEEPALIVE_S)?;
    Ok(setsockopt(connection, TcpKeepCount, &KEEPALIVE_PROBES)?)
}

/// Like [`stream`], but keeps the output.
pub fn run(server: SocketAddr, words: &[&str], limit: Duration) -> io::Result<Output> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit_code = stream(server, words, limit, &mut stdout, &mut stderr)?;
    Ok(Output { exit_code, stdout, stderr })
}

/// Serves every connection on a thread of its own, until the process ends.
pub fn serve(listener: &TcpListener) -> ! {
    loop {
        match listener.accept() {
            Ok((connection, _)) => drop(thread::spawn(move || {
                if let Err(error) = answer(connection) {
                    eprintln!("remote command: {error}");
                }
            })),
            Err(error) => {
                eprintln!("remote commands: {error}");
                thread::sleep(EXIT_POLL);
            }
        }
    }
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let request =
        String::from_utf8(read_block(&mut connection, REQUEST_BYTES_MAX)?).map_err(io::Error::other)?;
    let mut child = match start(&request) {
        Ok(child) => child,
        Err(error) => {
            write_frame(&mut connection, STDERR, format!("{error}\n").as_bytes())?;
            return write_frame(&mut connection, EXIT, &127_i32.to_be_bytes());
        }
    };
    let (sender, frames) = sync_channel(FRAMES_QUEUED);
    pump(STDOUT, child.stdout.take(), sender.clone());
    pump(STDERR, child.stderr.take(), sender);
    let result = relay(&mut connection, &mut child, &frames);
    if result.is_err() {
        // The client has left. What has already ended needs no killing.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        child.wait()?;
    }
    result
}

fn start(request: &str) -> io::Result<Child> {
    let mut words = request.split('\0');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the closure only calls setsid(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| setsid().map(drop).map_err(io::Error::from)) };
    command.spawn()
}

/// Sends output until the program has ended and its output is drained, then its exit code.
fn relay(connection: &mut TcpStream, child: &mut Child, frames: &Receiver<(u8, Vec<u8>)>) -> io::Result<()> {
    let mut drained_by: Option<Instant> = None;
    loop {
        match frames.recv_timeout(EXIT_POLL) {
            Ok((kind, bytes)) => write_frame(connection, kind, &bytes)?,
            Err(RecvTimeoutError::Timeout) if drained_by.is_some_and(|limit| Instant::now() < limit) => {}
            Err(RecvTimeoutError::Timeout) if drained_by.is_none() => {
                if child.try_wait()?.is_some() {
                    drained_by = Some(Instant::now() + DRAIN_LIMIT);
                } else if has_left(connection)? {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            Err(_) => return write_frame(connection, EXIT, &exit_code(child.wait()?).to_be_bytes()),
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Whether the client has closed the connection; it sends nothing after its request.
fn has_left(connection: &TcpStream) -> io::Result<bool> {
    connection.set_nonblocking(true)?;
    let peeked = connection.peek(&mut [0]);
    connection.set_nonblocking(false)?;
    match peeked {
        Ok(read) => Ok(read == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn pump(kind: u8, pipe: Option<impl Read + Send + 'static>, frames: SyncSender<(u8, Vec<u8>)>) {
    let Some(mut pipe) = pipe else { return };
    thread::spawn(move || {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            if frames.send((kind, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
}

fn write_frame(to: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&[&[kind], &length.to_be_bytes()[..], bytes].concat())
}

fn read_frame(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    Ok((kind[0], read_block(from, FRAME_BYTES_MAX)?))
}

fn read_block(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} bytes are more than {most}"),
        ));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A read's time-out comes as `WouldBlock` from the kernel.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener));
        address
    }

    #[test]
    fn output_and_exit_code_come_back_apart() {
        let output = run(server(), &["sh", "-c", "echo out; echo err >&2; exit 3"], LIMIT).unwrap();
        assert_eq!(output, Output { exit_code: 3, stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() });
    }

    #[test]
    fn output_larger_than_every_buffer_comes_whole() {
        let output = run(server(), &["head", "-c", "5000000", "/dev/zero"], LIMIT).unwrap();
        assert_eq!(output.stdout.len(), 5_000_000);
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_code_127() {
        let output = run(server(), &["/no/such/program"], LIMIT).unwrap();
        assert_eq!(output.exit_code, 127);
        assert!(!output.stderr.is_empty());
    }

    #[test]
    fn a_child_left_behind_does_not_keep_the_caller() {
        let output = run(server(), &["sh", "-c", "sleep 3 & echo done"], LIMIT).unwrap();
        assert_eq!(output.stdout, b"done\n");
    }

    #[test]
    fn a_command_over_its_limit_is_killed() {
        let mark = std::env::temp_dir().join(format!("godwit-remote-{}", std::process::id()));
        let script = format!("echo $$ > {0}; sleep 600", mark.display());
        let error = run(server(), &["sh", "-c", &script], Duration::from_millis(500)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let pid = std::fs::read_to_string(&mark).unwrap();
        std::fs::remove_file(&mark).unwrap();
        let deadline = Instant::now() + LIMIT;
        while std::path::Path::new("/proc").join(pid.trim()).exists() {
            assert!(Instant::now() < deadline, "the command still runs");
            thread::sleep(EXIT_POLL);
        }
    }
}
