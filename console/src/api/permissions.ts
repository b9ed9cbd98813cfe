// What the token may do. Roles are decided before a request is read, so a request that changes nothing tells.
import { effect, signal } from "@preact/signals";
import { namespace } from "../router.js";
import { storeOf, token } from "./client.js";
import { isDenied } from "./errors.js";
import { connection } from "./pulse.js";

/** Whether the caller may cancel, retry, pause and resume. Without tokens, everybody may. */
export const maySteer = signal(true);

effect(() => {
  if (!token.value) {
    maySteer.value = true;
    return;
  }
  if (connection.value !== "connected") return;
  maySteer.value = false;
  const asked = token.value;
  storeOf(namespace.value)
    .cancelRollouts({ rolloutIds: [] })
    .then(
      () => true,
      (error: unknown) => !isDenied(error),
    )
    .then((allowed) => {
      if (token.peek() === asked) maySteer.value = allowed;
    })
    .catch(() => undefined);
});
