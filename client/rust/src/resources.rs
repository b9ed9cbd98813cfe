//! Resources of agents, by name.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::json::to_json;
use crate::proto::resource::Kind;
use crate::proto::{CustomResource, Llm, PromptTemplate, ProxyLlm, Resource, Resources, TemplateEngine};

/// All characters except those that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Resource {
    /// Creates a language model endpoint. `endpoint` is its base URL, for example `http://host:8000/v1`.
    pub fn llm(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        Llm { endpoint: endpoint.into(), model: model.into(), ..Default::default() }.into()
    }

    /// Creates an endpoint behind a proxy that assigns each call to its attempt.
    pub fn proxy_llm(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        let llm = Llm { endpoint: endpoint.into(), model: model.into(), ..Default::default() };
        ProxyLlm { llm: Some(llm) }.into()
    }

    /// Creates a template that agents fill in.
    pub fn prompt_template(template: impl Into<String>, engine: TemplateEngine) -> Self {
        PromptTemplate { template: template.into(), engine: engine.into() }.into()
    }

    /// Creates a resource of a kind defined by the caller, with any value that serde can serialize to JSON.
    ///
    /// # Errors
    ///
    /// For a value that JSON cannot represent.
    pub fn custom<T: Serialize + ?Sized>(kind: impl Into<String>, value: &T) -> Result<Self, Error> {
        Ok(CustomResource { r#type: kind.into(), value_json: to_json("value", value)? }.into())
    }
}

macro_rules! kinds {
    ($($message:ident => $kind:ident),*) => {$(
        impl From<$message> for Resource {
            fn from(message: $message) -> Self {
                Self { kind: Some(Kind::$kind(message)) }
            }
        }
    )*};
}

kinds!(Llm => Llm, ProxyLlm => ProxyLlm, PromptTemplate => PromptTemplate, CustomResource => Custom);

impl Resources {
    /// Returns the language model endpoint with that name. In a [`Runner`](crate::Runner)'s function this
    /// includes a `ProxyLlm`, with the URL of the attempt.
    pub fn llm(&self, name: &str) -> Option<&Llm> {
        match self.kind(name) {
            Some(Kind::Llm(llm)) => Some(llm),
            _ => None,
        }
    }

    /// Returns the template with that name.
    pub fn prompt_template(&self, name: &str) -> Option<&PromptTemplate> {
        match self.kind(name) {
            Some(Kind::PromptTemplate(template)) => Some(template),
            _ => None,
        }
    }

    /// Deserializes the value of the custom resource with that name.
    ///
    /// # Errors
    ///
    /// If there is none, and if its value does not fit.
    pub fn custom<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        match self.kind(name) {
            Some(Kind::Custom(custom)) => Ok(serde_json::from_slice(&custom.value_json)?),
            _ => Err(Error::argument(format!("there is no custom resource {name:?}"))),
        }
    }

    fn kind(&self, name: &str) -> Option<&Kind> {
        self.resources.get(name)?.kind.as_ref()
    }

    /// Returns the resources of one attempt, with each `ProxyLlm` as an `Llm` with the attempt's URL.
    pub(crate) fn routed(mut self, rollout_id: &str, attempt_id: &str) -> Result<Self, Error> {
        for resource in self.resources.values_mut() {
            if let Some(Kind::ProxyLlm(proxy)) = &resource.kind {
                let endpoint = proxy.base_url(rollout_id, attempt_id)?;
                *resource = Llm { endpoint, ..proxy.llm.clone().unwrap_or_default() }.into();
            }
        }
        Ok(self)
    }
}

impl ProxyLlm {
    /// Returns the base URL for the calls of one attempt: the endpoint with
    /// `/rollout/{rollout_id}/attempt/{attempt_id}` before a trailing `/v1`, or at its end if there is none.
    /// With both ids empty it returns the endpoint unchanged.
    ///
    /// # Errors
    ///
    /// For one id without the other.
    pub fn base_url(&self, rollout_id: &str, attempt_id: &str) -> Result<String, Error> {
        let endpoint = self.llm.as_ref().map_or("", |llm| llm.endpoint.as_str());
        if rollout_id.is_empty() && attempt_id.is_empty() {
            return Ok(endpoint.to_owned());
        }
        if rollout_id.is_empty() || attempt_id.is_empty() {
            return Err(Error::argument("set both the rollout id and the attempt id, or neither"));
        }
        let base = endpoint.trim_end_matches('/');
        let (base, tail) = base.strip_suffix("/v1").map_or((base, ""), |base| (base, "/v1"));
        let rollout = utf8_percent_encode(rollout_id, RESERVED);
        let attempt = utf8_percent_encode(attempt_id, RESERVED);
        Ok(format!("{base}/rollout/{rollout}/attempt/{attempt}{tail}"))
    }
}
