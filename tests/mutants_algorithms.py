"""The rows of `mutants` for objectives: (name, file, old text, new text, tests that should notice, why)."""

ROWS = (
  # ---- Future-KL ----
  (
    "future_kl_decay", "fipo_jax/algorithms/future_kl.py",
    "decay=2.0 ** (-1.0 / half_life_tokens)", "decay=2.0 ** (-1.0 / (half_life_tokens + 1))",
    "future_kl_test.py::test_by_hand", "a shift half_life_tokens ahead no longer counts half",
  ),
  (
    "future_kl_direction", "fipo_jax/algorithms/future_kl.py",
    "return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=True)",
    "return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=False)",
    "future_kl_test.py::test_by_hand", "tokens are weighed by what came before them",
  ),
  (
    "past_kl_direction", "fipo_jax/algorithms/future_kl.py",
    "return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=False)",
    "return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=True)",
    "controls_test.py::test_past_looks_the_other_way", "the ablation is the algorithm itself",
  ),
  (
    "future_kl_over_segments", "fipo_jax/algorithms/segments.py",
    "inside_RT = (segments_RT == next_RT).at", "inside_RT = jnp.ones_like(segments_RT == next_RT).at",
    "future_kl_test.py::test_by_hand", "a response is weighed by the next one of its row",
  ),
  (
    "future_kl_border_off_by_one", "fipo_jax/algorithms/segments.py",
    "next_RT = jnp.roll(segments_RT, -1 if reverse else 1, axis=1)",
    "next_RT = jnp.roll(segments_RT, 1 if reverse else -1, axis=1)",
    "segments_test.py::test_discounted_sum_equals_its_recurrence", "sums end a token late",
  ),
  (
    "future_kl_over_shards", "fipo_jax/algorithms/segments.py",
    "goes_on_NR = into_NR == _from_neighbour(out_NR, reverse)", "goes_on_NR = jnp.ones_like(into_NR, bool)",
    "segments_test.py::test_segment_totals_and_counts_of_cut_rows",
    "with mesh.context a sum runs on into another response",
  ),
  (
    "future_kl_shard_decay", "fipo_jax/algorithms/segments.py",
    "return S_RT + decay_RT * beyond_NR[", "return S_RT + decay * beyond_NR[",
    "future_kl_test.py::test_future_and_past_kl_of_cut_rows", "with mesh.context the discount forgets the distance",
  ),
  (
    "counts_of_empty_responses", "fipo_jax/algorithms/segments.py",
    "(segments_RT > 0) & (segment_total(valid_RT, segments_RT) > 0)", "(segments_RT > 0)",
    "segments_test.py::test_segment_total_by_hand", "responses without a token count in means over responses",
  ),
  (
    "safety_clamp", "fipo_jax/algorithms/future_kl.py",
    "jnp.clip(weight_RT, 0.8, 1.0)", "jnp.clip(weight_RT, 0.8, 1.2)",
    "future_kl_test.py::test_the_safety_clamp_raises_and_lowers", "an over-likely bad token is pushed harder",
  ),
  (
    "safety_sign", "fipo_jax/algorithms/future_kl.py",
    "risky_RT = (advantages_RT < 0) & (ratio_RT > safety_threshold)", "risky_RT = ratio_RT > safety_threshold",
    "future_kl_test.py::test_safety_touches_only_risky_tokens", "good tokens lose their weight, too",
  ),
  (
    "weight_clip_ignored", "fipo_jax/algorithms/future_kl.py",
    "  if weight_clip is not None:\n    if len", "  if weight_clip is not None and raw_cap is None:\n    if len",
    "future_kl_test.py::test_weights_by_hand", "f is bounded by raw_cap alone",
  ),
  (
    "participation_border", "fipo_jax/algorithms/surrogate.py",
    "PARTICIPATION[participation_mask](delta_RT > math.log(participation_ratio), advantages_RT)",
    "PARTICIPATION[participation_mask](delta_RT >= math.log(participation_ratio), advantages_RT)",
    "surrogate_test.py", "a ratio that equals the threshold leaves Future-KL",
  ),
  (
    "participation_sign", "fipo_jax/algorithms/surrogate.py",
    "~(beyond_RT & (advantages_RT < 0))", "~(beyond_RT & (advantages_RT > 0))",
    "surrogate_test.py", "the paper's mask drops good tokens and keeps harmful ones",
  ),
  (
    "participation_ignored", "fipo_jax/algorithms/losses.py",
    "F_RT = scan(delta_RT, valid_RT & joins_RT,", "F_RT = scan(delta_RT, valid_RT,",
    "losses_test.py::test_fipo_equals_oracle", "what the paper found to collapse: nothing leaves Future-KL",
  ),
  (
    "weight_differentiated", "fipo_jax/algorithms/losses.py",
    "*jax.lax.stop_gradient((delta_RT, ratio_RT)), advantages_RT", "delta_RT, ratio_RT, advantages_RT",
    "losses_test.py::test_fipo_equals_oracle", "the gradient runs through the weight",
  ),
  (
    "weight_not_used", "fipo_jax/algorithms/losses.py",
    "ratio_RT, advantages_RT * credit.weight,", "ratio_RT, advantages_RT,",
    "losses_test.py::test_fipo_equals_oracle", "fipo is dapo",
  ),
  # ---- ratio, clips, rejection ----
  (
    "advantage_sign", "fipo_jax/algorithms/surrogate.py",
    "free_RT = -advantages_RT * ratio_RT", "free_RT = advantages_RT * ratio_RT",
    "losses_test.py::test_by_hand", "bad responses are reinforced",
  ),
  (
    "ratio_sign", "fipo_jax/algorithms/surrogate.py",
    "delta_RT = jnp.where(valid_RT, logp_RT - old_logp_RT, 0)",
    "delta_RT = jnp.where(valid_RT, old_logp_RT - logp_RT, 0)",
    "losses_test.py::test_by_hand", "the ratio is that of the old policy over the new",
  ),
  (
    "clips_swapped", "fipo_jax/algorithms/surrogate.py",
    "_clip(ratio_RT, 1 - clip_low, 1 + clip_high)", "_clip(ratio_RT, 1 - clip_high, 1 + clip_low)",
    "surrogate_test.py", "the asymmetric clip is the other way round",
  ),
  (
    "optimistic_clip", "fipo_jax/algorithms/surrogate.py",
    "jnp.maximum(free_RT, held_RT), held_RT > free_RT", "jnp.minimum(free_RT, held_RT), held_RT > free_RT",
    "surrogate_test.py", "the clip holds where it should let go",
  ),
  (
    "dual_clip_off", "fipo_jax/algorithms/surrogate.py",
    "loss_RT = jnp.where(bad_RT, jnp.minimum(loss_RT, limit_RT), loss_RT)",
    "loss_RT = jnp.where(bad_RT, loss_RT, loss_RT)",
    "surrogate_test.py", "a bad token of ratio 1000 pushes 1000 times",
  ),
  (
    "dual_clip_of_good_tokens", "fipo_jax/algorithms/surrogate.py",
    "bad_RT = advantages_RT < 0", "bad_RT = advantages_RT != 0",
    "surrogate_test.py", "good tokens are held at the dual clip",
  ),
  (
    "reject_count_border", "fipo_jax/algorithms/surrogate.py",
    "segment_total(dual_clipped_RT, segments_RT) > sequence_reject_count",
    "segment_total(dual_clipped_RT, segments_RT) >= sequence_reject_count",
    "surrogate_test.py", "one dual-clipped token is enough to drop a response",
  ),
  (
    "delta_clamp_one_sided", "fipo_jax/algorithms/surrogate.py",
    "delta_RT = _clip(delta_RT, -delta_clamp, delta_clamp)", "delta_RT = _clip(delta_RT, -jnp.inf, delta_clamp)",
    "surrogate_test.py", "a token that has become impossible drags Future-KL to minus infinity",
  ),
  (
    "gradient_on_the_bound", "fipo_jax/algorithms/surrogate.py",
    "return jnp.where(beyond, jax.lax.stop_gradient(jnp.clip(x, low, high)), x)", "return jnp.clip(x, low, high)",
    "surrogate_test.py", "tokens on the bound have half a gradient",
  ),
  (
    "cispo_cap", "fipo_jax/algorithms/losses.py",
    "jnp.minimum(ratio_RT, cispo_ratio_cap)", "jnp.maximum(ratio_RT, cispo_ratio_cap)",
    "objectives_test.py::test_cispo_by_hand_and_against_its_definition", "ratios are cut from below",
  ),
  (
    "gspo_gradient", "fipo_jax/algorithms/losses.py",
    "own_RT = mean_RT + (delta_RT - fixed_RT)", "own_RT = mean_RT + 0 * (delta_RT - fixed_RT)",
    "losses_test.py::test_gspo_by_hand", "gspo learns nothing",
  ),
  (
    "control_permutes_over_responses", "fipo_jax/algorithms/controls.py",
    "jnp.lexsort((noise, classes), axis=-1)", "jnp.lexsort((classes, noise), axis=-1)",
    "controls_test.py::test_permute_stays_within_a_class", "the ablation mixes responses",
  ),
  # ---- masks and means ----
  (
    "prompt_in_the_loss", "fipo_jax/algorithms/losses.py",
    "valid_RT = (batch.mask > 0) & (batch.segments > 0)", "valid_RT = batch.segments > 0",
    "losses_test.py::test_fipo_equals_oracle", "the prompt is trained on",
  ),
  (
    "masked_sum_multiplies", "fipo_jax/masked.py",
    "return jnp.sum(jnp.where(jnp.asarray(mask, bool), _floating(x), 0), axis=axis)",
    "return jnp.sum(_floating(x) * jnp.asarray(mask, jnp.float32), axis=axis)",
    "masked_test.py::test_reductions_see_only_what_is_kept", "NaN under the mask reaches the loss",
  ),
  (
    "quantile_place", "fipo_jax/masked.py",
    "place = jnp.asarray(fractions, x.dtype) * last", "place = jnp.asarray(fractions, x.dtype) * n",
    "masked_test.py::test_quantiles_equal_numpy", "reported quantiles lie one rank high",
  ),
  (
    "mean_counts_rejected", "fipo_jax/algorithms/aggregation.py",
    "return jnp.ones(keep_RT.shape), masked.count(keep_RT)", "return jnp.ones(keep_RT.shape), masked.count(valid_RT)",
    "aggregation_test.py", "rejected responses dilute the token mean",
  ),
  (
    "sequence_mean_length", "fipo_jax/algorithms/aggregation.py",
    "tokens_RT = jnp.maximum(segment_total(keep_RT, batch.segments), 1)", "tokens_RT = jnp.ones(keep_RT.shape)",
    "aggregation_test.py", "long responses weigh more in grpo",
  ),
  (
    "group_token_count", "fipo_jax/algorithms/aggregation.py",
    "masked.sum(1 / tokens_RT, valid_RT)", "masked.sum(1 / tokens_RT, keep_RT)",
    "aggregation_test.py", "groups with a rejected response count less",
  ),
  (
    "mean_of_nothing", "fipo_jax/types.py",
    "return Mean(self.total + other.total, self.count + other.count)",
    "return Mean(self.total + other.total, jnp.maximum(self.count, other.count))",
    "types_test.py", "means over micro-batches are sums",
  ),
  # ---- advantages ----
  (
    "group_baseline", "fipo_jax/algorithms/advantages.py",
    "centred_G = rewards_G - rewards_G.mean()", "centred_G = rewards_G - np.median(rewards_G)",
    "advantages_test.py", "advantages of a group do not sum to 0",
  ),
  (
    "std_ddof", "fipo_jax/algorithms/advantages.py",
    "rewards_G.std(ddof=std_ddof)", "rewards_G.std()",
    "advantages_test.py", "advantages are larger than published",
  ),
  (
    "equal_rewards", "fipo_jax/algorithms/advantages.py",
    "if (rewards_G == rewards_G[:1]).all():", "if rewards_G.size == 0:",
    "advantages_test.py::test_equal_rewards_give_exactly_zero", "rounding gives a group of equals one sign",
  ),
  (
    "leave_one_out_factor", "fipo_jax/algorithms/advantages.py",
    "return centred_PG * (G / (G - 1))", "return centred_PG * ((G - 1) / G)",
    "objectives_test.py::test_rloo_by_hand", "the baseline holds the sample itself",
  ),
  (
    "batch_statistics", "fipo_jax/algorithms/advantages.py",
    "group_relative(rewards_PG.reshape(1, -1), std_ddof=0", "group_relative(rewards_PG, std_ddof=0",
    "objectives_test.py::test_reinforce_pp_by_hand", "reinforce_pp is normalised by group",
  ),
  (
    "gae_decay", "fipo_jax/algorithms/gae.py",
    "decay=discount * gae_lambda", "decay=gae_lambda",
    "gae_test.py::test_equals_the_recurrence", "the discount is left out of the sum",
  ),
  (
    "gae_discount", "fipo_jax/algorithms/gae.py",
    "rewards_RT + discount * next_RT - values_RT", "rewards_RT + next_RT - values_RT",
    "gae_test.py::test_equals_the_recurrence", "the discount is left out of the target",
  ),
  (
    "gae_over_segments", "fipo_jax/algorithms/gae.py",
    "same_RT = mask_RT & jnp.roll(mask_RT, -1, axis=1) & (segments_RT == jnp.roll(segments_RT, -1, axis=1))",
    "same_RT = mask_RT & jnp.roll(mask_RT, -1, axis=1)",
    "gae_test.py::test_equals_the_recurrence", "the last token's next value is that of another response",
  ),
  (
    "gae_round_the_row", "fipo_jax/algorithms/gae.py",
    "return same_RT.at[:, -1].set(False)", "return same_RT",
    "gae_test.py::test_a_response_that_fills_its_row_ends_with_it", "the end of a row goes on at its beginning",
  ),
  (
    "reward_on_every_token", "fipo_jax/algorithms/gae.py",
    "jnp.where(mask_RT & ~_continues(mask_RT, segments_RT), rewards_RT, 0)", "jnp.where(mask_RT, rewards_RT, 0)",
    "gae_test.py::test_by_hand", "ppo is paid by length",
  ),
  # ---- terms ----
  (
    "kl_sign", "fipo_jax/algorithms/terms.py",
    "x_RT = jnp.where(valid_RT, ref_logp_RT - logp_RT, 0)", "x_RT = jnp.where(valid_RT, logp_RT - ref_logp_RT, 0)",
    "terms_test.py::test_kl_estimates_by_hand", "the KL is of the reference from the policy",
  ),
  (
    "entropy_sign", "fipo_jax/algorithms/terms.py",
    "extra_RT -= terms.entropy_coef", "extra_RT += terms.entropy_coef",
    "terms_test.py::test_entropy_bonus_raises_entropy", "the bonus is a penalty",
  ),
  (
    "sampler_cap", "fipo_jax/algorithms/terms.py",
    "jnp.minimum(jnp.exp(jnp.minimum(gap_RT, 20.0)), cap)", "jnp.exp(jnp.minimum(gap_RT, 20.0))",
    "terms_test.py::test_sampler_correction_scales_each_token", "one token of the sampler outweighs the rest",
  ),
  (
    "value_clip_optimistic", "fipo_jax/algorithms/terms.py",
    "0.5 * jnp.maximum(free_RT, jnp.square(held_RT - returns_RT))",
    "0.5 * jnp.minimum(free_RT, jnp.square(held_RT - returns_RT))",
    "terms_test.py::test_value_loss_by_hand", "the value head is bounded the wrong way",
  ),
)  # fmt: skip
