package io.lightningstore.client;

import io.grpc.ChannelCredentials;
import io.grpc.ConnectivityState;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

/** Options of a connection; {@link #build} creates the client. */
public final class LightningStoreBuilder {
  private static final String DEFAULT_ADDRESS = "127.0.0.1:4747";
  private static final String SECURE = "https://";
  private static final Pattern NAMESPACE = Pattern.compile("[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?");
  private static final int MIB = 1 << 20;

  /** The server's limit, plus the overhead of a message of that size. */
  private static final int MAX_MESSAGE_BYTES = 65 * MIB;

  private String address;
  private String token;
  private String namespace;
  private boolean insecureTokenAllowed;
  private Path caCertificate;
  private Path clientCertificate;
  private Path clientKey;
  private Duration timeout = Duration.ofSeconds(30);

  LightningStoreBuilder() {}

  /**
   * Sets the address: {@code host:port}, or {@code https://host:port} for TLS with the CA
   * certificates of the system. Default: LIGHTNINGSTORE_ADDRESS, else 127.0.0.1:4747.
   */
  public LightningStoreBuilder address(String value) {
    address = Objects.requireNonNull(value, "address");
    return this;
  }

  /** Sets the bearer token of every call. Default: LIGHTNINGSTORE_TOKEN, else none. */
  public LightningStoreBuilder token(String value) {
    token = Objects.requireNonNull(value, "token");
    return this;
  }

  /**
   * Sets the namespace of every call: 1 to 63 of {@code a-z 0-9 - _ .}, beginning and ending with a
   * letter or a digit. Default: LIGHTNINGSTORE_NAMESPACE. If that is not set, or the value is
   * empty, calls name no namespace and belong to the server's {@code default}.
   */
  public LightningStoreBuilder namespace(String value) {
    namespace = Objects.requireNonNull(value, "namespace");
    return this;
  }

  /** Allows sending the token over an unencrypted connection, where others can read it. */
  public LightningStoreBuilder allowInsecureToken() {
    insecureTokenAllowed = true;
    return this;
  }

  /** Enables TLS and sets the CA certificates (PEM) that verify the server. */
  public LightningStoreBuilder caCertificate(Path file) {
    caCertificate = Objects.requireNonNull(file, "file");
    return this;
  }

  /** Enables mutual TLS with this certificate chain and its unencrypted PKCS#8 key, both in PEM. */
  public LightningStoreBuilder clientCertificate(Path certificate, Path key) {
    clientCertificate = Objects.requireNonNull(certificate, "certificate");
    clientKey = Objects.requireNonNull(key, "key");
    return this;
  }

  /** Sets the maximum duration of a call, retries included. Default: 30 seconds. */
  public LightningStoreBuilder timeout(Duration value) {
    if (value.isNegative() || value.isZero()) {
      throw new IllegalArgumentException("a timeout must be positive, not " + value);
    }
    timeout = value;
    return this;
  }

  /**
   * Creates the client. It connects with its first call.
   *
   * @throws IllegalArgumentException for a malformed address, an invalid namespace, or a token that
   *     would be sent unencrypted
   * @throws UncheckedIOException for a certificate or key that cannot be read
   */
  public LightningStore build() {
    String place = orEnvironment(address, "LIGHTNINGSTORE_ADDRESS", DEFAULT_ADDRESS);
    String secret = orEnvironment(token, "LIGHTNINGSTORE_TOKEN", null);
    boolean secure = place.startsWith(SECURE) || caCertificate != null || clientCertificate != null;
    String target =
        place.startsWith(SECURE) ? place.substring(SECURE.length()).replaceFirst("/$", "") : place;
    if (target.isEmpty() || target.contains("://")) {
      throw new IllegalArgumentException(
          "the address must be like " + DEFAULT_ADDRESS + " or https://store:4747, not " + place);
    }
    if (secret != null && !secure && !insecureTokenAllowed) {
      throw new IllegalArgumentException(
          "the token would be sent unencrypted: use TLS, or call allowInsecureToken()");
    }
    String named = orEnvironment(namespace, "LIGHTNINGSTORE_NAMESPACE", "");
    if (!named.isEmpty() && !NAMESPACE.matcher(named).matches()) {
      throw new IllegalArgumentException(
          "the namespace must be 1 to 63 of a-z 0-9 - _ . and begin and end with a letter or a"
              + " digit, not '"
              + named
              + "'");
    }
    ChannelCredentials credentials = secure ? tls() : InsecureChannelCredentials.create();
    ManagedChannel connection = connect(target, credentials);
    Contact contact =
        new Contact(place, () -> connection.getState(false) == ConnectivityState.READY);
    return new LightningStore(connection, secret, named.isEmpty() ? null : named, contact, timeout);
  }

  private static String orEnvironment(String given, String variable, String otherwise) {
    if (given != null) {
      return given;
    }
    String found = System.getenv(variable);
    return found == null || found.isEmpty() ? otherwise : found;
  }

  private ChannelCredentials tls() {
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    try {
      if (caCertificate != null) {
        tls.trustManager(caCertificate.toFile());
      }
      if (clientCertificate != null) {
        tls.keyManager(clientCertificate.toFile(), clientKey.toFile());
      }
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
    return tls.build();
  }

  private static ManagedChannel connect(String target, ChannelCredentials credentials) {
    return NettyChannelBuilder.forTarget(target, credentials)
        // Without pings, a lost peer would never be noticed.
        .keepAliveTime(20, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(true)
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        // By default gRPC does not retry requests above 1 MiB.
        .perRpcBufferLimit(MAX_MESSAGE_BYTES)
        .retryBufferSize(2L * MAX_MESSAGE_BYTES)
        // A proxy from the environment is meant for web traffic, not for a store on this host.
        .proxyDetector(any -> null)
        .defaultServiceConfig(serviceConfig())
        .userAgent("lightningstore-java")
        .build();
  }

  /**
   * Every call is safe to retry: by the contract, or because of the request id that each write
   * gets.
   */
  private static Map<String, ?> serviceConfig() {
    Map<String, ?> retry =
        Map.of(
            "maxAttempts",
            5.0,
            "initialBackoff",
            "0.1s",
            "maxBackoff",
            "2s",
            "backoffMultiplier",
            3.0,
            "retryableStatusCodes",
            // A server that is shutting down answers new calls with CANCELLED. Netty reports
            // UNKNOWN for a call that was not written yet when the connection broke.
            List.of("UNAVAILABLE", "CANCELLED", "UNKNOWN"));
    List<Map<String, ?>> services =
        List.of(
            Map.of("service", "lightningstore.v1.LightningStoreService"),
            Map.of("service", "lightningstore.v1.NamespaceService"));
    return Map.of("methodConfig", List.of(Map.of("name", services, "retryPolicy", retry)));
  }
}
