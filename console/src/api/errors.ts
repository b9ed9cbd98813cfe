// Errors of calls, in words.
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";

/** Returns the reason of an error, for example "ROLLOUT_NOT_FOUND", or "". */
export function reasonOf(error: unknown): string {
  const info = ConnectError.from(error).findDetails(ErrorInfoSchema)[0];
  return (info?.reason ?? "").replace(/^ERROR_REASON_/, "");
}

/** Returns what a person reads: what is wrong, and the reason that docs/errors.md lists. */
export function inWords(error: unknown): string {
  if (isLost(error)) return "the server was not reached";
  const { rawMessage } = ConnectError.from(error);
  const reason = reasonOf(error);
  return reason ? `${rawMessage} (${reason})` : rawMessage;
}

/** Whether no token, or none that is valid, was sent where the server demands one. */
export function needsToken(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Unauthenticated;
}

/** Whether the role of the token does not allow the call. */
export function isDenied(error: unknown): boolean {
  return ConnectError.from(error).code === Code.PermissionDenied;
}

/** Whether the server was not reached, or is starting or shutting down: the call may succeed later. */
export function isLost(error: unknown): boolean {
  const { code, cause } = ConnectError.from(error);
  // A browser reports a connection that failed as a TypeError of fetch.
  return code === Code.Unavailable || (code === Code.Unknown && cause instanceof TypeError);
}

/** Whether the server has not answered in time. */
export function isLate(error: unknown): boolean {
  return ConnectError.from(error).code === Code.DeadlineExceeded;
}

/** Returns whether this page cancelled the call, as it does when another page is shown. */
export function isAborted(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Canceled;
}
