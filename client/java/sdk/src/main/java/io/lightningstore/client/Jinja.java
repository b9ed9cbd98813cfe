package io.lightningstore.client;

import com.hubspot.jinjava.Jinjava;
import com.hubspot.jinjava.JinjavaConfig;
import com.hubspot.jinjava.LegacyOverrides;
import com.hubspot.jinjava.interpret.Context.Library;
import com.hubspot.jinjava.interpret.RenderResult;
import com.hubspot.jinjava.interpret.TemplateError;
import com.hubspot.jinjava.interpret.UnknownTokenException;
import java.util.Map;
import java.util.Set;

/** Jinja templates. Loading this class requires a library that programs may not have. */
final class Jinja {
  private static final Jinjava JINJAVA = new Jinjava(config());

  private Jinja() {}

  private static JinjavaConfig config() {
    // Overrides the differences of the library from Python's Jinja.
    LegacyOverrides likePython =
        LegacyOverrides.newBuilder()
            .withEvaluateMapKeys(true)
            .withIterateOverMapKeys(true)
            .withUsePyishObjectMapper(true)
            .withUseNaturalOperatorPrecedence(true)
            .withParseWhitespaceControlStrictly(true)
            .withAllowAdjacentTextNodes(true)
            .withUseTrimmingForNotesAndExpressions(true)
            .withKeepNullableLoopValues(true)
            .build();
    return JinjavaConfig.newBuilder()
        .withFailOnUnknownTokens(true)
        .withNestedInterpretationEnabled(false)
        .withLegacyOverrides(likePython)
        .withDisabled(Map.of(Library.TAG, Set.of("include", "import", "from", "extends")))
        .build();
  }

  static String render(String template, Map<String, ?> values) {
    // Conversion to JSON and back, so that a template cannot access objects of the program.
    @SuppressWarnings("unchecked") // a map becomes an object, and an object a map
    Map<String, Object> plain = Json.decode(Json.encode(values), Map.class);
    RenderResult result = JINJAVA.renderForResult(template, plain);
    if (result.getErrors().isEmpty()) {
      return result.getOutput();
    }
    TemplateError error = result.getErrors().get(0);
    String what =
        error.getException() instanceof UnknownTokenException unknown
            ? "missing value or unknown filter: " + unknown.getToken()
            : error.getMessage();
    throw new IllegalArgumentException(
        "line " + error.getLineno() + " of the template: " + what, error.getException());
  }
}
