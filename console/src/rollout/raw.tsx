// The records as the HTTP port returns them, with the JSON inside of them as JSON.
import { toJson, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { AttemptSchema, type Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import { RolloutSchema, type Rollout } from "../gen/lightningstore/v1/rollout_pb.js";
import { Copy } from "../parts/basics.js";
import { decoded, Long } from "./text.js";

export function Raw({ rollout, attempts }: { rollout: Rollout; attempts: readonly Attempt[] }) {
  const record = readable(toJson(RolloutSchema, rollout)) as JsonObject;
  delete record["latestAttempt"];
  const text = JSON.stringify(
    { ...record, attempts: attempts.map((attempt) => readable(toJson(AttemptSchema, attempt))) },
    null,
    2,
  );
  return (
    <>
      <div class="bar">
        <span class="quiet">
          Inputs and metadata are bytes in the contract, and shown as the JSON that they hold.
        </span>
        <Copy text={text} label="Copy JSON" />
      </div>
      <Long code text={text} />
    </>
  );
}

/** Returns a message's JSON in which fields of bytes named …Json are the values that they hold. */
function readable(value: JsonValue): JsonValue {
  if (Array.isArray(value)) return value.map(readable);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) =>
      key.endsWith("Json") && typeof inner === "string"
        ? [key.slice(0, -4), parsed(inner)]
        : [key, readable(inner)],
    ),
  );
}

function parsed(base64: string): JsonValue {
  const text = decoded(base64Decode(base64));
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    return text;
  }
}
