"""Costs against numbers worked out beforehand, layer by layer and in total."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from networks import network

from alite_jax.counting.comparison import NetworkCosts, readings
from alite_jax.counting.cost import (
    Cost,
    layer_costs,
    network_cost,
    nominal_counts,
    total,
)
from alite_jax.counting.layers import trace_layers, trace_modules
from alite_jax.errors import ConfigError
from alite_jax.models.layers import Conv3x3, LocalSelfAttention, Pointwise
from alite_jax.models.resnet import MODELS, create_model
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masks import (
    count_nonzero,
    dense_masks,
    init_masks,
    is_prunable,
)
from alite_jax.trees import named_leaves

CIFAR = (32, 32, 3)
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}
DENSITIES = (0.1, 0.05, 0.03)


@functools.cache
def layers_of(name, dataset="cifar10", kernel_size=7, **options):
    options = options | {"num_classes": CLASSES[dataset], "kernel_size": kernel_size}
    side = 64 if dataset == "tiny_imagenet" else 32
    return trace_layers(create_model(name, **options), (side, side, 3))


def costs(name, dataset="cifar10", kernel_size=7, density=1.0, **options):
    layers = layers_of(name, dataset, kernel_size, **options)
    counts = layer_costs(layers, nominal_counts(layers, density))
    return NetworkCosts(name, density, counts)


def agrees(found, printed):
    """Whether a number is the printed one to its last digit, and a hair for halves."""
    return math.isclose(
        found, float(printed), abs_tol=0.501 * 10.0 ** -len(printed.split(".")[1])
    )


def uniform_masks(params, density):
    """Masks of exact counts; which weights they keep does not matter here."""

    def mask(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if not is_prunable(path, leaf):
            return np.ones((), bool)
        (count,) = layer_counts([leaf.shape], density, "uniform")
        mask = np.zeros(leaf.size, bool)
        mask[:count] = True
        return mask.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(mask, params)


# As printed for dense networks: millions of parameters, GMAC.
DENSE = [
    ("resnet50", "cifar10", "23.52 1.298"),
    ("resnet50", "cifar100", "23.71 1.298"),
    ("resnet50", "tiny_imagenet", "23.91 5.192"),
    ("resnet26", "cifar10", "11.66 .727"),
    ("resnet26", "cifar100", "11.84 .728"),
    ("resnet26", "tiny_imagenet", "12.05 2.910"),
    ("resnet38", "cifar10", "17.59 1.013"),
    ("resnet38", "cifar100", "17.78 1.013"),
    ("resnet38", "tiny_imagenet", "17.98 4.051"),
]


@pytest.mark.parametrize("name, dataset, printed", DENSE)
def test_convolutional_networks(name, dataset, printed):
    cost = costs(name, dataset).total
    millions, gmacs = printed.split()
    assert agrees(cost.parameters / 1e6, millions) and agrees(cost.macs / 1e9, gmacs)
    assert cost.core_macs == 0 and cost.nonzero_macs == cost.macs
    assert cost.dense_bytes == cost.packed_bytes == 4 * cost.parameters


# Students as printed: millions of parameters, GMAC, per cent of it in the core; how
# many times fewer parameters and MACs than ResNet-50; then at a density of 10, 5 and
# 3 % millions of non-zeros, and how many times fewer of them and of their MACs. Other
# data sets: their share of MACs is that of CIFAR-10.
STUDENTS = [
    "resnet26_attention 3 8.294 .647 1 2.84 2.01"
    " .857 27.4 18.1 .444 53.0 32.5 .279 84.4 47.9",
    "resnet26_attention 7 8.295 .679 6 2.84 1.91"
    " .858 27.4 12.5 .445 52.9 18.1 .280 84.1 22.1",
    "resnet26_attention_conv1 3 8.319 .671 - 2.83 1.93"
    " .860 27.4 17.8 .445 52.8 32.6 .279 84.2 49.0",
    "resnet26_attention_conv1 7 8.320 .697 5 2.83 1.86"
    " .860 27.3 13.1 .446 52.7 19.7 .280 83.9 24.7",
    "resnet26_attention_conv12 7 8.516 .693 2 2.76 1.87"
    " .880 26.7 15.6 .456 51.6 26.3 .286 82.2 36.3",
    "resnet38_attention 3 12.136 .834 - 1.94 1.56"
    " 1.252 18.8 14.0 .647 36.3 25.1 .405 58.0 36.9",
    "resnet38_attention 7 12.137 .876 6 1.94 1.48"
    " 1.253 18.8 9.6 .649 36.3 13.9 .407 57.8 16.8",
    "resnet38_attention_conv1 7 12.186 .913 4 1.93 1.42"
    " 1.258 18.7 10.3 .651 36.1 15.7 .408 57.6 20.0",
    "resnet50_attention 3 15.977 1.021 - 1.47 1.27"
    " 1.647 14.3 11.4 .851 27.6 20.4 .532 44.2 30.0",
    "resnet50_attention 7 15.979 1.074 6 1.47 1.21"
    " 1.649 14.3 7.8 .853 27.6 11.2 .534 44.0 13.6",
    "resnet50_attention_conv1 7 16.053 1.129 4 1.47 1.15"
    " 1.656 14.2 8.5 .856 27.5 13.1 .536 43.9 16.8",
]


@pytest.mark.parametrize("row", STUDENTS, ids=lambda row: " ".join(row.split()[:2]))
def test_students_on_cifar10(row):
    name, kernel_size, millions, gmacs, core, *printed = row.split()
    teacher = costs("resnet50")
    dense = costs(name, kernel_size=int(kernel_size))
    cost, pairs = dense.total, readings(teacher, dense)
    assert agrees(cost.parameters / 1e6, millions) and agrees(cost.macs / 1e9, gmacs)
    if core != "-":
        assert abs(100 * cost.core_macs / cost.macs - int(core)) < 0.51
    assert agrees(np.divide(*pairs["parameters"]), printed[0])
    assert agrees(np.divide(*pairs["macs"]), printed[1])
    for density, nonzero, fewer, fewer_macs in zip(
        DENSITIES, printed[2::3], printed[3::3], printed[4::3], strict=True
    ):
        student = costs(name, kernel_size=int(kernel_size), density=density)
        pairs = readings(teacher, student)
        assert agrees(student.total.nonzero_parameters / 1e6, nonzero), density
        assert agrees(np.divide(*pairs["nonzero_parameters"]), fewer), density
        assert agrees(np.divide(*pairs["nonzero_macs"]), fewer_macs), density


# The same on the other data sets, without MAC ratios.
OTHERS = [
    "resnet26_attention cifar100 8.479 .679 .877 27.0 .454 52.2 .285 83.1",
    "resnet26_attention tiny_imagenet 8.684 2.716 .897 26.7 .465 51.5 .291 82.0",
    "resnet26_attention_conv1 cifar100 8.504 .697 .879 27.0 .455 52.1 .286 82.9",
    "resnet26_attention_conv1 tiny_imagenet 8.709 2.789 .900 26.6 .466 51.3 .292 81.8",
    "resnet38_attention cifar100 12.322 .877 1.272 18.6 .658 36.0 .412 57.5",
    "resnet38_attention tiny_imagenet 12.527 3.506 1.292 18.5 .668 35.8 .419 57.1",
    "resnet50_attention cifar100 16.164 1.074 1.667 14.2 .862 27.5 .540 43.9",
    "resnet50_attention tiny_imagenet 16.369 4.296 1.688 14.2 .872 27.4 .546 43.8",
]


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: " ".join(row.split()[:2]))
def test_students_on_the_other_data_sets(row):
    name, dataset, millions, gmacs, *printed = row.split()
    teacher, cost = costs("resnet50", dataset), costs(name, dataset).total
    assert agrees(cost.parameters / 1e6, millions) and agrees(cost.macs / 1e9, gmacs)
    for density, nonzero, fewer in zip(
        DENSITIES, printed[::2], printed[1::2], strict=True
    ):
        student = costs(name, dataset, density=density)
        pairs = readings(teacher, student)
        assert agrees(student.total.nonzero_parameters / 1e6, nonzero), density
        assert agrees(np.divide(*pairs["nonzero_parameters"]), fewer), density
        # MACs shrink as on CIFAR-10, to the second digit.
        on_cifar10 = readings(costs("resnet50"), costs(name, density=density))
        ratios = [np.divide(*p["nonzero_macs"]) for p in (pairs, on_cifar10)]
        assert math.isclose(*ratios, rel_tol=0.02), density


@pytest.mark.parametrize(
    "dataset, millions",
    [
        ("cifar10", ".88 .46 .30"),
        ("cifar100", "1.06 .65 .48"),
        ("tiny_imagenet", "1.27 .85 .69"),
    ],
)
def test_a_dense_classifier_costs_its_absent_weights(dataset, millions):
    teacher = costs("resnet50", dataset)
    for density, printed in zip(DENSITIES, millions.split(), strict=True):
        student = costs("resnet26_attention", dataset, density=density)
        pairs = readings(teacher, student)
        size = 2048 * CLASSES[dataset]
        assert student.absent_from_classifier == size - round(density * size)
        assert agrees(pairs["classifier_dense"][1] / 1e6, printed)
        assert pairs["classifier_dense"][0] == teacher.total.parameters


def test_readings_of_30x():
    """What "30 times fewer parameters" may mean."""

    def ratio(reading, name, density, dataset="cifar10"):
        student = costs(name, dataset, density=density)
        return np.divide(*readings(costs("resnet50", dataset), student)[reading])

    assert agrees(ratio("weights", "resnet26_attention", 0.1), "28.4")
    assert agrees(ratio("weights", "resnet50_attention", 0.05), "29.5")
    tiny = ("resnet26_attention", "tiny_imagenet")
    for density, printed in ((0.1, "18.9"), (0.05, "28.0")):
        found = ratio("classifier_dense", tiny[0], density, tiny[1])
        assert agrees(found, printed)
    # The densities of 30x: everything counted, and weights only on both sides.
    for name, densities in (
        ("resnet26_attention", (0.091, 0.095)),
        ("resnet38_attention", (0.061, 0.065)),
        ("resnet50_attention", (0.046, 0.049)),
    ):
        for reading, density in zip(
            ("nonzero_parameters", "weights"), densities, strict=True
        ):
            ends = [ratio(reading, name, density + step) for step in (-6e-4, 6e-4)]
            assert ends[0] > 30 > ends[1], (name, reading)


def test_where_the_weights_of_the_student_are():
    """In the order of the printed shares: pointwise, projections, shortcuts."""
    student = costs("resnet26_attention")
    shares = {"reduce expand": 3.79, "query key value": 1.68, "shortcut": 2.77}
    for names, millions in shares.items():
        found = sum(
            cost.weights
            for path, cost in student.layers.items()
            if path.rsplit("/")[-1] in names.split()
        )
        assert abs(found / 1e6 - millions) < 0.00501
    last = total(c for path, c in student.layers.items() if path.startswith("stage4"))
    assert round(100 * last.weights / student.total.weights) == 54
    assert round(100 * last.macs / student.total.macs) == 20


def test_the_attention_stem_in_closed_form():
    dense = [costs("resnet26_attention", stem=stem) for stem in ("conv", "attention")]
    plain, stem = (cost.total for cost in dense)
    pixels, features = 32 * 32, 64
    # Query, key and four value kernels; q . k, four mixed values, weighted values.
    weights, window = 6 * 3 * features, (1 + 4 + 1) * 16 * features
    assert stem.weight_macs - plain.weight_macs == pixels * (weights - 27 * features)
    assert stem.core_macs - plain.core_macs == pixels * window
    assert stem.parameters - plain.parameters == weights + 3 * 4 * 16 - 27 * features
    assert (stem.parameters, stem.macs) == (8_294_690, 684_593_152)
    assert agrees(stem.parameters / 1e6, "8.295") and agrees(stem.macs / 1e9, "0.685")
    found = {
        path: (cost.weight_macs, cost.core_macs, cost.activations)
        for path, cost in dense[1].layers.items()
        if path.startswith("stem/") or path == "stem"
    }
    assert found == {
        "stem/query": (pixels * 3 * features, 0, 0),
        "stem/key": (pixels * 3 * features, 0, 0),
        "stem/value": (4 * pixels * 3 * features, 0, 0),
        "stem": (0, pixels * window, pixels * features),
    }


# The ImageNet form: ours, then what table 1 of arXiv 1906.05909 prints for its
# convolutional networks and for attention after the convolutional stem, k = 7: millions
# of parameters, and 1e9 FLOP, two for a MAC.
IMAGENET = [
    ("resnet26", 13_696_552, 2_342_256_640, 13.7, 4.7),
    ("resnet38", 19_626_792, 3_215_720_448, 19.6, 6.5),
    ("resnet50", 25_557_032, 4_089_184_256, 25.6, 8.2),
    ("resnet26_attention", 10_331_264, 2_193_685_504, 10.3, 4.5),
    ("resnet38_attention", 14_173_384, 2_798_381_568, 14.1, 5.7),
    ("resnet50_attention", 18_015_504, 3_403_077_632, 18.0, 7.0),
]


@pytest.mark.parametrize(
    "name, parameters, macs, millions, flops", IMAGENET, ids=lambda x: str(x)
)
def test_the_imagenet_form(name, parameters, macs, millions, flops):
    model = create_model(name, num_classes=1000, stem="imagenet")
    layers = trace_layers(model, (224, 224, 3))
    cost = total(layer_costs(layers, nominal_counts(layers, 1.0)).values())
    assert (cost.parameters, cost.macs) == (parameters, macs)
    assert abs(parameters / 1e6 - millions) < 0.08
    # The paper's fit `q . r` for each position of the window; here it is for each row
    # and column, which the same numbers follow from.
    window = 7**2
    positions = cost.core_macs * 3 * window // (2 * window + 7)
    assert abs(2 * (cost.weight_macs + positions) / 1e9 - flops) < 0.08


@pytest.mark.parametrize(
    "name, parameters, gmacs",
    [
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet101", 44_549_160, 7.80),
    ],
)
def test_the_networks_of_torchvision(name, parameters, gmacs):
    """Beside what its documentation has, where GFLOPS are those of multiply-adds."""
    layers = trace_layers(
        create_model(name, num_classes=1000, stem="imagenet"), (224, 224, 3)
    )
    cost = total(layer_costs(layers, nominal_counts(layers, 1.0)).values())
    assert cost.parameters == parameters
    assert abs(cost.macs / 1e9 - gmacs) < 0.006


def test_layers_by_hand():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = Conv3x3(4, name="conv")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            x = LocalSelfAttention(8, stride=2, kernel_size=3, name="attention")(x)
            x = Pointwise(6, stride=2, name="pointwise")(x)
            return nn.Dense(10, name="classifier")(x.mean(axis=(1, 2)))

    layers = trace_modules(Small(), (8, 12, 3))
    assert {x.path: (x.weight, x.core, x.outputs) for x in layers} == {
        "conv": (96 * 9 * 3 * 4, 0, 96 * 4),
        "norm": (0, 0, 96 * 4),
        # Projections and core at the resolution of the input, before the pooling.
        "attention/query": (96 * 4 * 8, 0, 96 * 8),
        "attention/key": (96 * 4 * 8, 0, 96 * 8),
        "attention/value": (96 * 4 * 8, 0, 96 * 8),
        "attention": (0, 96 * 8 * (9 + 9 + 3), 24 * 8),
        # 4 x 6 pixels after the pooling, of which every other row and column is left.
        "pointwise": (2 * 3 * 8 * 6, 0, 6 * 6),
        "classifier": (6 * 10, 0, 10),
    }
    counted = layer_costs(layers, nominal_counts(layers, 0.5))
    # 108 weights, of which 54 are kept, and a bit for each.
    assert counted["conv"] == Cost(
        parameters=108,
        nonzero_parameters=54,
        weights=108,
        nonzero_weights=54,
        weight_macs=96 * 108,
        nonzero_macs=96 * 54,
        activations=384,
        dense_bytes=432,
        packed_bytes=216 + 14,
    )
    assert counted["norm"] == Cost(
        parameters=8,
        nonzero_parameters=8,
        activations=384,
        dense_bytes=32,
        packed_bytes=32,
    )
    # 10 biases stay, and half of 60 weights with 60 bits.
    classifier = counted["classifier"]
    assert classifier.nonzero_parameters == 10 + 30
    assert classifier.packed_bytes == 4 * 40 + 8
    assert classifier.nonzero_macs == 30


# Models whose stem is counted as attention in the quick tests, too.
STEMS = ("resnet18", "resnet26_attention", "resnet50")


@pytest.mark.parametrize(
    ("name", "stem"),
    [(name, "conv") for name in MODELS]
    + [
        pytest.param(
            name, "attention", marks=() if name in STEMS else pytest.mark.processes
        )
        for name in MODELS
    ],
)
def test_every_parameter_is_counted_once(name, stem):
    """Although blocks that were met before are not traced again."""
    model, params = network(name, width=8, stem=stem)
    layers = trace_layers(model, (1, 1, 3))
    found = [
        (f"{layer.path}/{leaf}", shape)
        for layer in layers
        for leaf, shape in layer.shapes.items()
    ]
    expected = {path: leaf.shape for path, leaf in named_leaves(params)}
    assert len(found) == len(expected) and dict(found) == expected
    assert layers[0].path.startswith("stem") and layers[-1].path == "classifier"
    order = [layer.path.split("/")[0] for layer in layers if "stage" in layer.path]
    assert list(dict.fromkeys(order)) == model.block_names


def test_a_block_is_known_by_all_that_decides_its_layers():
    """Not by its name: the same place holds something else in another network."""
    seen = set()
    for name, kernel_size, side in (
        ("resnet26_attention_conv12", 3, 8),
        ("resnet26_attention", 3, 8),
        ("resnet26_attention", 5, 4),
    ):
        model = create_model(name, num_classes=10, kernel_size=kernel_size, width=8)
        layers = trace_layers(model, (side, side, 3))
        macs = sum(layer.weight + layer.core for layer in layers)
        assert macs == macs_of_modules(model, side)
        seen.add(macs)
    assert len(seen) == 3


def macs_of_modules(model, side):
    """MACs by calling the operators' own modules, without a memory of blocks."""
    found = 0

    def record(call, args, kwargs, context):
        nonlocal found
        module, output = context.module, call(*args, **kwargs)
        if isinstance(module, (Conv3x3, Pointwise, nn.Dense)):
            kernel = module.variables["params"]["kernel"]
            found += math.prod(output.shape[1:-1]) * kernel.size
        elif isinstance(module, LocalSelfAttention):
            window = 2 * module.kernel_size**2 + module.kernel_size
            products = 3 * args[0].shape[-1] + window
            found += math.prod(args[0].shape[1:-1]) * module.features * products
        return output

    def run(key):
        with nn.intercept_methods(record):
            return model.init(key, np.zeros((1, side, side, 3)), train=False)

    jax.eval_shape(run, jax.random.key(0))
    return found


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("stem", ["conv", "attention"])
def test_nominal_counts_are_those_of_new_masks(distribution, stem):
    model, params = network("resnet26_attention_conv1", width=8, stem=stem)
    counts = nominal_counts(trace_layers(model, CIFAR), 0.07, distribution)
    kernels = [pair for pair in named_leaves(params) if is_prunable(*pair)]
    paths, shapes = [path for path, _ in kernels], [leaf.shape for _, leaf in kernels]
    # `init_masks` draws these counts; drawing them takes long and shows no more.
    drawn = dict(zip(paths, layer_counts(shapes, 0.07, distribution), strict=True))
    assert {path: counts[path] for path in paths} == drawn
    for path, leaf in named_leaves(params):
        if path not in drawn:
            assert counts[path] == leaf.size
        elif distribution == "uniform":
            assert counts[path] == max(1, round(0.07 * leaf.size))


