import { Page } from "../parts/basics.js";

export function ResourcesPage() {
  return <Page title="Resources">{null}</Page>;
}
