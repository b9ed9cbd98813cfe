package io.lightningstore.client;

import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.LLM;
import io.lightningstore.v1.PromptTemplate;
import io.lightningstore.v1.Resource;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.NoSuchElementException;

/** The resources of an attempt by name. A ProxyLLM is an LLM with the URL of this attempt. */
public final class AttemptResources {
  private final Map<String, Resource> byName;

  AttemptResources(Map<String, Resource> resources, Attempt attempt) {
    Map<String, Resource> found = new LinkedHashMap<>();
    resources.forEach((name, one) -> found.put(name, routed(one, attempt)));
    byName = Collections.unmodifiableMap(found);
  }

  private static Resource routed(Resource resource, Attempt attempt) {
    if (!resource.hasProxyLlm()) {
      return resource;
    }
    return NewResource.llm(
        Endpoints.routed(resource.getProxyLlm(), attempt.getRolloutId(), attempt.getAttemptId()));
  }

  /** Returns all resources by name. */
  public Map<String, Resource> asMap() {
    return byName;
  }

  /**
   * Returns a resource.
   *
   * @throws NoSuchElementException if there is none with that name
   */
  public Resource get(String name) {
    Resource found = byName.get(name);
    if (found == null) {
      throw new NoSuchElementException("no resource " + name + ", only " + byName.keySet());
    }
    return found;
  }

  /**
   * Returns a language model.
   *
   * @throws NoSuchElementException if there is none with that name and kind
   */
  public LLM llm(String name) {
    return ofKind(name, Resource.KindCase.LLM).getLlm();
  }

  /**
   * Returns a prompt template; {@link PromptTemplates#format} fills it in.
   *
   * @throws NoSuchElementException if there is none with that name and kind
   */
  public PromptTemplate promptTemplate(String name) {
    return ofKind(name, Resource.KindCase.PROMPT_TEMPLATE).getPromptTemplate();
  }

  /**
   * Returns the value of a custom resource, decoded by {@link Json#decode}.
   *
   * @throws NoSuchElementException if there is none with that name and kind
   */
  public <T> T custom(String name, Class<T> type) {
    return Json.decode(ofKind(name, Resource.KindCase.CUSTOM).getCustom().getValueJson(), type);
  }

  private Resource ofKind(String name, Resource.KindCase kind) {
    Resource found = get(name);
    if (found.getKindCase() != kind) {
      throw new NoSuchElementException(name + " is " + found.getKindCase() + ", not " + kind);
    }
    return found;
  }
}
