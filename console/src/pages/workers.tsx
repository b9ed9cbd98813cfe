import { Page } from "../parts/basics.js";

export function Workers() {
  return <Page title="Workers">{null}</Page>;
}
