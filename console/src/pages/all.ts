// The pages by the first part of their link. Those with a title in the navigation are shown there, in this order.
import type { FunctionComponent } from "preact";
import { Consumers } from "./consumers.js";
import { GroupPage } from "./group.js";
import { Overview } from "./overview.js";
import { ResourcesPage } from "./resources.js";
import { RolloutPage } from "./rollout.js";
import { Rollouts } from "./rollouts.js";
import { Training } from "./training.js";
import { Workers } from "./workers.js";

export interface PageEntry {
  readonly component: FunctionComponent;
  readonly title?: string;
  /** Page of the navigation that it belongs to. */
  readonly under?: string;
}

export const PAGES: Readonly<Record<string, PageEntry>> = {
  "": { component: Overview, title: "Overview" },
  training: { component: Training, title: "Training" },
  rollouts: { component: Rollouts, title: "Rollouts" },
  rollout: { component: RolloutPage, under: "rollouts" },
  group: { component: GroupPage, under: "rollouts" },
  workers: { component: Workers, title: "Workers" },
  consumers: { component: Consumers, title: "Consumers" },
  resources: { component: ResourcesPage, title: "Resources" },
};
