package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.PromptTemplate;
import io.lightningstore.v1.Resource;
import io.lightningstore.v1.TemplateEngine;
import java.io.File;
import java.lang.reflect.InvocationTargetException;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import org.junit.jupiter.api.Test;

public class ResourcesTest {
  private final AttemptResources resources =
      new AttemptResources(
          Map.of(
              "llm", NewResource.llm("http://h/v1", "m"),
              "proxy", NewResource.proxyLlm("http://h/v1", "m"),
              "prompt",
                  NewResource.promptTemplate("say {x}", TemplateEngine.TEMPLATE_ENGINE_F_STRING),
              "weights", NewResource.custom("weights", List.of(0.5))),
          Attempt.newBuilder().setRolloutId("ro-1").setAttemptId("at-1").build());

  @Test
  void resourcesComeByTheirKind() {
    assertEquals("http://h/v1", resources.llm("llm").getEndpoint());
    assertEquals("m", resources.llm("proxy").getModel());
    assertEquals("http://h/rollout/ro-1/attempt/at-1/v1", resources.llm("proxy").getEndpoint());
    assertEquals("say {x}", resources.promptTemplate("prompt").getTemplate());
    assertEquals(List.of(0.5), resources.custom("weights", List.class));
    assertEquals(4, resources.asMap().size());
  }

  @Test
  void whatIsNotThereIsSaidBesideWhatIs() {
    String message =
        assertThrows(NoSuchElementException.class, () -> resources.llm("none")).getMessage();
    assertTrue(message.contains("none") && message.contains("prompt"), message);
    message =
        assertThrows(NoSuchElementException.class, () -> resources.llm("prompt")).getMessage();
    assertTrue(message.contains(Resource.KindCase.PROMPT_TEMPLATE.name()), message);
    assertThrows(UnsupportedOperationException.class, resources.asMap()::clear);
  }

  private static PromptTemplate jinja(String template) {
    return PromptTemplate.newBuilder()
        .setTemplate(template)
        .setEngine(TemplateEngine.TEMPLATE_ENGINE_JINJA)
        .build();
  }

  public record User(String name) {
    @Override
    public String toString() {
      throw new AssertionError("a template reached an object of the program");
    }
  }

  @Test
  void jinjaSeesDataAndNothingOfTheProgram() {
    Map<String, ?> values = Map.of("user", new User("Ada"));
    assertEquals("Ada", PromptTemplates.format(jinja("{{ user.name }}"), values));
    for (String template :
        List.of(
            "{{ user.getClass() }}",
            "{{ user.class }}",
            "{{ ____int3rpr3t3r____.config }}",
            "{{ ____int3rpr3t3r____.getContext() }}",
            "{% include 'logging.properties' %}",
            "{% from 'logging.properties' import x %}",
            "{% import 'logging.properties' as x %}",
            "{% extends 'logging.properties' %}")) {
      assertThrows(
          IllegalArgumentException.class,
          () -> PromptTemplates.format(jinja(template), values),
          template);
    }
  }

  @Test
  void jinjaWithoutItsLibrarySaysWhatToAdd() throws Exception {
    URL[] others =
        Arrays.stream(JavaProcess.classPath().split(File.pathSeparator))
            .filter(entry -> !entry.contains("jinjava"))
            .map(ResourcesTest::url)
            .toArray(URL[]::new);
    try (URLClassLoader without =
        new URLClassLoader(others, ClassLoader.getPlatformClassLoader())) {
      Class<?> there = without.loadClass(ResourcesTest.class.getName());
      InvocationTargetException error =
          assertThrows(
              InvocationTargetException.class, () -> there.getMethod("fillIn").invoke(null));
      assertEquals(UnsupportedOperationException.class, error.getCause().getClass());
      assertTrue(error.getCause().getMessage().contains("com.hubspot.jinjava:jinjava"));
    }
  }

  /** Called where the library is missing. */
  public static void fillIn() {
    PromptTemplates.format(jinja("{{ x }}"), Map.of("x", 1));
  }

  private static URL url(String entry) {
    try {
      return new File(entry).toURI().toURL();
    } catch (MalformedURLException error) {
      throw new IllegalStateException(error);
    }
  }
}