def test_real_and_nominal_masks_cost_the_same():
    model, params = network("resnet26_attention_conv1", kernel_size=3, width=8)
    draw = functools.partial(init_masks, params=params, density=0.1)
    masks = jax.jit(draw)(jax.random.key(0))
    found = network_cost(model, CIFAR, {"params": params, "masks": masks})
    layers = trace_layers(model, CIFAR)
    cost = total(layer_costs(layers, nominal_counts(layers, 0.1)).values())
    assert found == {name: getattr(cost, name) for name in found}
    assert found["nonzero_parameters"] == count_nonzero(masks, params)


def test_a_nominal_density_outside_its_range_is_an_error():
    model, _ = network("resnet26", width=8)
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        nominal_counts(trace_layers(model, CIFAR), 0.0)


@pytest.fixture
def small():
    return network("resnet26_attention_conv1", kernel_size=3, width=8)


def test_without_pruning_nothing_is_saved(small):
    model, params = small
    for masks in (dense_masks(params), uniform_masks(params, 1.0)):
        cost = network_cost(model, CIFAR, {"params": params, "masks": masks})
        assert cost["nonzero_macs"] == cost["macs"]
        assert cost["nonzero_parameters"] == cost["parameters"]
        assert all(type(value) is int for value in cost.values())


