"""Words of other programs: each is answered with a flag that exists, or with why there is none."""

from __future__ import annotations

import functools

import click
import pytest

from ddx.cli import main
from ddx.cli.did_you_mean import flag_hint, flags_named, key_hint, normal
from ddx.cli.foreign_words import foreign_commands, foreign_words
from ddx.cli.main import COMMANDS, group
from ddx.config import field_types
from ddx.methods.registry import METHODS

# Every flag of diffusers' train_lcm_distill_sd_wds.py, train_text_to_image_lora.py, train_sana_sprint_diffusers.py and
# train_dreambooth_lora_sana.py, and of img2dataset, as their documentation spells them.
TRAINING_SCRIPTS = """
pretrained_teacher_model pretrained_model_name_or_path pretrained_vae_model_name_or_path teacher_revision revision
variant output_dir cache_dir seed logging_dir report_to checkpointing_steps checkpoints_total_limit
resume_from_checkpoint train_shards_path_or_url dataset_name dataset_config_name train_data_dir file_path image_column
caption_column repeats resolution interpolation_type image_interpolation_mode center_crop random_flip
use_fix_crop_and_size dataloader_num_workers train_batch_size sample_batch_size num_train_epochs max_train_steps
max_train_samples learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles lr_power
gradient_accumulation_steps gradient_checkpointing optimizer use_8bit_adam adam_beta1 adam_beta2 prodigy_beta3
prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup adam_weight_decay adam_epsilon max_grad_norm
gradient_clip proportion_empty_prompts w_min w_max num_ddim_timesteps loss_type huber_c unet_time_cond_proj_dim
vae_encode_batch_size timestep_scaling_factor ema_decay use_ema offload_ema foreach_ema non_ema_revision mixed_precision
allow_tf32 cast_teacher_unet enable_xformers_memory_efficient_attention enable_npu_flash_attention local_rank
validation_steps validation_epochs validation_prompt validation_prompts num_validation_images push_to_hub hub_token
hub_model_id tracker_project_name snr_gamma input_perturbation noise_offset prediction_type dream_training
dream_detail_preservation logit_mean logit_std logit_mean_discriminator logit_std_discriminator ladd_multi_scale
head_block_ids adv_lambda scm_lambda sigma_data tangent_warmup_steps guidance_embeds_scale scm_cfg_scale
train_largest_timestep largest_timestep largest_timestep_prob misaligned_pairs_D max_sequence_length cache_latents
upcast_before_saving offload enable_vae_tiling rank lora_dropout lora_layers use_dora instance_data_dir instance_prompt
class_data_dir class_prompt with_prior_preservation prior_loss_weight num_class_images lora_alpha
weighting_scheme mode_scale text_encoder_lr train_text_encoder
"""
IMG2DATASET = """
url_list image_size output_folder processes_count thread_count resize_mode resize_only_if_bigger upscale_interpolation
downscale_interpolation encode_quality encode_format skip_reencode output_format input_format url_col caption_col
bbox_col number_sample_per_shard extract_exif save_additional_columns timeout enable_wandb wandb_project oom_shard_count
compute_hash verify_hash distributor subjob_size retries disable_all_reencoding min_image_size max_image_area
max_aspect_ratio incremental_mode max_shard_retry user_agent_token disallowed_header_directives ignore_ssl_certificate
"""
PIPELINES = """
num_inference_steps guidance_scale negative_prompt height width num_images_per_prompt eta sigmas timesteps
max_sequence_length
"""


@functools.cache
def flags(name: str) -> frozenset[str]:
    """Every flag of a command; those of all methods count as distill's."""
    found: click.Command = group
    context = click.Context(group, info_name="ddx")
    for word in name.split():
        assert isinstance(found, click.Group)
        step = found.get_command(context, word)
        assert step is not None, name
        found = step
    own = {flag for parameter in found.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    if name == "distill":
        classes = {cls for spec in METHODS.values() for cls in spec.configs}
        own |= {"--" + key.replace("_", "-") for cls in classes for key in field_types(cls)}
    return frozenset(own | {"--help"})


def test_every_flag_that_is_named_exists() -> None:
    missing = {
        (command, word, flag)
        for command, word, answer in foreign_words()
        for owner, flag in flags_named(command, answer)
        if flag not in flags(owner)
    }
    assert missing == set()


def test_no_word_is_a_setting_of_its_command() -> None:
    assert [(command, word) for command, word, _ in foreign_words() if f"--{word}" in flags(command)] == []


def test_words_are_written_as_they_are_looked_up() -> None:
    assert [word for _, word, _ in foreign_words() if normal(word) != word] == []
    assert set(foreign_commands()).isdisjoint(COMMANDS)


@pytest.mark.parametrize(
    ("command", "words"), [("distill", TRAINING_SCRIPTS), ("precompute", IMG2DATASET), ("sample", PIPELINES)]
)
def test_no_flag_of_another_program_leads_astray(command: str, words: str) -> None:
    unanswered = [
        word
        for word in words.split()
        if f"--{normal(word)}" not in flags(command) and not flag_hint(command, f"--{word}")
    ]
    assert unanswered == []


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("distill --lr 1e-5", "did you mean --learning-rate?"),
        ("distill --learning_rate 1e-5", "did you mean --learning-rate?"),
        ("distill --set lr=1", "did you mean `learning_rate`?"),
        ("distill --set optim.lr=1", "did you mean `learning_rate`?"),
        ("distill --use_8bit_adam", "did you mean --optimizer adamw8bit?"),
        ("distill --set use_8bit_adam=true", "did you mean `optimizer: adamw8bit`?"),
        ("precompute a.tar --set disallowed_header_directives=[]", "did you mean `respect_opt_out: false`?"),
        ("distill --set num_train_epochs=3", "counted in steps, not in epochs: train_steps"),
        ("distill --torch-compile", "did you mean --compile?"),
        ("distill --resume", "the same command again goes on"),
        ("distill --method sid --gradient-accumulation-steps=4", "passes of --micro-batch-size"),
        ("distill --losss l2", "did you mean --loss?"),
        ("distill --xy 1", "`ddx distill --help`"),
        ("sample --negative-prompt x", "nothing to act on"),
        ("sample -steps 4", "did you mean --steps?"),
        ("sample a-cat", "prompts have a flag: --prompt a-cat"),
        ("distill lcm", "did you mean --method lcm?"),
        ("generate", "did you mean `ddx sample`?"),
    ],
)
def test_the_hint_is_what_was_meant(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and hint in captured.err.splitlines()[-1]


def test_a_key_in_backticks_stays_a_flag() -> None:
    hint = key_hint("distill", "validation_prompt", ("sample_prompts", "prompt"))
    assert (
        hint
        == "grids show the teacher's standard prompts, sample_prompts of them; `ddx sample --prompt TEXT` draws others"
    )


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_without_a_command_there_is_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 0
    captured = capsys.readouterr()
    assert "Commands:" in captured.out and captured.err == ""
