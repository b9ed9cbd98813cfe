package io.lightningstore.client;

import io.lightningstore.v1.CustomResource;
import io.lightningstore.v1.LLM;
import io.lightningstore.v1.PromptTemplate;
import io.lightningstore.v1.ProxyLLM;
import io.lightningstore.v1.Resource;
import io.lightningstore.v1.TemplateEngine;

/** Makes resources for {@link LightningStore#addResources}. */
public final class NewResource {
  private NewResource() {}

  /**
   * Returns a language model: its base URL, {@code http://host:8000/v1} for instance, and its name
   * there.
   */
  public static Resource llm(String endpoint, String model) {
    return llm(LLM.newBuilder().setEndpoint(endpoint).setModel(model).build());
  }

  /** Returns a language model with all that the contract knows of one. */
  public static Resource llm(LLM llm) {
    return Resource.newBuilder().setLlm(llm).build();
  }

  /** Returns a language model behind a proxy that files each call under its attempt. */
  public static Resource proxyLlm(String endpoint, String model) {
    return proxyLlm(LLM.newBuilder().setEndpoint(endpoint).setModel(model).build());
  }

  /** Returns the same with all that the contract knows of one. */
  public static Resource proxyLlm(LLM llm) {
    return Resource.newBuilder().setProxyLlm(ProxyLLM.newBuilder().setLlm(llm)).build();
  }

  /** Returns a prompt, and how it is filled in. */
  public static Resource promptTemplate(String template, TemplateEngine engine) {
    return Resource.newBuilder()
        .setPromptTemplate(PromptTemplate.newBuilder().setTemplate(template).setEngine(engine))
        .build();
  }

  /**
   * Returns a resource of the caller's own kind: a word for it, and a value as {@link Json} takes
   * it.
   */
  public static Resource custom(String type, Object value) {
    return Resource.newBuilder()
        .setCustom(CustomResource.newBuilder().setType(type).setValueJson(Json.encode(value)))
        .build();
  }
}
