/** Address, credentials and options of a connection. */

import { readFileSync } from "node:fs";

import { credentials, type ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";

/** Default address if neither the options nor LIGHTNINGSTORE_ADDRESS set one. */
export const DEFAULT_ADDRESS = "127.0.0.1:4747";

/** Metadata key that names the namespace of a call. */
export const NAMESPACE_KEY = "x-lightning-namespace";
const NAMESPACE = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/;

const MIB = 1 << 20;
/** The server's limit, 64 MiB, plus the overhead of a message of that size. */
const MAX_MESSAGE_BYTES = 65 * MIB;

/** PEM certificates or keys: text, bytes, or the URL of a file (`new URL("file:///…")`). */
export type Pem = string | Uint8Array | URL;

/** Trusted CA certificates, and the client's own certificate (mutual TLS). */
export interface TlsOptions {
  /** CA certificates that verify the server. Default: those that Node.js trusts. */
  readonly ca?: Pem;
  /** The client's certificate chain. Needs `key`. */
  readonly cert?: Pem;
  /** The private key of `cert`, unencrypted. */
  readonly key?: Pem;
}

/** Options of a connection. */
export interface ConnectOptions {
  /** "host:port", or "https://host:port" for TLS. Default: LIGHTNINGSTORE_ADDRESS, else 127.0.0.1:4747. */
  readonly address?: string | undefined;
  /** Enables TLS; `{}` trusts what Node.js trusts. Default: no encryption, unless the address is https. */
  readonly tls?: TlsOptions | undefined;
  /** Bearer token sent with every call. Default: LIGHTNINGSTORE_TOKEN, if set. */
  readonly token?: string | undefined;
  /**
   * Namespace of every call: 1 to 63 of `a-z 0-9 - _ .` that begin and end with a letter or a digit.
   * Default: LIGHTNINGSTORE_NAMESPACE. If that is not set, or the value is empty, calls name no namespace and
   * belong to the server's "default".
   */
  readonly namespace?: string | undefined;
  /** Allows sending the token over an unencrypted connection, where others can read it. Default false. */
  readonly allowInsecureToken?: boolean | undefined;
  /** Default deadline of unary calls, retries included, in milliseconds. Default 30,000. */
  readonly timeoutMs?: number | undefined;
}

/** Address and credentials in gRPC's form. */
export interface Endpoint {
  readonly target: string;
  readonly credentials: ChannelCredentials;
  /** Metadata of every call. */
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * Resolves options and environment.
 *
 * @throws TypeError for an invalid address or namespace, and for a token that would be sent unencrypted.
 */
export function resolveEndpoint(options: ConnectOptions): Endpoint {
  const address = options.address ?? process.env.LIGHTNINGSTORE_ADDRESS ?? DEFAULT_ADDRESS;
  const isHttps = address.startsWith("https://");
  const target = isHttps ? address.slice("https://".length).replace(/\/$/, "") : address;
  if (!target || target.includes("://") || (isHttps && target.includes("/"))) {
    throw new TypeError(
      `the address must be like ${DEFAULT_ADDRESS} or https://store:4747, not "${address}"`,
    );
  }
  const tls = options.tls ?? (isHttps ? {} : undefined);
  const token = options.token ?? process.env.LIGHTNINGSTORE_TOKEN ?? "";
  if (token && !tls && !options.allowInsecureToken) {
    throw new TypeError("the token would be sent unencrypted: use tls, or set allowInsecureToken");
  }
  const namespace = options.namespace ?? process.env.LIGHTNINGSTORE_NAMESPACE ?? "";
  if (namespace && !NAMESPACE.test(namespace)) {
    throw new TypeError(
      "the namespace must be 1 to 63 of a-z 0-9 - _ . and begin and end with a letter or a digit, " +
        `not "${namespace}"`,
    );
  }
  return {
    target,
    credentials: tls ? tlsCredentials(tls) : credentials.createInsecure(),
    metadata: {
      ...(token ? { authorization: `Bearer ${token}` } : {}),
      ...(namespace ? { [NAMESPACE_KEY]: namespace } : {}),
    },
  };
}

function tlsCredentials(tls: TlsOptions): ChannelCredentials {
  if ((tls.cert === undefined) !== (tls.key === undefined)) {
    throw new TypeError("tls.cert requires tls.key, and tls.key requires tls.cert");
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
    // Without pings, a lost peer would never be noticed.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    // A request is kept until it cannot be retried any more. gRPC's default of 1 MiB is less than a message.
    "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
    "grpc.retry_buffer_size": 4 * MAX_MESSAGE_BYTES,
    // Reconnect to a restarted server within seconds; gRPC's default is up to two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    // Each client has its own connection, because one connection is limited to a hundred calls at a time.
    "grpc.use_local_subchannel_pool": 1,
    // An http_proxy in the environment is meant for web traffic, not for a store on this host.
    "grpc.enable_http_proxy": 0,
    // Retry settings are not taken from DNS.
    "grpc.service_config_disable_resolution": 1,
    "grpc.primary_user_agent": "lightningstore-typescript",
  };
}
