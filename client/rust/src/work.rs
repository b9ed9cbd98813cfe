//! The work of a runner on its claims: resources, function, spans, report.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource as OtelResource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanLimits, SpanProcessor,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::backoff::{Backoff, MAX_PAUSE, OUTAGE};
use crate::client::Client;
use crate::error::Error;
use crate::execution::{Execution, Stopped};
use crate::exporter::SpanExporter;
use crate::failure::Failure;
use crate::finishes::Finishes;
use crate::ids::SystemIds;
use crate::outbox::{ATTEMPT_ID, AttemptKey, ROLLOUT_ID};
use crate::proto::{
    self, Attempt, AttemptStatus, GetAttemptRequest, GetResourcesRequest, GetRolloutRequest, Resources,
    Rollout, StopReason, Unary, UpdateAttemptRequest, UpdateAttemptResponse,
};
use crate::reward::emit_reward;
use crate::task::{Agent, Task};

/// Timeout of one try of a call that is retried.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of cached resources, so that a batch of rollouts loads them once.
const KEPT_RESOURCES: usize = 4;
const SCOPE: &str = "lightningstore";

/// Works on the claims of a runner.
pub(crate) struct Work {
    pub(crate) client: Client,
    pub(crate) worker_id: String,
    pub(crate) agent: Arc<Agent>,
    pub(crate) exporter: SpanExporter,
    /// Cancelled when the runner no longer waits for a server that is down.
    pub(crate) hurried: CancellationToken,
    pub(crate) finishes: Arc<Finishes>,
    /// Cached resources, the newest last.
    pub(crate) kept: tokio::sync::Mutex<VecDeque<Resources>>,
    /// Publish number of the resources that the function was called with last; 0: none.
    pub(crate) publish_number: Arc<AtomicI64>,
    /// Whether the server has rejected the field of the reward in a report, as those of earlier versions do.
    pub(crate) without_rewards: AtomicBool,
}

/// What the function returned: its reward, if any, or why it failed.
type Outcome = Result<Option<f64>, Failure>;

impl Work {
    /// Works on a claim. Never panics, and reports whatever happens before the report, because an attempt
    /// without a report would stay live. A `tracing` subscriber may panic, and so may values that the
    /// function left behind.
    pub(crate) async fn run(&self, execution: &Arc<Execution>) {
        let filing = Filing::new(&self.exporter);
        let outcome = guarded(self.outcome(execution, &filing)).await.unwrap_or_else(Err);
        self.finishes.remove(&execution.key); // the finish that the report causes is not worth watching
        let _ = guarded(async { log(execution, &outcome) }).await;
        let _ = guarded(self.flush()).await;
        let sent = filing.count.load(Ordering::Relaxed);
        let _ = guarded(self.report(execution, outcome, sent)).await;
    }

    async fn outcome(&self, execution: &Arc<Execution>, filing: &Filing) -> Outcome {
        let rollout = self.whole(&execution.rollout).await?;
        let resources = self.resources(&rollout).await?;
        still_wanted(execution)?;
        let provider = filing.provider(&execution.key);
        let tracer: SdkTracer = provider.tracer(SCOPE);
        let task = Task {
            input: (),
            rollout,
            resources,
            tracer: tracer.clone(),
            cancellation: execution.cancellation.clone(),
            worker_id: self.worker_id.clone(),
            execution: execution.clone(),
        };
        let returned = execution.call((self.agent)(task)).await;
        still_wanted(execution)?; // whatever it returned: its outcome no longer counts
        let reward = returned?;
        if let Some(reward) = reward {
            emit_reward(&tracer, reward)?;
        }
        Ok(reward)
    }

    /// Returns the claim with its payloads, which a repeated response may omit.
    async fn whole(&self, claimed: &Rollout) -> Result<Rollout, Error> {
        if !claimed.payloads_omitted {
            return Ok(claimed.clone());
        }
        let request = GetRolloutRequest { rollout_id: claimed.rollout_id.clone() };
        let whole = self.patiently(request).await?.rollout.unwrap_or_default();
        Ok(Rollout {
            input_json: whole.input_json,
            metadata_json: whole.metadata_json,
            payloads_omitted: false,
            ..claimed.clone()
        })
    }

