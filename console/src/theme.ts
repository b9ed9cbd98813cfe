// Light, dark, or as the system is set.
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEY = "lightningstore.theme";

function stored(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

export const theme = signal<Theme>(stored());

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(dark.matches);
dark.addEventListener("change", (event) => (systemIsDark.value = event.matches));

/** What is shown. Charts, which are drawn on a canvas, read it to be drawn again. */
export const shown = signal<"light" | "dark">("light");

effect(() => {
  const choice = theme.value;
  shown.value = choice === "system" ? (systemIsDark.value ? "dark" : "light") : choice;
  document.documentElement.dataset["theme"] = shown.value;
});

effect(() => {
  try {
    if (theme.value === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme.value);
  } catch {
    // A browser that stores nothing shows the theme until the page is reloaded.
  }
});
