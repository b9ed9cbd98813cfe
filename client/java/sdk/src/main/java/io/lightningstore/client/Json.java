package io.lightningstore.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonParseException;
import com.google.gson.ToNumberStrategy;
import com.google.gson.stream.JsonReader;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.math.BigDecimal;
import java.math.BigInteger;

/**
 * Java values as JSON and back: inputs, metadata and custom resources. Integers of any size stay
 * what they are.
 */
public final class Json {
  /** Where the type is left open: a number becomes the first of these that can hold it. */
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

  private Json() {}

  private static Number decimal(JsonReader reader, String text) throws IOException {
    try {
      double value = Double.parseDouble(text);
      return Double.isFinite(value) ? (Number) value : new BigDecimal(text);
    } catch (NumberFormatException error) {
      throw new JsonParseException(text + " is no number at " + reader.getPath(), error);
    }
  }

  /**
   * Returns a value as JSON in UTF-8: maps, lists, records, beans, texts, numbers, Booleans, null,
   * or a {@link com.google.gson.JsonElement}.
   *
   * @throws IllegalArgumentException for what JSON cannot hold, a NaN for instance
   */
  public static ByteString encode(Object value) {
    return ByteString.copyFromUtf8(GSON.toJson(value));
  }

  /**
   * Reads JSON. With {@code Object.class}, maps and lists come, and numbers as Long or BigInteger,
   * else as Double or BigDecimal; {@code JsonElement.class} keeps every digit; a record or bean
   * takes the fields it knows.
   *
   * @return null for JSON's null, and for no bytes at all
   * @throws IllegalArgumentException for bytes that are no JSON, or none of that type
   */
  public static <T> T decode(ByteString json, Class<T> type) {
    try {
      return GSON.fromJson(json.toStringUtf8(), type);
    } catch (JsonParseException error) {
      throw new IllegalArgumentException(
          "no JSON of " + type.getName() + ": " + error.getMessage(), error);
    }
  }
}
