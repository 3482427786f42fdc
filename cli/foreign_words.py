"""What other programs call our settings, and what to say of settings that we do not have.

The words are those of diffusers' training scripts and pipelines, accelerate, img2dataset, SANA, SiD, DMD2 and FastGen.
A section names the commands that it is for. `words -> answer`: a word has no leading dashes, and dashes inside; what is
indented goes on with the answer. An answer that is a flag, with or without a value, is the flag that was meant; any
other one is a sentence. Its flags are those of the command itself, or of the command in backticks that they stand with.
"""

from __future__ import annotations

from collections.abc import Iterator


def foreign_words() -> Iterator[tuple[str, str, str]]:
    """Yield (command, word, answer) of every word of every command."""
    for commands, words, answer in _rows(FLAGS):
        yield from ((command, word, answer) for command in commands for word in words)


def foreign_commands() -> dict[str, str]:
    """Return the answer to every command that other programs have."""
    return {word: answer for _, words, answer in _rows(COMMANDS) for word in words}


def _rows(table: str) -> Iterator[tuple[list[str], list[str], str]]:
    commands, words, answer = list[str](), list[str](), ""
    for line in [*table.strip().splitlines(), "[]"]:
        if answer and not line.startswith("    "):
            yield commands, words, answer
            words, answer = [], ""
        if line.startswith("["):
            commands = line.strip("[]").split()
        elif line.startswith("    "):
            answer = f"{answer} {line.strip()}".strip()
        else:
            before, _, answer = line.partition("->")
            words, answer = [*words, *before.split()], answer.strip()


