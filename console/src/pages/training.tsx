import { Page } from "../parts/basics.js";

export function Training() {
  return <Page title="Training">{null}</Page>;
}
