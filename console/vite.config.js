import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

export default defineConfig({
  // Addresses are relative, so that the console also works behind a proxy with a path of its own.
  base: "./",
  build: {
    outDir: fileURLToPath(
      new URL("../service/lightningstore/service/http/console", import.meta.url),
    ),
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    // The Content-Security-Policy allows no data: URLs except for images.
    assetsInlineLimit: 0,
    license: { fileName: "licenses.md" },
    reportCompressedSize: false,
  },
});
