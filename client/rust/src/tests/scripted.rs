//! A server that answers as a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::Dropped;
use crate::client::Client;
use crate::proto::lightning_store_service_server::{LightningStoreService, LightningStoreServiceServer};
use crate::proto::*;

pub(crate) type Handler<Q, A> = Option<Box<dyn Fn(Q) -> Result<A, Status> + Send + Sync>>;
/// The messages of a stream, and perhaps what it fails with.
pub(crate) type Messages<M> = Vec<Result<M, Status>>;

/// What a test says. What is not said has a harmless default: one claim of each rollout in the queue, no stops.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) dequeue: Handler<DequeueRolloutsRequest, DequeueRolloutsResponse>,
    pub(crate) heartbeat: Handler<HeartbeatRequest, HeartbeatResponse>,
    /// Gets the metadata of every call.
    pub(crate) metadata: Option<UnboundedSender<MetadataMap>>,
    pub(crate) ingest: Handler<Vec<SpanBatch>, IngestResult>,
    pub(crate) update: Handler<UpdateAttemptRequest, ()>,
    pub(crate) enqueue: Handler<EnqueueRolloutsRequest, EnqueueRolloutsResponse>,
    pub(crate) rollout: Handler<GetRolloutRequest, GetRolloutResponse>,
    pub(crate) resources: Handler<GetResourcesRequest, GetResourcesResponse>,
    pub(crate) wait: Handler<WaitForRolloutsRequest, Messages<WaitForRolloutsResponse>>,
    /// Leaves waits open after their messages, and gets one for each that the client closes.
    pub(crate) closed: Option<UnboundedSender<()>>,
    pub(crate) watch: Handler<WatchRolloutsRequest, Messages<WatchRolloutsResponse>>,
    pub(crate) query: Handler<QuerySpansRequest, Messages<QuerySpansResponse>>,
    pub(crate) triplets: Handler<ListTripletsRequest, Messages<ListTripletsResponse>>,
}

/// A scripted server, and a client of it. It ends when this is dropped.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    /// The rollouts to be claimed.
    pub(crate) queue: UnboundedSender<Rollout>,
    /// The outcomes that were reported.
    pub(crate) updates: UnboundedReceiver<UpdateAttemptRequest>,
    pub(crate) kept: Kept,
    _end: DropGuard,
}

impl World {
    /// The next outcome.
    pub(crate) async fn outcome(&mut self) -> Attempt {
        super::next(&mut self.updates).await.attempt.expect("an attempt")
    }

    /// Why the next one failed.
    pub(crate) async fn failure(&mut self) -> Failure {
        let attempt = self.outcome().await;
        assert_eq!(attempt.status(), AttemptStatus::Failed);
        attempt.failure.expect("a failure")
    }
}

/// What happened, in order.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<String>>>);

impl Kept {
    pub(crate) fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Stores spans as the server does.
    pub(crate) fn store(&self, batches: &[SpanBatch]) -> IngestResult {
        let mut result = IngestResult::default();
        for span in batches.iter().flat_map(|batch| &batch.spans) {
            self.note(format!("span {}", span.name));
            result.accepted_count += 1;
        }
        result
    }
}

pub(crate) fn claim_of(id: &str, input: &str) -> Rollout {
    let attempt = Attempt {
        rollout_id: id.into(),
        attempt_id: "at-1".into(),
        sequence_number: 1,
        ..Default::default()
    };
    Rollout {
        rollout_id: id.into(),
        input_json: input.into(),
        config: Some(RolloutConfig { max_attempts: 1, ..Default::default() }),
        latest_attempt: Some(attempt),
        ..Default::default()
    }
}

pub(crate) fn away() -> Status {
    Status::unavailable("away")
}

/// Starts a server with a script that may note things.
pub(crate) fn serve(script: impl FnOnce(&Kept) -> Script) -> World {
    serve_with(script, None, |address| Client::new(address.to_string()).unwrap())
}

pub(crate) fn serve_with(
    script: impl FnOnce(&Kept) -> Script,
    tls: Option<ServerTlsConfig>,
    connect: impl FnOnce(SocketAddr) -> Client,
) -> World {
    let kept = Kept::default();
    let (queue, queued) = unbounded_channel();
    let (updated, updates) = unbounded_channel();
    let queued = tokio::sync::Mutex::new(queued);
    let script = script(&kept);
    let metadata = script.metadata.clone();
    let scripted = Scripted { script, queued, updated, kept: kept.clone() };
    let end = CancellationToken::new();
    let ended = end.clone();
    // A runtime of its own: what the test does to its own must not matter.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let listening = runtime.enter();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    drop(listening);
    thread::spawn(move || {
        runtime.block_on(async {
            let mut server = Server::builder();
            if let Some(tls) = tls {
                server = server.tls_config(tls).unwrap();
            }
            let service = LightningStoreServiceServer::new(scripted).max_decoding_message_size(65 << 20);
            let noted = move |request: Request<()>| {
                if let Some(metadata) = &metadata {
                    let _ = metadata.send(request.metadata().clone());
                }
                Ok(request)
            };
            let serving =
                server.add_service(InterceptedService::new(service, noted)).serve_with_incoming(incoming);
            ended.run_until_cancelled(serving).await;
        });
    });
    World { client: connect(address), address, queue, updates, kept, _end: end.drop_guard() }
}

