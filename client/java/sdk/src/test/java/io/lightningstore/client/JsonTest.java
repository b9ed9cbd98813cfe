package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class JsonTest {
  record Question(long question, List<String> hints) {}

  private static ByteString bytes(String json) {
    return ByteString.copyFromUtf8(json);
  }

  @Test
  void valuesArriveWhole() {
    for (String json :
        List.of(
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
            "123456789012345678901234567890",
            "[18446744073709551617]",
            "{\"a\":\"<&>\",\"b\":[1.5,null,true]}",
            "\"é🙂\"",
            "null",
            "{}")) {
      assertEquals(json, Json.encode(Json.decode(bytes(json), Object.class)).toStringUtf8());
      assertEquals(json, Json.encode(Json.decode(bytes(json), JsonElement.class)).toStringUtf8());
    }
    assertEquals(
        "123456789012345678901234567890",
        Json.encode(new BigInteger("123456789012345678901234567890")).toStringUtf8());
  }

  @Test
  void numbersOfNoTypeAreWhatHoldsThem() {
    assertEquals(
        Map.of("a", 1L, "b", 1.5, "c", new BigInteger("9223372036854775808")),
        Json.decode(bytes("{\"a\": 1, \"b\": 1.5, \"c\": 9223372036854775808}"), Object.class));
  }

  private static void checkRefused(String message, Object value) {
    IllegalArgumentException error =
        assertThrows(IllegalArgumentException.class, () -> LightningStore.rollout(value));
    assertTrue(error.getMessage().startsWith(message), error.getMessage());
  }

  @Test
  void numbersThatJsonHasNotAreRefusedByTheirPlace() {
    checkRefused("input is NaN,", Double.NaN);
    checkRefused(
        "input.options[1].rate is -Infinity,",
        Map.of("options", List.of(1, Map.of("rate", Float.NEGATIVE_INFINITY))));
    JsonObject element = new JsonObject();
    element.addProperty("rate", Double.NaN);
    checkRefused("input.rate is NaN,", element);
    checkRefused("input.a.rate is NaN,", Map.of("a", element));
    assertEquals("[1E+400]", Json.encode(List.of(new BigDecimal("1e400"))).toStringUtf8());
  }

  @Test
  void valuesThatCannotBeWrittenAreRefused() {
    List<Object> ring = new ArrayList<>();
    ring.add(ring);
    checkRefused("input is cyclic or nested too deeply", ring);
    checkRefused("input cannot be written as JSON", String.class);
  }

  @Test
  void textIsWrittenAsValidUnicode() {
    assertEquals("\"half \ufffd\"", Json.encode("half \ud83d").toStringUtf8());
  }

  @Test
  void recordsTakeTheFieldsThatTheyKnow() {
    assertEquals(
        new Question(9007199254740993L, List.of("x")),
        Json.decode(
            bytes("{\"question\": 9007199254740993, \"hints\": [\"x\"], \"more\": 1}"),
            Question.class));
    assertEquals(
        "{\"question\":1,\"hints\":null}", Json.encode(new Question(1, null)).toStringUtf8());
  }

  @Test
  void noBytesAreNull() {
    assertNull(Json.decode(ByteString.EMPTY, Object.class));
  }

  @Test
  void whatIsNoJsonOrDoesNotFitIsRefused() {
    assertThrows(IllegalArgumentException.class, () -> Json.encode(Double.NaN));
    for (String bad : List.of("{", "\"text\"", "{\"question\": 1.5}")) {
      assertThrows(
          IllegalArgumentException.class, () -> Json.decode(bytes(bad), Question.class), bad);
    }
  }
}
