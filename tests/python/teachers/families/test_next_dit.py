"""Z-Image and Lumina 2: the authors' names, how each row's picture is found, and what is read of a long prompt."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils

from ddx.networks.guidance import add_guidance_embedder
from ddx.networks.lora import add_lora
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from tiny import Tiny

# the family, diffusers' reader of the authors' checkpoints, and how many rows of theirs are queries, keys and values
KINDS = {
    "z-image": ("convert_z_image_transformer_checkpoint_to_diffusers", (1280, 1280, 1280)),
    "lumina2": ("convert_lumina2_to_diffusers", (2304, 768, 768)),
}


@pytest.fixture(scope="module", params=KINDS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = Tiny(request.param).make(tmp_path_factory.mktemp("next-dit") / request.param)
    return load_teacher(folder, resolution=64)


def test_comfyui_files_have_the_names_that_diffusers_reads(teacher: Teacher) -> None:
    network, (reader, rows) = teacher.network(), KINDS[teacher.family]
    names = [name for name, _ in network.named_modules() if name.endswith(teacher.lora_targets)]
    linear = teacher.time_embedding_linear(network)
    names += [name for name, module in network.named_modules() if module is linear]
    starts = [sum(rows[:part]) for part in range(3)]
    published = {teacher.comfyui_layer(name)[0].removeprefix("diffusion_model.") for name in names}
    checkpoint = {f"{name}.weight": torch.arange(sum(rows))[:, None] for name in published}
    read = getattr(single_file_utils, reader)(checkpoint)
    assert set(read) == {f"{name}.weight" for name in names}
    for name in names:
        assert int(read[f"{name}.weight"][0]) == starts[teacher.comfyui_layer(name)[1]], name


def test_the_pictures_part_of_a_layer_follows_the_picture(teacher: Teacher) -> None:
    """What changes in one place of a picture moves that place's feature most, whatever text is in front of it."""
    condition = Condition.cat(teacher.encode_text(["a cat", "a very long sentence about a red house " * 3]))
    x_t = torch.randn(2, *teacher.latent_shape((64, 96)), generator=torch.Generator().manual_seed(0))
    t, moved = torch.tensor([0.3, 0.8], dtype=torch.float64), x_t.clone()
    moved[:, :, 2:4, 4:6] += 3.0  # the token in row 1, column 2
    with torch.no_grad():
        before, after = (teacher.features(teacher.network(), x, t, condition)[0] for x in (x_t, moved))
    assert before.shape[2:] == (4, 6)
    change = (after - before).norm(dim=1)
    assert change.flatten(1).argmax(dim=1).tolist() == [8, 8]


def test_a_long_prompt_is_cut_where_the_pipeline_cuts_it(teacher: Teacher) -> None:
    words = "the red cat and the small house " * 200
    found = teacher.cut(words)
    assert found is not None and teacher.cut("the red cat") is None
    (whole, tail, head) = teacher.encode_text([words, words + " entirely different", "blue " + words])
    assert torch.equal(whole.tokens, tail.tokens) and not torch.equal(whole.tokens, head.tokens)
    assert words.rstrip().endswith(found.left_out) and 0 < found.kept < whole.tokens.shape[1]
    fits = words[: words.rstrip().rindex(found.left_out)].rstrip()
    assert teacher.cut(fits) is None


def test_guidance_of_one_is_the_conditional_prediction(teacher: Teacher) -> None:
    """A scale a row goes through `combine`, whatever the family's convention and its limits are."""
    generator = torch.Generator().manual_seed(1)
    uncond, cond = torch.randn(2, 3, *teacher.latent_shape(), generator=generator)
    combined = teacher.combine(uncond, cond, torch.ones(3, 1, 1, 1))
    torch.testing.assert_close(combined, cond)


def test_only_the_low_rank_matrices_train(teacher: Teacher) -> None:
    """These networks have layers called embedders; those that ddx adds are others."""
    network = add_guidance_embedder(teacher, teacher.new_student_network())
    add_lora(network, teacher.lora_targets, rank=2, alpha=2.0)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("guidance_embedder.") for name in trained)
    assert any(name.startswith("guidance_embedder.") for name in trained)
