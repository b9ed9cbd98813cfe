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

// Returns the primary reward of the last span that holds one: the last by sequence id, in whatever order they
// come. Nothing if none does. `batches`: those of the answers to QuerySpans; a batch without sequence ids
// counts as one of zeros. Rewards are found in every form that docs/triplets.md lists, whoever wrote them;
// one that cannot be read is passed over. Throws nothing.
std::optional<double> FindFinalReward(const std::vector<v1::SpanBatch>& batches);

}  // namespace lightningstore
