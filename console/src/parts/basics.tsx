// Small parts that all pages use.
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { inWords, isDenied } from "../api/errors.js";
import { now, span, timeText, toMs } from "../format.js";

/** A page: its heading, which is also the title of the tab, and its content. */
export function Page(props: {
  title: string;
  actions?: ComponentChildren;
  children: ComponentChildren;
}) {
  document.title = `${props.title} · lightningstore`;
  return (
    <>
      <div class="head">
        <h1>{props.title}</h1>
        {props.actions && <div class="actions">{props.actions}</div>}
      </div>
      {props.children}
    </>
  );
}

/** What stands where there is nothing yet: why, and the command that changes it. */
export function Empty(props: { children: ComponentChildren; command?: string }) {
  return (
    <div class="empty">
      <p>{props.children}</p>
      {props.command !== undefined && <Command text={props.command} />}
    </div>
  );
}

/** A command or another text to copy. */
export function Command({ text }: { text: string }) {
  return (
    <div class="command">
      <pre tabIndex={0}>{text}</pre>
      <Copy text={text} />
    </div>
  );
}

/** A button that copies a text. */
export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const copied = useSignal(false);
  const copy = async () => {
    await toClipboard(text);
    copied.value = true;
    setTimeout(() => (copied.value = false), 2000);
  };
  return (
    <button type="button" onClick={() => void copy().catch(() => undefined)}>
      {copied.value ? "Copied" : label}
    </button>
  );
}

/** Copies a text. Browsers have the clipboard over TLS and on this machine only; elsewhere, it is selected to be copied. */
async function toClipboard(text: string): Promise<void> {
  if (window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  // eslint-disable-next-line @typescript-eslint/no-deprecated -- the only way without a secure context
  document.execCommand("copy");
  area.remove();
}

/** The error of a load or of an action, in words. */
export function ErrorNote({ error }: { error: unknown }) {
  if (error === undefined) return null;
  return (
    <p class="note bad" role="alert">
      {isDenied(error) ? "The token does not allow this: " : ""}
      {inWords(error)}
    </p>
  );
}

/** How long ago a time was, or when it will be; the time itself when it is pointed at. */
export function Age({ time }: { time: Timestamp | undefined }) {
  if (!time) return null;
  const seconds = Math.floor((now.value - toMs(time)) / 1000);
  const ahead = seconds < 0 ? "in " : "";
  const text = Math.abs(seconds) < 60 ? `${Math.abs(seconds)} s` : span(Math.abs(seconds));
  return <time title={timeText(time)}>{ahead ? ahead + text : `${text} ago`}</time>;
}

/** A status as a word with a mark, so that it does not depend on colour. */
export function Status({ name }: { name: string }) {
  return <span class={`status ${name}`}>{name}</span>;
}

/** Shown while something is loaded for the first time. */
export function Loading() {
  return (
    <p class="loading" role="status">
      Loading…
    </p>
  );
}
