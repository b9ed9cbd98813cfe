/** The way to the server that owns the client's namespace, where several servers share the namespaces. */

import type { Client, Metadata } from "@grpc/grpc-js";

import { Code, type LightningStoreError } from "./errors.js";

/** Trailer with the owner's address, as host:port. */
export const OWNER_KEY = "x-lightning-owner";
/** An address that a client follows: a host, or an IPv6 address in brackets, and a port. */
const ADDRESS = /^(?!unix:|vsock:)(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):[0-9]{1,5}$/;
/** Milliseconds that the owner has to accept the connection, and until it is tried again if it did not. */
const CONNECT_MS = 3_000;
const RETRY_MS = 60_000;

/**
 * The connection to the owner, if there is one.
 *
 * A server answers for namespaces that another server owns, and its answers name the owner in a trailer. The client
 * then connects to the owner beside its first connection, and goes on there once that is connected. Calls never wait
 * for it: where the owner cannot be reached from here, or no longer owns the namespace, they take the first
 * connection. What the owner answers is not looked at, so that no call is led on further.
 */
export class Owner {
  readonly #connect: (address: string) => Client;
  #current: Client | undefined;
  #connecting: Client | undefined;
  #retryAt = 0;
  #isClosed = false;

  /** `connect` makes a connection to an address with the credentials of the first one. */
  constructor(connect: (address: string) => Client) {
    this.#connect = connect;
  }

  /** The connection to the owner. Undefined: use the first connection. */
  get current(): Client | undefined {
    return this.#current;
  }

  /** Connects to the owner that the trailers of a call over the first connection name. Returns at once. */
  learn(trailers: Metadata): void {
    const [address] = trailers.get(OWNER_KEY);
    if (typeof address !== "string" || !ADDRESS.test(address)) return;
    if (this.#isClosed || this.#connecting || this.#current || Date.now() < this.#retryAt) return;
    const client = this.#connect(address);
    this.#connecting = client;
    client.waitForReady(Date.now() + CONNECT_MS, (error) => {
      this.#connecting = undefined;
      if (!error && !this.#isClosed) {
        this.#current = client;
        return;
      }
      this.#retryAt = Date.now() + RETRY_MS;
      client.close();
    });
  }

  /**
   * Notes that a call over a connection failed. Returns whether it may succeed over the first connection;
   * `used` is undefined for a call over that one.
   */
  failed(used: Client | undefined, failure: LightningStoreError): boolean {
    if (used === undefined || failure.code !== Code.UNAVAILABLE || this.#isClosed) return false;
    if (used === this.#current) {
      this.#current = undefined;
      used.close(); // calls in progress go on as long as the connection does
    }
    return true;
  }

  /** Closes the connection. */
  close(): void {
    this.#isClosed = true;
    this.#current?.close();
    this.#connecting?.close();
    this.#current = undefined;
  }
}
