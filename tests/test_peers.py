"""The eager-PyTorch peers of the benchmarks compute what this project computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_split, unaugmented

import alite_jax
from alite_jax.data.specs import DATASETS
from alite_jax.models.layers import Conv3x3, LocalSelfAttention
from alite_jax.models.resnet import BLOCKS, ResNet, create_model
from alite_jax.ops.local_attention import reference
from alite_jax.sparsity.masks import density, init_masks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import TrainState
from alite_jax.training.step import AXIS, JointStep, Objective

torch = pytest.importorskip("torch")

from benchmarks.peers import torch_attention, torch_resnet  # noqa: E402

SPATIAL = {"conv": Conv3x3, "attention": LocalSelfAttention}
SHORT = (1, 1, 1, 1)
SIZES = {"num_classes": 10, "width": 16}


@pytest.mark.parametrize("windows", ["unfold", "im2col"])
@pytest.mark.parametrize("height, width, kernel_size", [(8, 8, 7), (2, 3, 5)])
def test_attention_and_its_gradients(height, width, kernel_size, windows):
    rng = np.random.default_rng(0)
    shapes = [(2, height, width, 2, 8)] * 3 + [(kernel_size, 4)] * 2
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    cotangent = rng.normal(size=shapes[0]).astype(np.float32)

    @jax.jit
    def ours(cotangent, *inputs):
        output, pullback = jax.vjp(partial(reference, border="zero"), *inputs)
        return output, pullback(cotangent)

    def theirs(cotangent, *inputs):
        tensors = [channels_first(x).requires_grad_() for x in inputs]
        output = torch_attention.local_attention(
            *tensors, windows=getattr(torch_attention, windows)
        )
        output.backward(channels_first(cotangent))
        return output.detach(), [tensor.grad for tensor in tensors]

    output, gradients = ours(cotangent, *inputs)
    found, found_gradients = theirs(cotangent, *inputs)
    np.testing.assert_allclose(found, channels_first(output), rtol=1e-5, atol=1e-5)
    for wanted, gradient in zip(gradients, found_gradients, strict=True):
        wanted = channels_first(wanted)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


def channels_first(array):
    """Moves the channels of images, or heads and head_dim of maps, to the front."""
    array = np.asarray(array)
    if array.ndim == 2:
        return torch.tensor(array)
    return torch.tensor(np.moveaxis(array, (1, 2), (-2, -1)))


def draw(blocks, operator, *, channels, seed):
    """A network and variables of which no part is left at its usual start."""
    spatial = (SPATIAL[operator],) * 4
    model = ResNet(blocks, spatial, **SIZES, axis_name=AXIS)
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        noise = rng.normal(size=shape.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(np.prod(shape.shape[:-1])) ** -0.5
        return 0.1 * noise + (path[-1].key in ("scale", "var"))

    init = partial(model.init, train=False)
    images = jnp.zeros((1, 8, 8, channels))
    variables = jax.eval_shape(init, jax.random.key(0), images)
    return model, jax.tree_util.tree_map_with_path(leaf, variables)


def load(blocks, operator, variables, *, channels):
    """The same network in torch."""
    model = torch_resnet.ResNet(blocks, (operator,) * 4, **SIZES, channels=channels)
    return torch_resnet.load_flax(model, variables)


# In training, rounding grows: BatchNorm in the last stage sees two pixels a channel.
@pytest.mark.parametrize(
    "blocks, side, train, tolerance",
    [
        (BLOCKS[26], 8, False, 1e-4),
        (BLOCKS[26], 8, True, 1e-2),
        (SHORT, 7, False, 1e-4),  # with partial windows of the pooling
    ],
)
def test_logits(blocks, side, train, tolerance):
    model, variables = draw(blocks, "attention", channels=3, seed=0)
    images = np.random.default_rng(1).normal(size=(2, side, side, 3))
    images = images.astype(np.float32)

    def apply(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    ours = jax.jit(jax.vmap(apply, in_axes=(None, 0), axis_name=AXIS))
    wanted = ours(variables, images[None])[0]
    theirs = load(blocks, "attention", variables, channels=3).train(train)
    found = theirs(channels_first(images)).detach()
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["resnet50", "resnet38_attention_conv1"])
def test_models_of_the_table_have_the_same_parameters(name):
    init = partial(create_model(name, **SIZES).init, train=False)
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    wanted = {name: leaf.shape for name, leaf in torch_resnet.to_torch(zeros).items()}
    model = torch_resnet.create_model(name, **SIZES)
    assert {name: p.shape for name, p in model.named_parameters()} == wanted


@pytest.mark.slow
def test_two_joint_steps():
    """Of one device, without augmentation, in which everything counts."""
    spec = DATASETS["digits"]
    config = alite_jax.get_config(
        "digits",
        {
            "student.optimizer.warmup_epochs": 0.0,
            "student.optimizer.clip_norm": 0.2,
            "student.optimizer.weight_decay": 0.01,
            "student.optimizer.nesterov": True,
        },
    ).student.optimizer
    objective = Objective(alpha=0.7, temperature=3.0, label_smoothing=0.1)
    student, variables = draw(SHORT, "attention", channels=1, seed=0)
    teacher, teacher_variables = draw(SHORT, "conv", channels=1, seed=1)
    batch = random_split(16)
    optimizer = create_optimizer(config, steps_per_epoch=1000, epochs=100)
    masks = jax.jit(partial(init_masks, density=0.1))(
        jax.random.key(0), variables["params"]
    )
    params = jax.tree.map(np.multiply, masks, variables["params"])
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
        masks=masks,
    )
    assert density(state.masks) == pytest.approx(0.1, abs=0.01)

    peers = [load(SHORT, "attention", state.variables, channels=1) for _ in range(2)]
    frozen = load(SHORT, "conv", teacher_variables, channels=1)
    joint, alone = (
        torch_resnet.JointStep(
            peer,
            teacher,
            torch_resnet.to_torch(state.masks),
            objective=objective,
            optimizer=config,
            dataset=spec,
            crop_padding=0,
            flip=False,
        )
        for peer, teacher in zip(peers, (frozen, None), strict=True)
    )
    before = {name: leaf.clone() for name, leaf in frozen.state_dict().items()}
    step = JointStep(
        student,
        teacher,
        optimizer,
        objective,
        spec,
        augment=unaugmented,
        key=jax.random.key(1),
    ).train_step
    step = jax.jit(jax.vmap(step, in_axes=(None, None, 0), axis_name=AXIS))
    start = torch_resnet.to_torch(state.params)
    for number in range(2):
        shard = {"image": batch.images[None], "label": batch.labels[None]}
        state, metrics = step(state, teacher_variables, shard)
        state, metrics = jax.tree.map(lambda x: np.asarray(x[0]), (state, metrics))
        assert metrics["gradient_norm"] > config.clip_norm
        loss = joint.step(batch.images, batch.labels)
        assert loss == pytest.approx(metrics["loss"], rel=1e-4)
        if number == 0:
            loss = alone.step(batch.images, batch.labels)
            assert loss == pytest.approx(metrics["task_loss"], rel=1e-4)
    found = dict(peers[0].named_parameters())
    masks = torch_resnet.to_torch(state.masks)
    for name, wanted in torch_resnet.to_torch(state.params).items():
        updates = [leaf.detach() - start[name] for leaf in (found[name], wanted)]
        scale = float(updates[1].abs().max())
        tolerance = 5e-3 * scale + 1e-6  # the latter is rounding of weights near 1
        np.testing.assert_allclose(*updates, atol=tolerance, err_msg=name)
        assert not found[name][~masks.get(name, torch.tensor(True))].any()
    # Running variances differ by design; see the peer's docstring.
    buffers = dict(peers[0].named_buffers())
    for name, wanted in torch_resnet.to_torch(state.batch_stats).items():
        if name.endswith("mean"):
            np.testing.assert_allclose(buffers[name], wanted, rtol=1e-3, atol=1e-4)
    for name, leaf in frozen.state_dict().items():
        assert torch.equal(leaf, before[name]), name


def test_augmented_images_are_crops_of_the_padded_ones():
    images = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(100, axis=0)
    torch.manual_seed(0)
    found = torch_resnet.augment(torch.tensor(images), crop_padding=1, flip=True)
    padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)))
    crops = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    views = {view.tobytes() for crop in crops for view in (crop, crop[:, ::-1])}
    assert {image.numpy().tobytes() for image in found} == views
