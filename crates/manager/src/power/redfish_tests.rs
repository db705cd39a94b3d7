//! A controller that speaks as DSP0266 says, over real TLS.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

const USER: &str = "godwit";
const SECRET: &str = "correct horse";

/// What the controller has, and what was done with it.
struct Board {
    power: &'static str,
    systems: Vec<&'static str>,
    /// Kinds of reset that it lists; none if it lists none.
    offered: Option<Vec<&'static str>>,
    sessions: BTreeSet<String>,
    logins: u32,
    resets: Vec<(String, String)>,
}

struct Controller {
    dir: TempDir,
    port: u16,
    certificate: CertificateDer<'static>,
    board: Arc<Mutex<Board>>,
    _serving: JoinSet<()>,
}

impl Controller {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let board = Arc::new(Mutex::new(Board {
            power: "On",
            systems: vec!["1"],
            offered: Some(vec!["On", "ForceOff", "GracefulShutdown"]),
            sessions: BTreeSet::new(),
            logins: 0,
            resets: Vec::new(),
        }));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, acceptor, Arc::clone(&board)));
        let dir = tempfile::tempdir().unwrap();
        let mut password = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.path().join("bmc"))
            .unwrap();
        std::io::Write::write_all(&mut password, format!("{SECRET}\n").as_bytes()).unwrap();
        Self { dir, port, certificate, board, _serving: serving }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap()
    }

    /// What switches the host, with its certificate trusted as that of whoever the machine trusts.
    fn driver(&self) -> Redfish {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Redfish {
            address: "127.0.0.1".into(),
            port: self.port,
            user: USER.into(),
            password: self.dir.path().join("bmc"),
            system: None,
            fingerprint: None,
            force_off: false,
            roots: Some(Arc::new(roots)),
        }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, board: Arc<Mutex<Board>>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, board) = (acceptor.clone(), Arc::clone(&board));
        connections.spawn(async move {
            // A client that does not trust it breaks off here.
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let answer = service_fn(move |request| answer(Arc::clone(&board), request));
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), answer).await;
        });
    }
}

