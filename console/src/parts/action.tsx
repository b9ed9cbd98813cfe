// A button that changes something: it asks once, and is left out where the role of the token does not allow it.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { maySteer } from "../api/permissions.js";
import { ErrorNote } from "./basics.js";

export interface ActionProps {
  /** What the button says, for example "Cancel". */
  readonly label: string;
  /** What is asked before it is done, with what follows from it. */
  readonly question: string;
  /** Makes the call. It gets an id that makes the call safe to repeat. */
  readonly run: (requestId: string) => Promise<unknown>;
  /** Called once it is done. */
  readonly done?: () => void;
}

export function Action({ label, question, run, done }: ActionProps) {
  const state = useSignal<"idle" | "asking" | "running">("idle");
  const error = useSignal<unknown>(undefined);
  const no = useRef<HTMLButtonElement>(null);
  const asking = state.value === "asking";
  // The keyboard goes on at the question, and there at the answer that changes nothing.
  useEffect(() => {
    if (asking) no.current?.focus();
  }, [asking]);
  if (!maySteer.value) return null;
  const confirm = async () => {
    state.value = "running";
    error.value = undefined;
    try {
      await run(newRequestId());
      done?.();
    } catch (failure) {
      error.value = failure;
    }
    state.value = "idle";
  };
  return (
    <div class="action">
      {asking ? (
        <div role="group" aria-label={label}>
          <span>{question}</span>{" "}
          <button type="button" class="primary" onClick={() => void confirm()}>
            {label}
          </button>{" "}
          <button type="button" ref={no} onClick={() => (state.value = "idle")}>
            No
          </button>
        </div>
      ) : (
        <button
          type="button"
          disabled={state.value === "running"}
          onClick={() => (state.value = "asking")}
        >
          {label}
        </button>
      )}
      <ErrorNote error={error.value} />
    </div>
  );
}

/** Returns a random id. Browsers have randomUUID over TLS and on this machine only. */
function newRequestId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
