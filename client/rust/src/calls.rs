//! Common calls of algorithms.

use std::collections::HashMap;

use crate::client::Client;
use crate::error::Error;
use crate::proto::{
    AddResourcesRequest, CancelRolloutsRequest, EnqueueRolloutsRequest, GetResourcesRequest,
    GetRolloutRequest, Resource, Resources, Rollout, RolloutSpec, UpdateResourcesRequest,
};

impl Client {
    /// Adds rollouts to the queue, all of them or, on an error, none. Returns them as stored, in the same
    /// order.
    pub async fn enqueue(&self, specs: impl IntoIterator<Item = RolloutSpec>) -> Result<Vec<Rollout>, Error> {
        let rollouts = specs.into_iter().collect();
        let request = EnqueueRolloutsRequest { rollouts, ..Default::default() };
        Ok(self.call(request).await?.rollouts)
    }

    /// Returns a rollout with its latest attempt.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown id.
    pub async fn rollout(&self, rollout_id: impl Into<String>) -> Result<Rollout, Error> {
        let answer = self.call(GetRolloutRequest { rollout_id: rollout_id.into() }).await?;
        answer.rollout.ok_or_else(|| lacking("rollout"))
    }

    /// Cancels rollouts; their runners are asked to stop. Rollouts that have already finished do not change.
    /// Returns all of them after the change, in the same order.
    pub async fn cancel<I>(&self, rollout_ids: I) -> Result<Vec<Rollout>, Error>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let rollout_ids = rollout_ids.into_iter().map(Into::into).collect();
        let request = CancelRolloutsRequest { rollout_ids, ..Default::default() };
        Ok(self.call(request).await?.rollouts)
    }

    /// Stores new resources and makes them the latest: rollouts enqueued from now on use them unless they
    /// name others.
    pub async fn add_resources<N: Into<String>>(
        &self,
        resources: impl IntoIterator<Item = (N, Resource)>,
    ) -> Result<Resources, Error> {
        let request = AddResourcesRequest { resources: named(resources), ..Default::default() };
        self.call(request).await?.resources.ok_or_else(|| lacking("resources"))
    }

    /// Replaces the resources of an id, increments their version and makes them the latest. An id that does
    /// not exist is created.
    pub async fn update_resources<N: Into<String>>(
        &self,
        resources_id: impl Into<String>,
        resources: impl IntoIterator<Item = (N, Resource)>,
    ) -> Result<Resources, Error> {
        let request = UpdateResourcesRequest {
            resources_id: resources_id.into(),
            resources: named(resources),
            ..Default::default()
        };
        self.call(request).await?.resources.ok_or_else(|| lacking("resources"))
    }

    /// Returns the current version of resources by id, or the latest resources if the id is empty.
    ///
    /// # Errors
    ///
    /// `NotFound` if there are none.
    pub async fn resources(&self, resources_id: impl Into<String>) -> Result<Resources, Error> {
        let request = GetResourcesRequest { resources_id: resources_id.into(), ..Default::default() };
        let answer = self.call(request).await?;
        answer.resources.ok_or_else(|| lacking("resources"))
    }
}

fn named<N: Into<String>>(resources: impl IntoIterator<Item = (N, Resource)>) -> HashMap<String, Resource> {
    resources.into_iter().map(|(name, resource)| (name.into(), resource)).collect()
}

fn lacking(what: &str) -> Error {
    tonic::Status::internal(format!("the server's response lacks its {what}")).into()
}
