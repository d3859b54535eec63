"""The one full list of fields, each with its meaning and unit; the full-size recipe.

The values are those of the full-size CIFAR-10 recipe (ResNet-50 teacher, ResNet-26
self-attention student, 200 epochs). Every other file in this folder is a small diff on
them. A field is changed with `--config.section.field=value` on the command line, or
with `alite_jax.override(config, {"section.field": value})` in Python.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults, not locked."""
    config = ConfigDict()
    # Seed of everything random: initial weights, masks, data order, augmentation.
    config.seed = 0

    config.data = data = ConfigDict()
    # Data set: any that TFDS has prepared, or can prepare, by its name there, such as
    # 'cifar10' or 'imagenette/320px-v2'; 'digits' and 'tiny_imagenet' are made here.
    data.name = "cifar10"
    # Folder that is the data set where the name is 'folder', with its images as
    # FOLDER/CLASS/image.jpg, or as FOLDER/train/CLASS/... and FOLDER/val/CLASS/...
    data.folder = ""
    # Class label to learn, such as 'coarse_label'; '' takes 'label', or the only one.
    data.label = ""
    # TFDS folder of prepared data sets; '' means $TFDS_DATA_DIR where it is set,
    # otherwise ~/tensorflow_datasets.
    data.data_dir = ""
    # Folder of archives that were downloaded by hand, only read by --job=prepare; ''
    # means <data_dir>/downloads/manual.
    data.manual_dir = ""
    # Whether images are decoded once and kept in 'memory', or read for each batch by
    # other processes ('stream'); 'auto' keeps a split that takes at most half of the
    # memory available. Workers: 0 for one on each processor, at most 16.
    data.loading = "auto"
    data.workers = 0
    # TFDS split expressions such as 'train[:90%]'; '' means the data set's own training
    # split and its own evaluation split.
    data.train_split = ""
    data.eval_split = ""
    # Images in a batch, summed over all devices: in training, and in evaluation.
    data.batch_size = 128
    data.eval_batch_size = 256
    # Height and width of the images in pixels, any number: the short side is resized to
    # it, and the middle is cut out. 0 keeps the native size, where all have the same.
    data.image_size = 0
    # What training sees of an image: 'crop', the image padded and cut back to its size
    # at a random place; or 'resized_crop', a random box of it enlarged to its size.
    data.view = "crop"
    # For 'crop': zero padding on each side, in pixels; 0 means no crop.
    data.crop_padding = 4
    # For 'resized_crop': the smallest area of a box, as a fraction of the image's in
    # (0, 1], and its largest ratio of width to height, and of height to width. The area
    # is uniform, and so is the logarithm of the ratio.
    data.crop_area = 0.25
    data.crop_aspect = 4 / 3
    # Whether training images are mirrored left to right at random.
    data.flip = True

    config.teacher = teacher = ConfigDict()
    # Name of the network in alite_jax/models/resnet.py.
    teacher.model = "resnet50"
    # Channels of the stem; 64 in the paper. All other widths are multiples of it.
    teacher.width = 64
    # The first layer: 'conv' (3x3, for small images); 'imagenet' (7x7 of stride 2, then
    # 3x3 max-pooling of stride 2, for large ones); or 'auto', which is 'imagenet' for
    # images of 96 pixels and more (data.image_size counts), else 'conv'.
    teacher.stem = "conv"
    # At most one of the next four gives a teacher that is trained already; with all of
    # them '' it is trained in this run. Folder of a finished run whose teacher is used:
    teacher.workdir = ""
    # File of PyTorch's weights of a ResNet (torchvision's, timm's), .safetensors or
    # .npz; the file says which one it is.
    teacher.weights = ""
    # 'package.module:function' or 'file.py:function' that returns a function of
    # (variables, images) to logits and its variables, or a module with its weights.
    teacher.module = ""
    # File of the logits of each training image, which any program may have computed;
    # --job=views writes the images.
    teacher.logits = ""
    # What a teacher of the second or third kind returns, 'logits' or 'probabilities'.
    teacher.output = "logits"
    # How images come to it: normalised as 'dataset' says, by 'imagenet''s mean and
    # deviation, as 'unit' (0 to 1) or 'symmetric' (-1 to 1); 'auto' is what the file of
    # weights says, else 'imagenet' for such a file and 'dataset' for a module.
    teacher.normalization = "auto"
    # Side to which its images are resized, in pixels; 0 leaves them as the student's.
    teacher.image_size = 0
    # Passes over the training split.
    teacher.epochs = 200
    teacher.optimizer = _optimizer()

    config.student = student = ConfigDict()
    # 'package.module:function' or 'file.py:function' of another network, a linen or nnx
    # module of images to logits or what makes one; '' takes the next field, and those
    # for its form, which other networks do not have.
    student.module = ""
    # Name and width as for the teacher.
    student.model = "resnet26_attention"
    student.width = 64
    # Side of the attention window in pixels; odd.
    student.kernel_size = 7
    # Attention heads; a layer of fewer than 8 channels a head uses fewer heads.
    student.heads = 8
    # Window positions outside the image: 'zero' gives them zero keys and values (they
    # take part in the softmax), 'mask' leaves them out.
    student.border = "zero"
    # The first layer, as for the teacher; or 'attention' over 4x4 pixels with a mixture
    # of values (arXiv 1906.05909), which keeps the resolution; the border is as above.
    student.stem = "conv"
    # Folder of a finished run from whose student's weights and BatchNorm statistics
    # this one starts; '' draws them. Masks are made anew: they keep the largest weights
    # of each layer where pruning.method would draw them.
    student.init_workdir = ""
    # Whether it starts as that student compacted: the channels and heads that its masks
    # leave without effect are cut out, and the rest is trained as a smaller network.
    student.init_compact = False
    # Fraction of the prunable weights that is kept, in (0, 1]; 1 keeps all that
    # pruning.structure leaves, which is the whole network where there is none.
    student.density = 0.1
    # Passes over the training split.
    student.epochs = 200
    student.optimizer = _optimizer()

    config.pruning = pruning = ConfigDict()
    # How the student becomes sparse. From random masks: 'sparse_momentum' drops small
    # weights and grows others by momentum, with budget moving between layers; 'rigl'
    # grows by the gradient and 'set' at random, each layer keeping its budget; 'static'
    # changes nothing. From dense masks, dropping only: 'gradual' within each layer,
    # 'gradual_global' among all weights, by the cubic schedule.
    pruning.method = "sparse_momentum"
    # How layers share the density: 'uniform', or 'erk' (Erdos-Renyi kernel, which keeps
    # more of small layers); the total is the same. It holds at the start, for 'gradual'
    # at the end.
    pruning.distribution = "uniform"
    # Regular expression of the paths of parameters that stay dense besides embeddings,
    # tokens, biases and whatever has a single axis, such as '^head/'; '' adds none.
    pruning.dense = ""
    # Optimizer steps between two changes of the masks; 0 is at the end of each epoch.
    # They never change after the last step.
    pruning.every_steps = 0
    # Fraction of the student's steps, above 0 and at most 1, after which masks stay.
    # RigL's is 0.75. Gradual pruning reaches student.density with its last change.
    pruning.stop_fraction = 1.0
    # Fraction of the kept weights that is dropped and regrown: at the first step, at
    # the stop, and how it goes from one to the other ('cosine', 'linear' or
    # 'constant', which stays). RigL's are 0.3 and 0. Not for gradual pruning.
    pruning.prune_rate = 0.5
    pruning.prune_rate_end = 0.005
    pruning.prune_rate_schedule = "cosine"
    # What is pruned as a whole, for speed, besides single weights: 'none', 'channels'
    # inside the blocks (of queries, keys and values too), or 'heads', with the channels
    # that the operators take. They come and go with the masks, by the same method.
    pruning.structure = "none"
    # Fraction of the student's MACs that the structure leaves, in (0, 1].
    pruning.macs = 0.5
    # Widths that the structure leaves are multiples of this, where layers are so wide.
    # What a unit of the hardware takes at once: 8 on CPU and GPU, 128 on TPU.
    pruning.multiple = 1

    config.distillation = distillation = ConfigDict()
    # Loss = (1 - alpha) * cross-entropy + alpha * temperature^2 * KL(teacher, student);
    # alpha is a fraction in [0, 1], 0 trains without the teacher.
    distillation.alpha = 0.9
    # Divides the logits of both networks in the KL term; above 0, no unit.
    distillation.temperature = 4.0
    # How alpha and temperature go to their values at the end of the training:
    # 'constant' (they do not), 'linear' or 'cosine'. A negative alpha_end, or a
    # temperature_end of 0, leaves that one as it is.
    distillation.schedule = "constant"
    distillation.alpha_end = -1.0
    distillation.temperature_end = 0.0
    # The KL term: 'kd' as above, or 'dkd', decoupled (arXiv 2203.08679): alpha_dkd *
    # KL of label against all other classes + beta_dkd * KL among the other classes.
    distillation.loss = "kd"
    distillation.alpha_dkd = 1.0
    distillation.beta_dkd = 8.0
    # Half of it times the distance of the attention maps at the end of the stages is
    # added to the loss; at least 0. The distance is between 0 and 1.4 for each stage.
    distillation.feature_weight = 0.0

    config.compute = compute = ConfigDict()
    # Number format in which both networks compute: 'float32', 'bfloat16', or 'auto',
    # which is bfloat16 on TPUs and on GPUs that have it, else float32; a run keeps what
    # it began with. Parameters, statistics, attention's softmax, logits, losses and the
    # optimizer are float32.
    compute.dtype = "auto"
    # How exact products of float32 numbers are: 'default' is what is fastest, one pass
    # in bfloat16 on TPUs and TF32 on NVIDIA's GPUs; 'high' is three passes in bfloat16
    # and TF32; 'highest' is float32. On CPUs all are float32.
    compute.matmul_precision = "default"
    # Whether equal runs give equal results on GPUs, too, to the last bit, for which XLA
    # does without atomic sums and without trying out algorithms. Elsewhere they do.
    compute.deterministic = True
    # How attention is computed: 'auto' as is fastest on these devices, by kernels on
    # GPUs and TPUs; 'blocked' and 'all_pairs' are plain XLA, where kernels
    # fail. All compute the same but for rounding.
    compute.attention = "auto"
    # What BatchNorm normalises by in training: the statistics of the whole batch over
    # all devices ('global'), which does not depend on their number, or of each device's
    # share ('device'), which spares the exchange. Running statistics are those of all.
    compute.batch_norm = "global"
    # Passes in which each device's share of a batch goes through the networks before
    # the one update; divides that share. More need less memory; BatchNorm normalises
    # each pass by its own statistics.
    compute.accumulation = 1

    config.logging = logging = ConfigDict()
    # Optimizer steps between two lines of metrics.jsonl.
    logging.every_steps = 50
    # Whether a progress bar is shown.
    logging.progress = True
    # Steps of each network whose trace goes into the folder `profile` of the workdir,
    # after ten others; 0 traces none.
    logging.profile_steps = 0
    # A sentence that is printed, and reported, with the run's result.
    logging.note = ""
    # Whether TensorBoard events are written to the workdir too.
    logging.tensorboard = True
    # Services that get metrics and configuration too: 'wandb', 'trackio', or both with
    # a comma between them; '' is none.
    logging.trackers = ""

    config.checkpoint = checkpoint = ConfigDict()
    # Optimizer steps between checkpoints; 0 saves only at the end of each epoch.
    checkpoint.every_steps = 0
    # Number of newest checkpoints that are kept; 2 leaves one if the last is damaged.
    checkpoint.keep = 2
    return config


