import assert from "node:assert/strict";
import { createServer, type AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";

import { Contact } from "../src/contact.js";
import { LightningStore } from "../src/index.js";
import { Connection, type Stubs } from "../src/rpc.js";
import { ScriptedServer } from "./scripted.js";

/** Collects the warnings of the process, and passes each one on. */
function warnings(t: TestContext, onWarning = (): void => undefined): string[] {
  const got: string[] = [];
  t.mock.method(process, "emitWarning", (message: string) => {
    got.push(message);
    onWarning();
  });
  return got;
}

/** Returns a contact, and what it does after a while. */
function contacted(isConnected: boolean) {
  const due: (() => void)[] = [];
  const contact = new Contact(
    "nowhere:1",
    () => isConnected,
    (ms, report) => {
      assert.equal(ms, 2_000);
      due.push(report);
      return () => due.splice(due.indexOf(report), 1);
    },
  );
  return { contact, due };
}

/** Returns an address at which nothing listens. */
async function unusedAddress(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return `127.0.0.1:${port}`;
}

test("a first call without an answer warns once", (t) => {
  const told = warnings(t);
  const { contact, due } = contacted(false);
  contact.called();
  contact.called();
  assert.equal(due.length, 1);
  due[0]?.();
  contact.called();
  assert.deepEqual(told, [
    "no server has answered at nowhere:1 for 2 s: is `lightningstore serve` running there?",
  ]);
  assert.equal(due.length, 1);
});

test("a slow answer on a connection causes no warning", (t) => {
  const told = warnings(t);
  const { contact, due } = contacted(true);
  contact.called();
  due[0]?.();
  assert.deepEqual(told, []);
});

test("an answer cancels the warning, and later calls are not timed", () => {
  const { contact, due } = contacted(false);
  contact.called();
  contact.end();
  contact.called();
  assert.deepEqual(due, []);
});

test("a client warns if nothing listens at its address", async (t) => {
  const address = await unusedAddress();
  const warned = new Promise<void>((resolve) => {
    warnings(t, resolve);
  });
  const store = new LightningStore({ address, timeoutMs: 60_000 });
  await assert.rejects(store.getRollout("ro"));
  await Promise.race([warned, keptRunning(t)]);
  store.close();
});

/** Keeps the program running until the test ends, because the client's timer does not. */
function keptRunning(t: TestContext): Promise<void> {
  return new Promise((_, reject) => {
    const timer = setTimeout(() => {
      reject(new Error("waited in vain"));
    }, 60_000);
    t.after(() => {
      clearTimeout(timer);
    });
  });
}

test("answers to calls and streams count", async () => {
  using server = await ScriptedServer.start({
    getRollout: () => ({}),
    ingestSpans: () => Promise.resolve({}),
    querySpans: async function* () {
      yield await Promise.resolve({});
    },
  });
  const calls: Record<string, (stubs: Stubs) => Promise<unknown>> = {
    unary: (stubs) => stubs.getRollout({}),
    "server stream": (stubs) => stubs.querySpans({}).next(),
    "client stream": (stubs) => stubs.ingestSpans([]),
  };
  for (const [kind, call] of Object.entries(calls)) {
    const { contact } = contacted(false);
    const connection = new Connection({ address: server.address }, contact);
    assert(!contact.isOver);
    await call(connection.stubs());
    assert(contact.isOver, kind);
    connection.close();
  }
});