@pytest.mark.parametrize(
    "path, macs_of_a_weight",
    [
        (("stem",), 32 * 32),
        (("stage1_block1", "spatial"), 32 * 32),
        (("stage2_block1", "spatial", "key"), 32 * 32),
        (("stage2_block1", "expand"), 16 * 16),
        (("stage3_block1", "shortcut"), 8 * 8),
        (("classifier",), 1),
    ],
)
def test_an_absent_weight_saves_its_own_macs_only(small, path, macs_of_a_weight):
    model, params = small
    masks = uniform_masks(params, 1.0)
    leaf = functools.reduce(lambda tree, key: tree[key], path, masks)["kernel"]
    leaf.reshape(-1)[:5] = False
    cost = network_cost(model, CIFAR, {"params": params, "masks": masks})
    assert cost["macs"] - cost["nonzero_macs"] == 5 * macs_of_a_weight
    assert cost["parameters"] - cost["nonzero_parameters"] == 5


def test_the_attention_core_is_never_saved(small):
    model, params = small
    masks = jax.tree.map(np.zeros_like, uniform_masks(params, 1.0))
    cost = network_cost(model, CIFAR, {"params": params, "masks": masks})
    assert cost["nonzero_macs"] == sum(x.core for x in trace_layers(model, CIFAR)) > 0
