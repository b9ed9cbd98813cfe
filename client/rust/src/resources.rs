//! What agents work with, by name.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::json::to_json;
use crate::proto::resource::Kind;
use crate::proto::{CustomResource, Llm, PromptTemplate, ProxyLlm, Resource, Resources, TemplateEngine};

/// All but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Resource {
    /// A language model endpoint. `endpoint`: its base URL, `http://host:8000/v1` for instance.
    pub fn llm(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        Llm { endpoint: endpoint.into(), model: model.into(), ..Default::default() }.into()
    }

    /// An endpoint behind a proxy that files each call under its attempt.
    pub fn proxy_llm(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        let llm = Llm { endpoint: endpoint.into(), model: model.into(), ..Default::default() };
        ProxyLlm { llm: Some(llm) }.into()
    }

    /// A template that agents fill in.
    pub fn prompt_template(template: impl Into<String>, engine: TemplateEngine) -> Self {
        PromptTemplate { template: template.into(), engine: engine.into() }.into()
    }

    /// A resource of the caller's own kind. `value`: anything that serde makes JSON of. Fails for what is no JSON.
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
    /// The language model endpoint of that name. In a [`Runner`](crate::Runner)'s function a `ProxyLlm` is one too,
    /// with an endpoint of the attempt's own.
    pub fn llm(&self, name: &str) -> Option<&Llm> {
        match self.kind(name) {
            Some(Kind::Llm(llm)) => Some(llm),
            _ => None,
        }
    }

    /// The template of that name.
    pub fn prompt_template(&self, name: &str) -> Option<&PromptTemplate> {
        match self.kind(name) {
            Some(Kind::PromptTemplate(template)) => Some(template),
            _ => None,
        }
    }

    /// Reads the value of the custom resource of that name. Fails if there is none, and if it does not fit.
    pub fn custom<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        match self.kind(name) {
            Some(Kind::Custom(custom)) => Ok(serde_json::from_slice(&custom.value_json)?),
            _ => Err(Error::argument(format!("no custom resource {name:?}"))),
        }
    }

    fn kind(&self, name: &str) -> Option<&Kind> {
        self.resources.get(name)?.kind.as_ref()
    }

    /// The same for one attempt: each `ProxyLlm` as the `Llm` that is routed to it.
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
    /// The base URL for the calls of one attempt: `/rollout/{rollout_id}/attempt/{attempt_id}` stands before a
    /// trailing `/v1` of the endpoint, or at its end where there is none. With both ids empty, the endpoint as it
    /// is. Fails for one id without the other.
    pub fn base_url(&self, rollout_id: &str, attempt_id: &str) -> Result<String, Error> {
        let endpoint = self.llm.as_ref().map_or("", |llm| llm.endpoint.as_str());
        if rollout_id.is_empty() && attempt_id.is_empty() {
            return Ok(endpoint.to_owned());
        }
        if rollout_id.is_empty() || attempt_id.is_empty() {
            return Err(Error::argument("both a rollout id and an attempt id are wanted, or none"));
        }
        let base = endpoint.trim_end_matches('/');
        let (base, tail) = base.strip_suffix("/v1").map_or((base, ""), |base| (base, "/v1"));
        let rollout = utf8_percent_encode(rollout_id, RESERVED);
        let attempt = utf8_percent_encode(attempt_id, RESERVED);
        Ok(format!("{base}/rollout/{rollout}/attempt/{attempt}{tail}"))
    }
}
