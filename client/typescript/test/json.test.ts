import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeJson, encodeJson, RawJson } from "../src/index.js";

const text = (value: unknown): string => new TextDecoder().decode(encodeJson(value));
const parse = (json: string): unknown => decodeJson(new TextEncoder().encode(json));

test("bigints become integers and come back, at any depth", () => {
  const value = { a: [2n ** 63n, -(2n ** 64n)], b: { c: 12345678901234567890n } };
  assert.equal(
    text(value),
    '{"a":[9223372036854775808,-18446744073709551616],"b":{"c":12345678901234567890}}',
  );
  assert.deepEqual(decodeJson(encodeJson(value)), value);
});

test("what a double can hold is a number", () => {
  assert.deepEqual(
    parse("[9007199254740991, 0.125, 1e300, -5]"),
    [9007199254740991, 0.125, 1e300, -5],
  );
  assert.deepEqual(parse("[9007199254740993]"), [9007199254740993n]);
});

test("digits within strings stay strings", () => {
  const value = {
    'a"12345678901234567890\\': 'x\\"12345678901234567890',
    n: 12345678901234567890n,
  };
  assert.deepEqual(decodeJson(encodeJson(value)), value);
});

test("RawJson goes as it is", () => {
  assert.equal(text(new RawJson('{ "a": 1.0 }')), '{ "a": 1.0 }');
  const bytes = new TextEncoder().encode("[1e2]");
  assert.equal(encodeJson(new RawJson(bytes)), bytes);
});

test("invalid JSON is rejected", () => {
  for (const value of [undefined, NaN, { a: Infinity }, () => 1, Symbol("a"), Buffer.from("1")]) {
    assert.throws(() => encodeJson(value), TypeError);
  }
});
