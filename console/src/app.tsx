// The frame of all pages: navigation, namespace, connection, theme.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { setToken, token } from "./api/client.js";
import { connection, refusal, server } from "./api/pulse.js";
import { useLive } from "./api/live.js";
import { listNamespaces } from "./api/namespaces.js";
import { PAGES } from "./pages/all.js";
import { Empty, Page } from "./parts/basics.js";
import { DEFAULT_NAMESPACE, go, href, namespace, route, setParams } from "./router.js";
import { theme, type Theme } from "./theme.js";

export function App() {
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href={href("")}>
          lightningstore
        </a>
        <Navigation />
        <div class="tools">
          <NamespaceSwitch />
          <ConnectionState />
          <ThemeSwitch />
          {token.value && (
            <button type="button" onClick={() => setToken("")}>
              Forget token
            </button>
          )}
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        <Content />
      </main>
    </>
  );
}

function skip(event: Event): void {
  // The fragment is the link of the page.
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function Content() {
  if (connection.value === "needs token") return <TokenForm />;
  const { page, id } = route.value;
  const entry = PAGES[page];
  if (!entry)
    return (
      <Page title="No such page">
        <p>
          The console has no page “{page}”. <a href={href("")}>Overview</a>
        </p>
      </Page>
    );
  const Shown = entry.component;
  return (
    <>
      {connection.value === "lost" && (
        <p class="note bad" role="alert">
          Connection lost, trying again. What is shown may be out of date.
        </p>
      )}
      {connection.value === "refused" && (
        <p class="note bad" role="alert">
          The server refuses: {refusal.value}
        </p>
      )}
      <Shown key={`${page}/${id}/${namespace.value}/${token.value}`} />
    </>
  );
}

function Navigation() {
  const { page } = route.value;
  const current = PAGES[page]?.under ?? page;
  return (
    <nav aria-label="Pages">
      {Object.entries(PAGES).map(
        ([name, { title }]) =>
          title && (
            <a key={name} href={href(name)} aria-current={name === current ? "page" : undefined}>
              {title}
            </a>
          ),
      )}
    </nav>
  );
}

/** Names of the namespaces that the token may read; undefined if they are too many to choose from. */
async function allNamespaces(signal: AbortSignal): Promise<string[] | undefined> {
  const answer = await listNamespaces(100, signal);
  return answer && !answer.more ? answer.namespaces.map((entry) => entry.name) : undefined;
}

function NamespaceSwitch() {
  const { data, stale } = useLive(token.value, (_, signal) => allNamespaces(signal), {
    follows: false,
    everyMs: 10_000,
  });
  const current = namespace.value;
  // The token of a link without a namespace may be limited to others than the default one.
  const isChosen = route.value.params.has("namespace") || data?.includes(current);
  const first = isChosen || stale ? undefined : data?.[0];
  useEffect(() => {
    if (first) setParams({ namespace: first });
  }, [first]);
  const choose = (name: string) => {
    const { page } = route.value;
    go(href(PAGES[page]?.under ?? page, "", { namespace: name.trim() || DEFAULT_NAMESPACE }));
  };
  return (
    <label class="namespace">
      <span>Namespace</span>
      {data ? (
        <select value={current} onChange={(event) => choose(event.currentTarget.value)}>
          {(data.includes(current) ? data : [current, ...data]).map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      ) : (
        <input
          key={current}
          defaultValue={current}
          spellcheck={false}
          onChange={(event) => choose(event.currentTarget.value)}
        />
      )}
    </label>
  );
}

const CONNECTION_TEXT = {
  connecting: "connecting",
  connected: "live",
  lost: "connection lost",
  "needs token": "needs a token",
  refused: "refused",
};

function ConnectionState() {
  const state = connection.value;
  const version = server.value?.version;
  return (
    <span
      class={`connection ${state.replace(" ", "-")}`}
      role="status"
      title={version && `lightningstore ${version}`}
    >
      {CONNECTION_TEXT[state]}
    </span>
  );
}

function ThemeSwitch() {
  return (
    <label>
      <span class="hidden">Theme</span>
      <select
        value={theme.value}
        onChange={(event) => (theme.value = event.currentTarget.value as Theme)}
      >
        <option value="system">System theme</option>
        <option value="light">Light</option>
        <option value="dark">Dark</option>
      </select>
    </label>
  );
}

function TokenForm() {
  const text = useSignal("");
  const submit = (event: Event) => {
    event.preventDefault();
    if (text.value.trim()) setToken(text.value.trim());
  };
  return (
    <Page title="Token">
      <p>This server asks for a token. It stays in this tab, and is sent to this server alone.</p>
      {refusal.value && (
        <p class="note bad" role="alert">
          {refusal.value}
        </p>
      )}
      <form class="token" onSubmit={submit}>
        <label>
          <span>Token</span>
          <input
            type="password"
            autoComplete="off"
            value={text.value}
            onInput={(event) => (text.value = event.currentTarget.value)}
          />
        </label>
        <button type="submit" class="primary">
          Open the console
        </button>
      </form>
      <Empty command="lightningstore token new --file tokens --role read-only --name console">
        Whoever runs the server makes one:
      </Empty>
    </Page>
  );
}
