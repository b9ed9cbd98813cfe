/** Tracers for the spans of an attempt. */

import { context as otel, type Tracer } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { defaultResource, resourceFromAttributes } from "@opentelemetry/resources";
import {
  AlwaysOnSampler,
  BasicTracerProvider,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";

import type { RunContext } from "./context.js";
import type { SpanExporter } from "./exporter.js";
import { SecureIdGenerator } from "./ids.js";
import { ATTEMPT_ID, ROLLOUT_ID } from "./outbox.js";

/** Nothing is truncated, because spans are training data. */
const NO_LIMITS = {
  attributeCountLimit: Infinity,
  eventCountLimit: Infinity,
  linkCountLimit: Infinity,
  attributePerEventCountLimit: Infinity,
  attributePerLinkCountLimit: Infinity,
};

/** Returns the tracer of an attempt. The resource of its spans names the attempt. It does not sample. */
export function attemptTracer(context: RunContext, exporter: SpanExporter): Tracer {
  const ids = { [ROLLOUT_ID]: context.rolloutId, [ATTEMPT_ID]: context.attemptId };
  const provider = new BasicTracerProvider({
    sampler: new AlwaysOnSampler(),
    idGenerator: new SecureIdGenerator(),
    resource: defaultResource().merge(resourceFromAttributes(ids)),
    spanLimits: NO_LIMITS,
    generalLimits: { attributeCountLimit: Infinity, attributeValueLengthLimit: Infinity },
    spanProcessors: [new SimpleSpanProcessor(exporter)],
  });
  return provider.getTracer("lightningstore");
}

/**
 * Lets `tracer.startActiveSpan` find its parent across awaits, if the program has not set up OpenTelemetry's
 * context itself.
 */
export function enableContext(): void {
  const manager = new AsyncLocalStorageContextManager();
  if (!otel.setGlobalContextManager(manager.enable())) manager.disable();
}
