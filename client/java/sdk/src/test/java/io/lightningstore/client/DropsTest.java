package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;

class DropsTest {
  private final AtomicLong now = new AtomicLong();
  private final Drops drops = new Drops(now::get);

  private void pass(long seconds) {
    now.addAndGet(TimeUnit.SECONDS.toNanos(seconds));
  }

  @Test
  void firstLossIsLoggedAtOnceAndWhatFollowsOnceAMinute() {
    try (Warnings warnings = new Warnings(LightningStoreSpanExporter.class)) {
      drops.add(1, "full", "DropsTest: full");
      drops.add(2, "full", "DropsTest: full");
      drops.add(1, "refused", "DropsTest: refused");
      pass(59);
      drops.add(3, "full", "DropsTest: full");
      drops.summarize(false);
      assertEquals(
          List.of(
              "dropped 1 span(s): DropsTest: full; 1 so far",
              "dropped 1 span(s): DropsTest: refused; 4 so far"),
          warnings.with("DropsTest"));
      pass(1);
      drops.summarize(false);
      assertEquals(
          "dropped 5 span(s): DropsTest: full; 7 so far", warnings.with("DropsTest").get(2));
      drops.add(1, "full", "DropsTest: full");
      drops.summarize(true);
      drops.summarize(true);
      assertEquals(4, warnings.with("DropsTest").size(), "the rest is logged at the end, once");
      assertEquals(8, drops.count());
    }
  }
}
