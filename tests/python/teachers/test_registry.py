"""Names, folders, hub ids, the offline cache, and what a user is told when nothing is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, cast

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from ddx.errors import DdxError, UsageError
from ddx.teachers.published_students import PUBLISHED_STUDENTS, published_name, refuse_published
from ddx.teachers.registry import TEACHERS, load_teacher, teacher_key
from pipelines import COMMIT, fill_hub_cache, make_sana


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def test_the_five_names_are_there_and_every_revision_is_a_commit_or_main() -> None:
    assert {"sana-600m", "sana-1600m", "sana-tiny", "sd15", "sd21"} <= set(TEACHERS)
    for spec in TEACHERS.values():
        if spec.source != "bundled":
            commit = len(spec.revision) == 40 and set(spec.revision) <= set("0123456789abcdef")
            assert commit or spec.revision == "main"


def test_listing_teachers_needs_no_torch() -> None:
    code = "import sys, ddx.teachers.registry; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_gives_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean sana-600m") as error:
        load_teacher("sana-600")
    assert "ddx list teachers" in str(error.value.hint)
    with pytest.raises(UsageError, match="unknown teacher 'zzz'"):
        load_teacher("zzz")


def test_a_folder_that_is_no_pipeline_and_one_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model_index\.json"):
        load_teacher(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load_teacher(tmp_path / "nowhere")


def test_a_pipeline_of_another_family_lists_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(DdxError, match="KandinskyPipeline") as error:
        load_teacher(tmp_path)
    assert "SanaPipeline" in str(error.value.hint)


def test_offline_and_not_cached_is_one_error_with_the_cure(offline_cache: Path) -> None:
    with pytest.raises(DdxError, match="Efficient-Large-Model/Sana_600M_512px_diffusers") as error:
        load_teacher("sana-600m")
    assert "hf download Efficient-Large-Model/Sana_600M_512px_diffusers --revision 83d7a190" in str(error.value.hint)
    assert "--teacher sana-tiny" in str(error.value.hint)


def test_a_hub_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    code = """
import logging
from ddx.errors import DdxError
from ddx.teachers.registry import load_teacher
try:
    load_teacher("sana-600m")
except DdxError as error:
    print(error, "|", error.hint)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "not reachable" in done.stdout and "hf download" in done.stdout
    assert "Retrying" not in done.stderr


