import { Page } from "../parts/basics.js";

export function Consumers() {
  return <Page title="Consumers">{null}</Page>;
}
