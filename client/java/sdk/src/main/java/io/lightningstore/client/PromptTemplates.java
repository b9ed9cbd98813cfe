package io.lightningstore.client;

import io.lightningstore.v1.PromptTemplate;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Fills in prompt templates. They come from the store and are not trusted. */
public final class PromptTemplates {
  /** The special parts of an f-string: doubled braces, a placeholder, a single brace. */
  private static final Pattern BRACES = Pattern.compile("\\{\\{|}}|\\{([^{}]*)}|[{}]");

  private static final Pattern NO_NAME = Pattern.compile("\\d*");

  private static final Pattern MORE_THAN_A_NAME = Pattern.compile("[.\\[!:]");

  private PromptTemplates() {}

  /**
   * Fills in a template and returns the text.
   *
   * <p>An f-string has plain names in braces, {@code {question}}; braces of the text are doubled.
   * Jinja requires the library {@code com.hubspot.jinjava:jinjava}. It runs in its sandbox, sees
   * values as JSON has them, and loads no other templates. POML has no library for Java.
   *
   * @param values values by name, encoded by {@link Json#encode}
   * @throws IllegalArgumentException for a missing value, and for a template that is malformed or
   *     does something forbidden
   * @throws UnsupportedOperationException for an engine whose library is missing
   */
  public static String format(PromptTemplate template, Map<String, ?> values) {
    return switch (template.getEngine()) {
      case TEMPLATE_ENGINE_F_STRING -> fString(template.getTemplate(), values);
      case TEMPLATE_ENGINE_JINJA -> jinja(template.getTemplate(), values);
      case TEMPLATE_ENGINE_POML ->
          throw new UnsupportedOperationException(
              "this template needs POML, which has no library for Java");
      default ->
          throw new UnsupportedOperationException(
              "this client does not support the template engine " + template.getEngine());
    };
  }

  private static String fString(String template, Map<String, ?> values) {
    return BRACES
        .matcher(template)
        .replaceAll(
            found -> Matcher.quoteReplacement(meaning(found.group(), found.group(1), values)));
  }

  private static String meaning(String found, String name, Map<String, ?> values) {
    if (name == null) {
      if (found.length() == 1) {
        throw new IllegalArgumentException(
            "a single "
                + found
                + " in the template: double it, or name a value, {question} for instance");
      }
      return found.substring(1);
    }
    if (NO_NAME.matcher(name).matches()) {
      throw new IllegalArgumentException(
          found + ": every value needs a name, {question} for instance");
    }
    if (MORE_THAN_A_NAME.matcher(name).find()) {
      throw new IllegalArgumentException(
          found + ": only plain names can be used, no members, indexes, conversions or formats");
    }
    if (!values.containsKey(name)) {
      throw new IllegalArgumentException("missing value for " + found);
    }
    return String.valueOf(values.get(name));
  }

  private static String jinja(String template, Map<String, ?> values) {
    try {
      return Jinja.render(template, values);
    } catch (NoClassDefFoundError missing) {
      throw new UnsupportedOperationException(
          "this template needs Jinja: add com.hubspot.jinjava:jinjava to the program", missing);
    }
  }
}
