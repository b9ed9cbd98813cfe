//! Filling in prompt templates.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, TemplateProblem};
use crate::proto::{PromptTemplate, TemplateEngine};

impl PromptTemplate {
    /// Fills in the template. `values` is an object that serde can serialize, with a value for each name of
    /// the template.
    ///
    /// F-strings have plain placeholders, `{name}`, and doubled braces for braces; whole numbers and texts
    /// look the same in every language. Jinja uses the crate minijinja, with undefined values as errors and
    /// without escaping. It requires the feature `jinja`, which is on by default. No Rust library supports
    /// POML.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] for a template that cannot be filled in, and an error for values that are not an
    /// object.
    pub fn format<T: Serialize + ?Sized>(&self, values: &T) -> Result<String, Error> {
        let Value::Object(values) = serde_json::to_value(values)? else {
            return Err(Error::argument("values must be an object with a value for each name"));
        };
        match TemplateEngine::try_from(self.engine) {
            Ok(TemplateEngine::FString) => f_string(&self.template, &values),
            Ok(TemplateEngine::Jinja) => jinja(&self.template, &values),
            Ok(TemplateEngine::Poml) => Err(unsupported("no Rust library supports POML")),
            _ => Err(unsupported(&format!("unknown template engine {}", self.engine))),
        }
    }
}

fn unsupported(why: &str) -> Error {
    Error::template(
        TemplateProblem::Unsupported,
        format!("{why}: this client supports f-strings and, with the feature \"jinja\", Jinja"),
    )
}

fn malformed(why: impl Into<String>) -> Error {
    Error::template(TemplateProblem::Malformed, why)
}

fn f_string(template: &str, values: &Map<String, Value>) -> Result<String, Error> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text += &rest[..at];
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text += brace;
            rest = after;
        } else if brace == "}" {
            return Err(malformed("unmatched }: write }} for a brace"));
        } else {
            let (name, after) =
                rest.split_once('}').ok_or_else(|| malformed(format!("unclosed {{{rest}")))?;
            text += &shown(lookup(name, values)?);
            rest = after;
        }
    }
    Ok(text + rest)
}

fn lookup<'a>(name: &str, values: &'a Map<String, Value>) -> Result<&'a Value, Error> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    if !name.chars().all(is_name) || !name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        return Err(malformed(format!("{{{name}}}: must be a plain name, for example {{question}}")));
    }
    values
        .get(name)
        .ok_or_else(|| Error::template(TemplateProblem::Missing, format!("missing value for {name:?}")))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(feature = "jinja")]
fn jinja(template: &str, values: &Map<String, Value>) -> Result<String, Error> {
    use minijinja::syntax::SyntaxConfig;
    use minijinja::value::Serde;
    use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

    let problem = |kind| match kind {
        ErrorKind::UndefinedError => TemplateProblem::Missing,
        _ => TemplateProblem::Malformed,
    };
    let refused = |error: minijinja::Error| Error::template(problem(error.kind()), error.to_string());
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build().map_err(refused)?);
    // A template without a file name is not escaped.
    environment.render_str(template, Value::from(Serde(values))).map_err(refused)
}

#[cfg(not(feature = "jinja"))]
fn jinja(_: &str, _: &Map<String, Value>) -> Result<String, Error> {
    Err(unsupported("built without Jinja"))
}
