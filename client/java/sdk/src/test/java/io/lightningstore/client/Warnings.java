package io.lightningstore.client;

import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.function.Consumer;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;

/** Keeps what a class logs, or does something else with it. Tests run side by side: filter it. */
final class Warnings extends Handler implements AutoCloseable {
  private final Logger logger;
  private final Level before;
  private final Consumer<LogRecord> onRecord;
  private final List<String> messages = new CopyOnWriteArrayList<>();

  Warnings(Class<?> of) {
    this(of, record -> {});
  }

  Warnings(Class<?> of, Consumer<LogRecord> onRecord) {
    logger = Logger.getLogger(of.getName());
    before = logger.getLevel();
    this.onRecord = onRecord;
    logger.addHandler(this);
    logger.setLevel(Level.WARNING);
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
    logger.setLevel(before);
  }
}
