package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The programs of the README, compiled and run as printed. */
class ReadmeTest {
  private static final Pattern PROGRAM =
      Pattern.compile("```java\n(.*?class (\\w+) \\{.*?)```", Pattern.DOTALL);

  @TempDir Path folder;

  /** Writes the programs into files, and returns those by the names of their classes. */
  private Map<String, Path> programs() throws Exception {
    Map<String, Path> found = new LinkedHashMap<>();
    Matcher matcher = PROGRAM.matcher(Files.readString(Path.of("../README.md")));
    while (matcher.find()) {
      Path file = folder.resolve(matcher.group(2) + ".java");
      found.put(matcher.group(2), Files.writeString(file, matcher.group(1)));
    }
    return found;
  }

  /** Runs a program to its end and returns the lines that it prints. */
  private static List<String> run(Path program, String address) throws Exception {
    Process process = JavaProcess.start(address, program.toString());
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertTrue(process.waitFor(Events.PATIENCE_SECONDS, TimeUnit.SECONDS));
    assertEquals(0, process.exitValue(), output);
    return Arrays.asList(output.split("\n"));
  }

  @Test
  void programsRunAsPrinted() throws Exception {
    Map<String, Path> programs = programs();
    assertEquals(
        List.of("RunnerProgram", "Algorithm", "TrainingControl", "Tracing"),
        List.copyOf(programs.keySet()));
    try (RealServer server = RealServer.start(folder, "--port", "0", "--backend", "memory")) {
      Process runner =
          JavaProcess.start(server.address(), programs.get("RunnerProgram").toString());
      try {
        List<String> lines = run(programs.get("Algorithm"), server.address());
        assertEquals(8, lines.size(), lines.toString());
        assertTrue(
            lines.contains("{\"question\":3} ROLLOUT_STATUS_SUCCEEDED OptionalDouble[3.0]"),
            lines.toString());
        assertTrue(
            lines.contains("{\"question\":7} ROLLOUT_STATUS_FAILED OptionalDouble.empty"),
            lines.toString());
        assertEquals(
            List.of("task-1 mean reward 1.5, with the new weights: true", "best: 3.0 {judge=0.7}"),
            run(programs.get("TrainingControl"), server.address()));
        assertEquals(List.of("step"), run(programs.get("Tracing"), server.address()));
        runner.destroy(); // SIGTERM
        assertTrue(runner.waitFor(Events.PATIENCE_SECONDS, TimeUnit.SECONDS));
        assertEquals(143, runner.exitValue(), "ended by SIGTERM, as Java says it");
      } finally {
        runner.destroyForcibly();
      }
    }
  }
}
