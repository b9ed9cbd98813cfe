package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.claimOf;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.lightningstore.v1.AttemptStatus;
import java.io.OutputStream;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class EndOfProgramTest {
  private static Process start(ScriptedServer server, String program) throws Exception {
    return JavaProcess.start(server.address(), EndingPrograms.class.getName(), program);
  }

  private static void awaitEnd(Process process, int status) throws InterruptedException {
    assertTrue(process.waitFor(Events.PATIENCE_SECONDS, TimeUnit.SECONDS));
    assertEquals(status, process.exitValue());
  }

  @Test
  void programThatForgetsItsExporterStillStoresItsSpans() throws Exception {
    try (ScriptedServer server = new ScriptedServer()) {
      Process program = start(server, "exporter");
      awaitEnd(program, 0);
      assertEquals(List.of("first", "last"), server.storedSpans());
    }
  }

  @Test
  void signalLetsWhatRunsFinishAndBeReported() throws Exception {
    try (ScriptedServer server = new ScriptedServer()) {
      server.queue.add(claimOf("ro-1", "1"));
      Process program = start(server, "runner");
      try (OutputStream toProgram = program.getOutputStream()) {
        assertEquals('w', program.getInputStream().read(), "the agent is at work");
        program.toHandle().destroy(); // SIGTERM; streams stay open
        toProgram.write('x');
        toProgram.flush();
        awaitEnd(program, 128 + 15);
      }
      assertEquals(
          AttemptStatus.ATTEMPT_STATUS_SUCCEEDED,
          next(server.updates, "the outcome").getAttempt().getStatus());
      assertEquals(List.of(Rewards.ANNOTATION), server.storedSpans());
    }
  }
}
