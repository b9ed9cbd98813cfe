import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";

import { Code, LightningStore, SpanExporter, type TlsOptions } from "../src/index.js";
import { serverCommand, TestServer } from "./server.js";

const run = promisify(execFile);
let folder: string;
const file = (name: string): string => join(folder, name);

/** Makes a key and a certificate for localhost, signed by itself. */
async function certify(name: string): Promise<void> {
  const subject = [
    "-subj",
    "/CN=localhost",
    "-addext",
    "subjectAltName=DNS:localhost,IP:127.0.0.1",
  ];
  const files = ["-keyout", file(`${name}.key`), "-out", file(`${name}.pem`)];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  await run("openssl", ["req", ...kind, "-days", "2", ...subject, ...files]);
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "lightningstore-tls-"));
  await Promise.all([certify("server"), certify("client")]);
});

after(async () => {
  await rm(folder, { recursive: true });
});

async function ask(options: { address: string; token?: string; tls: TlsOptions }): Promise<string> {
  const store = new LightningStore({ ...options, timeoutMs: 10_000 });
  try {
    return (await store.rpc.getServerInfo({})).backend;
  } finally {
    store.close();
  }
}

test("TLS with a token", async () => {
  const tokens = ["token", "new", "--role", "runner", "--name", "me", "--file", file("tokens")];
  const token = (await run(serverCommand(), tokens)).stdout.trim();
  await using server = await TestServer.start(
    ...["memory" as const, "--tls-cert", file("server.pem"), "--tls-key", file("server.key")],
    ...["--auth-tokens", file("tokens")],
  );
  const address = `https://${server.address.replace("127.0.0.1", "localhost")}`;
  const tls = { ca: pathToFileURL(file("server.pem")) };
  assert.equal(await ask({ address, token, tls }), "memory");
  await assert.rejects(ask({ address, tls }), { code: Code.UNAUTHENTICATED });
  await assert.rejects(ask({ address, token, tls: {} }), { code: Code.UNAVAILABLE });
  const exporter = new SpanExporter({ address, token, tls });
  await exporter.shutdown();
});

test("mutual TLS, with certificates as text", async () => {
  await using server = await TestServer.start(
    ...["memory" as const, "--tls-cert", file("server.pem"), "--tls-key", file("server.key")],
    ...["--tls-client-ca", file("client.pem")],
  );
  const [ca, cert, key] = await Promise.all(
    ["server.pem", "client.pem", "client.key"].map((name) => readFile(file(name), "utf8")),
  );
  const address = server.address.replace("127.0.0.1", "localhost");
  assert(ca && cert && key);
  assert.equal(await ask({ address, tls: { ca, cert, key } }), "memory");
  await assert.rejects(ask({ address, tls: { ca } }), { code: Code.UNAVAILABLE });
});
