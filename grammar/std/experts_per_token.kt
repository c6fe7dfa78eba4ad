# Fewer experts for each token than the model was trained with. THIS CHANGES THE NUMBERS that the model computes: each
# expert left out is that much less to read and to multiply, and that much of the layer's result is missing.
# `ktc verify` reports the effect on the logits; measure it before you rely on it.
#
#   include "std/experts_per_token.kt"
#   ktc run FILE -D experts_per_token=6
#
# The best-scored experts stay. Where the model normalises their weights, those of fewer experts are normalised. A number
# above the trained one, or below 1, is refused.
param experts_per_token: int = 0 "experts that each token uses; 0: as many as the model was trained with"

rewrite fewer_experts {
  pattern {
    weights, indices = kt.router(
      logits,
      top_k = trained,
      scoring = scoring,
      groups = groups,
      kept_groups = kept_groups,
      group_score = group_score,
      normalize = normalize,
      scale = scale,
    )
  }
  where experts_per_token >= 1 and experts_per_token < trained
  replace {
    weights, indices = kt.router(
      logits,
      top_k = experts_per_token,
      scoring = scoring,
      groups = groups,
      kept_groups = kept_groups,
      group_score = group_score,
      normalize = normalize,
      scale = scale,
    )
  }
  expect any
}

# The same with a bias on the choice (DeepSeek-V3, GLM-4.5).
rewrite fewer_experts_bias {
  pattern {
    weights, indices = kt.router(
      logits,
      bias,
      top_k = trained,
      scoring = scoring,
      groups = groups,
      kept_groups = kept_groups,
      group_score = group_score,
      normalize = normalize,
      scale = scale,
    )
  }
  where experts_per_token >= 1 and experts_per_token < trained
  replace {
    weights, indices = kt.router(
      logits,
      bias,
      top_k = experts_per_token,
      scoring = scoring,
      groups = groups,
      kept_groups = kept_groups,
      group_score = group_score,
      normalize = normalize,
      scale = scale,
    )
  }
  expect any
}

assert experts_per_token >= 0
  and experts_per_token <= config.num_experts_per_tok, "at least 1, and at most the number the model was trained with"
