package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.lightningstore.v1.HeartbeatRequest;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class ContactTest {
  /** Addresses that warnings name. */
  private final BlockingQueue<Object> logged = new LinkedBlockingQueue<>();

  private final Warnings warnings =
      new Warnings(LightningStore.class, record -> logged.add(record.getParameters()[0]));

  /** What is to be done 2 seconds after the first call. */
  private final BlockingQueue<Runnable> due = new LinkedBlockingQueue<>();

  @AfterEach
  void close() {
    warnings.close();
  }

  private LightningStore connect(String address, boolean connected) {
    ManagedChannel connection = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
    Contact contact = new Contact(address, () -> connected, due::add);
    return new LightningStore(connection, null, null, contact, Duration.ofSeconds(60));
  }

  private static void beat(LightningStore store) {
    store.call(stub -> stub.heartbeat(HeartbeatRequest.newBuilder().setWorkerId("w").build()));
  }

  @Test
  void firstCallThatReachesNoServerWarnsOnce() throws Exception {
    String address = "127.0.0.1:" + RealServer.freePort();
    try (LightningStore store = connect(address, false)) {
      assertThrows(LightningStoreException.class, () -> beat(store));
      assertThrows(LightningStoreException.class, () -> beat(store));
      next(due, "the time of the first call").run();
      assertTrue(due.isEmpty());
    }
    assertEquals(
        List.of(
            "no server has answered at "
                + address
                + " for 2 s: is `lightningstore serve` running there?"),
        warnings.with(address));
  }

  @Test
  void serverThatAnswersCausesNoWarning() throws Exception {
    try (ScriptedServer server = new ScriptedServer();
        LightningStore store = connect(server.address(), false)) {
      beat(store);
      next(due, "the time of the first call").run();
      assertEquals(List.of(), warnings.with(server.address()));
    }
  }

  @Test
  void slowAnswerOnAConnectionCausesNoWarning() throws Exception {
    String address = "127.0.0.1:" + RealServer.freePort();
    try (LightningStore store = connect(address, true)) {
      assertThrows(LightningStoreException.class, () -> beat(store));
      next(due, "the time of the first call").run();
    }
    assertEquals(List.of(), warnings.with(address));
  }

  @Test
  void closedClientCausesNoWarning() throws Exception {
    String address = "127.0.0.1:" + RealServer.freePort();
    LightningStore store = connect(address, false);
    assertThrows(LightningStoreException.class, () -> beat(store));
    store.close();
    next(due, "the time of the first call").run();
    assertEquals(List.of(), warnings.with(address));
  }

  @Test
  void clientsOfTheBuilderWarnByThemselves() throws Exception {
    String address = "127.0.0.1:" + RealServer.freePort();
    try (LightningStore store = LightningStore.connect(address)) {
      assertThrows(LightningStoreException.class, () -> beat(store));
      while (!next(logged, "the warning").equals(address)) {
        // that of another test
      }
    }
  }
}