async fn answer(
    board: Arc<Mutex<Board>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let token = request.headers().get("X-Auth-Token").map(|token| token.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut board = board.lock().unwrap();
    let known = token.is_some_and(|token| board.sessions.contains(&token));
    let document = |status: u16, document: Value| {
        Response::builder().status(status).body(Full::from(document.to_string())).unwrap()
    };
    let error = |status, message: &str| {
        let info = json!([{"MessageId": "Base.1.8.0.GeneralError", "Message": message}]);
        document(
            status,
            json!({"error": {"code": "Base.1.8.0.GeneralError", "message": "See the rest.", "@Message.ExtendedInfo": info}}),
        )
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(2).collect();
    Ok(match (method.as_str(), parts.as_slice()) {
        // Whoever it is may see this, and may log in.
        ("GET", []) => document(
            200,
            json!({
                "@odata.id": "/redfish/v1/", "RedfishVersion": "1.15.0",
                "Systems": {"@odata.id": "/redfish/v1/Systems"},
                "Links": {"Sessions": {"@odata.id": "/redfish/v1/SessionService/Sessions"}},
            }),
        ),
        ("POST", ["SessionService", "Sessions"]) => {
            if body != json!({"UserName": USER, "Password": SECRET}) {
                return Ok(error(401, "The user or the password is wrong."));
            }
            board.logins += 1;
            let id = format!("s{}", board.logins);
            board.sessions.insert(id.clone());
            Response::builder()
                .status(201)
                .header("X-Auth-Token", &id)
                .header("Location", format!("/redfish/v1/SessionService/Sessions/{id}"))
                .body(Full::default())
                .unwrap()
        }
        _ if !known => error(401, "There is no such session."),
        ("DELETE", ["SessionService", "Sessions", id]) => {
            board.sessions.remove(*id);
            Response::builder().status(204).body(Full::default()).unwrap()
        }
        ("GET", ["Systems"]) => {
            let members =
                board.systems.iter().map(|id| json!({"@odata.id": format!("/redfish/v1/Systems/{id}")}));
            document(
                200,
                json!({"Members@odata.count": board.systems.len(), "Members": members.collect::<Vec<_>>()}),
            )
        }
        ("GET", ["Systems", id]) if board.systems.contains(id) => {
            let mut reset =
                json!({"target": format!("/redfish/v1/Systems/{id}/Actions/ComputerSystem.Reset")});
            if let Some(offered) = &board.offered {
                reset["ResetType@Redfish.AllowableValues"] = json!(offered);
            }
            document(
                200,
                json!({"Id": id, "PowerState": board.power, "Actions": {"#ComputerSystem.Reset": reset}}),
            )
        }
        ("POST", ["Systems", id, "Actions", "ComputerSystem.Reset"]) => {
            let kind = body["ResetType"].as_str().unwrap_or_default().to_owned();
            if board.offered.is_none() {
                return Ok(error(400, "The chassis is open."));
            }
            board.resets.push(((*id).to_owned(), kind));
            Response::builder().status(204).body(Full::default()).unwrap()
        }
        _ => error(404, "There is no such resource."),
    })
}

fn redfish(error: PowerError) -> RedfishError {
    match error {
        PowerError::Redfish(error) => error,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_verb_is_done_as_the_standard_says_and_no_session_is_left() {
    let controller = Controller::start().await;
    let driver = controller.driver();
    driver.wake().await.unwrap();
    assert!(controller.board().resets.is_empty(), "it is on");
    controller.board().power = "Off";
    driver.wake().await.unwrap();
    controller.board().power = "On";
    driver.standby().await.unwrap();
    let done = [("1", "On"), ("1", "GracefulShutdown")].map(|(id, kind)| (id.to_owned(), kind.to_owned()));
    assert_eq!(controller.board().resets, done);
    for (shown, state) in [("On", PowerState::On), ("PoweringOff", PowerState::On), ("Off", PowerState::Off)]
    {
        controller.board().power = shown;
        assert_eq!(driver.state().await.unwrap(), state, "{shown}");
    }
    let board = controller.board();
    assert_eq!((board.logins, board.sessions.len()), (6, 0));
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_gets_no_password_and_can_be_pinned() {
    let controller = Controller::start().await;
    let stranger = || Redfish { roots: None, ..controller.driver() };
    let error = redfish(stranger().state().await.unwrap_err());
    let RedfishError::Certificate { seen: Some(seen), pinned: false, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().contains("does not trust whoever has signed it"), "{error}");
    assert!(error.remedy("a").contains(&format!("--redfish-fingerprint {seen}")));
    let pinned = Redfish { fingerprint: Some(*seen), ..stranger() };
    assert_eq!(pinned.state().await.unwrap(), PowerState::On);
    let other = Redfish { fingerprint: Some(Fingerprint([7; 32])), ..controller.driver() };
    let error = redfish(other.state().await.unwrap_err());
    assert!(error.to_string().contains("another one than the one that is pinned"), "{error}");
    assert_eq!(controller.board().logins, 1, "that of the one that was pinned");
}

#[tokio::test]
async fn a_login_that_is_refused_is_told_without_the_password() {
    let controller = Controller::start().await;
    let driver = Redfish { user: "somebody".into(), ..controller.driver() };
    let error = driver.wake().await.unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(told.contains("does not let 'somebody' in: The user or the password is wrong."), "{told}");
    assert!(!told.contains(SECRET));
    std::fs::remove_file(&driver.password).unwrap();
    assert!(matches!(driver.wake().await.unwrap_err(), PowerError::Password { .. }));
}

#[tokio::test]
async fn of_several_computers_the_one_that_is_named_is_switched() {
    let controller = Controller::start().await;
    {
        let mut board = controller.board();
        (board.systems, board.power) = (vec!["blade-1", "blade-2"], "Off");
    }
    let error = redfish(controller.driver().wake().await.unwrap_err());
    assert!(error.to_string().contains("has the computers blade-1, blade-2"), "{error}");
    assert!(error.remedy("a").contains("--redfish-system"));
    let named = Redfish { system: Some("blade-2".into()), ..controller.driver() };
    named.wake().await.unwrap();
    assert_eq!(controller.board().resets, [("blade-2".to_owned(), "On".to_owned())]);
    let unknown = Redfish { system: Some("blade-3".into()), ..controller.driver() };
    assert!(matches!(redfish(unknown.wake().await.unwrap_err()), RedfishError::Refused { status: 404, .. }));
    assert_eq!(controller.board().sessions.len(), 0);
}

#[tokio::test]
async fn what_a_controller_cannot_do_or_does_not_want_is_told_and_power_is_cut_only_if_asked_for() {
    let controller = Controller::start().await;
    controller.board().offered = Some(vec!["On", "ForceOff"]);
    let error = redfish(controller.driver().standby().await.unwrap_err());
    assert!(error.to_string().contains("by GracefulShutdown, but by On, ForceOff"), "{error}");
    assert!(error.remedy("a").contains("--redfish-force-off"));
    Redfish { force_off: true, ..controller.driver() }.standby().await.unwrap();
    assert_eq!(controller.board().resets, [("1".to_owned(), "ForceOff".to_owned())]);
    {
        let mut board = controller.board();
        (board.offered, board.power) = (None, "Off");
    }
    let error = redfish(controller.driver().wake().await.unwrap_err());
    assert!(error.to_string().ends_with("refuses to reset it by On (400): The chassis is open."), "{error}");
    controller.board().power = "Melting";
    assert!(matches!(redfish(controller.driver().state().await.unwrap_err()), RedfishError::Strange { .. }));
}

#[tokio::test]
async fn nobody_at_the_address_is_told() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let controller = Controller::start().await;
    let error = redfish(Redfish { port: nobody, ..controller.driver() }.wake().await.unwrap_err());
    assert!(matches!(error, RedfishError::Reach { .. }), "{error}");
}
