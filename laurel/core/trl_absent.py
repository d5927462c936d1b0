"""The table's other half: names of TRL and transformers that there are not here, with what to do instead."""

from __future__ import annotations

from laurel.core.trl import Name, never, no

HARMLESS: dict[str, Name] = {
    **no(
        "It belongs to older versions, and changed no result: leave it out.",
        overwrite_output_dir=False, no_mps=None, use_mps_device=None, use_ipex=None,
        jit_mode_eval=None, tpu_num_cores=None, past_index=-1, ray_scope=None, mp_parameters="",
        fp16_backend=None, half_precision_backend=None, include_inputs_for_metrics=None,
        push_to_hub_model_id=None, push_to_hub_organization=None, push_to_hub_token=None,
        split_batches=None, dispatch_batches=None, dataset_batch_size=None,
        preprocessing_num_workers=None, label_pad_token_id=-100, use_logits_to_keep=None,
        use_liger_loss=None, model_adapter_name=None, ref_adapter_name=None, vllm_device=None,
        vllm_dtype=None, vllm_max_model_len=None, vllm_enable_prefix_caching=None,
        wandb_log_unique_prompts=None, logging_nan_filter=None, torchdynamo=None,
        chars_per_token=None, num_of_sequences=None, wandb_project=None, wandb_entity=None,
    ),
    **no(
        "Sampling is laurel's own; there is nothing to switch.",
        use_vllm=False, vllm_mode="colocate", vllm_model_impl="vllm", vllm_enable_sleep_mode=False,
        vllm_server_base_url=None, vllm_server_host="0.0.0.0", vllm_server_port=8000,
        vllm_server_timeout=240.0, vllm_group_port=51216, vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=None, vllm_tensor_parallel_size=1,
        use_transformers_continuous_batching=False, transformers_continuous_batching_config=None,
        use_transformers_paged=False, cache_implementation=None, ds3_gather_for_generation=True,
        use_cache=False,
    ),
    **no(
        "The sampler's log-probabilities are the trainer's here, and a start check holds them "
        "equal: there is no mismatch to correct.",
        vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0, vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_cap=None,
    ),
    **no(
        "token_budget bounds the memory of a micro-batch; results do not depend on it.",
        per_device_eval_batch_size=8, eval_accumulation_steps=None, auto_find_batch_size=False,
        precompute_ref_batch_size=None, torch_empty_cache_steps=None, activation_offloading=False,
        gradient_checkpointing_kwargs=None, activation_checkpointing_kwargs=None,
    ),
    **no(
        "The kernels and attention are chosen by the model and the device; `laurel doctor` says"
        " which.",
        attn_implementation=None, use_liger_kernel=False, liger_kernel_config=None, tf32=None,
        torch_compile=False, torch_compile_backend=None, torch_compile_mode=None,
        padding_free=False, pad_to_multiple_of="auto", cast_lm_head_to_fp32=False,
    ),
    **no(
        "The reference's log-probabilities of rows of data are kept once computed.",
        precompute_ref_log_probs=False,
    ),
    **no(
        "Processes are started with torchrun; gradients are summed over them, and nothing else "
        "is to be set.",
        accelerator_config=None, parallelism_config=None, ddp_find_unused_parameters=None,
        ddp_bucket_cap_mb=None, ddp_broadcast_buffers=None, ddp_static_graph=None, ddp_backend=None,
        ddp_timeout=1800, local_rank=-1, average_tokens_across_devices=True,
        ignore_bias_buffers=False,
    ),
    **no(
        "Rows are read once and encoded as they are drawn; there is no loader to tune.",
        dataloader_num_workers=0, dataloader_pin_memory=True, dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None, dataloader_multiprocessing_context=None,
        dataloader_in_order=True, dataset_num_proc=None, remove_unused_columns=True,
        label_names=None, length_column_name="length", dataset_kwargs=None, dataset_streaming=False,
        streaming=False, group_by_length=False,
    ),
    **no(
        "Rows are drawn in an order of the seed, each once an epoch; a last short batch is "
        "filled from the next epoch.",
        data_seed=None, shuffle_dataset=True, train_sampling_strategy="random",
        dataloader_drop_last=False, ignore_data_skip=False, full_determinism=False,
    ),
    **no(
        "Metrics go to the files of the run, and where report_to says; a run is named by its "
        "output_dir.",
        logging_first_step=False, log_on_each_node=True, logging_nan_inf_filter=True,
        include_num_input_tokens_seen="no", log_level="passive", log_level_replica="warning",
        disable_tqdm=None, run_name=None, project="huggingface", trackio_space_id=None,
        trackio_bucket_id=None, trackio_static_space_id=None, logging_dir=None,
        skip_memory_metrics=True, debug="", include_tokens_per_second=False,
    ),
    **no(
        "Completions are always in samples.jsonl and in the report.",
        log_completions=False, log_multimodal=True, num_completions_to_print=None,
        log_unique_prompts=False, log_completions_hub_repo=None, generate_during_eval=False,
    ),
    **no(
        "Nothing is sent to the hub: `hf upload OWNER/NAME RUN/model` does it.",
        push_to_hub=False, hub_token=None, hub_private_repo=None, hub_model_id=None,
        hub_strategy="every_save", hub_always_push=False, hub_revision=None,
    ),
    **no(
        "A checkpoint is always whole and resumable; `laurel train` resumes it with resume.",
        save_only_model=False, save_on_each_node=False, enable_jit_checkpoint=False,
        restore_callback_states_from_checkpoint=False, save_safetensors=True,
    ),
    **no(
        "Evaluation is the held-out rows' accuracy, reward or loss every eval_steps; `laurel "
        "eval` does more.",
        eval_delay=0, prediction_loss_only=False, eval_on_start=False, eval_do_concat_batches=True,
        eval_use_gather_object=False, include_for_metrics=[], batch_eval_metrics=False,
        bf16_full_eval=False, fp16_full_eval=False, num_generations_eval=None, eval_packing=None,
    ),
    **no(
        "Held-out rows are eval_dataset, or eval_size rows split off.",
        dataset_test_split="test", test_split_size=None,
    ),
    **no(
        "`laurel train` trains; `laurel eval` evaluates.",
        do_train=False, do_eval=False, do_predict=False,
    ),
    **no(
        "It is settled by the algorithm here.",
        lora_task_type="CAUSAL_LM", dataset_text_field="text", is_encoder_decoder=None,
        padding_value=None, stop_token=None,
    ),
    **no(
        "Without its switch it does nothing.",
        ref_model_mixup_alpha=0.6, ref_model_sync_steps=512, discopop_tau=0.05,
        f_alpha_divergence_coef=0.5, entropy_coef_min=0.0, entropy_coef_max=1.0,
        entropy_coef_delta=0.005, entropy_target=0.2, sapo_temperature_neg=1.05,
        sapo_temperature_pos=1.0, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
        vespo_lambda_neg=2.0, bnb_4bit_quant_type="nf4", use_bnb_nested_quant=False,
        bnb_4bit_quant_storage=None, packing_strategy="bfd",
    ),
}  # fmt: skip

