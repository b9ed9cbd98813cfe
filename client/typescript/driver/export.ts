/** Exports spans of the OpenTelemetry SDK, with this project's exporter or the standard one. */

import { context, trace } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-grpc";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

import { SpanExporter } from "../src/index.js";
import type { Command } from "./protocol.js";

/** Creates and exports the spans of a command, each the child of the previous one. */
export async function exportSpans(address: string, command: Command): Promise<object> {
  const { rollout_id = "", attempt_id = "", spans = [] } = command;
  const isStandard = command.exporter === "otlp";
  const resource = resourceFromAttributes({
    "agentlightning.rollout_id": rollout_id,
    "agentlightning.attempt_id": attempt_id,
  });
  const exporter = isStandard
    ? new OTLPTraceExporter({ url: `http://${address}` })
    : new SpanExporter({ address, rolloutId: rollout_id, attemptId: attempt_id });
  const provider = new BasicTracerProvider({
    ...(isStandard && { resource }),
    spanProcessors: [new SimpleSpanProcessor(exporter)],
  });
  const tracer = provider.getTracer("conformance");
  const span_ids: string[] = [];
  let parent = context.active();
  for (const name of spans) {
    const span = tracer.startSpan(name, {}, parent);
    parent = trace.setSpan(parent, span);
    span_ids.push(span.spanContext().spanId);
    span.end();
  }
  await provider.forceFlush();
  await provider.shutdown();
  return { span_ids };
}
