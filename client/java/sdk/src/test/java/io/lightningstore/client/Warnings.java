package io.lightningstore.client;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.function.Consumer;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;

/** Keeps what a class logs, or does something else with it. Tests run side by side: filter it. */
final class Warnings extends Handler implements AutoCloseable {
  /** How many listen to each logger. The last one to close restores the level. */
  private static final Map<Logger, Integer> listeners = new HashMap<>();

  private final Logger logger;
  private final Consumer<LogRecord> onRecord;
  private final List<String> messages = new CopyOnWriteArrayList<>();

  Warnings(Class<?> of) {
    this(of, record -> {});
  }

  Warnings(Class<?> of, Consumer<LogRecord> onRecord) {
    logger = Logger.getLogger(of.getName());
    this.onRecord = onRecord;
    logger.addHandler(this);
    listen(1);
  }

  /** Returns the messages that hold a text. */
  List<String> with(String text) {
    return messages.stream().filter(message -> message.contains(text)).toList();
  }

  @Override
  public void publish(LogRecord record) {
    messages.add(new SimpleFormatter().formatMessage(record));
    onRecord.accept(record);
  }

  @Override
  public void flush() {}

  @Override
  public void close() {
    logger.removeHandler(this);
    listen(-1);
  }

  private void listen(int change) {
    synchronized (listeners) {
      int count = listeners.merge(logger, change, Integer::sum);
      logger.setLevel(count > 0 ? Level.WARNING : null); // null: the level of its parent
    }
  }
}
