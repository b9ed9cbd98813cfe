package io.lightningstore.client;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Programs with the class path of the tests. */
final class JavaProcess {
  private JavaProcess() {}

  /** Starts one: a class of the tests or a source file, and its arguments. */
  static Process start(String address, String... program) throws Exception {
    return start(Map.of("LIGHTNINGSTORE_ADDRESS", address), program);
  }

  static Process start(Map<String, String> environment, String... program) throws Exception {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classPath()));
    command.addAll(List.of(program));
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.environment().putAll(environment);
    return builder.redirectError(ProcessBuilder.Redirect.INHERIT).start();
  }

  static String classPath() {
    return System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));
  }
}
