package io.lightningstore.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import io.grpc.Status;
import io.lightningstore.client.LightningStoreException;
import io.lightningstore.v1.LightningStoreServiceGrpc;
import io.lightningstore.v1.NamespaceServiceGrpc;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** A call of any method and kind, by its name. */
final class Call extends ClientCall.Listener<Message> implements Runnable {
  private static final double DEFAULT_SECONDS = 30;

  /** No two of them have a method of the same name. */
  private static final List<ServiceDescriptor> SERVICES =
      List.of(
          LightningStoreServiceGrpc.getServiceDescriptor(),
          NamespaceServiceGrpc.getServiceDescriptor());

  private final JsonObject command;
  private final MethodDescriptor<Message, Message> method;
  private final ClientCall<Message, Message> call;
  private final Consumer<JsonObject> answer;
  private final JsonArray responses = new JsonArray();

  private Call(
      Channel channel,
      JsonObject command,
      MethodDescriptor<Message, Message> method,
      Consumer<JsonObject> answer) {
    this.command = command;
    this.method = method;
    this.answer = answer;
    double seconds =
        command.has("timeout") ? command.get("timeout").getAsDouble() : DEFAULT_SECONDS;
    CallOptions options =
        CallOptions.DEFAULT.withDeadlineAfter((long) (seconds * 1e9), TimeUnit.NANOSECONDS);
    call = channel.newCall(method, options);
  }

  /** Returns the call of a command, not started yet; null for an unknown method. */
  @SuppressWarnings("unchecked") // all methods of the contract take and give messages
  static Call of(Channel channel, JsonObject command, Consumer<JsonObject> answer) {
    String name = Driver.text(command, "method");
    for (ServiceDescriptor service : SERVICES) {
      for (MethodDescriptor<?, ?> method : service.getMethods()) {
        if (name.equals(method.getBareMethodName())) {
          return new Call(channel, command, (MethodDescriptor<Message, Message>) method, answer);
        }
      }
    }
    return null;
  }

  void cancel() {
    call.cancel("cancelled by command", null);
  }

  @Override
  public void run() {
    Metadata headers = new Metadata();
    if (command.has("metadata")) {
      for (Map.Entry<String, JsonElement> one : command.getAsJsonObject("metadata").entrySet()) {
        headers.put(
            Metadata.Key.of(one.getKey(), Metadata.ASCII_STRING_MARSHALLER),
            one.getValue().getAsString());
      }
    }
    call.start(this, headers);
    call.request(Integer.MAX_VALUE);
    try {
      for (JsonElement request : command.getAsJsonArray("requests")) {
        call.sendMessage(parse(request));
      }
      call.halfClose();
    } catch (InvalidProtocolBufferException error) {
      call.cancel("no request", error);
    } catch (IllegalStateException over) {
      System.err.println(over); // cancelled meanwhile: onClose tells
    }
  }

  private Message parse(JsonElement request) throws InvalidProtocolBufferException {
    var marshaller = (PrototypeMarshaller<Message>) method.getRequestMarshaller();
    Message.Builder message = marshaller.getMessagePrototype().newBuilderForType();
    JsonFormat.parser().merge(request.toString(), message);
    return message.build();
  }

  @Override
  public void onHeaders(Metadata headers) {
    if (!method.getType().serverSendsOneMessage()) {
      JsonObject started = new JsonObject();
      started.add("started", new JsonPrimitive(true));
      answer.accept(started);
    }
  }

  @Override
  public void onMessage(Message message) {
    try {
      responses.add(
          JsonParser.parseString(
              JsonFormat.printer().omittingInsignificantWhitespace().print(message)));
    } catch (InvalidProtocolBufferException error) {
      call.cancel("no answer", error);
    }
  }

  @Override
  public void onClose(Status status, Metadata trailers) {
    JsonObject what = new JsonObject();
    what.add("responses", responses);
    if (!status.isOk()) {
      what.add("error", describe(status.asRuntimeException(trailers)));
    }
    answer.accept(what);
  }

  /** Returns an error in the form of the driver protocol. */
  static JsonObject describe(Throwable thrown) {
    LightningStoreException error = LightningStoreException.from(thrown);
    JsonObject what = new JsonObject();
    what.addProperty("code", error.code().name());
    what.addProperty("message", Status.fromThrowable(thrown).getDescription());
    if (!error.reason().isEmpty()) {
      what.addProperty("reason", error.reason());
      what.addProperty("domain", error.domain());
      JsonObject metadata = new JsonObject();
      error.metadata().forEach(metadata::addProperty);
      what.add("metadata", metadata);
    }
    if (!error.fieldViolations().isEmpty()) {
      JsonArray fields = new JsonArray();
      error.fieldViolations().forEach(violation -> fields.add(violation.field()));
      what.add("fields", fields);
    }
    error.retryDelay().ifPresent(delay -> what.addProperty("retry_delay", delay.toNanos() / 1e9));
    return what;
  }
}
