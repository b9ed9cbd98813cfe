package io.lightningstore.client;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import io.opentelemetry.proto.common.v1.AnyValue;
import io.opentelemetry.proto.common.v1.KeyValue;
import java.util.Comparator;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.OptionalInt;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** Reads rewards from spans in all supported forms. */
final class RewardReading {
  static final Comparator<StoredSpan> LAST_FIRST =
      Comparator.comparingLong(StoredSpan::sequenceId)
          .thenComparing(span -> span.span().getStartTimeUnixNano(), Long::compareUnsigned)
          .reversed();

  private static final Pattern VALUE =
      Pattern.compile(Pattern.quote(Rewards.REWARD) + "\\.([0-9]{1,9})\\.value");
  private static final String[] OUTPUTS = {"agentops.task.output", "agentops.entity.output"};

  private RewardReading() {}

  /** Returns the primary reward of a span; empty if it has none that can be read. */
  static OptionalDouble of(StoredSpan span) {
    OptionalInt first = firstDimension(span);
    if (first.isPresent()) {
      return number(attribute(span, Rewards.REWARD + "." + first.getAsInt() + ".value"));
    }
    if (span.attribute(Rewards.REWARD).isPresent()) {
      return value(attribute(span, Rewards.REWARD));
    }
    Optional<JsonObject> output =
        Stream.of(OUTPUTS).flatMap(key -> reward(attribute(span, key))).findFirst();
    if (output.isPresent()) {
      return value(output.get());
    }
    boolean mayHoldOne =
        span.name().equals(Rewards.ANNOTATION) || span.name().equals(Rewards.REWARD);
    return mayHoldOne ? value(attribute(span, "reward")) : OptionalDouble.empty();
  }

  private static OptionalInt firstDimension(StoredSpan span) {
    return span.span().getAttributesList().stream()
        .map(one -> VALUE.matcher(one.getKey()))
        .filter(Matcher::matches)
        .mapToInt(found -> Integer.parseInt(found.group(1)))
        .min();
  }

  private static Stream<JsonObject> reward(JsonElement output) {
    JsonElement read = parsed(output);
    boolean isOne =
        read.isJsonObject()
            && new JsonPrimitive("reward").equals(read.getAsJsonObject().get("type"));
    return isOne ? Stream.of(read.getAsJsonObject()) : Stream.empty();
  }

  /** Parses one value: a number, a list of named rewards, or the JSON text of either. */
  private static OptionalDouble value(JsonElement given) {
    JsonElement read = parsed(given);
    if (read.isJsonArray() && !read.getAsJsonArray().isEmpty()) {
      read = read.getAsJsonArray().get(0);
    }
    if (read.isJsonObject()) {
      JsonElement inner = read.getAsJsonObject().get("value");
      read = inner == null ? JsonNull.INSTANCE : inner;
    }
    return number(read);
  }

  private static OptionalDouble number(JsonElement read) {
    if (read instanceof JsonPrimitive primitive && primitive.isNumber()) {
      double found = primitive.getAsDouble();
      return Double.isFinite(found) ? OptionalDouble.of(found) : OptionalDouble.empty();
    }
    return OptionalDouble.empty();
  }

  private static JsonElement parsed(JsonElement given) {
    if (!(given instanceof JsonPrimitive text && text.isString())) {
      return given;
    }
    try {
      return JsonParser.parseString(text.getAsString());
    } catch (JsonParseException noJson) {
      return JsonNull.INSTANCE;
    }
  }

  private static JsonElement attribute(StoredSpan span, String name) {
    return span.attribute(name).map(RewardReading::json).orElse(JsonNull.INSTANCE);
  }

  private static JsonElement json(AnyValue value) {
    return switch (value.getValueCase()) {
      case STRING_VALUE -> new JsonPrimitive(value.getStringValue());
      case INT_VALUE -> new JsonPrimitive(value.getIntValue());
      case DOUBLE_VALUE -> new JsonPrimitive(value.getDoubleValue());
      case ARRAY_VALUE -> {
        JsonArray array = new JsonArray();
        value.getArrayValue().getValuesList().forEach(one -> array.add(json(one)));
        yield array;
      }
      case KVLIST_VALUE -> {
        JsonObject object = new JsonObject();
        for (KeyValue one : value.getKvlistValue().getValuesList()) {
          object.add(one.getKey(), json(one.getValue()));
        }
        yield object;
      }
      default -> JsonNull.INSTANCE; // nothing that could be a number
    };
  }
}
