/**
 * The conformance driver: reads commands from stdin, executes them with this client, and writes answers to
 * stdout.
 */

import { createInterface } from "node:readline";

import { LightningStore, Runner } from "../src/index.js";
import { agent } from "./agent.js";
import { call, errorOf } from "./call.js";
import { exportSpans } from "./export.js";
import type { Command } from "./protocol.js";

const address = process.argv[2];
if (!address) throw new Error("usage: main.js HOST:PORT");

let store = new LightningStore({ address });
/** Functions that end the running calls and runners, by the id of their command. */
const running = new Map<unknown, { cancel: () => void; stop: () => void }>();

function answer(id: unknown, fields: object): void {
  process.stdout.write(`${JSON.stringify({ id, ...fields })}\n`);
}

async function runRunner(command: Command): Promise<void> {
  const { id, worker_id, concurrency, max_rollouts, heartbeat_period, queues = [] } = command;
  const runner = new Runner(agent, {
    address,
    queues,
    ...(worker_id === undefined ? {} : { workerId: worker_id }),
    ...(concurrency === undefined ? {} : { concurrency }),
    ...(max_rollouts === undefined ? {} : { maxRollouts: max_rollouts }),
    ...(heartbeat_period === undefined ? {} : { heartbeatPeriodMs: heartbeat_period * 1000 }),
  });
  const stop = (): void => {
    runner.stop();
  };
  const cancel = (): void => {
    stop();
    stop();
  };
  running.set(id, { cancel, stop });
  answer(id, { started: true });
  await runner.run({ handleSignals: false });
  answer(id, { ended: true });
}

async function runCall(command: Command): Promise<void> {
  const { id } = command;
  const controller = new AbortController();
  const cancel = (): void => {
    controller.abort();
  };
  running.set(id, { cancel, stop: cancel });
  const started = (): void => {
    answer(id, { started: true });
  };
  answer(id, await call(store, command, controller.signal, started));
}

async function obey(command: Command): Promise<void> {
  const { id } = command;
  switch (command.op) {
    case "call":
      await runCall(command);
      break;
    case "runner":
      await runRunner(command);
      break;
    case "cancel":
      running.get(command.target)?.cancel();
      answer(id, { ok: true });
      break;
    case "stop":
      running.get(command.target)?.stop();
      answer(id, { ok: true });
      break;
    case "reconnect":
      store.close();
      store = new LightningStore({ address });
      answer(id, { ok: true });
      break;
    case "export":
      answer(id, await exportSpans(address ?? "", command));
      break;
    default:
      answer(id, { unsupported: `no op ${command.op}` });
  }
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  if (!line.trim()) return;
  const command = JSON.parse(line) as Command;
  obey(command)
    .catch((error: unknown) => {
      answer(command.id, { error: errorOf(error) });
    })
    .finally(() => {
      if (command.op === "call" || command.op === "runner") running.delete(command.id);
    });
});
// Running commands are not awaited; answers are written first.
lines.on("close", () => {
  process.stdout.write("", () => process.exit(0));
});
