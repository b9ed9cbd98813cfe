// One rollout.
import { Page } from "../parts/basics.js";
import { route } from "../router.js";

export function RolloutPage() {
  return <Page title={`Rollout ${route.value.id}`}>{null}</Page>;
}
