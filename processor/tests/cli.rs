//! The command line as an operator meets it: what is said, where it points, how it exits. Needs no root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use guestseal::control::guests::now;
use guestseal::control::journal::{Deed, Done, Journal};
use tempfile::TempDir;

const POLICY: &str = include_str!("../../rules/examples/demo/policy.yaml");
const HOST: &str = "\
host: h1
policy: [policy.yaml]
uplink: {interface: nosuch0}
security-associations:
  - {name: any-out, direction: out, spi: 0x1001, key: blue-any, network: blue, peer: h2, keymat: {file: any.hex}}
  - {name: any-in, direction: in, spi: 0x1002, key: blue-any, network: blue, peer: h2, mode: tunnel, keymat: {file: in.hex}}
";

struct Files(TempDir);

impl Files {
    /// The demo's policy and a host's file, right in everything.
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("policy.yaml", POLICY);
        files.write("h1.yaml", HOST);
        files.write("any.hex", &"5a".repeat(36));
        files.write("in.hex", &"5b".repeat(36));
        files
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn replace(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path().join(name)).unwrap();
        assert!(text.contains(from), "{name} has no `{from}`");
        self.write(name, &text.replacen(from, to, 1));
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        said(
            Command::new(env!("CARGO_BIN_EXE_guestseal"))
                .args(arguments)
                .current_dir(self.path())
                .output()
                .unwrap(),
        )
    }
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn check_says_ok_or_where() {
    let files = Files::new();
    let (code, out, err) = files.run(&["check", "policy.yaml", "h1.yaml"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.contains("h1.yaml: ok, 2 security associations") && out.contains("policy.yaml: ok"),
        "{out}"
    );

    files.replace("policy.yaml", "key: blue-web", "key: blue-wep");
    files.replace("policy.yaml", "network: red, mac", "network: rad, mac");
    let (code, _, err) = files.run(&["check", "policy.yaml"]);
    assert_eq!(code, 1);
    for part in [
        "policy.yaml:67:129: no key \"blue-wep\" is declared (did you mean \"blue-web\"?)",
        "policy.yaml:26:40: no network \"rad\" is declared (did you mean \"red\"?)",
        "2 mistakes found",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    // The line itself, with the place marked.
    assert!(
        err.contains("here") && err.contains("action: encrypt, key: blue-wep"),
        "{err}"
    );
    assert!(!err.contains('\u{1b}'), "no colour into a pipe: {err:?}");
}

#[test]
fn check_warns_and_strict_makes_it_a_mistake() {
    let files = Files::new();
    files.replace(
        "policy.yaml",
        "  - {name: red, from: {network: red}, to: {network: red}, action: encrypt, key: red-any}\n",
        "",
    );
    let (code, out, _) = files.run(&["check", "policy.yaml"]);
    assert_eq!(code, 0);
    assert!(
        out.contains("warning: policy.yaml:") && out.contains("key \"red-any\" is named by no rule"),
        "{out}"
    );
    assert!(
        out.contains("network \"red\": packets that no rule matches exist, and are dropped"),
        "{out}"
    );
    assert_eq!(files.run(&["check", "--strict", "policy.yaml"]).0, 1);
}

#[test]
fn a_wrong_host_file_is_refused_with_its_place() {
    for (from, to, expected) in [
        (
            "host: h1",
            "host: h7",
            "h1.yaml:1:7: no host \"h7\" is declared in the policy",
        ),
        ("peer: h2", "peer: h1", "h1.yaml:5:86: the peer is this host"),
        ("key: blue-any", "key: blue-none", "no key \"blue-none\""),
        ("network: blue", "network: grey", "no network \"grey\""),
        ("spi: 0x1001", "spi: 100", "SPI"),
        (
            "policy: [policy.yaml]",
            "policy: [policy.yaml]\naead: vases",
            "unknown word `vases`, expected one of auto, vaes, ipsec-mb, aes-gcm (did you mean \"vaes\"?)",
        ),
        (
            "spi: 0x1002",
            "spi: 0x1002, replay-window: 64",
            "a replay window has 1024 to 65536 numbers",
        ),
        (
            "direction: in",
            "direction: inn",
            "unknown word `inn`, expected one of out, in (did you mean \"in\"?)",
        ),
        (
            "mode: tunnel",
            "mode: tunnel, over-ip6: true, worker: 3",
            "there is no worker 3: expected 0 to 0",
        ),
        (
            "name: any-in",
            "name: ../any-in",
            "the name of a security association is also a file's",
        ),
        ("name: any-in", "name: any-out", "declared twice"),
        ("uplink:", "umem: {frame-size: 1500}\nuplink:", "umem: "),
        ("uplink:", "uplnik:", "unknown field `uplnik`"),
        (
            "keymat: {file: any.hex}",
            "keymat: {bytes: 5a5a}",
            "unknown field `bytes`",
        ),
    ] {
        let files = Files::new();
        files.replace("h1.yaml", from, to);
        let (code, _, err) = files.run(&["check", "h1.yaml"]);
        assert_eq!(code, 1, "{to}");
        assert!(err.contains(expected), "{to}: {err}");
    }
    let files = Files::new();
    files.replace(
        "policy.yaml",
        "addresses: [192.0.2.1, \"2001:db8::1\"]",
        "addresses: [\"2001:db8::1\"]",
    );
    let (code, _, err) = files.run(&["check", "h1.yaml"]);
    assert!(
        code == 1 && err.contains("tunnel mode needs an IPv4 address of both hosts"),
        "{err}"
    );
}

/// The policy is in etcd or in files; what is to be put into etcd is looked at first, and what a host has not had is said.
#[test]
fn a_policy_in_etcd_is_the_only_one_and_is_looked_at_before_it_is_pushed() {
    const ETCD: &str = "etcd:\n  endpoints: ['http://127.0.0.1:9']\n  policy: true\n";
    let files = Files::new();
    let host = fs::read_to_string(files.path().join("h1.yaml")).unwrap();
    files.write("h1.yaml", &format!("{host}{ETCD}"));
    let (code, _, err) = files.run(&["check", "h1.yaml"]);
    assert!(
        code == 1 && err.contains("expected no policy files beside it"),
        "{err}"
    );
    let without: Vec<&str> = host.lines().filter(|line| !line.starts_with("policy:")).collect();
    let without = without.join("\n");
    files.write("h1.yaml", &without);
    let (code, _, err) = files.run(&["check", "h1.yaml"]);
    assert!(
        code == 1 && err.contains("or policy: true in the etcd part"),
        "{err}"
    );
    files.write("h1.yaml", &format!("{without}\n{ETCD}"));
    let (code, _, err) = files.run(&["check", "h1.yaml"]);
    assert!(
        code == 1 && err.contains("`guestseal policy pull --config h1.yaml`"),
        "{err}"
    );
    files.write("operator.yaml", ETCD);
    let push = ["policy", "push", "--config", "operator.yaml", "policy.yaml"];
    let (code, _, err) = files.run(&push);
    assert!(code == 1 && err.contains("etcd at http://127.0.0.1:9: "), "{err}");
    fs::create_dir(files.path().join("aside")).unwrap();
    files.write("aside/policy.yaml", "rules: []\n");
    let (code, _, err) = files.run(&[&push[..], &["aside/policy.yaml"]].concat());
    assert!(
        code == 1 && err.contains("two files are called policy.yaml"),
        "{err}"
    );
    files.replace("policy.yaml", "key: blue-mail", "key: blue-male");
    let (code, _, err) = files.run(&push);
    let wrong = "etcd:/guestseal/policy/policy.yaml:";
    assert!(
        code == 1 && err.contains(wrong) && err.contains("did you mean \"blue-mail\""),
        "{err}"
    );
    files.write("operator.yaml", "policy: [policy.yaml]\n");
    let (code, _, err) = files.run(&push);
    assert!(code == 1 && err.contains("expected an etcd part"), "{err}");
}

#[test]
fn explain_says_which_rule_and_why_not_the_ones_before() {
    let files = Files::new();
    let line = [
        "explain",
        "--policy",
        "policy.yaml",
        "--from",
        "blue-1",
        "--to",
        "10.1.0.2",
        "--to-port",
        "8080",
        "--syn",
    ];
    let (code, out, _) = files.run(&line);
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines.iter().any(|line| line.starts_with(
            "no     arp (policy.yaml:60:12, section general): the EtherType is ipv4, the rule wants arp"
        )),
        "{out}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.contains("mail") && line.contains("the rule wants port 25")),
        "{out}"
    );
    assert!(lines.iter().any(|line| line.starts_with("match  web")), "{out}");
    assert_eq!(lines.last(), Some(&"=> encrypt under key blue-web (aes-256-gcm)"));

    let (code, out, _) = files.run(&[&line[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["verdict"]),
        (0, &"encrypt under key blue-web (aes-256-gcm)".into())
    );
    let (_, out, _) = files.run(&[
        "explain",
        "--policy",
        "policy.yaml",
        "--from",
        "blue-1",
        "--to",
        "blue-2",
        "--fragment",
    ]);
    assert!(out.contains("FragmentNeedsPorts"), "{out}");
    let (code, _, err) = files.run(&[
        "explain",
        "--policy",
        "policy.yaml",
        "--from",
        "blue-9",
        "--to",
        "blue-2",
    ]);
    assert!(
        code == 1 && err.contains("\"blue-9\" is neither a declared guest nor an address"),
        "{err}"
    );
}

#[test]
fn run_says_what_is_missing_before_it_touches_anything() {
    let files = Files::new();
    let run = |files: &Files| files.run(&["run", "--config", "h1.yaml"]);
    if rustix::process::geteuid().is_root() {
        // As an operator would meet it, step by step.
        let (code, _, err) = run(&files);
        assert!(
            code == 1 && err.contains("any-out.mark is missing") && err.contains("guestseal sa init"),
            "{err}"
        );
        assert_eq!(files.run(&["sa", "init", "--config", "h1.yaml"]).0, 0);
        let (code, _, err) = run(&files);
        assert!(code == 1 && err.contains("no interface nosuch0"), "{err}");
        fs::set_permissions(files.path().join("any.hex"), fs::Permissions::from_mode(0o644)).unwrap();
        let (code, _, err) = run(&files);
        assert!(code == 1 && err.contains("chmod 600 any.hex"), "{err}");
        files.write("any.hex", "5a5a");
        let (code, _, err) = run(&files);
        assert!(
            code == 1 && err.contains("any-out") && !err.contains("5a5a"),
            "{err}"
        );
        files.write("any.hex", &"5b".repeat(36));
        let (code, _, err) = run(&files);
        assert!(
            code == 1 && err.contains("any-out") && err.contains("any-in"),
            "two SAs with one KEYMAT: {err}"
        );

        // Without privileges: one sentence.
        let files = Files::new();
        let binary = files.path().join("guestseal");
        fs::copy(env!("CARGO_BIN_EXE_guestseal"), &binary).unwrap();
        for path in [files.path(), &binary] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in ["policy.yaml", "h1.yaml"] {
            fs::set_permissions(files.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        let unprivileged = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--clear-groups",
                "./guestseal",
                "run",
                "--config",
                "h1.yaml",
            ])
            .current_dir(files.path())
            .output()
            .unwrap();
        let (code, _, err) = said(unprivileged);
        assert_eq!(
            (code, err.as_str()),
            (
                1,
                "guestseal: run needs root, or at least CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_BPF\n"
            )
        );
    } else {
        let (code, _, err) = run(&files);
        assert!(code == 1 && err.starts_with("guestseal: run needs root"), "{err}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_help_shows_examples() {
    let files = Files::new();
    for wrong in [
        &["run"][..],
        &["run", "--config", "h1.yaml", "--queue", "0"],
        &[
            "run", "--config", "h1.yaml", "--queue", "0", "--cpu", "0", "--queue", "1", "--cpu", "1",
            "--cpu", "2",
        ],
        &["run", "--config", "h1.yaml", "--xdp-mode", "fast"],
        &["check"],
        &["key", "rotate"],
        &["seal"],
    ] {
        let (code, _, err) = files.run(wrong);
        assert_eq!(code, 2, "{wrong:?}: {err}");
        assert!(err.starts_with("error: "), "{err}");
    }
    for subcommand in ["run", "check", "explain", "key"] {
        let (code, out, _) = files.run(&[subcommand, "--help"]);
        assert!(code == 0 && out.contains("Examples:"), "{out}");
    }
    assert_eq!(files.run(&["--version"]).0, 0);
    assert_eq!(files.run(&["man", "man1"]).0, 0);
    let page = fs::read_to_string(files.path().join("man1/guestseal-run.1")).unwrap();
    assert!(
        page.contains("guestseal run") && page.contains("xdp\\-mode"),
        "{page}"
    );
}

#[test]
fn an_identity_is_made_shown_and_rotated() {
    let files = Files::new();
    let public = |(code, out, err): (i32, String, String)| {
        assert_eq!((code, out.len()), (0, 65), "{out}{err}");
        assert!(
            out.trim_end().bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{out}"
        );
        out
    };
    let made = files.run(&["key", "generate", "identity"]);
    assert!(made.2.contains("public key"), "{}", made.2);
    let old = public(made);
    let secret = fs::read_to_string(files.path().join("identity")).unwrap();
    assert_ne!(secret, old, "the public half is printed, not the secret");
    let mode = fs::metadata(files.path().join("identity"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(public(files.run(&["key", "public", "identity"])), old);

    let (code, _, err) = files.run(&["key", "generate", "identity"]);
    assert!(
        code == 1 && err.contains("identity: the secret cannot be written: File exists"),
        "{err}"
    );
    assert_eq!(
        fs::read_to_string(files.path().join("identity")).unwrap(),
        secret,
        "it is left alone"
    );

    let next = public(files.run(&["key", "rotate", "identity"]));
    assert_eq!(
        public(files.run(&["key", "public", "identity"])),
        old,
        "until it is activated"
    );
    assert_eq!(
        public(files.run(&["key", "rotate", "identity", "--activate"])),
        next
    );
    assert_eq!(public(files.run(&["key", "public", "identity"])), next);
    let (code, _, err) = files.run(&["key", "rotate", "identity", "--activate"]);
    assert!(code == 1 && err.contains("identity.next: is not there"), "{err}");

    fs::set_permissions(files.path().join("identity"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, out, err) = files.run(&["key", "public", "identity"]);
    assert!(
        code == 1 && out.is_empty() && err.contains("chmod 600 identity"),
        "{err}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let files = Files::new();
    let (code, _, err) = files.run(&["check", "nowhere.yaml"]);
    assert_eq!(
        (code, err.as_str()),
        (
            1,
            "guestseal: nowhere.yaml: cannot be read: No such file or directory (os error 2)\n"
        )
    );
}

/// What has happened to a guest on this host is in its journal: explain tells the event behind the rule.
#[test]
fn explain_of_a_host_knows_what_has_happened_to_its_guests() {
    let files = Files::new();
    let state = files.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let line = [
        "explain",
        "--config",
        "h1.yaml",
        "--from",
        "blue-1",
        "--to",
        "blue-2",
        "--to-port",
        "8080",
    ];
    let (code, out, err) = files.run(&line);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("match  web"), "{out}");
    let event = r#"{"guest":"blue-1","tag":{"service":"av","name":"eicar","severity":90}}"#;
    let (mut journal, _) = Journal::open(&state).unwrap();
    let deed = Deed::Event {
        event: serde_json::from_str(event).unwrap(),
        read: None,
    };
    let (at, by) = (now(), "test".to_owned());
    journal.append(&[Done { at, by, deed }]).unwrap();
    let (code, out, _) = files.run(&line);
    assert_eq!(code, 0);
    assert!(out.contains("match  nobody-out"), "{out}");
    assert!(out.contains("tag av/eicar of severity 90"), "{out}");
}

#[test]
fn status_says_when_nothing_runs_and_schema_prints_json() {
    let files = Files::new();
    let (code, _, err) = files.run(&["status", "--config", "h1.yaml"]);
    assert_eq!(code, 1);
    assert!(err.contains("guestseal has not run here"), "{err}");
    let (code, out, _) = files.run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, schema["type"].as_str()), (0, Some("object")), "{out}");
}
