/** Where a client connects, how, and with what credentials. */

import { readFileSync } from "node:fs";

import { credentials, type ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";

/** Where a client connects if neither it nor LIGHTNINGSTORE_ADDRESS says. */
export const DEFAULT_ADDRESS = "127.0.0.1:4747";

const MIB = 1 << 20;
/** Messages of the server's limit, 64 MiB, and what frames them. */
const MAX_MESSAGE_BYTES = 65 * MIB;

/** Certificates in PEM: text or bytes, or a URL (`new URL("file:///…")`) of a file that holds them. */
export type Pem = string | Uint8Array | URL;

/** What a TLS connection trusts, and how the client identifies itself (mutual TLS). */
export interface TlsOptions {
  /** Authorities that may have signed the server's certificate. Absent: those that Node.js trusts. */
  readonly ca?: Pem;
  /** The client's certificate chain. Needs `key`. */
  readonly cert?: Pem;
  /** The private key of `cert`, unencrypted. */
  readonly key?: Pem;
}

/** How to connect. */
export interface ConnectOptions {
  /**
   * "host:port", or "https://host:port" for TLS. Absent: the environment's LIGHTNINGSTORE_ADDRESS, else
   * 127.0.0.1:4747.
   */
  readonly address?: string | undefined;
  /** Speaks TLS; `{}` trusts what Node.js trusts. Absent: plain text, unless the address is https. */
  readonly tls?: TlsOptions | undefined;
  /** Bearer token of every call. Absent: the environment's LIGHTNINGSTORE_TOKEN, if set. */
  readonly token?: string | undefined;
  /** Sends the token over plain text too, where anybody on the way can read it. Default false. */
  readonly allowInsecureToken?: boolean | undefined;
  /** Deadline of a unary call that names none, retries included. In milliseconds, default 30,000. */
  readonly timeoutMs?: number | undefined;
}

/** An endpoint as gRPC wants it. */
export interface Endpoint {
  readonly target: string;
  readonly credentials: ChannelCredentials;
  /** Metadata of every call. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Reads options and environment. Throws for a wrong address and for a token that would go in the clear. */
export function resolveEndpoint(options: ConnectOptions): Endpoint {
  const address = options.address ?? process.env.LIGHTNINGSTORE_ADDRESS ?? DEFAULT_ADDRESS;
  const isHttps = address.startsWith("https://");
  const target = isHttps ? address.slice("https://".length).replace(/\/$/, "") : address;
  if (!target || target.includes("://") || (isHttps && target.includes("/"))) {
    throw new TypeError(
      `an address like ${DEFAULT_ADDRESS} or https://store:4747 is wanted, not "${address}"`,
    );
  }
  const tls = options.tls ?? (isHttps ? {} : undefined);
  const token = options.token ?? process.env.LIGHTNINGSTORE_TOKEN ?? "";
  if (token && !tls && !options.allowInsecureToken) {
    throw new TypeError(
      "a token over plain text can be read on its way: use tls, or allowInsecureToken",
    );
  }
  return {
    target,
    credentials: tls ? tlsCredentials(tls) : credentials.createInsecure(),
    metadata: token ? { authorization: `Bearer ${token}` } : {},
  };
}

function tlsCredentials(tls: TlsOptions): ChannelCredentials {
  if ((tls.cert === undefined) !== (tls.key === undefined)) {
    throw new TypeError("tls.cert and tls.key belong together");
  }
  return credentials.createSsl(pem(tls.ca), pem(tls.key), pem(tls.cert));
}

function pem(given: Pem | undefined): Buffer | null {
  if (given === undefined) return null;
  return given instanceof URL ? readFileSync(given) : Buffer.from(given);
}

/** Options of every channel. */
export function channelOptions(): ChannelOptions {
  return {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    // Without pings a peer that vanished goes unnoticed for ever.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    // What is to be repeated is kept until then: a whole message, by default it would be 1 MiB.
    "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
    "grpc.retry_buffer_size": 4 * MAX_MESSAGE_BYTES,
    // A server that restarts is found again within moments, not after gRPC's two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    // Each client has a connection of its own: a hundred calls at a time are the limit of one.
    "grpc.use_local_subchannel_pool": 1,
    // An http_proxy of the environment is meant for the web; a store on this host is not behind it.
    "grpc.enable_http_proxy": 0,
    // What is repeated, and how, does not come over DNS.
    "grpc.service_config_disable_resolution": 1,
    "grpc.primary_user_agent": "lightningstore-typescript",
  };
}
