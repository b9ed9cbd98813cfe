// One group.
import { Page } from "../parts/basics.js";
import { route } from "../router.js";

export function GroupPage() {
  return <Page title={`Group ${route.value.id}`}>{null}</Page>;
}
