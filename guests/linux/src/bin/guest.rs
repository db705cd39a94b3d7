//! Process 1 of the Linux test guest.

use godwit_linux_guest::{boot, guest};

fn main() {
    let outcome = match std::env::args().nth(1).as_deref() {
        None => boot::mount_basics().and_then(|()| boot::supervise("guest")),
        Some(guest::service::ROLE) => guest::service::enter(),
        Some(_) => guest::run(),
    };
    if let Err(error) = outcome {
        eprintln!("guest: {error}");
    }
}
