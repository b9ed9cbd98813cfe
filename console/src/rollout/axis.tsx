// The axis of time above the spans. Dragging along it zooms in.
import { useSignal } from "@preact/signals";
import { span as duration } from "../format.js";

/** Milliseconds since the first span began. */
export interface View {
  readonly from: number;
  readonly to: number;
}

/** A view has at least this share of the whole. */
const MIN_SHARE = 1e-5;

/** Returns a view that lies within the whole. */
export function clamped({ from, to }: View, whole: View): View {
  const length = Math.min(Math.max(to - from, whole.to * MIN_SHARE), whole.to);
  const start = Math.min(Math.max(from, 0), whole.to - length);
  return { from: start, to: start + length };
}

/** Returns four to eight times at round distances. */
function ticks({ from, to }: View): number[] {
  const rough = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const found: number[] = [];
  for (let at = Math.ceil(from / step) * step; at <= to && found.length < 12; at += step)
    found.push(at);
  return found;
}

const tickText = (ms: number, step: number): string =>
  ms === 0 ? "0" : step < 1 ? `${Number(ms.toPrecision(6))} ms` : duration(ms / 1000);

export function Axis({ view, onZoom }: { view: View; onZoom: (view: View) => void }) {
  const dragged = useSignal<{ from: number; to: number } | undefined>(undefined);
  const shareAt = (event: PointerEvent & { currentTarget: HTMLElement }) => {
    const box = event.currentTarget.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const length = view.to - view.from;
  const times = ticks(view);
  const step = (times[1] ?? 1) - (times[0] ?? 0);
  const drag = dragged.value && {
    from: Math.min(dragged.value.from, dragged.value.to),
    to: Math.max(dragged.value.from, dragged.value.to),
  };
  return (
    <div class="axis-line">
      <span class="name quiet">Drag along the time to zoom</span>
      <div
        class="axis"
        onPointerDown={(event) => {
          const share = shareAt(event);
          event.currentTarget.setPointerCapture(event.pointerId);
          dragged.value = { from: share, to: share };
        }}
        onPointerMove={(event) => {
          if (dragged.value) dragged.value = { ...dragged.value, to: shareAt(event) };
        }}
        onPointerUp={() => {
          dragged.value = undefined;
          if (drag && drag.to - drag.from > 0.005)
            onZoom({ from: view.from + drag.from * length, to: view.from + drag.to * length });
        }}
        onPointerCancel={() => (dragged.value = undefined)}
      >
        {times.map((ms) => (
          <span key={ms} class="tick" style={{ left: `${(100 * (ms - view.from)) / length}%` }}>
            {tickText(ms, step)}
          </span>
        ))}
        {drag && (
          <span
            class="selection"
            style={{ left: `${100 * drag.from}%`, width: `${100 * (drag.to - drag.from)}%` }}
          />
        )}
      </div>
    </div>
  );
}