def test_a_cache_that_holds_only_main_is_found_and_said(
    offline_cache: Path, sana_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = TEACHERS["sana-600m"]
    fill_hub_cache(offline_cache, spec.source, sana_folder)
    teacher = load_teacher("sana-600m", resolution=64)
    assert (teacher.name, teacher.revision, teacher.licence) == ("sana-600m", COMMIT, spec.licence)
    assert teacher.default_resolution == 64 and teacher.default_guidance == spec.guidance
    assert teacher.fingerprint()["weights"] == f"{spec.source}@{COMMIT}"
    assert "not at the pinned" in caplog.text
    assert len(teacher.encode_text(["a cat"])) == 1


def test_the_pinned_commit_is_preferred_to_main(offline_cache: Path, sana_folder: Path) -> None:
    spec = TEACHERS["sana-600m"]
    fill_hub_cache(offline_cache, spec.source, sana_folder)
    fill_hub_cache(offline_cache, spec.source, sana_folder, commit=spec.revision)
    (offline_cache / "models--Efficient-Large-Model--Sana_600M_512px_diffusers" / "refs" / "main").write_text(COMMIT)
    assert load_teacher("sana-600m").revision == spec.revision


def test_a_hub_id_works_without_a_name(offline_cache: Path, sana_folder: Path) -> None:
    fill_hub_cache(offline_cache, "someone/their-sana", sana_folder)
    teacher = load_teacher("someone/their-sana")
    assert teacher.source == "someone/their-sana" and teacher.default_resolution == 64


def test_a_half_downloaded_snapshot_is_not_taken(offline_cache: Path, sana_folder: Path) -> None:
    snapshot = fill_hub_cache(offline_cache, "someone/their-sana", sana_folder)
    for file in (snapshot / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(DdxError, match="are not cached"):
        load_teacher("someone/their-sana")


def test_pickled_weights_are_never_loaded(sana_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sana_folder, tmp_path / "pickled"))
    (weights,) = (folder / "transformer").glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(DdxError, match="no safetensors") as error:
        load_teacher(folder).network()
    assert "pickled" in str(error.value.hint)


def test_a_class_outside_the_family_is_refused(sana_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sana_folder, tmp_path / "strange"))
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["my_package", "MyTransformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DdxError, match=r"my_package\.MyTransformer"):
        load_teacher(folder).network()


def test_weights_that_exist_only_in_float16_load_and_export_plainly(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = make_sana(tmp_path / "fp16")
    for part in ("transformer", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    teacher = load_teacher(folder)
    teacher.save_student(tmp_path / "student", teacher.network())
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert torch.equal(pipe.vae.decoder.conv_in.weight, teacher.vae().decoder.conv_in.weight)


def test_a_resolution_that_does_not_fit_is_refused(sana_folder: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 32 pixels, not at 100"):
        load_teacher(sana_folder, resolution=100)
    with pytest.raises(UsageError, match="unknown dtype"):
        load_teacher(sana_folder, dtype="int3")


def test_big_weights_are_linked_and_other_pickles_stay_behind(
    sana_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ddx.teachers.export

    monkeypatch.setattr(ddx.teachers.export, "LINK_FROM_BYTES", 1)
    folder = Path(shutil.copytree(sana_folder, tmp_path / "teacher"))
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    teacher = load_teacher(folder)
    for _ in range(2):  # writing again replaces the links, never what they point to
        teacher.save_student(tmp_path / "student", teacher.network())
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "student" / name).samefile(folder / name)
    assert not (tmp_path / "student" / "vae" / "diffusion_pytorch_model.bin").exists()
    assert not teacher._parts.keys() & {"vae", "text_encoder", "tokenizer"}  # nothing was loaded for it


def test_the_licence_of_a_folder_is_read_off_its_card(tmp_path: Path) -> None:
    folder = make_sana(tmp_path / "sana")
    assert load_teacher(folder).licence == "unknown"
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: cc-by-4.0\n---\n# A model\n")
    assert load_teacher(folder).licence == "cc-by-4.0"


def test_the_bundled_teacher_needs_no_network_and_draws_scenes(offline_cache: Path) -> None:
    teacher = load_teacher("sana-tiny")
    assert teacher.default_resolution == 64 and teacher.licence == "Apache-2.0" and teacher.revision == "bundled"
    assert len(teacher.encode_text(["two small blue circles"])[0].tokens[0]) < 20
    prompts = teacher.validation_prompts
    assert len(set(prompts)) == 8 and all(
        "a " in prompt or "two " in prompt or "three " in prompt for prompt in prompts
    )
    assert teacher.fingerprint()["weights"].startswith("sha256:")


def test_standard_prompts_unless_a_folder_was_trained_on_scenes(sana_folder: Path, tmp_path: Path) -> None:
    from ddx.teachers.prompts import STANDARD_PROMPTS, scene_prompts

    assert load_teacher(sana_folder).validation_prompts == STANDARD_PROMPTS
    folder = Path(shutil.copytree(sana_folder, tmp_path / "trained"))
    (folder / "run.json").write_text(json.dumps({"kind": "teacher"}))
    assert load_teacher(folder).validation_prompts == scene_prompts()


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("hunyuan-dit", "no adapter for HunyuanDiT", "ddx list teachers"),
        ("xl", "did you mean sdxl", "--teacher sdxl"),
        ("flux-dev", "did you mean flux1-dev", "--teacher flux1-dev"),
        ("flux-schnell", "FLUX.1-schnell, which is a student already", "--teacher flux1-dev"),
        ("sana-sprint", "a student already", "--teacher sana-1600m; `ddx distill --from-student ID`"),
        ("z-image-turbo", "a student already", "--teacher z-image"),
        ("sdxl_lightning", "a student already", "ddx import ByteDance/SDXL-Lightning/sdxl_lightning_4step"),
        ("kolors-turbo", "a Turbo, which is a student already", "ddx list teachers"),
        ("sana", "did you mean sana-600m", "--teacher sana-600m"),
        ("SD1.5", "did you mean sd15", "--teacher sd15"),
        ("stable-diffusion-2-1", "did you mean sd21", "--teacher sd21"),
        ("./models/my-flux", "there is no such folder", "ddx list teachers"),
        ("models/none.safetensors", "there is no such file", "ddx list teachers"),
    ],
)
def test_a_name_from_elsewhere_is_answered(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_teacher(name)
    assert hint in str(error.value.hint)


@pytest.mark.parametrize(
    ("repo", "base"),
    [
        ("black-forest-labs/FLUX.1-schnell", "flux1-dev"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux2-klein-base-4b"),
        ("black-forest-labs/FLUX.2-klein-9B", "black-forest-labs/FLUX.2-klein-base-9B"),
        ("Tongyi-MAI/Z-Image-Turbo", "z-image"),
        ("lightx2v/Qwen-Image-Lightning", "qwen-image"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "sd35-large"),
        ("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "sana-1600m"),
        ("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", "sana-600m-1024"),
        ("stabilityai/sdxl-turbo", "sdxl"),
        ("ByteDance/SDXL-Lightning", "sdxl"),
        ("stabilityai/sd-turbo", "sd21"),
    ],
)
def test_a_published_student_is_refused_before_the_hub_is_asked(repo: str, base: str, offline_cache: Path) -> None:
    with pytest.raises(UsageError, match="which is a student already") as error:
        load_teacher(repo)
    cure, _, more = str(error.value.hint).partition("; ")
    assert cure == f"--teacher {base}"
    assert any(word in more for word in (f"hf download {repo} --local-dir", f"ddx import {repo}/", "--from-student"))


def test_every_published_student_has_a_teacher_that_is_none_and_names_that_find_it() -> None:
    for student in PUBLISHED_STUDENTS:
        assert student.teacher in TEACHERS or "/" in student.teacher or (student.file and not student.teacher)
        assert all(re.search(student.pattern, name) for name in student.ids)
        assert not student.file or student.file.lower().replace("_", "-").startswith(student.ids[0])
    for teacher in (*TEACHERS, *(spec.source for spec in TEACHERS.values())):
        refuse_published(teacher)
        assert published_name(teacher) is None


def test_a_name_that_only_looks_like_a_student_is_warned_of(
    offline_cache: Path, sana_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for repo in ("someone/my-turbo-sprint", "someone/turbofish", "someone/Sana_Sprint_teacher"):
        fill_hub_cache(offline_cache, repo, sana_folder)
        load_teacher(repo)
    (line,) = [message for message in caplog.messages if "few-step" in message]
    assert "someone/my-turbo-sprint" in line and "SANA-Sprint, whose teacher is sana-1600m" in line


def test_what_a_folder_says_for_certain_is_believed(tmp_path: Path, stable_diffusion_folder: Path) -> None:
    consistency = Path(shutil.copytree(stable_diffusion_folder, tmp_path / "lcm"))
    _set(consistency / "unet" / "config.json", time_cond_proj_dim=256)
    with pytest.raises(UsageError, match="as latent consistency models do: it is a student already") as error:
        load_teacher(consistency)
    assert "ddx import" in str(error.value.hint)


def _set(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("key", "beside", "hint"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", None, "--teacher {file} of `ddx precompute`"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", None, "pipe.fuse_lora()"),
        ("conv_in.weight", "config.json", "with its model_index.json"),
    ],
)
def test_a_checkpoint_in_one_file_is_to_be_converted(tmp_path: Path, key: str, beside: str | None, hint: str) -> None:
    file = tmp_path / "sd.safetensors"
    save_file({key: torch.zeros(1)}, file)
    if beside:
        (tmp_path / beside).write_text("{}")
    with pytest.raises(UsageError, match=f"{file}") as error:
        load_teacher(file)
    assert hint.format(file=file) in str(error.value.hint)


def test_a_pickled_checkpoint_is_to_be_converted_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "sd.ckpt").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="is a single file") as error:
        load_teacher(tmp_path / "sd.ckpt")
    assert f"P.from_single_file('{tmp_path / 'sd.ckpt'}').save_pretrained('sd')" in str(error.value.hint)


def test_a_folder_is_one_teacher_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    written = ("mine", "./mine", "mine/", "latest", f"../{tmp_path.name}/mine", str(folder), folder)
    assert {teacher_key(name) for name in written} == {str(folder.resolve())}
    assert teacher_key("sana-tiny") == "sana-tiny" and teacher_key("a/b") == "a/b"


class _Hub(BaseHTTPRequestHandler):
    """A hub that knows what is in its repositories; weights are never asked for."""

    repositories: ClassVar[dict[str, dict[str, object]]] = {
        "someone/xl": {
            "config": {"diffusers": {"_class_name": "HunyuanDiTPipeline"}},
            "files": ["model_index.json"],
        },
        "someone/student": {
            "config": {"diffusers": {"_class_name": "SanaPipeline"}},
            "files": ["model_index.json", "run.json"],
        },
        "efficient-large-model/sana_600m_512px": {"config": {}, "files": ["checkpoints/model.pth"]},
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/someone/student/resolve/main/run.json":
            return self._record(b'{"kind": "student", "teacher": "sana-600m"}')
        repo = "/".join(self.path.split("/")[3:5])
        known = self.repositories.get(repo.lower())
        body = {"id": repo, "sha": "0" * 40, "private": False, "tags": [], "downloads": 0}
        if known is not None and self.path.startswith("/api/models/"):
            body |= {
                "config": known["config"],
                "siblings": [{"rfilename": name} for name in cast(list[str], known["files"])],
            }
        self.send_response(200 if known is not None else 404)
        if known is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def _record(self, content: bytes) -> None:
        self.send_response(200)
        for name, value in (("ETag", "1"), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_no_adapter_could_open_is_not_downloaded(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
from ddx.errors import DdxError
from ddx.teachers.registry import load_teacher
sana, withdrawn = "Efficient-Large-Model/Sana_600M_512px", "runwayml/stable-diffusion-v1-5"
for repo in ("someone/xl", sana, withdrawn, "someone/student"):
    try:
        load_teacher(repo)
    except DdxError as error:
        print(error, "|", error.hint)
"""
    host = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": host, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    server.shutdown()
    other, not_diffusers, withdrawn, student = done.stdout.splitlines()
    assert "HunyuanDiTPipeline; ddx has no adapter" in other
    assert "no model_index.json" in not_diffusers and "--teacher sana-600m?" in not_diffusers
    assert "no public repository" in withdrawn and "--teacher sd15?" in withdrawn
    assert "someone/student is a student, not a teacher" in student and "give --teacher sana-600m" in student
