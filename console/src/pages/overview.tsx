import { Page } from "../parts/basics.js";

export function Overview() {
  return <Page title="Overview">{null}</Page>;
}
