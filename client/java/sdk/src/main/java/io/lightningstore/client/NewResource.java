package io.lightningstore.client;

import io.lightningstore.v1.CustomResource;
import io.lightningstore.v1.LLM;
import io.lightningstore.v1.PromptTemplate;
import io.lightningstore.v1.ProxyLLM;
import io.lightningstore.v1.Resource;
import io.lightningstore.v1.TemplateEngine;

/** Creates resources for {@link LightningStore#addResources}. */
public final class NewResource {
  private NewResource() {}

  /**
   * Returns a language model with its base URL, for example {@code http://host:8000/v1}, and its
   * name there.
   */
  public static Resource llm(String endpoint, String model) {
    return llm(LLM.newBuilder().setEndpoint(endpoint).setModel(model).build());
  }

  /** Returns a language model with all fields of the contract. */
  public static Resource llm(LLM llm) {
    return Resource.newBuilder().setLlm(llm).build();
  }

  /** Returns a language model behind a proxy that assigns each call to its attempt. */
  public static Resource proxyLlm(String endpoint, String model) {
    return proxyLlm(LLM.newBuilder().setEndpoint(endpoint).setModel(model).build());
  }

  /** Returns the same with all fields of the contract. */
  public static Resource proxyLlm(LLM llm) {
    return Resource.newBuilder().setProxyLlm(ProxyLLM.newBuilder().setLlm(llm)).build();
  }

  /** Returns a prompt template and its syntax. */
  public static Resource promptTemplate(String template, TemplateEngine engine) {
    return Resource.newBuilder()
        .setPromptTemplate(PromptTemplate.newBuilder().setTemplate(template).setEngine(engine))
        .build();
  }

  /**
   * Returns a resource of a kind defined by the caller, with a value that {@link Json} can encode.
   */
  public static Resource custom(String type, Object value) {
    return Resource.newBuilder()
        .setCustom(CustomResource.newBuilder().setType(type).setValueJson(Json.encode(value)))
        .build();
  }
}
