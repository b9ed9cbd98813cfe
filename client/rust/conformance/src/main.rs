//! The Rust driver of the conformance tests. It reads commands from stdin, one JSON object per line, executes
//! them with this client, and writes the answers to stdout.

mod agent;
mod call;
mod export;

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lightningstore::{Client, RunnerHandle};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio_util::sync::CancellationToken;

/// One line of stdin.
#[derive(Deserialize)]
#[serde(default)]
struct Command {
    id: Value,
    op: String,
    method: String,
    requests: Vec<Box<RawValue>>,
    /// In seconds.
    timeout: f64,
    metadata: HashMap<String, String>,
    target: Value,
    worker_id: String,
    concurrency: usize,
    max_rollouts: usize,
    /// In seconds; 0: the runner's default.
    heartbeat_period: f64,
    queues: Vec<String>,
    exporter: String,
    rollout_id: String,
    attempt_id: String,
    spans: Vec<String>,
}

impl Default for Command {
    fn default() -> Self {
        let (id, op, method, requests) = Default::default();
        let (metadata, target, worker_id, max_rollouts, queues) = Default::default();
        let (heartbeat_period, exporter, rollout_id, attempt_id, spans) = Default::default();
        let (timeout, concurrency) = (30.0, 1);
        Self {
            id,
            op,
            method,
            requests,
            timeout,
            metadata,
            target,
            worker_id,
            concurrency,
            max_rollouts,
            heartbeat_period,
            queues,
            exporter,
            rollout_id,
            attempt_id,
            spans,
        }
    }
}

/// The running commands, by id.
enum Open {
    Call(CancellationToken),
    Runner(RunnerHandle),
}

struct Driver {
    address: String,
    client: Mutex<Client>,
    open: Mutex<HashMap<String, Open>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let address = std::env::args().nth(1).ok_or("usage: conformance ADDRESS")?;
    let client = Mutex::new(Client::new(address.as_str())?);
    let driver = Arc::new(Driver { address, client, open: Mutex::default() });
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if !line.trim().is_empty() {
            driver.take(serde_json::from_str(&line)?)?;
        }
    }
    std::process::exit(0); // what still runs ends with the process
}

impl Driver {
    /// Starts the command of a line. Commands that only affect other commands are executed at once, in the
    /// order of the lines; the others run concurrently.
    fn take(self: &Arc<Self>, command: Command) -> Result<(), lightningstore::Error> {
        let id = command.id.clone();
        match command.op.as_str() {
            "call" => self.call(command),
            "runner" => self.run(command)?,
            "cancel" => {
                self.end(&command.target, |open| match open {
                    Open::Call(cancelled) => cancelled.cancel(),
                    Open::Runner(runner) => runner.cancel(),
                });
                answer(&id, json!({"ok": true}));
            }
            "stop" => {
                self.end(&command.target, |open| {
                    if let Open::Runner(runner) = open {
                        runner.stop();
                    }
                });
                answer(&id, json!({"ok": true}));
            }
            "reconnect" => {
                let new = Client::new(self.address.as_str())?;
                std::mem::replace(&mut *self.client(), new).close();
                answer(&id, json!({"ok": true}));
            }
            "export" => {
                let (driver, client) = (self.clone(), self.client().clone());
                tokio::spawn(async move {
                    answer(&id, export::export(&driver.address, &client, command).await);
                });
            }
            other => answer(&id, json!({"unsupported": format!("no op {other:?}")})),
        }
        Ok(())
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Client> {
        self.client.lock().expect("no panic inside")
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().expect("no panic inside")
    }

    fn end(&self, target: &Value, end: impl FnOnce(&Open)) {
        if let Some(open) = self.open().get(&target.to_string()) {
            end(open);
        }
    }

    fn call(self: &Arc<Self>, command: Command) {
        let (driver, client) = (self.clone(), self.client().clone());
        let cancelled = CancellationToken::new();
        self.open().insert(command.id.to_string(), Open::Call(cancelled.clone()));
        tokio::spawn(async move {
            let (what, id) = (call::call(&client, &command, &cancelled).await, command.id);
            answer(&id, what);
            driver.open().remove(&id.to_string());
        });
    }

    fn run(self: &Arc<Self>, command: Command) -> Result<(), lightningstore::Error> {
        let client = Client::new(self.address.as_str())?; // a connection of its own
        let mut runner = lightningstore::Runner::new(&client, agent::agent)
            .concurrency(command.concurrency)
            .queues(command.queues);
        if !command.worker_id.is_empty() {
            runner = runner.worker_id(command.worker_id);
        }
        if command.max_rollouts > 0 {
            runner = runner.max_rollouts(command.max_rollouts);
        }
        if command.heartbeat_period > 0.0 {
            runner = runner.heartbeat_period(Duration::from_secs_f64(command.heartbeat_period));
        }
        self.open().insert(command.id.to_string(), Open::Runner(runner.handle()));
        answer(&command.id, json!({"started": true}));
        tokio::spawn(async move {
            if let Err(error) = runner.run().await {
                tracing::warn!(%error, "runner ended");
            }
            answer(&command.id, json!({"ended": true}));
        });
        Ok(())
    }
}

/// Writes a line.
fn answer(id: &Value, what: Value) {
    let mut fields = Map::from_iter([("id".to_owned(), id.clone())]);
    if let Value::Object(more) = what {
        fields.extend(more);
    }
    let line = Value::Object(fields).to_string() + "\n";
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1); // stdout is closed
    }
}