DIFFERENT: dict[str, Name] = {
    **never(
        "The reference is reference: start, base or none.",
        reference_free=False, force_use_ref_model=False, ref_model_init_kwargs=None,
    ),
    **never(
        "Rows are mixed before: name files between commas in dataset.",
        dataset_mixer=None, dataset_mixture=None,
    ),
    **never("Write it into the rows, as a first message.", system_prompt=None),
    **never("Prompts and answers have max_prompt_length and max_length.", max_target_length=None),
    **never("AdamW is what there is.", adafactor=False),
    **never("They are adam_beta1 and adam_beta2.", betas=None, beta1=None, beta2=None),
    **never(
        "A step's size is prompts_per_step.",
        train_batch_size=None, batch_size=None, total_batch_size=None, mini_batch_size=None,
        num_mini_batches=1, local_rollout_forward_batch_size=None,
    ),
    **never("float16 is not computed here: dtype is float32 or bfloat16.", fp16=False),
    **never(
        "AdamW is what there is, the same for every weight.",
        optim_args=None, optim_target_modules=None,
    ),
    **never(
        "constant, linear and cosine have no parameters: the rate falls to 0 at max_steps.",
        lr_scheduler_kwargs=None,
    ),
    **never(
        "Loss is on the tokens as they are: no smoothing, no noise.",
        label_smoothing_factor=0.0, neftune_noise_alpha=None,
    ),
    **never(
        "The weights are in one piece on every device: use LoRA (use_peft) where they do not fit.",
        fsdp=None, fsdp_config=None, deepspeed=None,
    ),
    **never(
        "Weights are not quantised: use LoRA (use_peft) and gradient_checkpointing for memory.",
        load_in_8bit=False, load_in_4bit=False,
    ),
    **never(
        "The model is what its folder holds: no loading option changes it.",
        trust_remote_code=False, router_aux_loss_coef=None,
    ),
    **never(
        "Adapters are plain LoRA on modules: lora_target_modules names them.",
        lora_target_parameters=None, lora_modules_to_save=None, use_rslora=False, use_dora=False,
    ),
    **never(
        "Training samples are drawn at the temperature from the whole distribution: anything "
        "else makes every ratio wrong.",
        min_p=None, generation_kwargs=None, repetition_penalty=1.0,
        vllm_structured_outputs_regex=None,
    ),
    **never("Edit the template, and give it as chat_template.", chat_template_kwargs=None),
    **never(
        "The tokenizer's own tokens are used: set them in the model's folder.",
        pad_token=None, eos_token=None,
    ),
    **never("The reference is the weights at step 0 (reference).", sync_ref_model=False),
    **never(
        "Every trained token counts; epsilon, delta and mask_truncated_completions are the ways"
        " to leave some out.",
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, ld_alpha=None,
        use_weighting=False,
    ),
    **never("entropy_coef is fixed.", use_adaptive_entropy=False),
    **never(
        "Turns of an environment are max_turns, with env.",
        max_tool_calling_iterations=None, environment_factory=None, tools=None,
    ),
    **never(
        "Rows are not packed into blocks: prompts_per_step counts rows, and padding is not "
        "computed.",
        packing=False,
    ),
    **never(
        "Advantages are not normalised over the batch in rloo: grpo with scale_rewards: batch "
        "does it.",
        normalize_advantages=False,
    ),
    **never(
        "A reward is bounded by its own function; ppo has reward_clip.",
        reward_clip_range=None,
    ),
    **never("laurel train orpo and simpo are what there is of CPO.", alpha=0.0),
    **never("online_dpo is judged by rewards.", judge=None),
    **never(
        "Advantages are always whitened in ppo; KL is estimated by kl_estimator.",
        whiten_rewards=False,
    ),
}  # fmt: skip
