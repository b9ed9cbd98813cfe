/** Sends what exporters still hold when a program comes to its end. */

interface Holder {
  shutdown: () => Promise<void>;
}

const holders = new Set<Holder>();
let isListening = false;

/** Keeps an exporter that has something to send: it is shut down when nothing else is left to do. */
export function holdAtExit(holder: Holder): void {
  holders.add(holder);
  if (isListening) return;
  isListening = true;
  // Pauses of an exporter do not keep the program running; this event says that nothing else does either.
  process.on("beforeExit", () => {
    for (const held of holders) {
      holders.delete(held);
      void held.shutdown();
    }
  });
}

/** Forgets an exporter that has nothing left to send. */
export function letGo(holder: Holder): void {
  holders.delete(holder);
}
