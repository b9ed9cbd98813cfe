// Everything about one span.
import type { ComponentChildren } from "preact";
import { span as duration } from "../format.js";
import type { Span_Event } from "../gen/opentelemetry/proto/trace/v1/trace_pb.js";
import type { KeyValue } from "../gen/opentelemetry/proto/common/v1/common_pb.js";
import { setParams } from "../router.js";
import { hex, isException, valueText, type Row, type Trace } from "./spans.js";
import { Long, pretty, visible } from "./text.js";

const KINDS = ["", "internal", "server", "client", "producer", "consumer"];
const STATUSES = ["not set", "ok", "error"];

export function SpanDetails({ row, trace }: { row: Row; trace: Trace }) {
  const { span, batch } = row;
  const { status } = span;
  const facts: [string, ComponentChildren][] = [
    ["Status", `${row.failed ? "✗ " : ""}${STATUSES[status?.code ?? 0] ?? status?.code}`],
    ["Message", status?.message ? <Long text={status.message} /> : ""],
    ["Duration", duration((row.end - row.start) / 1000)],
    ["Begins", `${duration(row.start / 1000)} after the first span`],
    ["Kind", KINDS[span.kind] ?? String(span.kind)],
    ["Span id", row.id],
    [
      "Parent",
      span.parentSpanId.length ? <SpanLink id={hex(span.parentSpanId)} trace={trace} /> : "none",
    ],
    ["Trace id", hex(span.traceId)],
    ["Sequence id", row.sequenceId.toString()],
    ["Scope", batch.scope && visible(`${batch.scope.name} ${batch.scope.version}`.trim())],
  ];
  return (
    <section class="details" aria-label="Span">
      <div class="bar">
        <h2>
          <bdi>{visible(span.name.slice(0, 500)) || "(no name)"}</bdi>
        </h2>
        <button type="button" onClick={() => setParams({ span: undefined })}>
          Close
        </button>
      </div>
      <Facts facts={facts} />
      {span.events.filter(isException).map((event, index) => (
        <Exception key={index} event={event} />
      ))}
      <Attributes title="Attributes" pairs={span.attributes} />
      {span.events
        .filter((event) => !isException(event))
        .map((event, index) => (
          <Attributes
            key={index}
            title={`Event ${visible(event.name)}, ${sinceStart(event, row)}`}
            pairs={event.attributes}
            empty
          />
        ))}
      {span.links.map((link, index) => (
        <Attributes
          key={index}
          title={`Link to span ${hex(link.spanId)} of trace ${hex(link.traceId)}`}
          pairs={link.attributes}
          empty
        />
      ))}
      <Attributes title="Resource" pairs={batch.resource?.attributes ?? []} />
    </section>
  );
}

export function Facts({ facts }: { facts: readonly [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts
        .filter(([, value]) => value !== "" && value !== undefined && value !== null)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

function sinceStart(event: Span_Event, { span }: Row): string {
  if (!event.timeUnixNano || !span.startTimeUnixNano) return "without a time";
  return `${duration(Number(event.timeUnixNano - span.startTimeUnixNano) / 1e9)} after its start`;
}

function SpanLink({ id, trace }: { id: string; trace: Trace }) {
  if (!trace.rows.some((row) => row.id === id)) return <>{id} (not in this attempt)</>;
  return (
    <button type="button" class="link id" onClick={() => setParams({ span: id })}>
      {id}
    </button>
  );
}

function Exception({ event }: { event: Span_Event }) {
  const texts = Object.fromEntries(
    event.attributes.map(({ key, value }) => [key, valueText(value)]),
  );
  const {
    "exception.type": type,
    "exception.message": message,
    "exception.stacktrace": stack,
  } = texts;
  return (
    <div class="note bad exception">
      <strong>✗ {visible(type ?? "exception")}</strong>
      {message && <Long text={message} />}
      {stack && (
        <details>
          <summary>Stack trace</summary>
          <Long code text={stack} />
        </details>
      )}
    </div>
  );
}

function Attributes(props: { title: string; pairs: readonly KeyValue[]; empty?: boolean }) {
  const { title, pairs, empty } = props;
  if (!pairs.length && !empty) return null;
  return (
    <>
      <h3>{title}</h3>
      {pairs.length > 0 && (
        <dl class="attributes">
          {pairs.map(({ key, value }, index) => (
            <div key={index}>
              <dt>
                <bdi>{visible(key.slice(0, 500))}</bdi>
              </dt>
              <dd>
                <Long code text={pretty(valueText(value))} />
              </dd>
            </div>
          ))}
        </dl>
      )}
    </>
  );
}
