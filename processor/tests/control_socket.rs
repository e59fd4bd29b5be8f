//! The control socket as hostile, slow and foreign callers meet it. The one test that becomes somebody else counts as
//! ignored without root, never as passed.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guestseal::control::api::access::People;
use guestseal::control::api::client::{Client, ClientError, Server};
use guestseal::control::api::problem::Problem;
use guestseal::control::api::{ApiConfig, Ask, Desk, HookConfig, TlsConfig, limits, openapi};
use guestseal::control::wake::wait;
use libtest_mimic::{Arguments, Trial};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tempfile::TempDir;

const TESTS: &[(&str, fn())] = &[
    (
        "every_path_is_described_and_answers",
        every_path_is_described_and_answers,
    ),
    (
        "whoever_calls_is_known_by_the_kernel",
        whoever_calls_is_known_by_the_kernel,
    ),
    ("what_is_no_request_is_told_so", what_is_no_request_is_told_so),
    ("any_bytes_are_answered", any_bytes_are_answered),
    (
        "slow_callers_are_sent_away_and_shut_nobody_out",
        slow_callers_are_sent_away_and_shut_nobody_out,
    ),
    (
        "a_listener_hears_what_is_done_and_a_slow_one_what_it_missed",
        a_listener_hears_what_is_done_and_a_slow_one_what_it_missed,
    ),
    ("streams_shut_nobody_out", streams_shut_nobody_out),
    (
        "webhooks_are_signed_and_taken_once",
        webhooks_are_signed_and_taken_once,
    ),
    (
        "by_tls_both_sides_show_who_they_are",
        by_tls_both_sides_show_who_they_are,
    ),
];

fn main() {
    let arguments = Arguments::from_args();
    let trial = |name, body: fn()| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    };
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("ignored: others_may_do_what_the_configuration_says needs root");
    }
    let others = trial(
        "others_may_do_what_the_configuration_says",
        others_may_do_what_the_configuration_says,
    );
    let mut trials = vec![others.with_ignored_flag(!root)];
    trials.extend(TESTS.iter().map(|(name, body)| trial(name, *body)));
    libtest_mimic::run(&arguments, trials).exit();
}

/// A control loop that says yes to every event, and tells it to whoever listens.
struct Loop {
    _directory: TempDir,
    config: ApiConfig,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    fn start(adjust: impl FnOnce(&mut ApiConfig, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = ApiConfig::new(directory.path());
        adjust(&mut config, directory.path());
        let mut desk = Desk::open(&config, directory.path()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                wait(
                    &[desk.bell().as_fd()],
                    Instant::now() + Duration::from_millis(100),
                );
                for request in desk.take() {
                    let answer = match &request.ask {
                        Ask::Event(event) => {
                            desk.tell(&json!({"by": request.by, "event": event}));
                            json!({"generation": 1})
                        }
                        Ask::Report { report, .. } if report["busy"] == true => {
                            let problem = json!({"error": "TooFast", "message": "later"});
                            let problem = Problem {
                                status: 429,
                                ..serde_json::from_value(problem).unwrap()
                            };
                            let _ = request.reply.send(Err(problem));
                            continue;
                        }
                        Ask::Report { source, report, .. } => json!({"source": source, "report": report}),
                        _ => json!({"by": request.by}),
                    };
                    let _ = request.reply.send(Ok(answer));
                }
            }
        });
        Self {
            _directory: directory,
            config,
            stop,
            thread: Some(thread),
        }
    }

    fn client(&self) -> Client {
        Client::unix(&self.config.socket).unwrap()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.config.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// What comes back for bytes that somebody sends.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may be closed before all is taken.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post(&self, path: &str, body: &[u8]) -> String {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn answers(&self) -> bool {
        self.client().call("GET", "/v1/status", None).is_ok()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn status_of(answer: &str) -> u16 {
    let code = answer
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no HTTP: {answer:?}"))
}

fn every_path_is_described_and_answers() {
    let served = Loop::start(|_, _| {});
    let client = served.client();
    let description = serde_json::to_value(openapi()).unwrap();
    let mut asked = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            if (path.as_str(), method.as_str()) == ("/v1/events", "get") {
                continue;
            }
            let query = if method == "delete" && path.ends_with("/tags") {
                "?service=av&name=*"
            } else {
                ""
            };
            let path = path.replace("{guest}", "web-1").replace("{interface}", "vnet7") + query;
            let body = match path.rsplit('/').next().unwrap() {
                "tags" => json!({"service": "av", "name": "eicar", "severity": 90}),
                "transfer" | "pin" => json!({"container": "quarantine"}),
                "move" => json!({"host": "h2"}),
                "ports" => json!({"guest": "web-1", "mac": "02:00:00:00:00:01", "interface": "vnet7"}),
                "events" => json!({"guest": "web-1", "release": {}}),
                _ => Value::Null,
            };
            let answer = client.call(&method.to_uppercase(), &path, Some(&body));
            assert!(answer.is_ok(), "{method} {path}: {answer:?}");
            asked += 1;
        }
    }
    assert!(asked > 15, "{asked}");
}

