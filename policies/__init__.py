"""The policy in the learner: loading, sharding, packing, log-probabilities, routing replay, LoRA and export."""
