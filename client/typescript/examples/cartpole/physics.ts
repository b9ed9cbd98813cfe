/**
 * CartPole-v1 and its policy, bit-identical with examples/cartpole/physics.py at the repository's root, which
 * explains why: only + - * /, in the same order.
 */

export const LONGEST = 500; // steps
const GRAVITY = 9.8;
const FORCE = 10;
const SECONDS = 0.02;
const POLE_MASS = 0.1;
const TOTAL_MASS = 1.1;
const HALF_LENGTH = 0.5;
const FARTHEST = 2.4; // metres
const STEEPEST = 0.20943951023931953; // 12 degrees

/** Position, speed, angle of the pole, and angular speed. */
export type State = readonly [number, number, number, number];

const SINE = [1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800];
const COSINE = [1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600];

/** Returns the sum of terms[i] * y^i. */
const series = (y: number, terms: readonly number[]): number =>
  terms.slice(0, -1).reduceRight((sum, term) => term + y * sum, terms.at(-1) ?? 0);

/** Returns the state after 0.02 s in which the cart is pushed to the right (1) or to the left (0). */
export function step([position, speed, angle, turning]: State, action: number): State {
  const force = action === 1 ? FORCE : -FORCE;
  const sin = angle * series(angle * angle, SINE);
  const cos = series(angle * angle, COSINE);
  const push = (force + POLE_MASS * HALF_LENGTH * (turning * turning) * sin) / TOTAL_MASS;
  const inertia = HALF_LENGTH * (4 / 3 - (POLE_MASS * (cos * cos)) / TOTAL_MASS);
  const turns = (GRAVITY * sin - cos * push) / inertia;
  const moves = push - (POLE_MASS * HALF_LENGTH * turns * cos) / TOTAL_MASS;
  return [
    position + SECONDS * speed,
    speed + SECONDS * moves,
    angle + SECONDS * turning,
    turning + SECONDS * turns,
  ];
}

/** Returns whether the cart has left the track or the pole has fallen. */
export function isOver([position, , angle]: State): boolean {
  return Math.abs(position) > FARTHEST || Math.abs(angle) > STEEPEST;
}

/** Returns the weights of one episode: the published policy, varied by its noise. */
export function vary(mean: State, spread: State, noise: State): State {
  const one = (i: 0 | 1 | 2 | 3): number => mean[i] + spread[i] * noise[i];
  return [one(0), one(1), one(2), one(3)];
}

/** Returns 1 to push the cart to the right, 0 to push it to the left. */
export function act(weights: State, state: State): number {
  const lean = weights[0] * state[0] + weights[1] * state[1];
  return lean + weights[2] * state[2] + weights[3] * state[3] > 0 ? 1 : 0;
}
