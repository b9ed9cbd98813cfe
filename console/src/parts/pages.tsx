// The pages of a list, by their tokens, which are in the link.
import { setParams } from "../router.js";

/** The page before each page that was opened from it, also before the list was left. */
const before = new Map<string, string>();

/** Buttons for the pages of a list. `stale`: `next` is still that of another filter or page. */
export function Pages(props: { next: string; current: string; stale: boolean }) {
  const { next, current, stale } = props;
  const open = (page: string) => {
    setParams({ page });
    document.getElementById("main")?.scrollIntoView();
  };
  if (!next && !current) return null;
  const previous = before.get(current);
  return (
    <nav class="pages" aria-label="Pages of the list">
      <button type="button" disabled={!current} onClick={() => open("")}>
        First page
      </button>
      <button
        type="button"
        disabled={!current || previous === undefined}
        onClick={() => open(previous ?? "")}
      >
        Previous
      </button>
      <button
        type="button"
        disabled={!next || stale}
        onClick={() => {
          before.set(next, current);
          open(next);
        }}
      >
        Next
      </button>
    </nav>
  );
}