    /// Returns the resources of the attempt, from the cache if it has the claim's version.
    async fn resources(&self, rollout: &Rollout) -> Result<Resources, Error> {
        let attempt = rollout.latest_attempt.clone().unwrap_or_default();
        if attempt.resources_id.is_empty() {
            return Ok(Resources::default());
        }
        let is_wanted = |kept: &&Resources| {
            kept.resources_id == attempt.resources_id && kept.version == attempt.resources_version
        };
        let mut kept = self.kept.lock().await; // one fetch for all that start together
        let found = match kept.iter().find(is_wanted) {
            Some(found) => found.clone(),
            None => {
                let request = GetResourcesRequest {
                    resources_id: attempt.resources_id.clone(),
                    version: attempt.resources_version,
                    ..Default::default()
                };
                let found = self.patiently(request).await?.resources.unwrap_or_default();
                kept.push_back(found.clone());
                if kept.len() > KEPT_RESOURCES {
                    kept.pop_front();
                }
                found
            }
        };
        drop(kept);
        self.publish_number.store(found.publish_number, Ordering::Relaxed);
        found.routed(&rollout.rollout_id, &attempt.attempt_id)
    }

    /// Waits until the spans are stored, because an outcome must not be stored before them.
    async fn flush(&self) {
        let hurried = async {
            self.hurried.cancelled().await;
            sleep(TRY_TIMEOUT).await;
        };
        tokio::select! {
            () = self.exporter.flush() => {}
            () = sleep(OUTAGE) => tracing::warn!("reporting before all spans are stored"),
            () = hurried => tracing::warn!("reporting before all spans are stored"),
        }
    }

    async fn report(&self, execution: &Execution, outcome: Outcome, sent: i64) {
        let mut outcome = outcome;
        if let Some(why) = execution.stopped() {
            outcome = Err(cancelled(why)); // perhaps said while the spans were flushed
            if !self.is_live(execution, why).await {
                return;
            }
        }
        let AttemptKey { rollout_id, attempt_id } = &execution.key;
        match self.update(&execution.key, outcome.map_err(Failure::into_proto), sent).await {
            Err(error) => tracing::warn!(rollout_id, attempt_id, %error, "attempt not reported"),
            Ok(answer) => {
                if let Some(missing @ 1..) = answer.missing_span_count {
                    tracing::warn!(rollout_id, attempt_id, missing, "attempt has missing spans");
                }
            }
        }
    }

    /// Reports an outcome; without its reward, which is in a span too, if the server does not know that field.
    /// If the server rejects it otherwise, reports a minimal failure once.
    async fn update(
        &self,
        key: &AttemptKey,
        mut outcome: Result<Option<f64>, proto::Failure>,
        sent: i64,
    ) -> Result<UpdateAttemptResponse, Error> {
        if self.without_rewards.load(Ordering::Relaxed) {
            outcome = outcome.map(|_| None);
        }
        let mut answer = self.patiently(outcome_request(key, outcome.clone(), sent)).await;
        if let (Err(error), Ok(Some(_))) = (&answer, &outcome)
            && is_unknown_path(error)
        {
            tracing::warn!(%error, "the server knows no rewards in reports, so they are in spans only");
            self.without_rewards.store(true, Ordering::Relaxed);
            answer = self.patiently(outcome_request(key, Ok(None), sent)).await;
        }
        match answer {
            Err(error) if error.code() == Some(Code::InvalidArgument) => {
                let plain = Failure::of_refused_report(outcome.err().as_ref(), &error).into_proto();
                let answer = self.patiently(outcome_request(key, Err(plain), sent)).await;
                tracing::warn!(attempt = ?key, %error, "report rejected, reporting a minimal failure");
                answer
            }
            answer => answer,
        }
    }

    /// Returns whether a cancelled attempt must still be ended. An expiry set by the watchdog is kept.
    async fn is_live(&self, execution: &Execution, why: Stopped) -> bool {
        if why.reason() == StopReason::UnknownAttempt {
            return false;
        }
        let AttemptKey { rollout_id, attempt_id } = execution.key.clone();
        match self.patiently(GetAttemptRequest { rollout_id, attempt_id }).await {
            Ok(answer) => {
                let status = answer.attempt.unwrap_or_default().status();
                matches!(status, AttemptStatus::Preparing | AttemptStatus::Running)
            }
            Err(error) => {
                tracing::warn!(attempt = ?execution.key, %error, "cancelled attempt not reported");
                false
            }
        }
    }

