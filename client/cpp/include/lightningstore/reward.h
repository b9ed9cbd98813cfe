// Rewards in spans.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lightningstore/v1/span.pb.h"

namespace lightningstore {

// One dimension of a reward.
struct NamedReward {
  std::string name;
  double value;
};

// Returns the primary reward of the last span that has one, by sequence id, regardless of the order of the
// argument, or nullopt. `batches` are those of the QuerySpans responses; a batch without sequence ids counts
// as one with zeros. It supports every form that docs/triplets.md lists and ignores rewards that cannot be
// read. Does not throw.
std::optional<double> FindFinalReward(const std::vector<v1::SpanBatch>& batches);

}  // namespace lightningstore