FLAGS = """
[distill prepare precompute evaluate]
pretrained-model-name-or-path pretrained-teacher-model pretrained-model pretrained-model-path pretrained
model-name-or-path model-name model model-path model-id base-model teacher-model teacher-path sd-model
sd-teacher network-pkl load-from unet-path transformer-path pretrained-ckpt-path repo-id pipeline -> --teacher
revision teacher-revision variant non-ema-revision branch -> a named teacher is pinned to one commit; download
    another and give its folder: --teacher PATH
pretrained-vae-model-name-or-path vae vae-path tokenizer tokenizer-name text-encoder-path -> the teacher's
    folder holds all of its parts; save a pipeline with another one and give that: --teacher PATH
max-sequence-length tokenizer-max-length model-max-length max-length max-tokens -> texts are as long as the
    teacher's own pipeline takes them

[sample]
model model-path model-id model-name model-name-or-path pretrained-model-name-or-path student-model ckpt
ckpt-path checkpoint checkpoint-path network network-pkl load-from repo-id pipeline lora lora-path lora-weights
adapter -> --student
max-sequence-length max-tokens clip-skip -> prompts are as long as the student's own pipeline takes them
batch bs sample-batch-size -> --batch-size
enable-model-cpu-offload enable-sequential-cpu-offload enable-group-offload cpu-offload offload low-vram lowvram
medvram max-memory -> --memory 4GB chooses what waits on the host
enable-vae-tiling vae-tiling -> --memory decodes within little memory, and draws the same picture
seeds -> --seed is the first picture's, and --num-images counts up from it
num-inference-steps num-steps inference-steps n-steps sampling-steps num-sampling-steps ddim-steps step
num-steps-eval s -> --steps
num-images-per-prompt num-samples n-samples num-image n-images samples-per-prompt batch-count n count
num-validation-images -> --num-images
text caption p validation-prompt -> --prompt
scheduler sampling-algo noise-scheduler eta shift sigmas timesteps -> the student's folder has the scheduler that it
    was made for; --sampler chooses a teacher's
image init-image strength mask control-image ip-adapter controlnet -> pictures are drawn from text alone
safety-checker nsfw disable-safety-checker -> there is no safety checker
format save-format ext image-format -> pictures are PNG files

[evaluate]
student-model ckpt ckpt-path checkpoint checkpoint-path network -> --student
batch bs eval-batch-size sample-batch-size -> --batch-size
num-inference-steps num-steps inference-steps sampling-steps num-steps-eval step -> --steps
num-samples n-samples num-eval-samples total-eval-samples num-fid-samples num -> --num-images
prompt -> --prompts FILE, one prompt a line
metric fid compute-fid clip-score clipscore is inception-score kid cmmd -> --metrics fid,clipscore with --reference
    FOLDER compares with real pictures
dataset reference-dir ref-dir real-path real-dir ref-path gt real -> --reference FOLDER compares with real pictures
fake-dir gen-dir generated images image-dir -> --pictures FOLDER scores pictures that are there already

[distill]
student init-from init-checkpoint pretrained-student-net-path generator-ckpt-path transfer -> --from-student
steps num-inference-steps student-sample-steps -> --train-steps is how long to train; `ddx sample --steps N` is
    how many steps a picture takes
sample-batch-size eval-batch-size num-validation-images num-grid-images grid-size -> --sample-prompts
dataloader-num-workers num-workers workers -> --prefetch
guidance-lr fake-lr fake-score-lr critic-lr lr-fake dfake-lr -> --fake-rate is the learning rate of the fake
    score over the student's
discriminator-lr disc-lr lr-d d-lr -> --discriminator-rate is the learning rate of the discriminator over the
    student's
adam-weight-decay wd -> --weight-decay
beta1 beta-1 adam-beta-1 -> --adam-beta1
beta2 beta-2 adam-beta-2 betas adam-betas -> --adam-beta2
eps epsilon adam-eps -> --adam-epsilon
max-grad-norm gradient-clip gradient-clipping gradient-clip-val clip-grad clip-grad-norm grad-clip clip -> --clip-norm
use-ema ema ema-decay ema-rate ema-beta ema-halflife-kimg foreach-ema -> --ema-half-life, in images,
    is the exported average; --ema-more decay:0.999 adds one
offload-ema -> --offload averages
save-dtype output-dtype upcast-before-saving save-precision -> --export-dtype
cast-teacher-unet teacher-dtype -> the teacher computes in --dtype already
offload-optimizer-device offload-optimizer cpu-adam -> --offload moments
cpu-offload low-vram lowvram do-fp8-training -> --memory SIZE fits the run to a card, and --offload names what lives
    in the host's memory
checkpoints-total-limit save-total-limit max-checkpoint max-checkpoints keep-last -> --keep-checkpoints
logging-steps log-steps log-iters log-interval log-freq logging-iter tick -> --log-every
validation-prompt validation-prompts text-prompts final-validation-prompt -> grids show the teacher's standard
    prompts, --sample-prompts of them; `ddx sample --prompt TEXT` draws others
skip-final-inference -> --sample-every 0
early-stopping early-stopping-patience early-stop-patience early-stop -> --patience
load-best-model-at-end metric-for-best-model save-best save-best-only best-metric -> --keep-best
distill-method distillation-method algorithm algo distillation-type train-mode -> --method
loss-type loss-fn criterion -> --loss
w-min cfg-min guidance-scale-min -> --guidance-min, which is w_min + 1: the scale s here is that of uncond + s
    (cond - uncond)
w-max cfg-max guidance-scale-max -> --guidance-max, which is w_max + 1: the scale s here is that of uncond + s
    (cond - uncond)
scm-cfg-scale -> --guidance-set
guidance guidance-scale cfg cfg-scale real-guidance-scale guidance-embeds-scale lsg
validation-guidance-scale -> --guidance-min and --guidance-max are the scales that are trained,
    --export-guidance the one of the student
fake-guidance-scale cfg-train-fake -> --kappa1
cfg-eval-fake -> --kappa2
cfg-eval-real -> --kappa4
num-ddim-timesteps ddim-steps num-ddim-steps -> --solver-steps
timestep-scaling-factor -> --timestep-scaling
unet-time-cond-proj-dim time-cond-proj-dim -> the embedder of the guidance has the width of the teacher's time
    embedding
snr-gamma -> --denoising-weight min-snr
logit-mean p-mean train-p-mean -> --time-mean
logit-std p-std train-p-std -> --time-std
logit-mean-discriminator -> --judge-time-mean
logit-std-discriminator -> --judge-time-std
weighting-scheme mode-scale timestep-bias-strategy timestep-bias-multiplier timestep-bias-begin
timestep-bias-end timestep-bias-portion time-dist-type timestep-sampling -> --time-sampling
flow-shift shift -> --time-shift
adv-lambda adv-weight gan-loss-weight gen-cls-loss-weight lambda-adv -> --gan-weight
guidance-cls-loss-weight cls-loss-weight -> --fake-gan-weight
scm-lambda dm-loss-weight -> the method's own loss has weight 1; --gan-weight is that of the other one
tangent-warmup-steps -> --tangent-warmup, a share of the run, or above 1 a number of updates
ladd-multi-scale head-block-ids -> the discriminator looks at the teacher's features after every fourth block
    and the last one
misaligned-pairs-d -> --misaligned
train-largest-timestep largest-timestep largest-timestep-prob -> --noise-share
dfake-gen-update-ratio fake-update-ratio student-update-freq critic-steps -> --fake-updates
num-denoising-step num-denoising-steps -> --num-steps
init-timestep conditioning-timestep init-sigma -> --start-time, a flow time in place of a step: 0.7143 is step
    625 of 1000
tmin min-step-percent -> --time-low
tmax max-step-percent -> --time-high
proportion-empty-prompts caption-dropout uncond-prob class-dropout-prob cfg-dropout null-share -> captions are
    not dropped: a student learns guidance from its teacher, --guidance-min and --guidance-max
dream-training dream-detail-preservation do-edm-style-training precondition-outputs -> those losses fine-tune a
    teacher; `ddx list methods` shows the ways to distil one
rank lora-r lora-dim network-dim r -> --lora-rank
network-alpha -> --lora-alpha
use-lora lora generator-lora fake-score-use-lora peft -> --lora-rank 64
lora-dropout lora-layers lora-blocks lora-target-modules use-dora lora-bias output-kohya-format -> low-rank
    students have --lora-rank and --lora-alpha, and no other settings

[precompute distill prepare sample evaluate]
cache-dir hf-home -> the Hugging Face hub keeps its files where HF_HOME says
hub-token hf-token token use-auth-token -> `hf auth login` keeps the token that downloads use
trust-remote-code -> code from a model's folder is never run; the family needs an adapter in ddx
enable-vae-tiling enable-vae-slicing vae-tiling vae-slicing tiled-vae -> the autoencoder runs whole; a smaller
    --batch-size takes less memory
image-size img-size res image-resolution px -> --resolution
allow-tf32 tf32 -> float32 products are torch's own, without TF32
enable-xformers-memory-efficient-attention enable-xformers xformers use-xformers flash-attention flash-attn
attention-slicing enable-attention-slicing enable-npu-flash-attention sdpa attn-implementation -> attention is
    torch's own or a kernel of ddx: DDX_KERNELS=auto, triton or torch
overwrite overwrite-output-dir force -> --out names another folder; a store or a student is never overwritten
mps -> --device cpu; Apple's GPUs are not supported

[distill]
torch-compile use-compile dynamo-backend compile-mode dynamo -> --compile

[precompute prepare sample evaluate]
compile torch-compile use-compile dynamo-backend compile-mode dynamo -> ddx has fused kernels in place of
    torch.compile: DDX_KERNELS=auto, triton or torch; `ddx distill --compile` compiles what it trains

[train]
teacher model pretrained-model-name-or-path data dataset-name train-data-dir -> this trains a small teacher from
    nothing; `ddx distill --teacher NAME` trains a student
train-steps max-train-steps steps epochs num-train-epochs -> --flow-steps
batch-size train-batch-size -> --flow-batch-size
lr learning-rate -> --flow-learning-rate

[distill prepare]
train-data-dir dataset-name dataset-config-name dataset dataset-path data-dir data-path train-data train-file
train-shards-path-or-url file-path instance-data-dir real-image-path shards store zarr source sources input ->
    training reads a store: `ddx precompute SOURCE` makes one, and --data names it
image-column caption-column url-column caption-col image-key caption-key -> columns are chosen when the store is
    made: `ddx precompute --caption-column NAME`
max-train-samples max-samples num-samples limit subset -> the store decides which pictures are read: `ddx
    precompute --limit N` makes a smaller one
random-flip hflip xflip horizontal-flip flip mirror -> mirrored pictures are a part of the store: `ddx
    precompute --flip`
center-crop random-crop crop use-fix-crop-and-size -> pictures are cut when the store is made; `ddx precompute
    --max-aspect 2` keeps their shape
max-aspect-ratio aspect-ratio-buckets use-aspect-ratio-buckets multi-scale-buckets -> aspect buckets are a part
    of the store: `ddx precompute --max-aspect 2`
interpolation-type image-interpolation-mode -> pictures are resized when the store is made, with antialiased Lanczos
cache-latents pre-compute-text-embeddings load-vae-feat load-text-feat -> latents and embeddings come from the
    store already
vae-encode-batch-size encode-batch-size -> latents come from the store: `ddx precompute --batch-size N`
max-train-steps max-steps num-train-steps training-steps total-steps num-iterations iterations iters max-iter
max-iters train-iters num-training-steps n-steps -> --train-steps
num-train-epochs num-epochs epochs max-epochs epoch repeats -> training is counted in steps, not in epochs:
    --train-steps
duration kimg max-images total-kimg -> training is counted in steps of --batch-size pictures: --train-steps
train-batch-size global-batch-size batch-size-global total-batch-size batch bs effective-batch-size ->
    --batch-size counts the pictures of a step over all devices; --micro-batch-size those of one pass
per-device-train-batch-size per-device-batch-size per-gpu-batch-size batch-gpu device-batch-size micro-batch
micro-bs mbs -> --micro-batch-size
gradient-accumulation-steps gradient-accumulation grad-accum grad-accum-steps grad-accum-rounds
accumulate-grad-batches accumulation-steps accum-steps -> a step of --batch-size pictures is accumulated from
    passes of --micro-batch-size
lr base-lr init-lr initial-lr max-lr peak-lr net-lr glr generator-lr lr-g g-lr student-lr unet-lr -> --learning-rate
text-encoder-lr train-text-encoder adam-weight-decay-text-encoder -> text encoders are not trained: a student
    has its teacher's
scale-lr auto-scale-lr -> the learning rate is taken as it is, whatever the number of devices
lr-scheduler lr-scheduler-type scheduler lr-policy lr-decay -> --lr-schedule
lr-warmup-steps lr-warmup warmup warmup-step num-warmup-steps warmup-iters warmup-ratio -> --warmup-steps
lr-num-cycles lr-power -> --lr-schedule has no cycles and no powers
use-8bit-adam use-8bit-optimizer adam8bit adam-8bit -> --optimizer adamw8bit
optim optimizer-type opt optimiser -> --optimizer
prodigy-beta3 prodigy-decouple prodigy-use-bias-correction prodigy-safeguard-warmup prodigy -> Prodigy is not
    offered: --optimizer adamw, radam, adamw8bit or came
mixed-precision precision precision-amp amp use-amp weight-dtype torch-dtype bf16 use-bf16 compute-dtype ->
    --dtype auto, float32 or bf16; the weights that are trained stay in float32
fp16 use-fp16 half -> --dtype bf16; training in float16 is not offered
activation-checkpointing grad-checkpointing use-checkpoint use-gradient-checkpointing
enable-gradient-checkpointing fsdp-activation-checkpointing recompute -> --gradient-checkpointing
set-grads-to-none disable-training-autocast debug-loss -> there is nothing to set: training does that by itself
checkpointing-steps save-steps save-every save-interval save-freq checkpoint-interval checkpoint-steps
save-ckpt-iter ckpt-every snap dump -> --checkpoint-every
validation-steps validation-epochs validation-interval eval-steps eval-every validation-iter val-every ->
    --sample-every
noise-offset offset-noise input-perturbation -> a student learns at the noise of its teacher, without offsets
prediction-type pred-type pred-eps -> the prediction is the teacher's, read from its scheduler
instance-prompt class-prompt class-data-dir with-prior-preservation prior-loss-weight num-class-images
prior-generation-precision class-labels-conditioning custom-instance-prompts -> subjects are not learned here:
    fine-tune a teacher with DreamBooth first, then --teacher PATH

[precompute]
url-list input input-path input-file input-folder source sources data data-dir data-path dataset-path
train-data-dir instance-data-dir train-shards-path-or-url shards files folder images urls path -> the source is
    an argument without a flag: `ddx precompute SOURCE`
dataset dataset-name dataset-config-name hf-dataset -> download the data set's parquet files, then give them
    without a flag: `ddx precompute FILE.parquet`
input-format -> the format of a source is found by itself
url-col -> --url-column
image-col img-column img-col -> --image-column
caption-col text-col text-column caption text prompt-column caption-key caption-columns -> --caption-column
file-column path-col filename-column -> --path-column
id-column id-col key-col uid-column -> --key-column
max-train-samples max-samples num-samples n-samples max-rows num-rows rows max-images num-images max-count
subset -> --limit
filter query -> --where
random-flip hflip xflip horizontal-flip mirror -> --flip
center-crop random-crop crop resize-mode use-fix-crop-and-size keep-ratio -> pictures are cut to a square around
    their centre; --max-aspect 2 keeps their shape
max-aspect-ratio aspect-ratio-buckets use-aspect-ratio-buckets multi-aspect bucketing aspect-ratio-type ->
    --max-aspect
resize-only-if-bigger upscale enable-upscale -> --max-upscale
upscale-interpolation downscale-interpolation interpolation interpolation-type image-interpolation-mode ->
    pictures are resized with antialiased Lanczos; no other filter is offered
encode-quality encode-format skip-reencode disable-all-reencoding output-format -> the store holds latents and
    embeddings as Zarr; pictures are not encoded again
save-additional-columns extract-exif bbox-col -> the store keeps key, source, caption, status and size of a
    row, and no other columns
min-image-size min-size -> pictures below --resolution are skipped; --where "width >= 512" takes rows
max-image-area max-area -> --max-pixels
number-sample-per-shard samples-per-shard shard-size rows-per-shard maxcount -> --part-rows
oom-shard-count -> parts are numbered by themselves; --part-rows is their size
repeats num-train-epochs epochs -> every row is encoded once; how long a student trains is for `ddx distill
    --train-steps`
thread-count threads num-threads max-concurrency connections -> --concurrency
processes-count num-workers workers dataloader-num-workers n-jobs jobs -> --decode-threads
timeout request-timeout -> --total-timeout-s
max-shard-retry retry-failed -> --retry all
max-retries num-retries -> --retries
user-agent-token -> --user-agent
disallowed-header-directives ignore-opt-out -> --no-respect-opt-out
ignore-ssl-certificate no-verify-ssl insecure -> certificates of servers are always checked
compute-hash verify-hash -> --verify-checksums
incremental-mode -> the same command goes on where it stopped, and --append adds rows to a store
distributor subjob-size spark ray -> several processes share a store under `torchrun`
vae-encode-batch-size encode-batch-size vae-batch-size train-batch-size text-batch-size batch bs -> --batch-size
vae-encode-mode sample-posterior -> --posterior
quantize fp8 embedding-dtype -> --text-dtype
seed random-seed -> --shuffle SEED takes random rows with --limit; --synthetic-seed is for drawn pictures
cache-latents cache-latents-to-disk pre-compute-text-embeddings save-latents -> this command does that already:
    the store holds latents and embeddings
guidance guidance-scale cfg cfg-scale -> --synthetic-guidance
num-inference-steps steps -> --synthetic-steps
mixed-precision precision weight-dtype torch-dtype bf16 fp16 half amp -> --dtype

[prepare]
steps -> --train-steps
dataloader-num-workers num-workers workers -> the store's reader works ahead by itself
use-ema ema ema-decay ema-rate ema-beta foreach-ema offload-ema -> --ema-half-life
proportion-empty-prompts caption-dropout uncond-prob class-dropout-prob cfg-dropout -> --null-share

[sample evaluate]
height width h w -> --size 768x512, width first; --resolution N is a square

[precompute distill prepare]
height width h w size -> the size of a picture is one number here: --resolution N

[sample evaluate]
mixed-precision precision weight-dtype torch-dtype half amp -> --dtype
fp16 use-fp16 -> --dtype fp16
bf16 use-bf16 -> --dtype bf16
guidance-scale cfg cfg-scale w scale true-cfg-scale -> --guidance
negative-prompt negative-prompts neg-prompt neg-prompt-file negative -> a student draws without a second,
    unconditional pass, so a negative prompt has nothing to act on
prompt-file prompts-file prompt-path txt-file text-file caption-file prompt-list eval-prompts -> --prompts

[precompute distill prepare train run merge demo]
resume-from-checkpoint resume resume-from resume-path continue restore auto-resume -> the same command again
    goes on where it stopped

[evaluate sample]
resume resume-from-checkpoint -> there is nothing to go on with; the same command draws again

[precompute distill prepare train sample evaluate inspect merge]
output-dir outdir out-dir output output-path output-folder output-file save-dir save-path work-dir dest
destination image-save-dir results-dir export-dir o -> --out

[scenes]
out output output-dir output-path o -> the file is an argument without a flag: `ddx scenes OUT.parquet`

[run demo]
out output output-dir outdir -> --workspace
force overwrite rerun restart -> --again

[distill]
use-fsdp fsdp fsdp-config fsdp-sharding-strategy zero-stage use-deepspeed deepspeed deepspeed-config-file ->
    --shard full, under torchrun
report-to logger use-wandb wandb wandb-mode tracker tensorboard mlflow log-with -> --track follows a run by tensorboard,
    wandb, mlflow or jsonl
wandb-project wandb-name wandb-entity tracker-project-name logging-dir log-dir log-path run-name exp-name project -> a
    run is tracked under the name of its folder; --track says by what, and its library's own variables say where
push-to-hub hub-model-id hub-private-repo -> nothing is uploaded while it trains; `ddx push STUDENT ORG/NAME` does
    it afterwards

[prepare train]
report-to logger use-wandb wandb wandb-project wandb-name wandb-entity wandb-mode tracker tracker-project-name
tensorboard logging-dir log-dir log-path run-name exp-name project mlflow log-with -> a run writes its figures
    to metrics.jsonl in its folder, one JSON object a line; trackers are not called
push-to-hub hub-model-id hub-private-repo -> nothing is uploaded while it trains; `ddx push STUDENT ORG/NAME` does
    it afterwards

[precompute sample evaluate]
report-to enable-wandb wandb wandb-project logging-dir log-dir -> --json prints progress and the result for
    programs; trackers are not called

[precompute distill prepare sample evaluate train scenes run merge inspect demo]
verbose v log-level loglevel -> progress is on stderr already; --debug shows the traceback of an error
silent q no-progress -> --quiet

[precompute distill prepare sample evaluate train scenes run merge demo]
dryrun plan simulate test-run -> --dry-run

[precompute distill prepare]
local-rank num-processes nproc-per-node num-machines machine-rank multi-gpu gpu-ids gpus num-gpus ngpus devices
num-nodes world-size main-process-port main-process-ip config-file ddp distributed strategy
num-cpu-threads-per-process ->
    several devices run it under torchrun: `torchrun --nproc-per-node 8 -m ddx.cli.main COMMAND …`

[precompute distill prepare sample evaluate train]
gpu gpu-id device-id cuda cuda-device use-cuda accelerator -> --device cuda:0
cpu no-cuda use-cpu -> --device cpu

[distill prepare sample evaluate train scenes]
random-seed custom-seed manual-seed rng-seed -> --seed
"""

COMMANDS = """
generate infer inference txt2img text2img t2i draw predict pipeline -> did you mean `ddx sample`?
encode cache download preprocess prepare-data img2dataset ingest fetch extract dataset -> did you mean `ddx precompute`?
distillation student lcm dmd dmd2 sid scm ladd finetune fine-tune fit -> did you mean `ddx distill`?
eval score fid metrics test benchmark -> did you mean `ddx evaluate`?
pipelines -> did you mean `ddx run`?
info show describe cat verify -> did you mean `ddx inspect`?
ls methods teachers stores students models -> did you mean `ddx list`?
env check status diagnose -> did you mean `ddx doctor`?
soup swa merge-weights merge-models merge-students -> did you mean `ddx average`?
convert extract-lora to-lora save -> did you mean `ddx export`?
upload publish push-to-hub -> did you mean `ddx push`?
launch torchrun accelerate -> `torchrun --nproc-per-node 8 -m ddx.cli.main distill …` uses 8 GPUs
help -> `ddx --help` lists the commands, `ddx COMMAND --help` the options of one
version -> did you mean `ddx --version`?
completions complete autocomplete -> did you mean `ddx completion`?
"""
