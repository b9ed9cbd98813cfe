/**
 * The Java client of LightningStore: {@link io.lightningstore.client.LightningStore} for
 * algorithms, {@link io.lightningstore.client.Runner} for agents, {@link
 * io.lightningstore.client.LightningStoreSpanExporter} for any program that OpenTelemetry traces.
 */
package io.lightningstore.client;
