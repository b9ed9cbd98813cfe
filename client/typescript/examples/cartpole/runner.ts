/**
 * The TypeScript runner of the demo (`make demo RUNNERS=typescript`). It claims an episode of CartPole, plays
 * it, streams one span per step, and returns the reward. Arguments: the server's address and the worker's id.
 */

import { setImmediate as letOthersRun } from "node:timers/promises";

import { Runner } from "../../src/index.js";
import { act, isOver, LONGEST, step, vary, type State } from "./physics.js";

interface Episode {
  readonly noise: State;
  readonly start: State;
}

interface Policy {
  readonly mean: State;
  readonly spread: State;
}

const [address = "", workerId = ""] = process.argv.slice(2);
const runner = new Runner<Episode>(
  async (task, resources, tracer, context) => {
    const { policy } = resources;
    if (policy?.kind !== "custom") throw new Error("no policy among the resources");
    const { mean, spread } = policy.value as Policy;
    const weights = vary(mean, spread, task.noise);
    let state = task.start;
    let total = 0;
    while (total < LONGEST && !isOver(state)) {
      context.throwIfCancelled(); // the rollout was cancelled, or went to another runner
      const action = act(weights, state);
      const span = tracer.startSpan("step", { attributes: { observation: [...state], action } });
      state = step(state, action);
      span.setAttribute("reward", 1).end();
      total += 1;
      if (total % 100 === 0) await letOthersRun(); // heartbeats and spans go out from the event loop
    }
    return total;
  },
  { address, workerId },
);
await runner.run();
