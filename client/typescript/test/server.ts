/** A real server, as a process of its own. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The command: LIGHTNINGSTORE_SERVER, else the repository's own. */
export function serverCommand(): string {
  const given = process.env.LIGHTNINGSTORE_SERVER;
  if (given) return given;
  for (let dir = new URL(".", import.meta.url); ; dir = new URL("..", dir)) {
    const found = fileURLToPath(new URL(".venv/bin/lightningstore", dir));
    if (existsSync(found)) return found;
    if (dir.pathname === "/") throw new Error("no server: set LIGHTNINGSTORE_SERVER");
  }
}

/** A server over the memory back end, or over SQLite in a folder of its own. */
export class TestServer {
  address = "";
  /** The link of its port for HTTP, of a server with HTTP. */
  http = "";
  #process: ChildProcess | undefined;
  readonly #folder: string;
  readonly #options: readonly string[];

  private constructor(folder: string, options: readonly string[]) {
    this.#folder = folder;
    this.#options = options;
  }

  /** Starts one without HTTP, in half the time that HTTP takes. */
  static async start(
    backend: "memory" | "sqlite" = "memory",
    ...more: string[]
  ): Promise<TestServer> {
    return this.#begun("--backend", backend, "--http-port", "0", ...more);
  }

  static async startWithHttp(): Promise<TestServer> {
    return this.#begun("--backend", "memory");
  }

  static async #begun(...options: string[]): Promise<TestServer> {
    const folder = await mkdtemp(join(tmpdir(), "lightningstore-"));
    const server = new TestServer(folder, ["--db", join(folder, "store.db"), ...options]);
    await server.begin();
    return server;
  }

  /** Starts it, again at the same port if it had one. */
  async begin(): Promise<void> {
    const port = this.address.split(":").pop() ?? "";
    const options = ["serve", "--port", port || "0", "--log-level", "error", ...this.#options];
    const child = spawn(serverCommand(), options, { stdio: ["ignore", "pipe", "inherit"] });
    this.#process = child;
    for await (const line of createInterface({ input: child.stdout })) {
      this.http = /^console: (\S+)/.exec(line)?.[1] ?? this.http;
      this.address = /^lightningstore .* on ([^ ,]+)/.exec(line)?.[1] ?? this.address;
      if (!line.startsWith("next:")) continue;
      child.stdout.resume();
      return;
    }
    throw new Error("the server did not start");
  }

  /** Ends it on the spot, as a power cut would. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child?.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await rm(this.#folder, { recursive: true });
  }
}
