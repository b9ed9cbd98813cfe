//! Runs the programs of the README, as printed.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{env, fs};

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn start(command: &mut Command) -> (Running, String) {
    let mut server = command.stdout(Stdio::piped()).spawn().expect("a program that starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Running(server), line)
}

fn serve() -> (Running, String) {
    let checkout = root().join("../../.venv/bin/lightningstore");
    let program = env::var_os("LIGHTNINGSTORE_SERVER").map_or(checkout, PathBuf::from);
    let (server, line) = start(Command::new(program).args(["serve", "--port", "0", "--backend", "memory"]));
    let port = line.rsplit("127.0.0.1:").next().unwrap().chars().take_while(char::is_ascii_digit);
    let address = format!("127.0.0.1:{}", port.collect::<String>());
    (server, address)
}

/// What cargo made of an example.
fn example(name: &str, address: &str) -> Command {
    let here = env::current_exe().unwrap();
    let made = here.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(made.exists(), "{} is not there: run the tests as `cargo test`", made.display());
    let mut command = Command::new(made);
    command.env("LIGHTNINGSTORE_ADDRESS", address);
    command
}

fn output(name: &str, address: &str) -> String {
    let Output { status, stdout, stderr } = example(name, address).output().unwrap();
    assert!(status.success(), "{name}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_programs_of_the_readme_are_the_examples() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let printed: Vec<_> = readme.split("```rust\n").skip(1).map(|rest| rest.split("```").next()).collect();
    let examples = ["runner", "algorithm", "control", "exporter"]
        .map(|name| fs::read_to_string(root().join(format!("examples/{name}.rs"))).unwrap());
    assert_eq!(printed, examples.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>());
}

#[test]
fn a_program_without_a_server_is_told_the_address() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}"); // where nothing listens any more
    let mut runner = Running(example("runner", &address).stdout(Stdio::piped()).spawn().unwrap());
    let warning =
        format!("no server has answered at {address} for 2s: is `lightningstore serve` running there?");
    let mut lines = BufReader::new(runner.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(&warning)), "the runner ended without the warning");
}

#[test]
fn the_programs_of_the_readme_run() {
    let (_server, address) = serve();
    let mut runner = Running(example("runner", &address).spawn().unwrap());
    let finished = output("algorithm", &address);
    let mut lines: Vec<_> = finished.lines().collect();
    lines.sort_unstable();
    let expected = [
        r#"{"question":5} Succeeded Some(0.5)"#,
        r#"{"question":6} Succeeded Some(0.6)"#,
        r#"{"question":7} Failed None"#,
        r#"{"question":8} Succeeded Some(0.8)"#,
    ];
    assert_eq!(lines, expected);
    let control =
        "task-1 mean reward Some(0.25), with the new weights: true\nbest: Some(0.4) {\"judge\": 0.7}\n";
    assert_eq!(output("control", &address), control);
    assert_eq!(output("exporter", &address), "0 dropped\n1 step\n");
    let refused = example("exporter", &address).env("LIGHTNINGSTORE_TOKEN", "secret").output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("unencrypted") && !stderr.contains("secret"), "{stderr}");
    let refused = example("exporter", &address).env("LIGHTNINGSTORE_NAMESPACE", "My Run").output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("the namespace must be") && stderr.contains("My Run"), "{stderr}");
    let pid = runner.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(runner.0.wait().unwrap().success());
}
