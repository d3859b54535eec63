"""The configuration: every file, every way to change it, every sentence about a mistake."""

import json
import re
import tomllib
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import alite_jax
from alite_jax.config import (
    apply_arguments,
    config_names,
    default_config,
    describe_difference,
    flatten,
    get_config,
    override,
    validate,
    validation,
)
from alite_jax.config import files as config_files
from alite_jax.config.run_config import from_json, to_json
from alite_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DIFFS = [name for name in config_names() if name != "default"]


def values(config: ConfigDict, *keys: str) -> list[object]:
    flat = flatten(config)
    return [flat[key] for key in keys]


# The files.


def test_the_default_is_the_full_size_recipe():
    config = get_config("default")
    assert values(config, "teacher.model", "teacher.width") == ["resnet50", 64]
    assert values(config, "student.model", "student.kernel_size", "student.heads") == [
        "resnet26_attention",
        7,
        8,
    ]
    assert values(config, "distillation.alpha", "distillation.temperature") == [0.9, 4]
    assert values(config, "student.density", "pruning.method") == [
        0.1,
        "sparse_momentum",
    ]
    for network in (config.teacher, config.student):
        assert network.epochs == 200
        assert network.optimizer.to_dict() == {
            "name": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "beta2": 0.999,
            "nesterov": True,
            "weight_decay": 5e-4,
            "clip_norm": 5.0,
            "warmup_epochs": 5.0,
            "schedule": "cosine",
            "step_epochs": (80, 120, 160),
            "step_factor": 0.1,
            "label_smoothing": 0.0,
        }


def test_every_field_of_the_default_has_a_comment():
    lines = (ROOT / "configs/default.py").read_text().splitlines()
    commented = False
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            commented = True
        elif not re.match(r"\w+\.\w+ = (?!.*ConfigDict)", stripped):
            commented = False
        elif not stripped.startswith("student.") and "_sgd()" not in stripped:
            assert commented, f"no comment above: {stripped}"


@pytest.mark.parametrize("name", DIFFS)
def test_a_config_file_is_a_small_diff_with_its_command(name):
    config = get_config(name)
    named = "cifar10" if name == "tfds" else name.removesuffix("_cpu")
    assert config.data.name == named
    assert config.is_locked
    assert len(describe_difference(config)) <= 20
    docstring = (ROOT / f"configs/{name}.py").read_text().split('"""')[1]
    assert f"python launch.py --config=configs/{name}.py" in docstring
    assert "Cost:" in docstring and "Expected" in docstring


@pytest.mark.parametrize("name", DIFFS)
def test_smoke_is_small_but_trains_a_teacher_and_rewires_a_student(name):
    config = get_config(f"{name}:smoke")
    assert config.teacher.workdir == ""
    assert config.teacher.epochs == 1
    assert config.student.epochs == 2  # one rewiring, between the epochs
    assert config.student.width == config.teacher.width == 8
    assert config.student.density == get_config(name).student.density
    assert config.data.image_size in (0, 16)
    if config.data.name == "folder":  # However large, it is the user's own.
        return
    assert config.data.train_split == "train[:512]"
    assert re.fullmatch(r"(test|validation)\[:\d+\]", config.data.eval_split)


def test_every_config_file_can_be_found_in_each_way(tmp_path, monkeypatch):
    by_name = get_config("cifar100:density=0.05")
    assert get_config("configs/cifar100.py:density=0.05") == by_name
    assert get_config(f"{ROOT}/configs/cifar100.py:density=0.05") == by_name
    monkeypatch.chdir(tmp_path)
    assert get_config("configs/cifar100.py:density=0.05") == by_name
    assert get_config() == get_config("digits")


