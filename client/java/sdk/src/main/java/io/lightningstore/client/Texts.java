package io.lightningstore.client;

import com.google.protobuf.Any;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Validates text before it is sent. A Java string may contain half of a surrogate pair, which UTF-8
 * cannot represent. Text is repaired; an id is rejected, because a repaired id is another id.
 */
final class Texts {
  private static final char REPLACEMENT = '\uFFFD';
  private static final String INVALID = "must be valid Unicode, without half of a surrogate pair";

  /** The fields to check in messages of a type. Most types have none. */
  private static final Map<Descriptor, List<FieldDescriptor>> FIELDS = new ConcurrentHashMap<>();

  private Texts() {}

  private static int firstInvalid(String text) {
    int length = text.length();
    for (int i = 0; i < length; i++) {
      char letter = text.charAt(i);
      if (!Character.isSurrogate(letter)) {
        continue;
      }
      boolean isPair =
          Character.isHighSurrogate(letter)
              && i + 1 < length
              && Character.isLowSurrogate(text.charAt(i + 1));
      if (!isPair) {
        return i;
      }
      i++;
    }
    return -1;
  }

  /** Returns the text with U+FFFD for each half of a surrogate pair. */
  static String valid(String text) {
    int invalid = firstInvalid(text);
    if (invalid < 0) {
      return text;
    }
    StringBuilder repaired = new StringBuilder(text.length()).append(text, 0, invalid);
    text.substring(invalid)
        .codePoints()
        .map(
            letter ->
                letter >= Character.MIN_SURROGATE && letter <= Character.MAX_SURROGATE
                    ? REPLACEMENT
                    : letter)
        .forEach(repaired::appendCodePoint);
    return repaired.toString();
  }

  /** Returns the valid text, truncated at a character boundary to a number of bytes in UTF-8. */
  static String shorten(String text, int maximumBytes) {
    // Every character has at least one byte, so the rest need not be examined.
    String start = valid(text.substring(0, Math.min(text.length(), maximumBytes)));
    int bytes = 0;
    for (int i = 0; i < start.length(); ) {
      int letter = start.codePointAt(i);
      bytes += letter < 0x80 ? 1 : letter < 0x800 ? 2 : letter < 0x10000 ? 3 : 4;
      if (bytes > maximumBytes) {
        return start.substring(0, i);
      }
      i += Character.charCount(letter);
    }
    return start;
  }

  /**
   * Checks an id.
   *
   * @throws IllegalArgumentException if it is not valid Unicode
   */
  static String checkId(String field, String id) {
    if (firstInvalid(id) >= 0) {
      throw new IllegalArgumentException(field + " " + INVALID);
    }
    return id;
  }

  /**
   * Checks the ids in a request, and the keys of its maps.
   *
   * @throws StatusRuntimeException INVALID_ARGUMENT that names the first field that is not valid
   *     Unicode
   */
  static void checkIds(Message request) {
    checkIds(request, "");
  }

  private static void checkIds(Message message, String path) {
    for (FieldDescriptor field : fieldsOf(message.getDescriptorForType())) {
      if (!field.isRepeated()) {
        if (field.getJavaType() == FieldDescriptor.JavaType.STRING || message.hasField(field)) {
          checkValue(message.getField(field), path + field.getName());
        }
        continue;
      }
      for (int i = 0; i < message.getRepeatedFieldCount(field); i++) {
        checkValue(message.getRepeatedField(field, i), path + field.getName() + "[" + i + "]");
      }
    }
  }

  private static void checkValue(Object value, String path) {
    if (value instanceof Message message) {
      checkIds(message, path + ".");
    } else if (firstInvalid((String) value) >= 0) {
      throw invalid(path);
    }
  }

  private static StatusRuntimeException invalid(String path) {
    FieldViolation violation =
        FieldViolation.newBuilder().setField(path).setDescription(INVALID).build();
    return StatusProto.toStatusRuntimeException(
        com.google.rpc.Status.newBuilder()
            .setCode(Code.INVALID_ARGUMENT_VALUE)
            .setMessage(path + " " + INVALID)
            .addDetails(Any.pack(BadRequest.newBuilder().addFieldViolations(violation).build()))
            .build());
  }

  /** Returns the id fields of a message type, and its fields that contain ids. */
  private static List<FieldDescriptor> fieldsOf(Descriptor type) {
    List<FieldDescriptor> known = FIELDS.get(type);
    if (known == null) {
      known = List.copyOf(findFields(type, new HashSet<>()));
      FIELDS.put(type, known);
    }
    return known;
  }

  private static List<FieldDescriptor> findFields(Descriptor type, Set<Descriptor> outer) {
    List<FieldDescriptor> found = new ArrayList<>();
    if (!outer.add(type)) { // a message that may hold messages of its own type: OTLP's values
      return found;
    }
    for (FieldDescriptor field : type.getFields()) {
      boolean counts =
          switch (field.getJavaType()) {
            case STRING -> isId(field);
            case MESSAGE -> !findFields(field.getMessageType(), outer).isEmpty();
            default -> false;
          };
      if (counts) {
        found.add(field);
      }
    }
    outer.remove(type);
    return found;
  }

  private static boolean isId(FieldDescriptor field) {
    String name = field.getName();
    boolean isKey = field.getContainingType().getOptions().getMapEntry() && field.getNumber() == 1;
    return isKey || name.endsWith("_id") || name.endsWith("_ids");
  }
}
