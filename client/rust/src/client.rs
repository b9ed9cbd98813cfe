//! The connection to a server.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{env, fs};

use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::client::Grpc;
use tonic::codegen::StdError;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::background::Background;
use crate::backoff::Backoff;
use crate::contact::{Connection, Contact};
use crate::error::{Error, sources};
use crate::proto::Unary;
use crate::proto::lightning_store_service_client::LightningStoreServiceClient;

const DEFAULT_ADDRESS: &str = "127.0.0.1:4747";
const ADDRESS_VARIABLE: &str = "LIGHTNINGSTORE_ADDRESS";
const TOKEN_VARIABLE: &str = "LIGHTNINGSTORE_TOKEN";
const NAMESPACE_VARIABLE: &str = "LIGHTNINGSTORE_NAMESPACE";

const NAMESPACE_HEADER: &str = "x-lightning-namespace";
/// Maximum number of characters of a namespace.
const MAX_NAMESPACE: usize = 63;

const MIB: usize = 1 << 20;
/// The server's limit, plus the overhead of a message of that size.
const MAX_MESSAGE_BYTES: usize = 65 * MIB;

const KEEPALIVE_TIME: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of tries of a call while the server is down.
const MAX_TRIES: u32 = 5;
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Transport of the calls: a tonic channel that adds the token and the namespace, if they are set.
pub type Transport = InterceptedService<Connection, Bearer>;

/// The generated stub.
pub type Stub = LightningStoreServiceClient<Transport>;

/// A connection to a server, cheap to clone. It connects with the first call and reconnects when the
/// connection breaks. A separate thread serves the connection, so that it can be used from any tokio runtime.
/// Thread and connection end with the last clone and the last [`Stub`] created from it.
///
/// Its methods retry calls while the server is down, up to 5 times within a few seconds. Every write gets a
/// request id, by which the server recognises a repeat. There is no deadline except the caller's, with
/// [`tokio::time::timeout`]: dropping a future or a stream cancels its call.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    bearer: Bearer,
    contact: Arc<Contact>,
    link: OnceLock<Link>,
}

#[derive(Debug)]
struct Link {
    background: Background,
    transport: Transport,
}

/// Options of a connection; see [`Client::builder`].
#[derive(Default)] // no Debug, for a token belongs into no log
pub struct ClientBuilder {
    address: String,
    tls: Option<ClientTlsConfig>,
    token: String,
    namespace: String,
    allow_insecure_token: bool,
}

impl ClientBuilder {
    /// Sets the address: `host:port`, `https://host:port` or `unix:/path`. Empty, and by default:
    /// `LIGHTNINGSTORE_ADDRESS`, else `127.0.0.1:4747`.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Enables TLS with these CA certificates and this client certificate. Without it, an address that begins
    /// with `https://` uses TLS with the CA certificates of the system.
    pub fn tls(mut self, tls: ClientTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the token sent with every call as `authorization: Bearer …`. Empty, and by default:
    /// `LIGHTNINGSTORE_TOKEN`, if set.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// Sets the namespace of the server that all calls belong to, sent as `x-lightning-namespace`: 1 to 63 of the
    /// characters `a-z`, `0-9`, `-`, `_` and `.`, with a letter or digit first and last. Empty, and by default:
    /// `LIGHTNINGSTORE_NAMESPACE`; if that is not set, nothing is sent, which means the namespace `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Allows sending the token over an unencrypted connection, where others can read it.
    pub fn allow_insecure_token(mut self) -> Self {
        self.allow_insecure_token = true;
        self
    }

    /// Creates the client, without connecting.
    ///
    /// # Errors
    ///
    /// For an invalid address or namespace, for TLS options that cannot be used, and for a token that would be
    /// sent unencrypted.
    pub fn build(self) -> Result<Client, Error> {
        let address = first([self.address, variable(ADDRESS_VARIABLE), DEFAULT_ADDRESS.into()]);
        let token = first([self.token, variable(TOKEN_VARIABLE), String::new()]);
        let namespace = first([self.namespace, variable(NAMESPACE_VARIABLE), String::new()]);
        let secure = self.tls.is_some() || address.starts_with("https://");
        if !token.is_empty() && !secure && !self.allow_insecure_token {
            return Err(Error::argument(format!(
                "the token would be sent to {address} unencrypted: use TLS, or call allow_insecure_token"
            )));
        }
        let mut endpoint = endpoint(&address, secure)?;
        if secure {
            let tls = self.tls.unwrap_or_else(|| ClientTlsConfig::new().with_native_roots());
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| Error::argument(format!("TLS: {}", root_of(&error))))?;
        }
        let bearer = Bearer::new(&token, &namespace)?;
        let contact = Arc::new(Contact::new(&address));
        Ok(Client { inner: Arc::new(Inner { endpoint, bearer, contact, link: OnceLock::new() }) })
    }
}