fn whoever_calls_is_known_by_the_kernel() {
    let served = Loop::start(|_, _| {});
    let status = served.client().call("GET", "/v1/status", None).unwrap();
    let user = rustix::process::geteuid().as_raw();
    let expected = format!("user {user}, process {}", std::process::id());
    assert_eq!(status["by"].as_str(), Some(expected.as_str()));
}

/// Needs root: it becomes somebody else.
fn others_may_do_what_the_configuration_says() {
    let served = Loop::start(|config, directory| {
        config.mode = 0o666;
        config.access.read = People::parse(["4711"]).unwrap();
        config.access.change = People::parse(["@4712"]).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory, open).unwrap();
    });
    let curl = |user: u32, group: u32, rest: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            &user.to_string(),
            "--regid",
            &group.to_string(),
            "--clear-groups",
        ]);
        command.args([
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--unix-socket",
        ]);
        let output = command.arg(&served.config.socket).args(rest).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let read = ["http://x/v1/status"];
    let change = ["-d", r#"{"container": "q"}"#, "http://x/v1/guests/web-1/pin"];
    let may = |user, group| [curl(user, group, &read), curl(user, group, &change)];
    assert_eq!(may(4711, 99), ["200", "403"]);
    assert_eq!(may(99, 4712), ["200", "200"]);
    assert_eq!(may(99, 99), ["403", "403"]);
    let closed = Loop::start(|_, _| {});
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&closed.config.socket).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "unless the configuration opens it");
}