def test_a_file_of_the_user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from alite_jax.config import apply_arguments, default_config\n"
        "def get_config(arg=''):\n"
        "    config = default_config()\n"
        "    config.student.width = 32\n"
        "    return apply_arguments(config, arg, {'data.name': 'digits'})\n"
    )
    config = get_config(f"{path}:smoke,width=24", {"seed": 7})
    assert values(config, "student.width", "data.name", "seed") == [24, "digits", 7]
    assert get_config(str(path)).student.width == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"mine\.py defines no function get_config\(\)"),
        ("def get_config(): return 3\n", "must return a ConfigDict, found int"),
        ("def get_config(arg: return\n", r"mine\.py, line 1 fails: SyntaxError"),
        ("import no_such_module\n", r"line 1 fails: ModuleNotFoundError: No module"),
        (
            "from alite_jax.config import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.student.widht = 3\n",
            r"mine\.py, line 4 fails: AttributeError: .*widht",
        ),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): return ConfigDict({'seed': 3})\n",
            "the configuration lacks 'checkpoint.every_steps'",
        ),
        (
            "from alite_jax.config import default_config\n"
            "def get_config():\n"
            "    config = default_config().unlock()\n"
            "    config.student.widht = 3\n"
            "    return config\n",
            "unknown field 'student.widht'; did you mean 'student.width'",
        ),
        (
            "from alite_jax.config import *\n"
            "def get_config(): return override(default_config(), 'seed=-1')\n",
            "^seed must be at least 0, found -1$",
        ),
        (
            "from alite_jax.errors import ConfigError\nraise ConfigError('mine')\n",
            "^mine$",
        ),
    ],
)
def test_a_mistake_in_a_config_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        get_config(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", "unknown config 'cifr10'; did you mean 'cifar10' or 'cifar100'"),
        ("imagenet22k", "unknown config 'imagenet22k'"),
        ("mnt/x.py", r"config file mnt/x\.py does not exist, give a path or one of"),
        ("default:smoke", r"default\.py takes no argument, found 'smoke'"),
    ],
)
def test_an_unknown_config(name, message):
    with pytest.raises(ConfigError, match=message):
        get_config(name)


def test_no_config_files_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(
        config_files, "__file__", str(tmp_path / "alite_jax" / "config" / "x.py")
    )
    with pytest.raises(ConfigError, match="no config files found beside .*reinstall"):
        get_config("digits")


def test_the_config_files_of_an_installation_come_first(tmp_path, monkeypatch):
    for folder in (tmp_path / "configs", tmp_path / "alite_jax" / "configs"):
        folder.mkdir(parents=True)
        (folder / "default.py").touch()
    monkeypatch.setattr(
        config_files, "__file__", str(tmp_path / "alite_jax" / "config" / "x.py")
    )
    assert config_files.config_directory() == tmp_path / "alite_jax" / "configs"


# Arguments after the colon.


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        ("", {}),
        (" , ", {}),
        ("student=resnet38_attention", {"student.model": "resnet38_attention"}),
        ("teacher=resnet38", {"teacher.model": "resnet38"}),
        (
            "density=0.05, kernel_size=3",
            {"student.density": 0.05, "student.kernel_size": 3},
        ),
        (
            "border=mask,method=static",
            {"student.border": "mask", "pruning.method": "static"},
        ),
        ("width=32", {"teacher.width": 32, "student.width": 32}),
        ("width=32,teacher_width=64", {"teacher.width": 64, "student.width": 32}),
        ("stem=attention", {"student.stem": "attention"}),
        ("batch_size=32,image_size=16", {"data.batch_size": 32, "data.image_size": 16}),
        ("seed=2", {"seed": 2}),
        ("density=0.05,density=0.03", {"student.density": 0.03}),
        ("epochs=100", {"teacher.epochs": 100, "student.optimizer.warmup_epochs": 5}),
        ("epochs=5", {"student.epochs": 5, "student.optimizer.warmup_epochs": 1}),
        ("smoke,width=16", {"student.width": 16, "student.epochs": 2}),
        ("epochs=3,smoke", {"student.epochs": 3, "teacher.epochs": 3}),
    ],
)
def test_arguments(argument, fields):
    config = apply_arguments(default_config(), argument)
    assert {key: flatten(config)[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("densty=0.1", "unknown config argument 'densty=0.1'; did you mean 'density'"),
        ("smok", "unknown config argument 'smok'; did you mean 'smoke'"),
        ("student.width=3", "unknown config argument 'student.width=3'; did you mean"),
        ("smoke=1", "unknown config argument 'smoke=1'"),
        ("density", "config argument 'density' needs a value, as in density="),
        ("density=0", "student.density must be above 0 and at most 1"),
        ("kernel_size=4", "student.kernel_size must be odd"),
        ("epochs=0", "epochs must be at least 1, found 0"),
        ("epochs=2.5", "epochs must be a whole number"),
        ("student=resnet27", "student.model has no choice 'resnet27'; did you mean"),
        ("stem=atention", "student.stem has no choice 'atention'; did you mean"),
    ],
)
def test_wrong_arguments(argument, message):
    with pytest.raises(ConfigError, match=message):
        apply_arguments(default_config(), argument)


