// Text that came from a trace: shown as it is, never as HTML, and with marks for what is invisible in it.
import { useSignal } from "@preact/signals";
import { bytes, count } from "../format.js";

/** Characters that are shown before somebody asks for the rest. */
const SHOWN = 20_000;

// Control characters without tab and line feed, and those that turn the direction of the text around them.
// eslint-disable-next-line no-control-regex
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Returns a text with a mark for each character that would be invisible or would reorder what is beside it. */
export function visible(text: string): string {
  return text.replaceAll("\r\n", "\n").replace(INVISIBLE, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** A text with its line breaks. Of a long one the beginning, until the rest is asked for. */
export function Long({ text, code }: { text: string; code?: boolean }) {
  const all = useSignal(false);
  const cut = !all.value && text.length > SHOWN;
  const Tag = code ? "pre" : "div";
  return (
    <>
      <Tag class={code ? "said code" : "said"} dir="auto" tabIndex={code ? 0 : undefined}>
        {visible(cut ? text.slice(0, SHOWN) : text)}
      </Tag>
      {cut && (
        <button type="button" onClick={() => (all.value = true)}>
          Show all {count(text.length)} characters
        </button>
      )}
    </>
  );
}

/** Returns JSON with line breaks; a text that is no JSON as it is. */
export function pretty(text: string): string {
  const first = text.trimStart().charAt(0);
  if (first !== "{" && first !== "[") return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const decoder = new TextDecoder();
export const decoded = (data: Uint8Array): string => decoder.decode(data);

/** Images that are drawn: these formats, within the message, up to this many characters. */
const DRAWN = /^data:image\/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*$/;
const MAX_IMAGE = 4 << 20;

/** An image of a message. One of another host is a link, because loading it would tell that host who looks. */
export function Picture({ url }: { url: string }) {
  if (url.length <= MAX_IMAGE && DRAWN.test(url))
    return <img class="picture" src={url} alt="Image in the message" />;
  if (/^https?:\/\//i.test(url))
    return (
      <p class="said">
        Image:{" "}
        <a href={url} target="_blank" rel="noopener noreferrer">
          {visible(url.slice(0, 300))}
        </a>
      </p>
    );
  const size = url.startsWith("data:") ? ` (${bytes(url.length)})` : "";
  return (
    <p class="said quiet">
      Image, not shown{size}: {visible(url.slice(0, 120))}
      {url.length > 120 && "…"}
    </p>
  );
}