fn what_is_no_request_is_told_so() {
    let served = Loop::start(|_, _| {});
    let pin = "/v1/guests/web-1/pin";
    for (body, expected) in [
        (&b"{\"container\": \"q\"}"[..], 200),
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"{\"container\": 7}", 400),
        (b"{\"container\": \"q\", \"more\": 1}", 400),
        (b"\xff\xfe", 400),
    ] {
        let answer = served.post(pin, body);
        assert_eq!(
            status_of(&answer),
            expected,
            "{}: {answer}",
            String::from_utf8_lossy(body)
        );
        assert!(answer.contains("application/json"), "{answer}");
    }
    let nested = format!("{{\"container\": {}", "[".repeat(100_000));
    assert_eq!(status_of(&served.post(pin, nested.as_bytes())), 400);
    let large = vec![b' '; limits::BODY + 1];
    assert_eq!(status_of(&served.post(pin, &large)), 413);
    assert_eq!(status_of(&served.post("/v1/nowhere", b"")), 404);
    assert_eq!(status_of(&served.post("/v1/status", b"")), 405);
    assert_eq!(
        status_of(&served.raw(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")),
        400
    );
    let head = format!(
        "GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(2 * limits::HEAD)
    );
    assert_eq!(status_of(&served.raw(head.as_bytes())), 431);
    assert_eq!(
        status_of(&served.raw(
            b"DELETE /v1/guests/web-1/tags?service=av HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )),
        400
    );
    assert!(served.answers());
}

/// Whatever the bytes of a body are, there is one whole answer, and it is a client's error or a success.
fn any_bytes_are_answered() {
    let served = Loop::start(|_, _| {});
    let event = br#"{"time": "2026-11-24T21:00:00Z", "guest": "web-1", "tag": {"service": "av", "name": "x", "severity": 90}}"#;
    let changed = (0..event.len(), any::<u8>()).prop_map(move |(at, byte)| {
        let mut bytes = event.to_vec();
        bytes[at] = byte;
        bytes
    });
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        "[\\[\\]{}\",:0-9a-z\\\\ue-]{0,200}".prop_map(String::into_bytes),
        changed,
    ];
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let done = runner.run(&bytes, |bytes| {
        let answer = served.post("/v1/events", &bytes);
        prop_assert!([200, 400].contains(&status_of(&answer)), "{}", answer);
        Ok(())
    });
    done.unwrap();
    assert!(served.answers());
}

fn slow_callers_are_sent_away_and_shut_nobody_out() {
    let served = Loop::start(|_, _| {});
    let begin = Instant::now();
    // Half a head, half a body, nothing at all: as many as there is room for.
    let mut slow: Vec<UnixStream> = Vec::new();
    for number in 0..limits::CONNECTIONS {
        let mut stream = served.connect();
        let bytes: &[u8] = match number % 3 {
            0 => b"POST /v1/ev",
            1 => b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
            _ => b"",
        };
        stream.write_all(bytes).unwrap();
        slow.push(stream);
    }
    assert!(served.answers(), "once there is room again");
    let waited = begin.elapsed();
    assert!(waited < limits::ANSWER_TIME + limits::HEAD_TIME, "{waited:?}");
    for (number, mut stream) in slow.into_iter().enumerate() {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        if number % 3 == 1 {
            assert_eq!(status_of(&answer), 408);
        }
    }
}

fn a_listener_hears_what_is_done_and_a_slow_one_what_it_missed() {
    let served = Loop::start(|_, _| {});
    let release = json!({"guest": "web-1", "release": {}});
    let mut quick = served.connect();
    let mut slow = served.connect();
    for stream in [&mut quick, &mut slow] {
        stream
            .write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    let client = served.client();
    client.call("POST", "/v1/events", Some(&release)).unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    while !heard.contains("data: {") {
        let count = quick.read(&mut buffer).unwrap();
        assert!(count > 0, "the stream has ended: {heard}");
        heard += &String::from_utf8_lossy(&buffer[..count]);
    }
    assert!(heard.contains("\"release\""), "{heard}");
    drop(quick);
    // More than the ring of news and the socket hold together; the control loop waits for nobody.
    let long = json!({"guest": "g".repeat(limits::BODY / 2), "release": {}});
    for _ in 0..40 {
        client.call("POST", "/v1/events", Some(&long)).unwrap();
    }
    for _ in 0..limits::NEWS + 40 {
        client.call("POST", "/v1/events", Some(&release)).unwrap();
    }
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("event: lost") {
        let count = slow.read(&mut buffer).unwrap();
        assert!(count > 0, "nothing was lost");
        heard.drain(..heard.len().saturating_sub(64));
        heard.extend_from_slice(&buffer[..count]);
    }
}

fn streams_shut_nobody_out() {
    let served = Loop::start(|_, _| {});
    let streams: Vec<UnixStream> = (0..limits::STREAMS)
        .map(|_| {
            let mut stream = served.connect();
            stream
                .write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
            stream.read_exact(&mut [0; 15]).unwrap();
            stream
        })
        .collect();
    let refused = served.client().call("GET", "/v1/events", None).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(problem) if problem.status == 503));
    assert!(served.answers());
    drop(streams);
}

/// An authority, and certificates that it has signed.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout {} -out {}",
            authority.path("ca.key").display(),
            authority.path("ca.pem").display()
        ));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let [key, request, pem, names] =
            ["key", "csr", "pem", "ext"].map(|kind| self.path(&format!("{name}.{kind}")));
        std::fs::write(&names, format!("subjectAltName=DNS:{name}\n")).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {} -out {}",
            key.display(),
            request.display()
        ));
        self.openssl(&format!(
            "x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
            request.display(),
            self.path("ca.pem").display(),
            self.path("ca.key").display(),
            names.display(),
            pem.display()
        ));
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        (pem, key)
    }
}

