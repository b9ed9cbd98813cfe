package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.gson.JsonElement;
import com.google.protobuf.ByteString;
import java.math.BigInteger;
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
