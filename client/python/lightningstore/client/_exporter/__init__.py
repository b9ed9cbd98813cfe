"""What the span exporter is made of: queued spans, repaired spans, lost spans."""
