package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.TlsServerCredentials;
import io.lightningstore.v1.HeartbeatRequest;
import java.io.File;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.util.Base64;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SecurityTest {
  private static final String PASSWORD = "password";

  @TempDir static Path folder;
  private static Path certificate;
  private static Path key;

  /** Makes a certificate that signs itself, for both sides, and its key. */
  @BeforeAll
  static void makeCertificate() throws Exception {
    Path store = folder.resolve("keys.p12");
    String command =
        "-genkeypair -alias test -keyalg EC -dname CN=test -ext san=ip:127.0.0.1 -validity 1"
            + " -storetype PKCS12 -storepass password -keystore "
            + store;
    Process keytool =
        new ProcessBuilder((System.getProperty("java.home") + "/bin/keytool " + command).split(" "))
            .redirectErrorStream(true)
            .redirectOutput(ProcessBuilder.Redirect.DISCARD)
            .start();
    assertEquals(0, keytool.waitFor());
    KeyStore keys = KeyStore.getInstance("PKCS12");
    try (InputStream stream = Files.newInputStream(store)) {
      keys.load(stream, PASSWORD.toCharArray());
    }
    certificate = pem("CERTIFICATE", keys.getCertificate("test").getEncoded());
    key = pem("PRIVATE KEY", keys.getKey("test", PASSWORD.toCharArray()).getEncoded());
  }

  private static Path pem(String kind, byte[] content) throws Exception {
    String lines = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(content);
    return Files.writeString(
        folder.resolve(kind.replace(' ', '-') + ".pem"),
        "-----BEGIN " + kind + "-----\n" + lines + "\n-----END " + kind + "-----\n");
  }

  /** Notes the token of each call. */
  private record Tokens(BlockingQueue<String> shown) implements ServerInterceptor {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      shown.add(String.valueOf(headers.get(AUTHORIZATION)));
      return next.startCall(call, headers);
    }
  }

  private static void beat(LightningStoreBuilder builder) {
    try (LightningStore store = builder.build()) {
      store.call(stub -> stub.heartbeat(HeartbeatRequest.newBuilder().setWorkerId("w").build()));
    }
  }

  @Test
  void mutualTlsAndTokens() throws Exception {
    File certificateFile = certificate.toFile();
    BlockingQueue<String> shown = new LinkedBlockingQueue<>();
    try (ScriptedServer server =
        new ScriptedServer(
            TlsServerCredentials.newBuilder()
                .keyManager(certificateFile, key.toFile())
                .trustManager(certificateFile)
                .clientAuth(TlsServerCredentials.ClientAuth.REQUIRE)
                .build(),
            new Tokens(shown))) {
      for (String prefix : new String[] {"", "https://"}) {
        beat(
            LightningStore.builder()
                .address(prefix + server.address())
                .caCertificate(certificate)
                .clientCertificate(certificate, key)
                .token("secret"));
        assertEquals("Bearer secret", next(shown, "the call"));
      }
      assertThrows(
          LightningStoreException.class,
          () -> beat(LightningStore.builder().address(server.address()).caCertificate(certificate)),
          "no certificate shown");
      assertThrows(
          LightningStoreException.class,
          () -> beat(LightningStore.builder().address("https://" + server.address())),
          "an authority that the system does not know");
      assertThrows(
          LightningStoreException.class,
          () -> beat(LightningStore.builder().address(server.address())),
          "plain text");
      assertTrue(shown.isEmpty());
    }
  }

  @Test
  void tokensStayOffPlainTextUnlessAllowed() throws Exception {
    LightningStoreBuilder plain = LightningStore.builder().address("127.0.0.1:1").token("secret");
    String message = assertThrows(IllegalArgumentException.class, plain::build).getMessage();
    assertFalse(message.contains("secret"));
    assertTrue(message.contains("TLS"));
    BlockingQueue<String> shown = new LinkedBlockingQueue<>();
    try (ScriptedServer server = new ScriptedServer(new Tokens(shown))) {
      beat(LightningStore.builder().address(server.address()).token("t").allowInsecureToken());
      assertEquals("Bearer t", next(shown, "the call"));
      beat(LightningStore.builder().address(server.address()));
      assertEquals("null", next(shown, "the call"));
    }
    LightningStore.builder().address("https://127.0.0.1:1").token("t").build().close();
  }

  @Test
  void whatIsNoAddressIsRefused() {
    for (String address : new String[] {"http://127.0.0.1:1", "https://", ""}) {
      LightningStoreBuilder builder = LightningStore.builder().address(address);
      assertThrows(IllegalArgumentException.class, builder::build, address);
    }
    LightningStore.connect("https://127.0.0.1:1/").close();
  }

  @Test
  void filesThatAreNoCertificatesAreRefused() {
    Path missing = folder.resolve("missing.pem");
    for (LightningStoreBuilder builder :
        new LightningStoreBuilder[] {
          LightningStore.builder().caCertificate(missing),
          LightningStore.builder().caCertificate(key),
          LightningStore.builder().clientCertificate(certificate, missing),
          LightningStore.builder().clientCertificate(key, certificate),
        }) {
      assertThrows(RuntimeException.class, builder.address("127.0.0.1:1")::build);
    }
  }
}