# Overrides.


@pytest.mark.parametrize(
    "overrides",
    [
        {"student.density": 0.25, "student.optimizer.step_epochs": (3, 4)},
        {"student": {"density": 0.25, "optimizer": {"step_epochs": [3, 4]}}},
        {"student": {"density": "25e-2", "optimizer.step_epochs": "3,4"}},
        ["student.density=0.25", "student.optimizer.step_epochs=(3, 4)"],
        ["student.density=1", {"student.density": 0.25}, "student.optimizer.step_epochs=3,4,"],
        ConfigDict({"student": {"density": 0.25, "optimizer": {"step_epochs": (3, 4)}}}),
    ],
    ids=["dotted", "nested", "nested texts", "texts", "mixed", "ConfigDict"],
)  # fmt: skip
def test_all_forms_of_override_mean_the_same(overrides):
    before = get_config("digits")
    recorded = to_json(before)
    after = override(before, overrides)
    assert describe_difference(after, before) == {
        "student.density": (before.student.density, 0.25),
        "student.optimizer.step_epochs": ((80, 120, 160), (3, 4)),
    }
    assert after.is_locked
    assert to_json(before) == recorded, "the input has changed"


def test_overrides_of_nothing_make_an_independent_copy():
    before = get_config("digits")
    for nothing in (None, {}, [], ()):
        after = override(before, nothing)
        assert after == before
        after.student.optimizer.momentum = 0.5
        assert before.student.optimizer.momentum == 0.9


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("student.epochs", "100", 100),
        ("student.epochs", "1e2", 100),
        ("student.epochs", " 100 ", 100),
        ("student.epochs", np.int64(100), 100),
        ("student.density", "0.05", 0.05),
        ("student.density", "1", 1.0),
        ("student.density", 1, 1.0),
        ("student.density", np.float32(0.5), 0.5),
        ("data.flip", "true", True),
        ("data.flip", "False", False),
        ("data.flip", "0", False),
        ("data.flip", True, True),
        ("student.optimizer.step_epochs", "", ()),
        ("student.optimizer.step_epochs", "[8, 9]", (8, 9)),
        ("student.optimizer.step_epochs", "8", (8,)),
        ("data.train_split", "train[:90%]", "train[:90%]"),
        ("data.train_split", "a=b", "a=b"),
        ("data.data_dir", Path("some/folder"), "some/folder"),
        ("data.data_dir", "1", "1"),
        # NumPy's and JAX's scalars and arrays.
        ("data.flip", np.True_, True),
        ("data.flip", np.array(False), False),
        ("data.flip", jnp.array(True), True),
        ("seed", np.uint8(7), 7),
        ("seed", np.array(7), 7),
        ("seed", jnp.int32(7), 7),
        ("student.density", np.array(0.25), 0.25),
        ("student.density", np.longdouble(0.25), 0.25),
        ("student.density", jnp.bfloat16(0.25), 0.25),
        ("student.density", jnp.array(1), 1.0),
        ("student.density", Fraction(1, 4), 0.25),
        ("data.name", np.str_("cifar10"), "cifar10"),
        ("data.name", np.array("cifar10"), "cifar10"),
        ("student.optimizer.step_epochs", np.array([8, 9]), (8, 9)),
        ("student.optimizer.step_epochs", jnp.array([8, 9]), (8, 9)),
        ("student.optimizer.step_epochs", [np.int64(8), np.array(9)], (8, 9)),
        ("student.optimizer.step_epochs", np.array([]), ()),
        ("student.optimizer.step_epochs", np.array("8,9"), (8, 9)),
    ],
)
def test_values_take_the_type_of_their_field(key, value, expected):
    overrides = [{key: value}]
    if isinstance(value, str):
        overrides.append([f"{key}={value}"])
    for changes in overrides:
        found = flatten(override(default_config(), changes))[key]
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # Names.
        ("student.densty=1", r"^unknown field 'student\.densty'; did you mean 'student\.density'"),
        ("width=2", "unknown field 'width'; valid names: student.width, teacher.width"),
        ("data.qqq=2", "unknown field 'data.qqq'; valid names: data.batch_size, data.crop_area"),
        ("zzz=1", "unknown field 'zzz'; valid names: checkpoint, compute, data, distillation"),
        ({"student.density": {"a": 1}}, "unknown field 'student.density.a'; did you mean"),
        ("student=1", "student is a section of the configuration, set one of its fields"),
        ("seed", "override 'seed' must be written as key=value"),
        # Types.
        ("student.epochs=3.5", r"^student\.epochs must be a whole number \(int\), found '3\.5' \(str\)$"),
        ({"student.epochs": 3.0}, r"whole number \(int\), found 3\.0 \(float\)"),
        ({"student.epochs": True}, r"whole number \(int\), found True \(bool\)"),
        ({"student.epochs": None}, r"whole number \(int\), found None \(NoneType\)"),
        ("student.epochs=", r"whole number \(int\), found ''"),
        ("student.epochs=inf", r"whole number \(int\), found 'inf'"),
        ({"student.density": "much"}, r"finite number \(float\), found 'much' \(str\)"),
        ({"student.density": True}, r"finite number \(float\), found True \(bool\)"),
        ({"student.density": [0.1]}, r"finite number \(float\), found \[0\.1\] \(list\)"),
        ("student.density=nan", "finite number"),
        ({"student.density": float("inf")}, "finite number"),
        ("data.flip=yes", r"data\.flip must be true or false \(bool\), found 'yes'"),
        ({"data.flip": 1}, r"true or false \(bool\), found 1 \(int\)"),
        ({"data.name": 3}, r"data\.name must be a text \(str\), found 3 \(int\)"),
        ("student.optimizer.step_epochs=3,x", "must be a tuple of whole numbers"),
        ({"seed": np.True_}, r"whole number \(int\), found True \(bool\)"),
        ({"seed": np.float64(1)}, r"whole number \(int\), found 1\.0 \(float\)"),
        ({"seed": np.array([1])}, r"whole number \(int\), found \[1\] \(list\)"),
        ({"seed": np.array("x")}, r"whole number \(int\), found 'x' \(str\)"),
        ({"seed": [np.int64(3)]}, r"whole number \(int\), found \[3\] \(list\)"),
        ({"seed": np.arange(999)}, r"found \[0, 1, .*, 2\.\.\. \(list\)$"),
        ({"data.flip": np.array([0.5])}, r"true or false \(bool\), found \[0\.5\] \(list\)"),
        ({"data.flip": np.int64(1)}, r"true or false \(bool\), found 1 \(int\)"),
        ({"data.name": np.array(["cifar10"])}, r"a text \(str\), found \['cifar10'\] \(list\)"),
        ({"student.density": np.float64("nan")}, r"finite number \(float\), found nan \(float\)"),
        ({"student.density": np.complex64(1)}, r"finite number .* found \(1\+0j\) \(complex\)"),
        ({"student.density": jnp.array([0.5])}, r"finite number .* found \[0\.5\] \(list\)"),
        ({"student.density": 10**400}, r"finite number .* found 1000*\.\.\. \(int\)"),
        ({"student.optimizer.step_epochs": np.array([1.0, 2.0])}, r"whole numbers .* found \[1\.0, 2\.0\]"),
        ({"student.optimizer.step_epochs": np.array([True])}, r"whole numbers .* found \[True\]"),
        ({"student.optimizer.step_epochs": np.array([[1, 2]])}, r"whole numbers .* found \[\[1, 2\]\]"),
        ({"student.optimizer.step_epochs": np.array(3)}, r"whole numbers .* found 3 \(int\)"),
        ({"compute.dtype": np.float32}, r"a text \(str\), found <class 'numpy.float32'> \(type\)"),
        ({"student.optimizer.step_epochs": 3}, "must be a tuple of whole numbers"),
        # Limits.
        ("seed=-1", "seed must be at least 0, found -1"),
        ("data.batch_size=0", "data.batch_size must be at least 1"),
        ("data.eval_batch_size=0", "data.eval_batch_size must be at least 1"),
        ("data.image_size=-1", "data.image_size must be at least 0"),
        ("data.crop_padding=-1", "data.crop_padding must be at least 0"),
        ("data.crop_area=0", "data.crop_area must be above 0 and at most 1, found 0.0"),
        ("data.crop_aspect=0.9", "data.crop_aspect must be at least 1, found 0.9"),
        ("data.view=resize_crop", "has no choice 'resize_crop'; did you mean 'resiz"),
        ("teacher.stem=attention", "teacher.stem has no choice 'attention'; .*imagenet"),
        ("teacher.width=0", "teacher.width must be at least 1"),
        ("student.width=-8", "student.width must be at least 1"),
        ("teacher.epochs=0", "teacher.epochs must be at least 1"),
        ("student.kernel_size=4", "student.kernel_size must be odd and at least 1, found 4"),
        ("student.kernel_size=-1", "student.kernel_size must be odd and at least 1"),
        ("student.heads=0", "student.heads must be at least 1"),
        ("student.density=0", "student.density must be above 0 and at most 1, the fraction"),
        ("student.density=1.01", "student.density must be above 0 and at most 1"),
        ("student.optimizer.learning_rate=0", "learning_rate must be above 0"),
        ("student.optimizer.momentum=1", "momentum must be at least 0 and below 1"),
        ("student.optimizer.weight_decay=-1", "weight_decay must be at least 0"),
        ("student.optimizer.clip_norm=-1", "clip_norm must be at least 0"),
        ("student.optimizer.warmup_epochs=-1", "warmup_epochs must be at least 0"),
        ("student.optimizer.step_factor=0", "step_factor must be above 0 and at most 1"),
        ("student.optimizer.label_smoothing=1", "label_smoothing must be at least 0 and"),
        ("pruning.prune_rate=2", "pruning.prune_rate must be between 0 and 1"),
        ("pruning.prune_rate_end=-1", "pruning.prune_rate_end must be between 0 and 1"),
        ("distillation.alpha=1.5", "distillation.alpha must be between 0 and 1"),
        ("distillation.temperature=0", "distillation.temperature must be above 0"),
        ("distillation.temperature_end=-1", r"distillation.temperature_end must be at least 0 \(0: stays\)"),
        ("distillation.alpha_end=1.5", r"distillation.alpha_end must be at most 1 \(below 0: stays\)"),
        ("distillation.alpha_dkd=-1", "distillation.alpha_dkd must be at least 0"),
        ("distillation.feature_weight=-1", "distillation.feature_weight must be at least 0"),
        ("pruning.every_steps=-1", "pruning.every_steps must be at least 0"),
        ("pruning.stop_fraction=0", "pruning.stop_fraction must be above 0 and at most 1"),
        ("compute.accumulation=0", "compute.accumulation must be at least 1"),
        ("logging.every_steps=0", "logging.every_steps must be at least 1"),
        ("checkpoint.every_steps=-1", "checkpoint.every_steps must be at least 0"),
        ("checkpoint.keep=0", "checkpoint.keep must be at least 1"),
        # Choices.
        ("data.view=crops", "data.view has no choice 'crops'; did you mean 'crop'"),
        ("compute.dtype=float16", "compute.dtype has no choice 'float16'; did you mean"),
        ("teacher.model=resnet51", "teacher.model has no choice 'resnet51'; did you mean"),
        ("student.model=vit", "student.model has no choice 'vit'; valid names: resnet101"),
        ("student.border=zeros", "student.border has no choice 'zeros'; did you mean 'zero'"),
        ("pruning.method=sparse_momentun", "pruning.method has no choice .* did you mean 'sparse_momentum'"),
        ("pruning.distribution=erd", "pruning.distribution has no choice 'erd'; did you mean 'erk'"),
        ("pruning.method=gradul", "pruning.method has no choice 'gradul'; did you mean 'gradual'"),
        ("distillation.loss=dk", "distillation.loss has no choice 'dk'; did you mean 'dkd'"),
        ("distillation.schedule=step", "distillation.schedule has no choice 'step'; valid names: constant, cosine, linear"),
        ("pruning.prune_rate_schedule=cos", "pruning.prune_rate_schedule has no choice 'cos'"),
        ("teacher.optimizer.schedule=step", "did you mean 'steps'"),
        ("student.optimizer.schedule=linear", "student.optimizer.schedule has no choice"),
        # Fields that must fit one another.
        ("student.init_compact=true", "but student.init_workdir names no run"),
        ("student.epochs=5", r"warmup_epochs must be below student\.epochs \(5\), found 5$"),
        (["teacher.optimizer.schedule=steps", "teacher.epochs=160"],
         r"step_epochs must be increasing .* teacher\.epochs \(160\), found \(80, 120, 160\)"),
        (["student.optimizer.schedule=steps", "student.optimizer.step_epochs="], r"found \(\)"),
        (["student.optimizer.schedule=steps", "student.optimizer.step_epochs=9,8"], r"\(9, 8\)"),
        (["student.optimizer.schedule=steps", "student.optimizer.step_epochs=8,8"], r"\(8, 8\)"),
        (["student.optimizer.schedule=steps", "student.optimizer.step_epochs=0,8"], r"\(0, 8\)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(default_config(), overrides)
    assert "\n" not in str(caught.value)
    # The names of all models are nearly as long again.
    sentence, _, names = str(caught.value).partition("valid names: ")
    assert len(sentence) < 300 and len(names) < 300


def test_limits_and_choices_cover_fields_that_exist():
    fields = flatten(default_config())
    for limit in validation.LIMITS:
        assert any(fnmatch(field, limit.pattern) for field in fields), limit.pattern
    assert validation.choices().keys() <= fields.keys()
    numbers = {field for field, value in fields.items() if type(value) in (int, float)}
    for field in numbers:
        assert any(fnmatch(field, limit.pattern) for limit in validation.LIMITS), field


def test_steps_within_the_epochs_are_valid():
    config = override(default_config(), {"student.optimizer.schedule": "steps"})
    assert config.student.optimizer.step_epochs == (80, 120, 160)


# Validation, difference, JSON.


@pytest.mark.parametrize("value", [None, True, 0])
def test_validate_finds_what_assignment_lets_through(value):
    config = default_config()
    config.student.epochs = value
    with pytest.raises(ConfigError, match="student.epochs must be"):
        validate(config)


@pytest.mark.parametrize("name", config_names())
def test_every_config_survives_json(name):
    config = get_config(name)
    validate(config)
    text = to_json(config)
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert from_json(text) == config
    assert describe_difference(from_json(text), config) == {}


def test_difference_names_both_values():
    assert describe_difference(get_config("cifar100", "seed=2")) == {
        "data.name": ("cifar10", "cifar100"),
        "seed": (0, 2),
    }


def test_json_of_an_older_run_takes_what_held_then():
    before = {"seed": 5, "compute.dtype": "float32"}
    assert from_json('{"seed": 5}') == override(default_config(), before)


def test_a_configuration_of_before_is_read_without_the_fields_that_are_gone():
    before = {
        "seed": 5,
        "data": {"on_device": "always"},
        "compute": {"steps_per_dispatch": 8},
        "student": {"embedding_scale": 1.0, "norm_momentum": 0.9},
    }
    now = {"seed": 5, "compute.dtype": "float32"}
    assert from_json(json.dumps(before)) == override(default_config(), now)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the configuration is not valid JSON"),
        ("[]", "the configuration must be a JSON object, found list"),
        ('{"sed": 1}', "unknown field 'sed'; did you mean 'seed'"),
        ('{"seed": 1.5}', "seed must be a whole number"),
        (
            '{"student": {"embedding_scale": 3.0}}',
            "student.embedding_scale is 3.0, but no longer a field: .* commit 01aceb7",
        ),
    ],
)
def test_wrong_json(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


# The package.


def test_public_names():
    assert alite_jax.get_config is get_config
    assert alite_jax.override is override
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        alite_jax.tarin  # noqa: B018


def test_the_installation_contains_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent for path in (ROOT / "alite_jax").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = set(project["tool"]["setuptools"]["packages"])
    assert listed == packages | {"alite_jax.configs", "alite_jax.configs.studies"}
