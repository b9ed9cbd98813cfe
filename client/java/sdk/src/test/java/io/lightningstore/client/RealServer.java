package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The server itself: that of LIGHTNINGSTORE_SERVER, else the checkout's. */
final class RealServer implements AutoCloseable {
  private static final Pattern ADDRESS = Pattern.compile("127\\.0\\.0\\.1:\\d+");

  private final Process process;
  private final String address;

  private RealServer(Process process, String address) {
    this.process = process;
    this.address = address;
  }

  /** Starts it in a folder, without HTTP to start faster, and returns it once it listens. */
  static RealServer start(Path folder, String... options) throws Exception {
    List<String> command = new ArrayList<>(List.of(program(), "serve", "--http-port", "0"));
    command.addAll(List.of(options));
    Process process =
        new ProcessBuilder(command)
            .directory(folder.toFile())
            .redirectError(ProcessBuilder.Redirect.DISCARD)
            .start();
    BufferedReader output =
        new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
    String line =
        Events.end(
            CompletableFuture.supplyAsync(
                () -> {
                  try {
                    return output.readLine();
                  } catch (IOException error) {
                    return "none: " + error;
                  }
                },
                task -> new Thread(task, "server-output").start()));
    Matcher found = ADDRESS.matcher(String.valueOf(line));
    return found.find()
        ? new RealServer(process, found.group())
        : fail("the server did not start: " + line);
  }

  private static String program() {
    String named = System.getenv("LIGHTNINGSTORE_SERVER");
    if (named != null) {
      return named;
    }
    Path own = Path.of("../../../.venv/bin/lightningstore").toAbsolutePath().normalize();
    assertTrue(
        Files.isExecutable(own),
        "no server at " + own + ": make .venv/stamp, or name one by LIGHTNINGSTORE_SERVER");
    return own.toString();
  }

  /**
   * Returns a port for a server that has to come back at the same address: below those that systems
   * give to outgoing connections, one of which might take it while the server is away.
   */
  static String freePort() {
    for (int tries = 0; tries < 100; tries++) {
      int port = ThreadLocalRandom.current().nextInt(20_000, 32_000);
      try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
        return String.valueOf(socket.getLocalPort());
      } catch (IOException taken) {
        // another one, then
      }
    }
    return fail("no port is free");
  }

  String address() {
    return address;
  }

  /** Kills it, as kill -9 does. */
  @Override
  public void close() {
    process.destroyForcibly().onExit().join();
  }
}
