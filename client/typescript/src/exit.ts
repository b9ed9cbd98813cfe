/** Sends the buffered spans of exporters when the program ends. */

interface Holder {
  shutdown: () => Promise<void>;
}

const holders = new Set<Holder>();
let isListening = false;

/** Registers an exporter with buffered spans: it is shut down when nothing else keeps the program running. */
export function holdAtExit(holder: Holder): void {
  holders.add(holder);
  if (isListening) return;
  isListening = true;
  // Pauses of an exporter do not keep the program running. This event says that nothing else does either.
  process.on("beforeExit", () => {
    for (const held of holders) {
      holders.delete(held);
      void held.shutdown();
    }
  });
}

/** Unregisters an exporter without buffered spans. */
export function letGo(holder: Holder): void {
  holders.delete(holder);
}
