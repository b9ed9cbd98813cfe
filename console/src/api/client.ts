// The calls of the contract over Connect, with the token and the namespace as docs/http.md describes.
import { createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { signal } from "@preact/signals";
import { ClusterService } from "../gen/lightningstore/v1/cluster_pb.js";
import { NamespaceService } from "../gen/lightningstore/v1/namespace_pb.js";
import { LightningStoreService } from "../gen/lightningstore/v1/service_pb.js";

export type Store = Client<typeof LightningStoreService>;

const KEY = "lightningstore.token";
const NAMESPACE_HEADER = "x-lightning-namespace";

/** The token of this tab. It is in session storage, and nowhere else. */
export const token = signal(sessionStorage.getItem(KEY) ?? "");

export function setToken(value: string): void {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  token.value = value;
}

const withToken: Interceptor = (next) => (request) => {
  if (token.value) request.header.set("authorization", `Bearer ${token.value}`);
  return next(request);
};

function transport(...interceptors: Interceptor[]) {
  return createConnectTransport({
    baseUrl: new URL(".", window.location.href).href.replace(/\/$/, ""),
    // Half the work for the server, compared with JSON.
    useBinaryFormat: true,
    interceptors: [withToken, ...interceptors],
  });
}

const shared = transport();
export const namespaces = createClient(NamespaceService, shared);
export const cluster = createClient(ClusterService, shared);

const stores = new Map<string, Store>();

/** Returns the calls of one namespace. */
export function storeOf(namespace: string): Store {
  let store = stores.get(namespace);
  if (!store) {
    const inNamespace: Interceptor = (next) => (request) => {
      request.header.set(NAMESPACE_HEADER, namespace);
      return next(request);
    };
    store = createClient(LightningStoreService, transport(inNamespace));
    stores.set(namespace, store);
  }
  return store;
}
