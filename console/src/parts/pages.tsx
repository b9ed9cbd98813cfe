// The pages of a list, by their tokens, which are in the link.
import { useSignal } from "@preact/signals";
import { setParams } from "../router.js";

/** Buttons for the pages of a list. The earlier ones are those that were opened on the way here. */
export function Pages({ next, current }: { next: string; current: string }) {
  const earlier = useSignal<string[]>([]);
  const open = (page: string, before: string[]) => {
    earlier.value = before;
    setParams({ page });
    document.getElementById("main")?.scrollIntoView();
  };
  if (!next && !current) return null;
  const before = earlier.value;
  return (
    <nav class="pages" aria-label="Pages of the list">
      <button type="button" disabled={!current} onClick={() => open("", [])}>
        First page
      </button>
      <button
        type="button"
        disabled={!current}
        onClick={() => open(before.at(-1) ?? "", before.slice(0, -1))}
      >
        Previous
      </button>
      <button type="button" disabled={!next} onClick={() => open(next, [...before, current])}>
        Next
      </button>
    </nav>
  );
}
