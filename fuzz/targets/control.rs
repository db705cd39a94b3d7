//! What a client of the control socket can write, through the real socket, reader and writer.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_fuzz::edited;
use godwit_types::control::{DiskBacking, LINE_BYTES_MAX, NewPlace, Reply, Request, StorageOrder};
use godwit_types::ownership::Verdict;
use godwit_types::{Bytes, Epoch, MigrationId, MigrationKey};
use godwit_vmm::control::hub::Hub;
use godwit_vmm::control::server::Server;
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

/// Most requests of one client.
const REQUESTS_MAX: usize = 16;
/// An answer that takes longer is a finding.
const PATIENCE: Duration = Duration::from_secs(10);

static SOCKET: LazyLock<(PathBuf, Server)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("godwit-fuzz-control-{}", std::process::id()));
    let handler = |request: Request, descriptors: Vec<OwnedFd>| {
        assert!(descriptors.is_empty(), "none were sent");
        let text = serde_json::to_vec(&request).expect("a request is a JSON document");
        assert_eq!(serde_json::from_slice::<Request>(&text).ok(), Some(request));
        Reply::Done
    };
    let listener = UnixListener::bind(&path).expect("the folder for temporary files can be written");
    let server = Server::start(listener, Arc::new(Hub::default()), Arc::new(handler));
    let server = server.expect("threads can be started");
    (path, server)
});

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // An input that is too short for what it began is as good as none.
    let _ = client(&mut input);
});

fn client(input: &mut Unstructured<'_>) -> Result<()> {
    let mut text = Vec::new();
    for _ in 0..input.int_in_range(0..=REQUESTS_MAX)? {
        let valid = serde_json::to_vec(&request(input)?).expect("a request is a JSON document");
        text.extend(edited(valid, input)?);
        text.push(b'\n');
    }
    if input.ratio(1, 64)? {
        text.resize(text.len() + LINE_BYTES_MAX, b' ');
    }
    text.extend_from_slice(input.bytes(input.len())?);
    let answers = answers(&text);
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let sane = lines.iter().take_while(|line| line.ends_with(b"\n") && line.len() <= LINE_BYTES_MAX).count();
    assert!(answers >= sane, "{answers} answers to {sane} lines");
    Ok(())
}

/// Writes it all, and counts the lines that come back until the server closes.
fn answers(text: &[u8]) -> usize {
    let mut stream = UnixStream::connect(&SOCKET.0).expect("the server lives");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let mut writer = stream.try_clone().expect("there are file descriptors");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A server that refuses a line hangs up while the rest is written.
            let _ = writer.write_all(text);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut answers = Vec::new();
        match stream.read_to_end(&mut answers) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
        answers.iter().filter(|byte| **byte == b'\n').count()
    })
}

fn request(input: &mut Unstructured<'_>) -> Result<Request> {
    let migration = MigrationId(Uuid::nil());
    Ok(match input.int_in_range(0..=12)? {
        0 => Request::Status,
        1 => Request::Subscribe,
        2 => Request::PowerButton,
        3 => Request::Reset,
        4 => Request::Quit,
        5 => Request::Balloon { target: Bytes(input.arbitrary()?) },
        6 => Request::CancelMigration { migration },
        7 => Request::Guest,
        8 => Request::Survey { sample_ms: input.arbitrary()? },
        9 => Request::Answer { migration, verdict: Verdict::Granted { epoch: Epoch(input.arbitrary()?) } },
        10 => Request::SetBandwidth { migration, bytes_per_s_max: input.arbitrary()? },
        11 => Request::Storage { migration, order: storage_order(input)? },
        _ => Request::MigrateOut {
            migration,
            destination: "b".parse().expect("it is a host's name"),
            address: ([127, 0, 0, 1], input.arbitrary()?).into(),
            key: input.arbitrary::<bool>()?.then_some(MigrationKey::from_bytes([7; 32])),
            keep: input.arbitrary()?,
            disks: Default::default(),
            budget: Default::default(),
        },
    })
}

fn storage_order(input: &mut Unstructured<'_>) -> Result<StorageOrder> {
    Ok(match input.int_in_range(0..=4)? {
        0 => StorageOrder::Look,
        1 => StorageOrder::Hold,
        2 => StorageOrder::Switch,
        3 => StorageOrder::Cancel,
        _ => {
            let (path, lock) = ("/x".into(), "/x.lock".into());
            let backing =
                DiskBacking { path, lock, format: Default::default(), read_only: input.arbitrary()? };
            let disks = vec![NewPlace {
                index: input.arbitrary()?,
                image: "a/x".parse().expect("it is a place"),
                backing,
            }];
            StorageOrder::Begin { disks, bytes_per_s_max: input.arbitrary()? }
        }
    })
}
