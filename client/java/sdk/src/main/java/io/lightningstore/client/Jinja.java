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

/** Jinja templates. Loading this class needs a library that programs may lack. */
final class Jinja {
  private static final Jinjava JINJAVA = new Jinjava(config());

  private Jinja() {}

  private static JinjavaConfig config() {
    // Where the library once differed from Python's, it does not now.
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
    // Through JSON, so that a template reaches no object of the program.
    @SuppressWarnings("unchecked") // a map becomes an object, and an object a map
    Map<String, Object> plain = Json.decode(Json.encode(values), Map.class);
    RenderResult result = JINJAVA.renderForResult(template, plain);
    if (result.getErrors().isEmpty()) {
      return result.getOutput();
    }
    TemplateError error = result.getErrors().get(0);
    String what =
        error.getException() instanceof UnknownTokenException unknown
            ? "no value is given for " + unknown.getToken() + ", or no such filter is known"
            : error.getMessage();
    throw new IllegalArgumentException(
        "line " + error.getLineno() + " of the template: " + what, error.getException());
  }
}
