// JSON values as text.
const decoder = new TextDecoder();

/** Returns JSON with line breaks; as it is if it cannot be read. */
export function pretty(bytes: Uint8Array): string {
  const text = decoder.decode(bytes);
  if (!text) return "";
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A JSON value; `short`: in one line, cut where it is too long. */
export function Json({ bytes, short }: { bytes: Uint8Array; short?: boolean }) {
  if (!bytes.length) return null;
  const text = decoder.decode(bytes);
  if (short)
    return (
      <code class="cut" title={text.slice(0, 2000)}>
        {text.slice(0, 200)}
      </code>
    );
  return (
    <pre class="block" tabIndex={0}>
      {pretty(bytes)}
    </pre>
  );
}