struct Scripted {
    script: Script,
    queued: tokio::sync::Mutex<UnboundedReceiver<Rollout>>,
    updated: UnboundedSender<UpdateAttemptRequest>,
    kept: Kept,
}

fn say<Q, A: Default>(handler: &Handler<Q, A>, request: Q) -> Result<Response<A>, Status> {
    handler.as_ref().map_or_else(|| Ok(A::default()), |handler| handler(request)).map(Response::new)
}

fn stream_of<Q, M: Send + 'static>(
    handler: &Handler<Q, Messages<M>>,
    request: Q,
) -> Result<Response<BoxStream<M>>, Status> {
    Ok(say(handler, request)?.map(|messages| Box::pin(stream::iter(messages)) as BoxStream<M>))
}

#[tonic::async_trait]
impl LightningStoreService for Scripted {
    async fn dequeue_rollouts(
        &self,
        request: Request<DequeueRolloutsRequest>,
    ) -> Result<Response<DequeueRolloutsResponse>, Status> {
        if self.script.dequeue.is_some() {
            return say(&self.script.dequeue, request.into_inner());
        }
        let mut queued = self.queued.lock().await;
        // Or the end of a long poll.
        let claimed = timeout(Duration::from_millis(300), queued.recv()).await.ok().flatten();
        Ok(Response::new(DequeueRolloutsResponse { rollouts: claimed.into_iter().collect() }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        say(&self.script.heartbeat, request.into_inner())
    }

    async fn get_rollout(
        &self,
        request: Request<GetRolloutRequest>,
    ) -> Result<Response<GetRolloutResponse>, Status> {
        say(&self.script.rollout, request.into_inner())
    }

    async fn get_resources(
        &self,
        request: Request<GetResourcesRequest>,
    ) -> Result<Response<GetResourcesResponse>, Status> {
        match &self.script.resources {
            None => Err(Status::unimplemented("not scripted")),
            Some(resources) => resources(request.into_inner()).map(Response::new),
        }
    }

    async fn get_attempt(
        &self,
        request: Request<GetAttemptRequest>,
    ) -> Result<Response<GetAttemptResponse>, Status> {
        let GetAttemptRequest { rollout_id, attempt_id } = request.into_inner();
        let mut attempt = Attempt { rollout_id, attempt_id, ..Default::default() };
        attempt.set_status(AttemptStatus::Running);
        Ok(Response::new(GetAttemptResponse { attempt: Some(attempt) }))
    }

    async fn ingest_spans(
        &self,
        request: Request<Streaming<IngestSpansRequest>>,
    ) -> Result<Response<IngestSpansResponse>, Status> {
        let mut batches = Vec::new();
        let mut requests = request.into_inner();
        while let Some(request) = requests.message().await? {
            batches.extend(request.batch);
        }
        let result = match &self.script.ingest {
            Some(ingest) => ingest(batches)?,
            None => self.kept.store(&batches),
        };
        Ok(Response::new(IngestSpansResponse { result: Some(result) }))
    }

    async fn update_attempt(
        &self,
        request: Request<UpdateAttemptRequest>,
    ) -> Result<Response<UpdateAttemptResponse>, Status> {
        let request = request.into_inner();
        say(&self.script.update, request.clone())?;
        let status = request.attempt.clone().unwrap_or_default().status();
        self.kept.note(format!("update {}", status.as_str_name()));
        let _ = self.updated.send(request);
        Ok(Response::new(UpdateAttemptResponse::default()))
    }

    async fn enqueue_rollouts(
        &self,
        request: Request<EnqueueRolloutsRequest>,
    ) -> Result<Response<EnqueueRolloutsResponse>, Status> {
        say(&self.script.enqueue, request.into_inner())
    }

    async fn wait_for_rollouts(
        &self,
        request: Request<WaitForRolloutsRequest>,
    ) -> Result<Response<BoxStream<WaitForRolloutsResponse>>, Status> {
        let Some(wait) = &self.script.wait else {
            return Ok(Response::new(Box::pin(stream::pending()))); // nothing finishes
        };
        let messages = stream::iter(wait(request.into_inner())?);
        let Some(closed) = self.script.closed.clone() else {
            return Ok(Response::new(Box::pin(messages)));
        };
        let closed = Dropped(closed);
        let open = stream::pending().map(move |message| {
            let _ = &closed;
            message
        });
        Ok(Response::new(Box::pin(messages.chain(open))))
    }

    async fn watch_rollouts(
        &self,
        request: Request<WatchRolloutsRequest>,
    ) -> Result<Response<BoxStream<WatchRolloutsResponse>>, Status> {
        stream_of(&self.script.watch, request.into_inner())
    }

    async fn query_spans(
        &self,
        request: Request<QuerySpansRequest>,
    ) -> Result<Response<BoxStream<QuerySpansResponse>>, Status> {
        stream_of(&self.script.query, request.into_inner())
    }

    async fn list_triplets(
        &self,
        request: Request<ListTripletsRequest>,
    ) -> Result<Response<BoxStream<ListTripletsResponse>>, Status> {
        stream_of(&self.script.triplets, request.into_inner())
    }
}
