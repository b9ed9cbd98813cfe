// What can be done with a rollout.
import { storeOf, token } from "../api/client.js";
import { RolloutStatus, type Rollout } from "../gen/lightningstore/v1/rollout_pb.js";
import { Action } from "../parts/action.js";
import { Copy } from "../parts/basics.js";
import { quoted } from "../parts/commands.js";
import { DEFAULT_NAMESPACE, namespace } from "../router.js";

const FINISHED: readonly RolloutStatus[] = [
  RolloutStatus.SUCCEEDED,
  RolloutStatus.FAILED,
  RolloutStatus.CANCELLED,
];

export function Actions({ rollout, done }: { rollout: Rollout; done: () => void }) {
  const { rolloutId, status } = rollout;
  const store = storeOf(namespace.value);
  return (
    <>
      {FINISHED.includes(status) ? (
        <Action
          key="retry"
          label="Retry"
          question="Put it at the end of the queue again, for another attempt?"
          run={(requestId) =>
            store.updateRollout({
              rollout: { rolloutId, status: RolloutStatus.QUEUING },
              requestId,
            })
          }
          done={done}
        />
      ) : (
        <Action
          key="cancel"
          label="Cancel"
          question="Cancel it? Its runner is asked to stop."
          run={(requestId) => store.cancelRollouts({ rolloutIds: [rolloutId], requestId })}
          done={done}
        />
      )}
      <Copy text={curlOf(rolloutId)} label="Copy as curl" />
    </>
  );
}

/** Returns the command that gets a rollout. A token is named, and never part of it. */
function curlOf(rolloutId: string): string {
  const url = new URL("lightningstore.v1.LightningStoreService/GetRollout", window.location.href);
  url.hash = url.search = "";
  const options = [
    `-H ${quoted("Content-Type: application/json")}`,
    ...(token.value ? ['-H "Authorization: Bearer $TOKEN"'] : []),
    ...(namespace.value === DEFAULT_NAMESPACE
      ? []
      : [`-H ${quoted(`x-lightning-namespace: ${namespace.value}`)}`]),
    `-d ${quoted(JSON.stringify({ rolloutId }))}`,
  ];
  return `curl -s ${options.join(" ")} ${quoted(url.href)}`;
}