fn by_tls_both_sides_show_who_they_are() {
    let ours = Authority::new();
    let foreign = Authority::new();
    let (certificate, key) = ours.sign("localhost");
    // A port that was free a moment ago.
    let listen = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let served = Loop::start(|config, _| {
        config.tls = Some(TlsConfig {
            listen,
            certificate,
            key,
            clients: ours.path("ca.pem"),
            read: ["watcher".to_owned()].into(),
            change: ["operator".to_owned()].into(),
        });
    });
    let client = |of: &Authority, trusts: &Authority, name: &str| {
        let (certificate, key) = of.sign(name);
        Client::new(Server::Tls {
            address: format!("localhost:{}", listen.port()),
            authority: trusts.path("ca.pem"),
            certificate,
            key,
        })
        .unwrap()
    };
    let pin = json!({"container": "q"});
    let may = |client: &Client| {
        let code = |result: Result<Value, ClientError>| match result {
            Ok(_) => 200,
            Err(ClientError::Refused(problem)) => problem.status,
            Err(_) => 0,
        };
        [
            code(client.call("GET", "/v1/status", None)),
            code(client.call("POST", "/v1/guests/web-1/pin", Some(&pin))),
        ]
    };
    let operator = client(&ours, &ours, "operator");
    assert_eq!(may(&operator), [200, 200]);
    let status = operator.call("GET", "/v1/status", None).unwrap();
    assert_eq!(status["by"], "certificate of operator");
    assert_eq!(may(&client(&ours, &ours, "watcher")), [200, 403]);
    assert_eq!(may(&client(&ours, &ours, "nobody")), [403, 403]);
    assert_eq!(
        may(&client(&foreign, &ours, "operator")),
        [0, 0],
        "signed by somebody else"
    );
    assert_eq!(
        may(&client(&ours, &foreign, "operator")),
        [0, 0],
        "the host is not whom the caller trusts"
    );
    assert!(served.answers(), "by the socket as before");
}

/// Signed by OpenSSL, which knows nothing of ours.
fn hook_signature(secret: &[u8], signed: &[u8]) -> String {
    let hex = secret
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let mut openssl = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "openssl dgst -sha256 -mac HMAC -macopt hexkey:{hex} -binary | openssl base64 -A"
        ))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(signed).unwrap();
    let output = openssl.wait_with_output().unwrap();
    format!("v1,{}", String::from_utf8(output.stdout).unwrap())
}

fn webhooks_are_signed_and_taken_once() {
    // "0123456789abcdef01234567" in base64.
    const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n";
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let served = Loop::start(|config, directory| {
        let secret = directory.join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        config.hooks = vec![HookConfig {
            name: "edr".to_owned(),
            listen: address,
            secret,
        }];
    });
    let send = |path: &str, headers: &str, body: &[u8]| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (status_of(&answer), answer)
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let headers = |id: &str, time: u64, body: &str| {
        let signature = hook_signature(
            b"0123456789abcdef01234567",
            format!("{id}.{time}.{body}").as_bytes(),
        );
        format!("webhook-id: {id}\r\nwebhook-timestamp: {time}\r\nwebhook-signature: {signature}\r\n")
    };
    let body = r#"{"vm": "web-1"}"#;
    let good = headers("a", now, body);
    assert_eq!(send("/v1/hooks/edr", &good, b"{}").0, 401, "another body");
    assert_eq!(send("/v1/hooks/edr", "", body.as_bytes()).0, 400);
    assert_eq!(
        send("/v1/hooks/other", &good, body.as_bytes()).0,
        401,
        "which there are is not told"
    );
    let (status, answer) = send("/v1/hooks/edr", &good, body.as_bytes());
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer.contains(r#""source":"edr""#) && answer.contains(r#""vm":"web-1""#),
        "{answer}"
    );
    assert_eq!(send("/v1/hooks/edr", &good, body.as_bytes()).0, 409, "once more");
    assert_eq!(
        send("/v1/hooks/edr", &headers("b", now - 400, body), body.as_bytes()).0,
        401,
        "too old"
    );
    assert_eq!(
        send("/v1/hooks/edr", &headers("c", now, "{"), b"{").0,
        400,
        "no JSON"
    );
    // What may be tried again may be: the loop is too busy for the first.
    let busy = r#"{"busy": true}"#;
    let again = headers("d", now, busy);
    assert_eq!(send("/v1/hooks/edr", &again, busy.as_bytes()).0, 429);
    assert_eq!(send("/v1/hooks/edr", &again, busy.as_bytes()).0, 429);
    let large = vec![b'x'; limits::BODY + 1];
    assert_eq!(send("/v1/hooks/edr", &good, &large).0, 413);
    assert_eq!(send("/v1/status", &good, b"").0, 404, "nothing else is there");
    assert!(served.answers());
}
