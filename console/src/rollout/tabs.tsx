// Tabs, with the keys that people know from them.
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";

export function Tabs(props: {
  label: string;
  titles: readonly (readonly [name: string, title: string])[];
  chosen: string;
  onChoose: (name: string) => void;
  children: ComponentChildren;
}) {
  const { label, titles, chosen, onChoose, children } = props;
  const list = useRef<HTMLDivElement>(null);
  const at = titles.findIndex(([name]) => name === chosen);
  const onKey = (event: KeyboardEvent) => {
    const steps: Record<string, number> = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: titles.length - 1,
    };
    const next = steps[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const index = (next + titles.length) % titles.length;
    onChoose(titles[index]?.[0] ?? chosen);
    (list.current?.children[index] as HTMLElement | undefined)?.focus();
  };
  return (
    <>
      <div ref={list} class="tabs" role="tablist" aria-label={label} onKeyDown={onKey}>
        {titles.map(([name, title]) => (
          <button
            key={name}
            type="button"
            role="tab"
            id={`tab-${name}`}
            aria-selected={name === chosen}
            aria-controls="tab-panel"
            tabIndex={name === chosen ? 0 : -1}
            onClick={() => onChoose(name)}
          >
            {title}
          </button>
        ))}
      </div>
      <div id="tab-panel" role="tabpanel" aria-labelledby={`tab-${chosen}`} class="panel">
        {children}
      </div>
    </>
  );
}