    /// Repeats a call while the server is down.
    async fn patiently<Q: Unary>(&self, mut request: Q) -> Result<Q::Answer, Error> {
        request.identify();
        let began = Instant::now();
        let mut pauses = Backoff::new(MAX_PAUSE);
        loop {
            let error = match self.client.once(request.clone(), Some(TRY_TIMEOUT)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let goes_on = error.is_retryable() && began.elapsed() < OUTAGE;
            if !goes_on || self.hurried.run_until_cancelled(pauses.pause(&error)).await.is_none() {
                return Err(error);
            }
        }
    }
}

/// Returns the result of a future; a panic is a failure.
async fn guarded<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(Failure::of_panic)
}

/// Returns whether the server does not know a field of an update.
fn is_unknown_path(error: &Error) -> bool {
    let Error::Call(call) = error else { return false };
    call.code == Code::InvalidArgument
        && call.fields.iter().any(|violation| violation.field.starts_with("update_mask"))
}

fn outcome_request(
    key: &AttemptKey,
    outcome: Result<Option<f64>, proto::Failure>,
    sent: i64,
) -> UpdateAttemptRequest {
    let AttemptKey { rollout_id, attempt_id } = key.clone();
    let status = if outcome.is_ok() { AttemptStatus::Succeeded } else { AttemptStatus::Failed };
    let paths: &[&str] = match &outcome {
        Ok(None) => &["status"],
        Ok(Some(_)) => &["status", "reward"],
        Err(_) => &["status", "failure"],
    };
    let (reward, failure) = outcome.map_or_else(|failure| (None, Some(failure)), |reward| (reward, None));
    UpdateAttemptRequest {
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|&path| path.into()).collect() }),
        attempt: Some(Attempt {
            rollout_id,
            attempt_id,
            status: status.into(),
            failure,
            reward,
            ..Default::default()
        }),
        sent_span_count: Some(sent),
        ..Default::default()
    }
}

fn still_wanted(execution: &Execution) -> Result<(), Failure> {
    execution.stopped().map_or(Ok(()), |why| Err(cancelled(why)))
}

fn cancelled(why: Stopped) -> Failure {
    Failure::new(why).kind("Cancelled")
}

fn log(execution: &Execution, outcome: &Outcome) {
    let AttemptKey { rollout_id, attempt_id } = &execution.key;
    match (execution.stopped(), outcome) {
        (Some(why), _) => tracing::info!(rollout_id, attempt_id, %why, "attempt stopped"),
        (None, Err(failure)) => tracing::warn!(rollout_id, attempt_id, %failure, "attempt failed"),
        (None, Ok(_)) => tracing::debug!(rollout_id, attempt_id, "attempt succeeded"),
    }
}

/// Passes the spans of one attempt to an exporter as they end, and counts them.
#[derive(Clone, Debug)]
struct Filing {
    exporter: SpanExporter,
    count: Arc<AtomicI64>,
}

impl Filing {
    fn new(exporter: &SpanExporter) -> Self {
        Self { exporter: exporter.clone(), count: Arc::default() }
    }

    /// Creates the tracer provider of an attempt. It neither samples nor truncates, because its spans are
    /// training data.
    fn provider(&self, key: &AttemptKey) -> SdkTracerProvider {
        let ids = [
            KeyValue::new(ROLLOUT_ID, key.rollout_id.clone()),
            KeyValue::new(ATTEMPT_ID, key.attempt_id.clone()),
        ];
        let unlimited = SpanLimits {
            max_events_per_span: u32::MAX,
            max_attributes_per_span: u32::MAX,
            max_links_per_span: u32::MAX,
            max_attributes_per_event: u32::MAX,
            max_attributes_per_link: u32::MAX,
        };
        SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(OtelResource::builder().with_attributes(ids).build())
            .with_span_limits(unlimited)
            .with_id_generator(SystemIds)
            .with_span_processor(self.clone())
            .build()
    }
}

impl SpanProcessor for Filing {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.exporter.add(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(()) // it is for the runner to flush
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(()) // the exporter is the runner's
    }

    fn set_resource(&mut self, resource: &OtelResource) {
        self.exporter.file_under(resource);
    }
}
