package io.lightningstore.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import io.lightningstore.client.LightningStore;
import io.lightningstore.client.Runner;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * The Java driver of the conformance tests. It reads commands from stdin, one JSON object per line,
 * executes them with this client, and writes the answers to stdout.
 */
public final class Driver {
  private static final Gson GSON =
      new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  private final String address;
  private final PrintStream out =
      new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
  private final ExecutorService threads = Executors.newCachedThreadPool();
  private final Map<String, Runnable> cancels = new ConcurrentHashMap<>();
  private final Map<String, Runner> runners = new ConcurrentHashMap<>();
  private LightningStore store;

  private Driver(String address) {
    this.address = address;
    store = LightningStore.connect(address);
  }

  /** Serves stdin until its end. Commands that are still running end with the process. */
  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 1) {
      System.err.println("usage: driver ADDRESS");
      System.exit(2);
    }
    Driver driver = new Driver(arguments[0]);
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = lines.readLine()) != null; ) {
      driver.take(line);
    }
    Runtime.getRuntime().halt(0); // exit would wait for what runs
  }

  /**
   * Starts the command of a line. Commands that only affect other commands are executed at once, in
   * the order of the lines.
   */
  private void take(String line) {
    JsonObject command;
    try {
      command = JsonParser.parseString(line).getAsJsonObject();
    } catch (JsonParseException | IllegalStateException error) {
      System.err.println("no command: " + line + ": " + error);
      return;
    }
    String id = command.get("id").toString();
    switch (text(command, "op")) {
      case "call" -> call(id, command);
      case "cancel" -> {
        cancels.getOrDefault(command.get("target").toString(), () -> {}).run();
        answer(command, "ok", new JsonPrimitive(true));
      }
      case "reconnect" -> {
        LightningStore before = store;
        store = LightningStore.connect(address);
        before.close();
        answer(command, "ok", new JsonPrimitive(true));
      }
      case "runner" -> startRunner(id, command);
      case "stop" -> {
        Runner runner = runners.get(command.get("target").toString());
        if (runner != null) {
          runner.stop();
        }
        answer(command, "ok", new JsonPrimitive(true));
      }
      case "export" -> export(command);
      default -> unsupported(command, "no op " + command.get("op"));
    }
  }

  private void call(String id, JsonObject command) {
    Call call = Call.of(store.channel(), command, what -> answer(command, what));
    if (call == null) {
      unsupported(command, "no method " + text(command, "method"));
      return;
    }
    cancels.put(id, call::cancel);
    threads.execute(call);
  }

  /** Starts a runner with the scripted agent, on a separate connection. */
  private void startRunner(String id, JsonObject command) {
    LightningStore own = LightningStore.connect(address);
    var builder = Runner.builder(own, Script.class, Script::run);
    if (!text(command, "worker_id").isEmpty()) {
      builder.workerId(text(command, "worker_id"));
    }
    if (command.has("concurrency")) {
      builder.concurrency(command.get("concurrency").getAsInt());
    }
    if (command.has("max_rollouts")) {
      builder.maxRollouts(command.get("max_rollouts").getAsLong());
    }
    if (command.has("queues")) {
      builder.queues(
          command.getAsJsonArray("queues").asList().stream()
              .map(JsonElement::getAsString)
              .toArray(String[]::new));
    }
    if (command.has("heartbeat_period")) {
      double seconds = command.get("heartbeat_period").getAsDouble();
      builder.heartbeatPeriod(Duration.ofNanos((long) (seconds * 1e9)));
    }
    Runner runner = builder.build();
    runners.put(id, runner);
    cancels.put(
        id,
        () -> {
          runner.stop();
          runner.stop();
        });
    answer(command, "started", new JsonPrimitive(true));
    runner
        .start()
        .whenComplete(
            (nothing, error) -> {
              if (error != null) {
                System.err.println("runner ended: " + error);
              }
              own.close();
              answer(command, "ended", new JsonPrimitive(true));
            });
  }

  private void export(JsonObject command) {
    LightningStore over = store;
    threads.execute(
        () -> {
          try {
            answer(command, Export.run(over, address, command));
          } catch (RuntimeException error) {
            answer(command, "error", Call.describe(error));
          }
        });
  }

  private void unsupported(JsonObject command, String why) {
    answer(command, "unsupported", new JsonPrimitive(why));
  }

  private void answer(JsonObject command, String key, JsonElement value) {
    JsonObject what = new JsonObject();
    what.add(key, value);
    answer(command, what);
  }

  private void answer(JsonObject command, JsonObject what) {
    what.add("id", command.get("id"));
    synchronized (out) {
      out.println(GSON.toJson(what));
      out.flush();
    }
  }

  static String text(JsonObject command, String key) {
    return command.has(key) ? command.get(key).getAsString() : "";
  }
}
