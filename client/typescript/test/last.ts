/** A program that makes a span, and has nothing more to do. */

import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

import { SpanExporter } from "../src/index.js";

const address = process.argv[2] ?? "";
const exporter = new SpanExporter({ address, rolloutId: "ro", attemptId: "at" });
const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.getTracer("last").startSpan("last").end();
