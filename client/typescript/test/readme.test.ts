/** The programs of the README compile, and run as they stand. */

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { TestServer } from "./server.js";

const run = promisify(execFile);
const root = new URL("../../../", import.meta.url);
const folder = new URL("build/readme/", root);
const file = (name: string): string => fileURLToPath(new URL(name, folder));

test("the programs of the README run as printed", async () => {
  const text = await readFile(new URL("README.md", root), "utf8");
  const programs = [...text.matchAll(/```ts (\w+)\n(.*?)```/gs)];
  assert.deepEqual(
    programs.map(([, name]) => name),
    ["runner", "algorithm", "control", "consumers", "exporter"],
  );
  await mkdir(folder, { recursive: true });
  for (const [, name, code] of programs) await writeFile(file(`${name ?? ""}.ts`), code ?? "");
  const options = {
    extends: "../../tsconfig.json",
    compilerOptions: { rootDir: ".", outDir: "out", incremental: false, tsBuildInfoFile: null },
  };
  await writeFile(file("tsconfig.json"), JSON.stringify({ ...options, include: ["*.ts"] }));
  const tsc = fileURLToPath(new URL("node_modules/typescript/bin/tsc", root));
  await run(process.execPath, [tsc, "-p", file("tsconfig.json")]);

  await using server = await TestServer.start();
  const env = { ...process.env, LIGHTNINGSTORE_ADDRESS: server.address };
  const runner = spawn(process.execPath, ["--no-warnings", file("out/runner.js")], {
    env,
    stdio: "inherit",
  });
  const { stdout } = await run(process.execPath, [file("out/algorithm.js")], { env });
  const control = await run(process.execPath, [file("out/control.js")], { env });
  const consumers = await run(process.execPath, [file("out/consumers.js")], { env });
  runner.kill("SIGTERM");
  assert.deepEqual(await once(runner, "exit"), [0, null]);
  assert.deepEqual(stdout.trim().split("\n").sort(), [
    "4 finished, still open: []",
    "queued: 0n",
    "{ question: 5 } SUCCEEDED 0.5",
    "{ question: 6 } SUCCEEDED 0.6",
    "{ question: 7 } FAILED undefined",
    "{ question: 8 } SUCCEEDED 0.8",
  ]);
  assert.deepEqual(control.stdout.trim().split("\n"), [
    "task-1 mean reward 0.25",
    "with the new weights: true",
    "best: 0.4 0.7",
    "rewards so far: 7n",
  ]);
  assert.equal(consumers.stdout, "task-2 0.2 2\n");
  const exported = await run(process.execPath, [file("out/exporter.js")], { env });
  assert.match(exported.stdout, /^step [0-9a-f]{32}\n$/);
});
