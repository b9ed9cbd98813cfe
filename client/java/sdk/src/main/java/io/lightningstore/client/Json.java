package io.lightningstore.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.Strictness;
import com.google.gson.ToNumberStrategy;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonWriter;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.Map;

/**
 * Converts Java values to JSON and back: inputs, metadata and custom resources. Integers of any
 * size are exact.
 */
public final class Json {
  /** If the type is open, a number becomes the first of these types that can represent it. */
  private static final ToNumberStrategy EXACT =
      reader -> {
        String text = reader.nextString();
        if (text.chars().noneMatch(letter -> ".eE".indexOf(letter) >= 0)) {
          BigInteger whole = new BigInteger(text);
          return whole.bitLength() < Long.SIZE ? (Number) whole.longValue() : whole;
        }
        return decimal(reader, text);
      };

  private static final Gson GSON =
      new GsonBuilder()
          .serializeNulls()
          .disableHtmlEscaping()
          .setObjectToNumberStrategy(EXACT)
          .setNumberToNumberStrategy(EXACT)
          .create();

  /** Accepts non-finite numbers, to find where they are. */
  private static final Gson ANY_NUMBER =
      GSON.newBuilder().serializeSpecialFloatingPointValues().create();

  private Json() {}

  private static Number decimal(JsonReader reader, String text) throws IOException {
    try {
      double value = Double.parseDouble(text);
      return Double.isFinite(value) ? (Number) value : new BigDecimal(text);
    } catch (NumberFormatException error) {
      throw new JsonParseException(text + " is not a number at " + reader.getPath(), error);
    }
  }

  /**
   * Returns a value as JSON in UTF-8: maps, lists, records, beans, strings, numbers, Booleans,
   * null, or a {@link com.google.gson.JsonElement}. Half of a surrogate pair becomes U+FFFD.
   *
   * @throws IllegalArgumentException for a value that JSON cannot represent, such as NaN, with its
   *     path
   */
  public static ByteString encode(Object value) {
    return encode("value", value);
  }

  static ByteString encode(String field, Object value) {
    StringWriter text = new StringWriter();
    try {
      JsonWriter writer = GSON.newJsonWriter(text);
      writer.setStrictness(Strictness.STRICT); // else Gson writes the NaN of a JsonElement
      GSON.toJson(value, value == null ? Object.class : value.getClass(), writer);
    } catch (StackOverflowError error) {
      throw new IllegalArgumentException(field + " is cyclic or nested too deeply", error);
    } catch (IOException | RuntimeException error) {
      String place = endless(field, value);
      throw new IllegalArgumentException(
          place == null
              ? field + " cannot be written as JSON: " + error.getMessage()
              : place + ", which JSON cannot represent: use null or a string",
          error);
    }
    return ByteString.copyFromUtf8(Texts.valid(text.toString()));
  }

  /** Returns the path of the first number that is not finite, and that number. */
  private static String endless(String field, Object value) {
    try {
      return endless(field, ANY_NUMBER.toJsonTree(value));
    } catch (RuntimeException error) { // it is for another reason that it cannot be written
      return null;
    }
  }

  private static String endless(String path, JsonElement element) {
    if (element instanceof JsonPrimitive one && one.isNumber()) {
      return Double.isFinite(one.getAsDouble()) || one.getAsString().matches("[-+.0-9eE]+")
          ? null
          : path + " is " + one.getAsString();
    }
    String found = null;
    if (element.isJsonArray()) {
      for (int i = 0; i < element.getAsJsonArray().size() && found == null; i++) {
        found = endless(path + "[" + i + "]", element.getAsJsonArray().get(i));
      }
    } else if (element.isJsonObject()) {
      for (Map.Entry<String, JsonElement> member : element.getAsJsonObject().entrySet()) {
        found = found == null ? endless(path + "." + member.getKey(), member.getValue()) : found;
      }
    }
    return found;
  }

  /**
   * Parses JSON. With {@code Object.class} it returns maps and lists, and numbers as Long,
   * BigInteger, Double or BigDecimal. {@code JsonElement.class} keeps every digit. A record or bean
   * gets the fields that it has.
   *
   * @return null for JSON's null, and for empty bytes
   * @throws IllegalArgumentException for bytes that are not JSON, or not JSON of that type
   */
  public static <T> T decode(ByteString json, Class<T> type) {
    try {
      return GSON.fromJson(json.toStringUtf8(), type);
    } catch (JsonParseException error) {
      throw new IllegalArgumentException(
          "not valid JSON for " + type.getName() + ": " + error.getMessage(), error);
    }
  }
}
