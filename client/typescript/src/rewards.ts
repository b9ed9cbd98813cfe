/** Rewards: spans that say what an attempt was worth. */

import type { Attributes, Tracer } from "@opentelemetry/api";

import { currentAttempt } from "./context.js";

/** Name of spans that carry a reward. */
export const ANNOTATION = "agentlightning.annotation";

const VALUE = /^agentlightning\.reward\.(\d+)\.value$/;

/** Tells whether an attribute is a reward, which is a double even where it is a whole number. */
export function isRewardValue(key: string): boolean {
  return VALUE.test(key);
}

/**
 * Writes down what the attempt was worth: a number, or several by the names of their dimensions, of which the
 * first is the primary one. `tracer`: absent, that of the attempt whose function is running. Throws a
 * TypeError for what is no number, and an Error outside of a function without a tracer.
 */
export function emitReward(
  reward: number | Readonly<Record<string, number>>,
  tracer?: Tracer,
): void {
  const target = tracer ?? currentAttempt.getStore()?.tracer;
  if (!target) throw new Error("no attempt is being worked on here: give a tracer");
  const dimensions = typeof reward === "number" ? { primary: reward } : reward;
  const attributes: Attributes = {};
  Object.entries(dimensions).forEach(([name, value], index) => {
    if (typeof value !== "number") throw new TypeError(`reward "${name}" is no number`);
    attributes[`agentlightning.reward.${index}.name`] = name;
    attributes[`agentlightning.reward.${index}.value`] = value;
  });
  target.startSpan(ANNOTATION, { attributes }).end();
}

/** Returns the primary reward of the last span that has one; undefined if none has. */
export function findFinalReward(
  spans: Iterable<{ readonly attributes: Readonly<Record<string, unknown>> }>,
): number | undefined {
  let final: number | undefined;
  for (const { attributes } of spans) {
    const value = attributes["agentlightning.reward.0.value"];
    if (typeof value === "number" || typeof value === "bigint") final = Number(value);
  }
  return final;
}