fn first(found: [String; 3]) -> String {
    found.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn root_of(error: &(dyn std::error::Error + 'static)) -> String {
    sources(error).last().unwrap_or(error).to_string()
}

fn endpoint(address: &str, secure: bool) -> Result<Endpoint, Error> {
    let wanted = |_| {
        Error::argument(format!(
            "the address must be like {DEFAULT_ADDRESS} or https://store:4747, not {address:?}"
        ))
    };
    let uri = match address.split_once("://") {
        _ if address.starts_with("unix:") => address.to_owned(),
        Some(("https" | "unix", _)) => address.to_owned(),
        Some(_) => return Err(wanted(())),
        None if secure => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    Ok(Endpoint::from_shared(uri)
        .and_then(|endpoint| endpoint.user_agent(concat!("lightningstore-rust/", env!("CARGO_PKG_VERSION"))))
        .map_err(|_| wanted(()))?
        .connect_timeout(CONNECT_TIMEOUT)
        // Without pings, a lost peer would never be noticed.
        .http2_keep_alive_interval(KEEPALIVE_TIME)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl Client {
    /// Creates a client of the server at an address. Empty: `LIGHTNINGSTORE_ADDRESS`, else `127.0.0.1:4747`.
    ///
    /// # Errors
    ///
    /// As for [`ClientBuilder::build`].
    pub fn new(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder().address(address).build()
    }

    /// Returns a builder with further options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Returns the transport of this client's calls, for stubs of other services of the same server.
    pub fn transport(&self) -> Transport {
        self.link().transport.clone()
    }

    /// Returns the thread that serves the connection.
    pub(crate) fn background(&self) -> &Background {
        &self.link().background
    }

    fn link(&self) -> &Link {
        self.inner.link.get_or_init(|| {
            let Inner { endpoint, bearer, contact, .. } = &*self.inner;
            let background = Background::start(bearer.closed.clone());
            let channel = endpoint.clone().executor(background.clone()).connect_lazy();
            let connection =
                Connection::new(channel, contact.clone(), background.clone(), bearer.closed.clone());
            Link { background, transport: InterceptedService::new(connection, bearer.clone()) }
        })
    }

    /// Closes the connection at once, for all clones of this client. Calls in progress fail, and so do later
    /// ones.
    pub fn close(&self) {
        self.inner.contact.end();
        self.inner.bearer.closed.cancel();
    }

    /// Returns the generated stub, for streams and other calls that [`call`](Self::call) does not support. It
    /// does not retry, and leaves request ids to the caller.
    pub fn stub(&self) -> Stub {
        LightningStoreServiceClient::new(self.transport())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Calls the unary method that the type of the request belongs to: `client.call(GetRolloutRequest { … })`
    /// returns a `GetRolloutResponse`.
    pub async fn call<Q: Unary>(&self, mut request: Q) -> Result<Q::Answer, Error> {
        request.identify();
        let mut pauses = Backoff::new(MAX_PAUSE);
        let mut tries = 1;
        loop {
            match self.once(request.clone(), None).await {
                Err(error) if error.code() == Some(Code::Unavailable) && tries < MAX_TRIES => {
                    pauses.pause(&error).await;
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    /// Makes one try of a call, with a timeout.
    pub(crate) async fn once<Q: Unary>(
        &self,
        request: Q,
        timeout: Option<Duration>,
    ) -> Result<Q::Answer, Error> {
        let mut grpc = Grpc::new(self.transport())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(request);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout); // for the server to know
        }
        let asked = async {
            grpc.ready().await.map_err(unready)?;
            let path = PathAndQuery::from_static(Q::PATH);
            let answer = grpc.unary(request, path, ProstCodec::<Q, Q::Answer>::default()).await?;
            Ok(answer.into_inner())
        };
        within(timeout, asked).await.map_err(|error| self.explain(error))
    }

    /// Returns the failure of a call with this client: a different one if the client is closed, and one that
    /// names the address if no server has ever answered.
    pub(crate) fn explain(&self, failure: Error) -> Error {
        if self.inner.bearer.closed.is_cancelled() {
            return Error::closed();
        }
        self.inner.contact.explain(failure)
    }
}

/// Limits the duration of a future; `None`: no limit.
pub(crate) async fn within<T>(
    timeout: Option<Duration>,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout {
        None => asked.await,
        Some(timeout) => {
            tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(Error::deadline()))
        }
    }
}

fn unready(error: StdError) -> Status {
    Status::unavailable(format!("no connection: {}", root_of(&*error)))
}

/// Adds a token and a namespace to every call, and keeps the connection alive.
#[derive(Clone, Debug)]
pub struct Bearer {
    authorization: Option<MetadataValue<Ascii>>,
    namespace: Option<MetadataValue<Ascii>>,
    closed: CancellationToken,
    _open: Arc<DropGuard>,
}

impl Bearer {
    fn new(token: &str, namespace: &str) -> Result<Self, Error> {
        let closed = CancellationToken::new();
        let _open = Arc::new(closed.clone().drop_guard());
        Ok(Self { authorization: authorization(token)?, namespace: named(namespace)?, closed, _open })
    }
}

/// Returns the header for a token; `None` for an empty one.
fn authorization(token: &str) -> Result<Option<MetadataValue<Ascii>>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let mut header: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Error::argument("the token contains invalid characters"))?;
    header.set_sensitive(true); // shown by no Debug
    Ok(Some(header))
}

/// Returns the header for a namespace; `None` for an empty one.
fn named(namespace: &str) -> Result<Option<MetadataValue<Ascii>>, Error> {
    if namespace.is_empty() {
        return Ok(None);
    }
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = namespace.as_bytes();
    let is_valid = bytes.len() <= MAX_NAMESPACE
        && bytes.iter().all(|byte| is_alphanumeric(byte) || b"-_.".contains(byte))
        && bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric);
    match namespace.parse() {
        Ok(header) if is_valid => Ok(Some(header)),
        _ => Err(Error::argument(format!(
            "the namespace must be 1 to {MAX_NAMESPACE} of the characters a-z, 0-9, -, _ and ., with a letter or \
             digit first and last, not {namespace:?}"
        ))),
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(header) = &self.authorization {
            metadata.insert("authorization", header.clone());
        }
        if let Some(header) = &self.namespace
            && !metadata.contains_key(NAMESPACE_HEADER)
        {
            metadata.insert(NAMESPACE_HEADER, header.clone()); // unless the caller's request names another one
        }
        Ok(request)
    }
}

/// Reads TLS options for [`ClientBuilder::tls`] from PEM files. `authorities` holds the CA certificates that
/// verify the server; `None`: those of the system. `identity` holds the client's certificate and key, for
/// mutual TLS.
///
/// # Errors
///
/// For files that cannot be read or are not valid PEM.
pub fn tls_from_files(
    authorities: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientTlsConfig, Error> {
    let tls = ClientTlsConfig::new();
    let mut tls = match authorities {
        None => tls.with_native_roots(),
        Some(path) => tls.ca_certificate(Certificate::from_pem(pem(path, "CERTIFICATE")?)),
    };
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(pem(certificate, "CERTIFICATE")?, pem(key, "PRIVATE KEY")?));
    }
    // Invalid contents are only detected on use; the name of the endpoint does not matter.
    Endpoint::from_static("https://localhost")
        .tls_config(tls.clone())
        .map_err(|error| Error::argument(format!("TLS: {}", root_of(&error))))?;
    Ok(tls)
}

fn pem(path: &Path, label: &str) -> Result<String, Error> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::argument(format!("TLS: {}: {error}", path.display())))?;
    if text.contains(&format!("{label}-----")) {
        Ok(text)
    } else {
        Err(Error::argument(format!("TLS: {} holds no {} in PEM", path.display(), label.to_lowercase())))
    }
}
