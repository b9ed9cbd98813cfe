/** A wire that tests can cut: passes connections on to a server. */

import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { once } from "node:events";

export class Proxy {
  address = "";
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((near) => {
    const far = connect(Number(this.#target.split(":")[1]), "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(from);
      from.pipe(to);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
  });
  readonly #target: string;

  private constructor(target: string) {
    this.#target = target;
  }

  static async start(target: string): Promise<Proxy> {
    const proxy = new Proxy(target);
    await proxy.#listen(0);
    return proxy;
  }

  async #listen(port: number): Promise<void> {
    this.#server.listen(port, "127.0.0.1");
    await once(this.#server, "listening");
    this.address = `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Breaks all connections; new ones are taken. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Breaks all connections, and takes none until `rejoin`. */
  part(): void {
    this.#server.close();
    this.cut();
  }

  async rejoin(): Promise<void> {
    await this.#listen(Number(this.address.split(":")[1]));
  }

  [Symbol.dispose](): void {
    if (this.#server.listening) this.#server.close();
    this.cut();
  }
}
