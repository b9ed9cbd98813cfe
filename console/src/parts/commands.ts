// Commands to copy into a terminal.
import { DEFAULT_NAMESPACE, namespace } from "../router.js";

/** Returns a text as one word of a shell. Ids may hold what a shell would run. */
export const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** Returns a command for a namespace, for the shown one unless another is named. */
export function inNamespace(command: string, name: string = namespace.value): string {
  return name === DEFAULT_NAMESPACE ? command : `${command} --namespace ${name}`;
}

export const enqueue = (): string =>
  inNamespace(`lightningstore enqueue '{"question": "What is 6 times 7?"}'`);

export const claim = (): string => inNamespace("lightningstore claim --worker me");
