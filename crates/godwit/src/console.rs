//! The serial console on this terminal.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use godwit_types::{ApiError, ErrorCode};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Ctrl-], as in telnet and virsh.
const DETACH_BYTE: u8 = 0x1d;
const CHUNK_BYTES: usize = 4096;

/// Joins this terminal and the guest's console until Ctrl-], the end of the input's pipe, or the console's end.
pub(crate) async fn attach(console: impl AsyncRead + AsyncWrite) -> Result<(), ApiError> {
    let _raw = RawTerminal::enter()?;
    let (mut from_guest, mut to_guest) = tokio::io::split(console);
    let output = async {
        tokio::io::copy(&mut from_guest, &mut tokio::io::stdout())
            .await
            .map_err(|error| lost(&error))
            .map(|_| ())
    };
    let input = async {
        let mut stdin = tokio::io::stdin();
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let count = stdin.read(&mut chunk).await.map_err(|error| lost(&error))?;
            let typed = &chunk[..count];
            let detach = typed.iter().position(|byte| *byte == DETACH_BYTE);
            to_guest.write_all(&typed[..detach.unwrap_or(count)]).await.map_err(|error| lost(&error))?;
            if detach.is_some() {
                return Ok(());
            }
            if count == 0 {
                // A script's input has ended; its output goes on until the console closes.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        result = output => result,
        result = input => result,
    }
}

fn lost(error: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Unreachable, format!("the console was lost: {error}")).remedy("attach again")
}

/// The terminal in raw mode; restored when dropped.
struct RawTerminal {
    saved: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Result<Self, ApiError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { saved: None });
        }
        let failed = |error: nix::Error| {
            ApiError::new(ErrorCode::Failed, format!("the terminal refuses raw mode: {error}"))
        };
        let saved = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = saved.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(failed)?;
        crate::output::note("attached; Ctrl-] detaches\r");
        Ok(Self { saved: Some(saved) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // Nothing better can be done with an error here than to leave the terminal as it is.
            let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, saved);
        }
    }
}
