/** A worker thread that makes a span, and has nothing more to do. */

import { parentPort, workerData } from "node:worker_threads";

import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

import { emitReward, SpanExporter } from "../src/index.js";

const { address } = workerData as { address: string };
try {
  emitReward(1);
} catch (error) {
  parentPort?.postMessage(String(error));
}
const exporter = new SpanExporter({ address, rolloutId: "ro", attemptId: "at" });
const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.getTracer("thread").startSpan("in a thread").end();
