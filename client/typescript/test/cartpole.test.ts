/** The demo's physics, held to the vectors that the Python and Go tests read too. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { act, isOver, LONGEST, step, vary, type State } from "../examples/cartpole/physics.js";

interface Vectors {
  /** Of gymnasium: before, action, after, whether it is over. */
  readonly steps: readonly (readonly [State, number, State, boolean])[];
  readonly episodes: readonly {
    readonly mean: State;
    readonly spread: State;
    readonly noise: State;
    readonly start: State;
    readonly actions: string;
    readonly end: State;
  }[];
}

const file = new URL("../../../../../examples/cartpole/vectors.json", import.meta.url);
const { steps, episodes } = JSON.parse(readFileSync(file, "utf8")) as Vectors;

test("a step of CartPole is that of gymnasium", () => {
  assert.ok(steps.length >= 100);
  for (const [before, action, after, over] of steps) {
    const found = step(before, action);
    for (const [i, value] of after.entries())
      assert.ok(
        Math.abs((found[i] ?? NaN) - value) <= 1e-12,
        `${String(found)} after ${String(before)}`,
      );
    assert.equal(isOver(found), over, `over at ${String(found)}`);
  }
});

test("episodes of CartPole are those of the other languages to the last bit", () => {
  assert.ok(episodes.length >= 30);
  for (const { mean, spread, noise, start, actions, end } of episodes) {
    const weights = vary(mean, spread, noise);
    let state = start;
    let played = "";
    while (played.length < LONGEST && !isOver(state)) {
      const action = act(weights, state);
      played += String(action);
      state = step(state, action);
    }
    assert.equal(played, actions);
    assert.deepEqual(state, end);
  }
});