def _optimizer() -> ConfigDict:
    """Returns the fields of an optimizer."""
    optimizer = ConfigDict()
    # 'sgd', with momentum; or 'adamw' (arXiv 1711.05101), whose decay is decoupled.
    optimizer.name = "sgd"
    # Peak learning rate for the batch size above; it is not rescaled by any field.
    optimizer.learning_rate = 0.1
    # Fraction of the previous update direction that is kept (AdamW's beta1), and
    # Nesterov's form of it, for SGD only.
    optimizer.momentum = 0.9
    optimizer.nesterov = True
    # Only for AdamW: fraction of the previous mean square that is kept.
    optimizer.beta2 = 0.999
    # L2 penalty on kernels only (not on normalisation, biases or embeddings).
    optimizer.weight_decay = 5e-4
    # Largest global norm of the gradient, which is scaled down to it; 0 is off.
    optimizer.clip_norm = 5.0
    # Epochs, fractions allowed, of linear warm-up from 0; part of the epochs above.
    optimizer.warmup_epochs = 5.0
    # After the warm-up: 'cosine' to 0, or 'steps'.
    optimizer.schedule = "cosine"
    # Only for 'steps': the epochs at which the rate is multiplied by the factor.
    optimizer.step_epochs = (80, 120, 160)
    optimizer.step_factor = 0.1
    # Share of the target that is spread over all classes, in [0, 1); 0 is off.
    optimizer.label_smoothing = 0.0
    return optimizer
