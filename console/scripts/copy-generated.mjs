// Copies the committed generated code into src/gen, so that it is compiled into the console.
import { cpSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = here("../src/gen");
rmSync(target, { recursive: true, force: true });
cpSync(here("../../generated/typescript"), target, { recursive: true });
